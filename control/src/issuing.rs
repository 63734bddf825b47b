//! Issuing: what signs now, whom to trust now, and who control is: one moment of them.
//!
//! All of it follows from the rotation's [`Record`] and the key it names. The moment is
//! replaced whole, behind one pointer, and only after the record was written; so whoever
//! signs takes one load, and a certificate and the bundle beside it are of one moment.
//!
//! Who hands out a certificate has its fleet remember the sidecar *first*, and loads the
//! moment *then*. A rotation goes on only when nobody it can see is behind; so it either saw
//! the sidecar, or had gone on before the load.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use remora::sync::wire;
use remora_certs::{
    authority::{self, Authority, Issued, Leaf},
    bundle::{self, Bundle},
    spiffe_id::ParseError,
    svid::{self, Svid},
};
use tokio::sync::{Mutex, watch};
use zeroize::Zeroizing;

use crate::{
    rotation::{Issuer, Record},
    store::{self, Entry, Expected, Key, Store, Version},
};

/// How long control's own certificate is valid, where the issuer lives as long.
const OWN_LIFE: Duration = Duration::from_hours(24);

/// What clients that know hosts rather than ids, such as curl, may call control.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) dns: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            dns: ["localhost", "remora-control"].map(str::to_owned).into(),
            addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        }
    }
}

