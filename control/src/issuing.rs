//! Issuing: what signs now, whom to trust now, and who control is: one moment of them.
//!
//! All of it follows from the rotation's [`Record`] and the key it names. The moment is
//! replaced whole, behind one pointer, and only after the record was written; so whoever
//! signs takes one load, and a certificate and the bundle beside it are of one moment.
//!
//! Who hands out a certificate has its fleet remember the sidecar *first*, and loads the
//! moment *then*. A rotation goes on only when nobody it can see is behind; so it either saw
//! the sidecar, or had gone on before the load.

use std::{fs, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use remora::sync::wire;
pub(crate) use remora_certs::authority::Names;
use remora_certs::{
    authority::{self, Authority, next_root_key},
    bundle::{self, Bundle},
    svid::Svid,
};
use tokio::sync::{self, watch};

use crate::{
    rotation::{Issuer, Proofs, Record},
    store::{self, Expected, Found, Key, Store, Version},
};

/// How long control's own certificate is valid, where the issuer lives as long.
const OWN_LIFE: Duration = Duration::from_hours(24);

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) enum Error {
    Store(#[from] store::Error),
    Authority(#[from] authority::Error),
    #[error("there is no authority yet")]
    None,
    #[error("`{0}` is named by the rotation's record and is missing")]
    Missing(Key),
    #[error("the roots are no trust bundle: {0}")]
    Roots(#[from] bundle::Error),
}

/// A moment of what signs.
#[derive(Debug)]
pub(crate) struct Issuing {
    /// Signs now.
    pub(crate) authority: Authority,
    /// Whom to trust now, as rustls takes it.
    pub(crate) roots: Bundle,
    /// Control's own certificate, to serve with and to sign policy with.
    pub(crate) svid: Svid,
    /// What all this follows from: the issuer, and the bundle for sidecars.
    pub(crate) record: Record,
    /// Of the record.
    pub(crate) version: Version,
    /// What handshakes showed at this moment, and so by this issuer.
    pub(crate) proofs: Mutex<Proofs>,
}

impl Issuing {
    /// Reads the moment; [`Error::None`] when no server has begun one.
    pub(crate) async fn read(store: &Store, names: &Names, now: Duration) -> Result<Self, Error> {
        let (authority, record, version) = signer(store).await?.ok_or(Error::None)?;
        let svid = authority.own(wire::CONTROL_PATH, OWN_LIFE, names, now)?;
        let roots = Bundle::from_pem(record.bundle.roots.as_bytes())?;
        Ok(Self { authority, roots, svid, record, version, proofs: Mutex::default() })
    }

    /// Whether control's own certificate is to be replaced by one that lives longer.
    pub(crate) fn ages(&self, now: Duration) -> bool {
        self.svid.half_life() <= now && self.svid.not_after() < self.authority.not_after()
    }
}

/// The record, and which moment of it.
pub(crate) async fn record(store: &Store) -> Result<Found<Record>, Error> {
    Ok(store.get_json(&Record::key()).await?)
}

/// What signs now, and the record that says so; nothing before the first server.
pub(crate) async fn signer(store: &Store) -> Result<Option<(Authority, Record, Version)>, Error> {
    let Some((record, version)) = record(store).await? else { return Ok(None) };
    let key = record.signs.key();
    let (pem, _) = store.get_json(&key).await?.ok_or(Error::Missing(key))?;
    Ok(Some((Authority::from_pem(&pem)?, record, version)))
}

/// Begins with an authority. Of several that begin at once one wins, and the others take up
/// what it made.
pub(crate) async fn begin(store: &Store, first: &Authority) -> Result<(), Error> {
    let issuer = keep(store, first).await?;
    let record = Record::first(issuer.clone());
    match store.put_json(&Record::key(), &record, Expected::Absent).await {
        Err(store::Error::Conflict(_)) => return forget(store, None, &issuer).await,
        begun => drop(begun?),
    }
    tracing::info!(issuer = issuer.fingerprint, "an authority was begun");
    Ok(())
}

/// Puts an issuer and its key into the store.
pub(crate) async fn keep(store: &Store, authority: &Authority) -> Result<Issuer, Error> {
    let issuer = Issuer::of(authority);
    store.put_json(&issuer.key(), &authority.to_pem(), Expected::Any).await?;
    Ok(issuer)
}

/// Removes the keys of an issuer that the record does not name: no rotation is about it.
pub(crate) async fn forget(store: &Store, dir: Option<&Path>, it: &Issuer) -> Result<(), Error> {
    let (record, _) = record(store).await?.ok_or(Error::None)?;
    let mut named = record.other.iter().chain([&record.signs]);
    if named.all(|named| named.fingerprint != it.fingerprint) {
        let _was_there = store.remove(&it.key()).await?;
        // Where no new root was made, or its key is kept elsewhere, there is none.
        let _removed = dir.map(|dir| fs::remove_file(next_root_key(dir, &it.fingerprint)));
    }
    Ok(())
}

/// The moment in use: a cheap handle for whoever signs, serves or waits for a change.
#[derive(Debug)]
pub(crate) struct Live {
    now: watch::Sender<Arc<Issuing>>,
    following: sync::Mutex<()>,
    /// What control's own certificate has beside the id.
    names: Names,
}

impl Live {
    /// The moment there is; where there is none yet, that of the authority in `dir`.
    pub(crate) async fn load(
        store: &Store,
        dir: Option<&Path>,
        names: Names,
        now: Duration,
    ) -> Result<Arc<Self>, Error> {
        if let (None, Some(dir)) = (record(store).await?, dir) {
            begin(store, &Authority::open(dir)?).await?;
        }
        let now = watch::Sender::new(Arc::new(Issuing::read(store, &names, now).await?));
        Ok(Arc::new(Self { now, following: sync::Mutex::default(), names }))
    }

    /// The moment of now.
    pub(crate) fn get(&self) -> Arc<Issuing> {
        Arc::clone(&self.now.borrow())
    }

    /// Takes up what the store has, where that is something else: the moment of now even where
    /// another replica drives, and so what to sign with once the fleet remembers the sidecar.
    pub(crate) async fn follow(&self, store: &Store, now: Duration) -> Result<Arc<Issuing>, Error> {
        // One at a time, or one might put back what another has gone beyond.
        let _one = self.following.lock().await;
        let (_, version) = record(store).await?.ok_or(Error::None)?;
        let live = self.get();
        if live.version == version && !live.ages(now) {
            return Ok(live);
        }
        let next = Arc::new(Issuing::read(store, &self.names, now).await?);
        self.now.send_replace(Arc::clone(&next));
        Ok(next)
    }

    /// Changes with each moment.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Issuing>> {
        self.now.subscribe()
    }
}
