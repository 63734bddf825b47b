//! Store: what control must not lose, by name, with compare-and-swap.
//!
//! Everything else is derived or reported anew. An object is a few KiB to 1 MiB of bytes. A
//! write says what it expects to replace, so that two replicas cannot undo each other's
//! work; what is secret is readable by its owner only.

mod folder;
mod kubernetes;

use std::{fmt, sync::LazyLock};

use serde::Serialize;
use tokio::sync::watch;
use zeroize::Zeroizing;

pub(crate) use self::{folder::Folder, kubernetes::Kubernetes};

/// What an object is; decides where it is kept, and whether it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// An issuer with its key: secret, never changed.
    Authority,
    /// A join token's digest and what it is good for: secret.
    Token,
    /// A generation of policy, never changed.
    Generation,
    /// What one replica knows of its sidecars.
    Fleet,
    /// Records: `policy`, `rotation`.
    State,
}

/// The name of an object: lower-case letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

/// A moment of an object; changes with each write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) String);

/// An object.
pub(crate) struct Entry {
    pub(crate) value: Zeroizing<Vec<u8>>,
    pub(crate) version: Version,
}

/// What a write replaces.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Nothing: the object is new.
    Absent,
    /// The object as it was read.
    Version(Version),
    /// Whatever is there.
    Any,
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody else wrote meanwhile; nothing was written.
    #[error("`{0}` was changed by another meanwhile")]
    Conflict(Key),
    /// The file system or the API server said no.
    #[error("cannot {verb} `{key}`: {reason}")]
    Failed {
        /// Read, write, remove or list.
        verb: &'static str,
        /// Which.
        key: Key,
        /// Why.
        reason: String,
    },
}

/// Where objects are. Calls to Kubernetes have futures of their own: they are large, and
/// whoever keeps files has no use for the room.
#[derive(Debug)]
pub(crate) enum Store {
    /// Files below the authority's folder.
    Folder(Folder),
    /// Secrets and ConfigMaps of a namespace.
    Kubernetes(Kubernetes),
}

impl Kind {
    /// As names of folders and of Kubernetes objects have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Token => "token",
            Self::Generation => "generation",
            Self::Fleet => "fleet",
            Self::State => "state",
        }
    }

    /// Whether only its owner may read it.
    pub(crate) fn is_secret(self) -> bool {
        matches!(self, Self::Authority | Self::Token)
    }

    /// The key of an object of this kind.
    pub(crate) fn key(self, name: impl Into<String>) -> Key {
        Key { kind: self, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// A value in JSON: nothing that is kept has what JSON has not.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

impl Store {
    /// The object, if it is there.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        match self {
            Self::Folder(it) => it.get(key),
            Self::Kubernetes(it) => Box::pin(it.get(key)).await,
        }
    }

    /// Writes the object whole, or not at all; durable when it returns.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when there is something else than `expected`.
    pub(crate) async fn put(
        &self,
        key: &Key,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, Error> {
        match self {
            Self::Folder(it) => it.put(key, value, expected),
            Self::Kubernetes(it) => Box::pin(it.put(key, value, expected)).await,
        }
    }

    /// Removes the object; whether it was there.
    pub(crate) async fn remove(&self, key: &Key) -> Result<bool, Error> {
        match self {
            Self::Folder(it) => it.remove(key),
            Self::Kubernetes(it) => Box::pin(it.remove(key)).await,
        }
    }

    /// The names of the objects of a kind, in order.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<String>, Error> {
        match self {
            Self::Folder(it) => it.list(kind),
            Self::Kubernetes(it) => Box::pin(it.list(kind)).await,
        }
    }

    /// Whether this replica is the one that numbers policy and drives rotations.
    pub(crate) fn leads(&self) -> bool {
        match self {
            // Nobody else may open the folder for serving.
            Self::Folder(_) => true,
            Self::Kubernetes(it) => it.leads(),
        }
    }

    /// Changes when another replica may have written a record ([`Kind::State`]), within a
    /// second of it. A folder has no other replica.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        static NEVER: LazyLock<watch::Sender<u64>> = LazyLock::new(watch::Sender::default);
        match self {
            Self::Folder(_) => NEVER.subscribe(),
            Self::Kubernetes(it) => it.changes(),
        }
    }
}