/// Why nothing can be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Authority(#[from] authority::Error),
    #[error("there is no authority yet")]
    None,
    #[error("`{0}` is damaged")]
    Damaged(Key),
    #[error("`{0}` is named by the rotation's record and is missing")]
    Missing(Key),
    #[error("the roots are no trust bundle: {0}")]
    Roots(#[from] bundle::Error),
    #[error("control's own certificate: {0}")]
    Own(#[from] svid::Error),
    #[error("control's own id: {0}")]
    Id(#[from] ParseError),
}

/// A moment of what signs.
#[derive(Debug)]
pub(crate) struct Issuing {
    /// Signs now.
    pub(crate) authority: Authority,
    /// SHA-256 of the issuer's certificate, in lower-case hexadecimal.
    pub(crate) issuer: String,
    /// Whom to trust now, for sidecars.
    pub(crate) bundle: wire::Bundle,
    /// The same, as rustls takes it.
    pub(crate) roots: Bundle,
    /// Control's own certificate, to serve with and to sign policy with.
    pub(crate) svid: Svid,
    /// The issuer that everybody is to have a leaf of now, where [`wire::Message::Renew`] is to
    /// be sent.
    pub(crate) renew: Option<String>,
    /// What all this follows from.
    pub(crate) record: Record,
    /// Of the record.
    pub(crate) version: Version,
}

impl Issuing {
    /// Reads the moment; where there is none yet, begins with the authority in `dir`.
    pub(crate) async fn load(
        store: &Store,
        dir: Option<&Path>,
        now: Duration,
    ) -> Result<Self, Error> {
        let first = match (Self::read(store, now).await, dir) {
            (Err(Error::None), Some(dir)) => Authority::open(dir)?,
            (other, _) => return other,
        };
        let issuer = keep(store, &first).await?;
        let record = Record::first(issuer);
        match write(store, &record, &Expected::Absent).await {
            // Another server was first, with the same files.
            Ok(_) | Err(store::Error::Conflict(_)) => Self::read(store, now).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the moment; [`Error::None`] when no server has begun one.
    pub(crate) async fn read(store: &Store, now: Duration) -> Result<Self, Error> {
        let (authority, record, version) = signer(store).await?.ok_or(Error::None)?;
        let svid = own(&authority, (wire::CONTROL_PATH, OWN_LIFE), &Names::default(), now)?;
        Ok(Self {
            authority,
            issuer: record.signs.fingerprint.clone(),
            bundle: record.bundle.clone(),
            roots: Bundle::from_pem(record.bundle.roots.as_bytes())?,
            svid,
            renew: record.renew().map(str::to_owned),
            record,
            version,
        })
    }

    /// Whether control's own certificate is to be replaced by one that lives longer.
    pub(crate) fn ages(&self, now: Duration) -> bool {
        let (begins, ends) = (self.svid.not_before(), self.svid.not_after());
        let half = begins + ends.saturating_sub(begins) / 2;
        half <= now && ends < self.authority.not_after()
    }

    /// The same, with a certificate of control's for these names.
    fn called(self, names: &Names, now: Duration) -> Result<Self, Error> {
        let svid = own(&self.authority, (wire::CONTROL_PATH, OWN_LIFE), names, now)?;
        Ok(Self { svid, ..self })
    }

    /// A certificate for control itself, or whoever holds its key.
    pub(crate) fn own(&self, path: &str, life: Duration, now: Duration) -> Result<Svid, Error> {
        own(&self.authority, (path, life), &Names::default(), now)
    }
}

/// The record, and which moment of it.
pub(crate) async fn record(store: &Store) -> Result<Option<(Record, Version)>, Error> {
    let key = Record::key();
    let Some(entry) = store.get(&key).await? else { return Ok(None) };
    let record = serde_json::from_slice(&entry.value).map_err(|_| Error::Damaged(key))?;
    Ok(Some((record, entry.version)))
}

/// What signs now, and the record that says so; nothing before the first server.
pub(crate) async fn signer(store: &Store) -> Result<Option<(Authority, Record, Version)>, Error> {
    let Some((record, version)) = record(store).await? else { return Ok(None) };
    let key = record.signs.key();
    let entry = store.get(&key).await?.ok_or_else(|| Error::Missing(key.clone()))?;
    Ok(Some((open(&key, &entry)?, record, version)))
}

/// Writes the record, in place of what is expected.
pub(crate) async fn write(
    store: &Store,
    record: &Record,
    expected: &Expected,
) -> Result<Version, store::Error> {
    store.put(&Record::key(), &store::json(record), expected).await
}

/// Puts an issuer and its key into the store.
pub(crate) async fn keep(store: &Store, authority: &Authority) -> Result<Issuer, Error> {
    let (fingerprint, root) = (authority.issuer_fingerprint(), authority.root_pem());
    let issuer = Issuer { fingerprint: fingerprint.to_owned(), root: root.to_owned() };
    let key = issuer.key();
    // Sized at once: a buffer that grows leaves copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(64 * 1024));
    serde_json::to_writer(&mut *text, &authority.to_pem())
        .map_err(|_| Error::Damaged(key.clone()))?;
    store.put(&key, &text, &Expected::Any).await?;
    Ok(issuer)
}

fn open(key: &Key, entry: &Entry) -> Result<Authority, Error> {
    let pem = serde_json::from_slice(&entry.value).map_err(|_| Error::Damaged(key.clone()))?;
    Ok(Authority::from_pem(&pem)?)
}

fn own(
    authority: &Authority,
    (path, life): (&str, Duration),
    names: &Names,
    now: Duration,
) -> Result<Svid, Error> {
    let id = format!("spiffe://{}{path}", authority.trust_domain()).parse()?;
    let life = life.min(authority.not_after().saturating_sub(now));
    let leaf = Leaf { id: &id, life, dns_names: &names.dns, addresses: &names.addresses };
    let Issued { chain, key, .. } = authority.issue(&leaf, now)?;
    Ok(Svid::from_pem(chain.as_bytes(), key.as_bytes())?)
}

/// The moment in use: a cheap handle for whoever signs, serves or waits for a change.
#[derive(Debug)]
pub(crate) struct Live {
    now: ArcSwap<Issuing>,
    changes: watch::Sender<u64>,
    following: Mutex<()>,
    /// What control's own certificate has beside the id.
    names: Names,
}

impl Live {
    /// Begins with `first`.
    pub(crate) fn new(first: Issuing, names: Names, now: Duration) -> Result<Arc<Self>, Error> {
        let first = first.called(&names, now)?;
        let (now, changes) = (ArcSwap::from_pointee(first), watch::Sender::default());
        Ok(Arc::new(Self { now, changes, following: Mutex::default(), names }))
    }

    /// The moment of now.
    pub(crate) fn get(&self) -> Arc<Issuing> {
        self.now.load_full()
    }

    /// The moment of now, even where another replica drives: what to sign with, once the fleet
    /// remembers the sidecar.
    pub(crate) async fn latest(&self, store: &Store, now: Duration) -> Result<Arc<Issuing>, Error> {
        if let Store::Kubernetes(_) = store {
            self.follow(store, now).await?;
        }
        Ok(self.get())
    }

    /// Takes up what the store has, where that is something else.
    pub(crate) async fn follow(&self, store: &Store, now: Duration) -> Result<(), Error> {
        // One at a time, or one might put back what another has gone beyond.
        let _one = self.following.lock().await;
        let (_, version) = record(store).await?.ok_or(Error::None)?;
        let live = self.get();
        if live.version != version || live.ages(now) {
            let next = Issuing::read(store, now).await?.called(&self.names, now)?;
            self.now.store(Arc::new(next));
            self.changes.send_modify(|it| *it += 1);
        }
        Ok(())
    }

    /// Changes with each moment.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
