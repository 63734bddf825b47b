//! Fleet: every sidecar that has a certificate, remembered before the certificate is handed out.
//!
//! A rotation may retire a root only when nobody lives by it, so a sidecar must not be
//! forgotten by a crash: [`Fleet::issued`] returns when the record of it is in the store.
//! Records are committed in groups, at most [`GROUP`] after they were made; what sidecars
//! report is written with them, or every [`LAZY`]: it is reported anew after a loss. A
//! record ends with its certificate.
//!
//! Each replica writes objects of its own, so that no two of them collide, and reads those of
//! the others; of a sidecar known to several, what was heard last counts. A replica's records
//! are spread over [`SHARDS`] objects, since Kubernetes keeps at most 1 MiB in one.

mod record;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use remora::{
    clock,
    drain::Drain,
    sync::wire::{Report, Sidecar},
};
use remora_certs::spiffe_id::SpiffeId;
use tokio::sync::{Notify, watch};

use self::record::Records;
use crate::store::{Entry, Error, Expected, Kind, Store};

/// A record is in the store at most so long after it was made, while that is well.
pub(crate) const GROUP: Duration = Duration::from_millis(200);

/// How often reports are written, and those of other replicas read.
const LAZY: Duration = Duration::from_secs(5);

/// Seconds after which a sidecar of another replica counts as gone, if nothing was heard of it:
/// the replica may be dead, and its records stay until the certificates in them end.
const SILENCE: u64 = 120;

/// Into how many objects the records of a replica go.
const SHARDS: usize = 16;

/// Sidecars that are remembered: some 5 MiB of reports.
const SIDECARS_MAX: usize = 10_000;

/// Instances of one identity: nobody alone may use up the room of all.
const INSTANCES_MAX: usize = 4_000;

/// Services that a report may name.
const SERVICES_MAX: usize = 1_000;

/// Bytes of the names of one sidecar's services.
const SERVICES_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a report's serial, issuer and version: two SHA-256 in hexadecimal have 128.
const WORD_MAX: usize = 128;

/// Bytes of each error in a report.
const ERROR_MAX: usize = 512;

/// Why a certificate may not be handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unrecorded {
    /// There are as many sidecars as can be remembered.
    #[error("there are as many sidecars as can be remembered")]
    Full,
    /// The store did not take the record.
    #[error("{0}")]
    Store(String),
}

/// Which sidecar, and where it calls from.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) id: SpiffeId,
    pub(crate) instance: String,
    pub(crate) peer: IpAddr,
    /// When the certificate it proved itself with ends, in seconds since the Unix epoch.
    pub(crate) not_after: u64,
}

/// The sidecars with a certificate.
#[derive(Debug)]
pub(crate) struct Fleet {
    replica: String,
    own: Mutex<Records>,
    /// What other replicas wrote.
    others: Mutex<Vec<Sidecar>>,
    /// The newest record made, and that the store was last asked to keep.
    made: AtomicU64,
    kept: watch::Sender<Kept>,
    urgent: Notify,
}

/// Up to which record the store was asked, and what it said.
#[derive(Clone, Debug, Default)]
struct Kept {
    up_to: u64,
    failed: Option<String>,
}

/// An open watch; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connected {
    fleet: Arc<Fleet>,
    id: SpiffeId,
    instance: String,
    services: watch::Receiver<u64>,
}

impl Fleet {
    /// What `replica` knew before it was last stopped, and what others know.
    pub(crate) async fn load(store: &Store, replica: &str) -> Result<Arc<Self>, Error> {
        let fleet = Self {
            replica: replica.to_owned(),
            own: Mutex::default(),
            others: Mutex::default(),
            made: AtomicU64::new(0),
            kept: watch::Sender::new(Kept::default()),
            urgent: Notify::new(),
        };
        for shard in 0..SHARDS {
            let entry = store.get(&Kind::Fleet.key(fleet.object(shard))).await?;
            let known = entry.and_then(|it| read(&it)).unwrap_or_default();
            fleet.own.lock().restore(known);
        }
        fleet.refresh(store, Duration::ZERO).await?;
        Ok(Arc::new(fleet))
    }

    /// Remembers that `id`'s `instance` is to have a certificate that ends at `not_after`;
    /// returns when the store has it.
    ///
    /// # Cancel safety
    ///
    /// Safe: the record stays, and ends with the certificate that was not handed out.
    pub(crate) async fn issued(&self, to: &Sender, now: Duration) -> Result<(), Unrecorded> {
        let mut kept = self.kept.subscribe();
        let number = {
            let mut own = self.own.lock();
            own.issued(to, now.as_secs())?;
            // Under the lock, so that who takes the records under it has all up to the number.
            self.made.fetch_add(1, Ordering::AcqRel) + 1
        };
        self.urgent.notify_one();
        // The sender lives in `self`.
        let kept = kept.wait_for(|it| number <= it.up_to).await;
        match kept.ok().and_then(|it| it.failed.clone()) {
            Some(reason) => Err(Unrecorded::Store(reason)),
            None => Ok(()),
        }
    }

    /// Counts a watch as open until what is returned is dropped; `None` for one too many.
    pub(crate) fn connected(self: &Arc<Self>, sender: &Sender, now: Duration) -> Option<Connected> {
        let services = self.own.lock().connected(sender, now.as_secs())?;
        let (id, instance) = (sender.id.clone(), sender.instance.clone());
        Some(Connected { fleet: Arc::clone(self), id, instance, services })
    }

