//! Store: what control must not lose, by name, with compare-and-swap.
//!
//! Everything else is derived or reported anew. An object is a few KiB to 1 MiB of bytes. A
//! write says what it expects to replace, so that two replicas cannot undo each other's
//! work; what is secret is readable by its owner only.

mod folder;
mod kubernetes;

use std::{fmt, sync::LazyLock};

use async_trait::async_trait;
use remora::telemetry::words;
use remora_certs::folder::Content;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use zeroize::Zeroizing;

pub(crate) use remora_kubernetes::Expected;

pub(crate) use self::folder::Folder;

/// What an object is; decides where it is kept, and whether it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// As names of folders and of Kubernetes objects have it.
    name: &'static str,
    /// Whether only its owner may read it.
    secret: bool,
}

/// The name of an object: lower-case letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

/// A moment of an object; changes with each write.
pub(crate) type Version = String;

/// What an object holds, and the moment of it; nothing where there is none.
pub(crate) type Found<T> = Option<(T, Version)>;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody else wrote meanwhile; nothing was written.
    #[error("`{0}` was changed by another meanwhile")]
    Conflict(Key),
    /// The file system or the API server said no: what to do to which, and why not.
    #[error("cannot {0} `{1}`: {2}")]
    Failed(&'static str, Key, String),
}

/// Where objects are: a [`Folder`], or Secrets and ConfigMaps of a namespace of Kubernetes.
pub(crate) type Store = dyn Objects;

/// What any store can do.
#[async_trait]
pub(crate) trait Objects: fmt::Debug + Send + Sync {
    /// The object, if it is there.
    async fn get(&self, key: &Key) -> Result<Found<Content>, Error>;

    /// Writes the object whole, or not at all; durable when it returns.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when there is something else than `expected`.
    async fn put(&self, key: &Key, value: &[u8], expected: Expected<'_>) -> Result<Version, Error>;

    /// Removes the object; whether it was there.
    async fn remove(&self, key: &Key) -> Result<bool, Error>;

    /// The names of the objects of a kind, in order.
    async fn list(&self, kind: Kind) -> Result<Vec<String>, Error>;

    /// Whether this replica is the one that numbers policy and drives rotations.
    fn leads(&self) -> bool {
        true
    }

    /// Changes when another replica may have written a record ([`Kind::STATE`]), within a
    /// second of it; never where there is no other replica.
    fn changes(&self) -> watch::Receiver<u64> {
        static NEVER: LazyLock<watch::Sender<u64>> = LazyLock::new(watch::Sender::default);
        NEVER.subscribe()
    }
}

impl Kind {
    /// An issuer with its key; never changed.
    pub(crate) const AUTHORITY: Self = Self { name: "authority", secret: true };
    /// A join token's digest and what it is good for.
    pub(crate) const TOKEN: Self = Self { name: "token", secret: true };
    /// A generation of policy; never changed.
    pub(crate) const GENERATION: Self = Self { name: "generation", secret: false };
    /// What one replica knows of its sidecars.
    pub(crate) const FLEET: Self = Self { name: "fleet", secret: false };
    /// Records: `policy`, `rotation`.
    pub(crate) const STATE: Self = Self { name: "state", secret: false };

    /// The key of an object of this kind.
    pub(crate) fn key(self, name: impl Into<String>) -> Key {
        Key { kind: self, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name, self.name)
    }
}

impl Store {
    /// The object, if it is there, as the value that was written.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] also when it is damaged.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, key: &Key) -> Result<Found<T>, Error> {
        let Some((value, version)) = self.get(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&value).map_err(Error::failed("read", key))?;
        Ok(Some((value, version)))
    }

    /// Writes a value as the object: see [`Objects::put`].
    pub(crate) async fn put_json(
        &self,
        key: &Key,
        value: &(impl Serialize + Sync),
        expected: Expected<'_>,
    ) -> Result<Version, Error> {
        let text = json(value).map_err(Error::failed("write", key))?;
        self.put(key, &text, expected).await
    }
}

impl Error {
    /// That it cannot be done to `key`, and why.
    fn failed<E: std::error::Error>(verb: &'static str, key: &Key) -> impl Fn(E) -> Self {
        move |error| Self::Failed(verb, key.clone(), words(&error))
    }
}

/// A value in JSON.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<Content> {
    // Sized at once: a buffer that grows leaves copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
    serde_json::to_writer(&mut *text, value)?;
    Ok(text)
}