    /// Takes a report; a watch of it is told of other services. `None` for one too many.
    pub(crate) fn reported(&self, from: &Sender, mut report: Report, now: Duration) -> Option<()> {
        curb(&mut report);
        self.own.lock().reported(from, report, now.as_secs())
    }

    /// All sidecars whose certificate is valid, ordered by id and instance.
    pub(crate) fn all(&self, now: Duration) -> Vec<Sidecar> {
        let now = now.as_secs();
        let mut all: BTreeMap<(String, String), Sidecar> = BTreeMap::new();
        let own = self.own.lock().valid(now);
        let heard = |it: &Sidecar| Sidecar {
            connected: it.connected && now < it.seen + SILENCE,
            ..it.clone()
        };
        for it in own.into_iter().chain(self.others.lock().iter().map(heard)) {
            if it.not_after <= now {
                continue;
            }
            let key = (it.id.clone(), it.report.instance.clone());
            let Some(known) = all.get_mut(&key) else {
                all.insert(key, it);
                continue;
            };
            let not_after = known.not_after.max(it.not_after);
            if known.seen < it.seen {
                *known = it;
            }
            known.not_after = not_after;
        }
        all.into_values().collect()
    }

    /// How many are known to this replica.
    pub(crate) fn len(&self) -> usize {
        self.own.lock().len()
    }

    /// The services that a sidecar said it calls.
    pub(crate) fn services(&self, id: &SpiffeId, instance: &str) -> Vec<String> {
        self.own.lock().services(id, instance)
    }

    /// Writes and reads, until the drain begins; a last time then.
    pub(crate) async fn run(&self, store: &Store, drain: &Drain) {
        let mut lazily = tokio::time::interval(LAZY);
        loop {
            let urgent = tokio::select! {
                () = self.urgent.notified() => true,
                _ = lazily.tick() => false,
                () = drain.begun() => break,
            };
            let now = clock::wall();
            if urgent {
                // Others may ask meanwhile: one write for all of them.
                tokio::time::sleep(GROUP / 4).await;
            } else if let Err(error) = self.refresh(store, now).await {
                tracing::warn!(%error, "other replicas' sidecars not read");
            }
            self.flush(store, now).await;
        }
        self.flush(store, clock::wall()).await;
    }

    /// Writes what is new, and tells those who wait for it.
    pub(crate) async fn flush(&self, store: &Store, now: Duration) {
        let (up_to, dirty) = {
            let mut own = self.own.lock();
            own.forget(now.as_secs());
            (self.made.load(Ordering::Acquire), own.take_dirty())
        };
        let mut failed = None;
        for (shard, sidecars) in dirty {
            if let Err(reason) = self.write(store, shard, &sidecars).await {
                tracing::error!(error = %reason, "sidecars not recorded");
                self.own.lock().soil(shard);
                failed = Some(reason);
            }
        }
        self.kept.send_replace(Kept { up_to, failed });
    }

    async fn write(&self, store: &Store, shard: usize, known: &[Sidecar]) -> Result<(), String> {
        let key = Kind::Fleet.key(self.object(shard));
        if known.is_empty() {
            return store.remove(&key).await.map(|_| ()).map_err(|it| it.to_string());
        }
        let text = serde_json::to_vec(known).map_err(|it| it.to_string())?;
        store.put(&key, &text, &Expected::Any).await.map(|_| ()).map_err(|it| it.to_string())
    }

    /// Reads what other replicas wrote, and removes what nobody writes any more.
    pub(crate) async fn refresh(&self, store: &Store, now: Duration) -> Result<(), Error> {
        let own: Vec<_> = (0..SHARDS).map(|it| self.object(it)).collect();
        let mut others = Vec::new();
        for name in store.list(Kind::Fleet).await? {
            if own.contains(&name) {
                continue;
            }
            let key = Kind::Fleet.key(name);
            let Some(entry) = store.get(&key).await? else { continue };
            let Some(known) = read(&entry) else { continue };
            if known.iter().all(|it| it.not_after <= now.as_secs()) {
                let _gone = store.remove(&key).await?;
            }
            others.extend(known);
        }
        *self.others.lock() = others;
        Ok(())
    }

    fn object(&self, shard: usize) -> String {
        format!("{}-{shard:x}", self.replica)
    }
}

impl Connected {
    /// Tells whenever the sidecar calls other services than before.
    pub(crate) fn services(&self) -> watch::Receiver<u64> {
        self.services.clone()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.fleet.own.lock().disconnected(&self.id, &self.instance);
    }
}

/// A report takes little room, and says in one line what it says: one sidecar's is shown among
/// those of others, to people at terminals.
fn curb(report: &mut Report) {
    let mut room = SERVICES_BYTES_MAX;
    report.services.truncate(SERVICES_MAX);
    report.services.retain(|it| {
        let fits = it.len() <= room;
        room -= if fits { it.len() } else { 0 };
        fits
    });
    let Report { version, certificate, policy, last_error, .. } = report;
    let words = [version, &mut certificate.serial, &mut certificate.issuer];
    let errors = [&mut policy.error, last_error].into_iter().flatten();
    for (text, most) in
        words.map(|it| (it, WORD_MAX)).into_iter().chain(errors.map(|it| (it, ERROR_MAX)))
    {
        text.truncate(text.floor_char_boundary(most));
        *text = text.replace(char::is_control, " ");
    }
}

/// What is damaged is left as it is, and reported anew by those it was about.
fn read(entry: &Entry) -> Option<Vec<Sidecar>> {
    let known = serde_json::from_slice(&entry.value);
    known.inspect_err(|error| tracing::error!(%error, "record of sidecars is damaged")).ok()
}

#[cfg(test)]
mod tests;
