//! Fleet: every sidecar that has a certificate, remembered before the certificate is handed out.
//!
//! A rotation may retire a root only when nobody lives by it, so a sidecar must not be
//! forgotten by a crash: [`Fleet::issued`] returns when the record of it is in the store.
//! Records are committed in groups, [`GROUP`] after the first of one was made; what sidecars
//! report is written with them, or every [`LAZY`]: it is reported anew after a loss. A
//! record ends with its certificate.
//!
//! Each replica writes objects of its own, so that no two of them collide, and reads those of
//! the others; of a sidecar known to several, what was heard last counts. A replica's records
//! are spread over [`SHARDS`] objects, since Kubernetes keeps at most 1 MiB in one.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    mem::take,
    net::IpAddr,
    sync::Arc,
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

use crate::{
    serve::Reason,
    store::{Error, Expected, Kind, Store},
};

/// How long a record waits for others to be written with.
const GROUP: Duration = Duration::from_millis(50);

/// How often reports are written, and those of other replicas read.
const LAZY: Duration = Duration::from_secs(5);

/// Seconds after which a sidecar of another replica counts as gone, if nothing was heard of it:
/// the replica may be dead, and its records stay until the certificates in them end.
const SILENCE: u64 = 120;

/// For how many seconds a sidecar still counts that is about to end: longer than a pod may take.
const LEAVING: u64 = 60;

/// Into how many objects the records of a replica go.
const SHARDS: u64 = 16;

/// Sidecars that are remembered: some 5 MiB of reports.
const SIDECARS_MAX: usize = 10_000;

/// Instances of one identity: nobody alone may use up the room of all.
const INSTANCES_MAX: usize = 4_000;

/// Which sidecar calls, when, and from where.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) id: SpiffeId,
    pub(crate) instance: String,
    pub(crate) peer: IpAddr,
    /// In seconds since the Unix epoch, as what follows.
    pub(crate) seen: u64,
    /// When the certificate it proved itself with ends.
    pub(crate) not_after: u64,
}

/// The sidecars with a certificate.
#[derive(Debug)]
pub(crate) struct Fleet {
    replica: String,
    known: Mutex<Known>,
    urgent: Notify,
}

/// An open watch of a sidecar, told of the services it calls; dropping it and its clones ends it.
pub(crate) type Connected = watch::Receiver<Vec<String>>;

/// A SPIFFE id, and an instance of it.
type Name = (String, String);

/// What is known of a sidecar, and who is told of the services it calls.
type Record = (Sidecar, watch::Sender<Vec<String>>);

#[derive(Debug, Default)]
struct Known {
    own: BTreeMap<Name, Record>,
    /// What other replicas wrote.
    others: Vec<Sidecar>,
    /// The shards of our own that the store has an older state of.
    dirty: BTreeSet<u64>,
    /// Told when the store has what is known now, or of why it has not.
    written: watch::Sender<Option<Reason>>,
}

impl Fleet {
    /// What `replica` knew before it was last stopped, and what others know.
    pub(crate) async fn load(store: &Store, replica: &str) -> Result<Arc<Self>, Error> {
        let replica = replica.to_owned();
        let fleet = Self { replica, known: Mutex::default(), urgent: Notify::new() };
        for it in fleet.read(store, true, Duration::ZERO).await? {
            let mut known = fleet.known.lock();
            let services = watch::Sender::new(it.report.services.clone());
            known.own.insert(it.key(), (it, services));
            // They may have been spread otherwise.
            known.dirty.extend(0..SHARDS);
        }
        fleet.refresh(store, Duration::ZERO).await?;
        Ok(Arc::new(fleet))
    }

    /// Remembers that a sidecar is to have a certificate that ends at `to.not_after`; returns
    /// when the store has it.
    ///
    /// # Cancel safety
    ///
    /// Safe: the record stays, and ends with the certificate that was not handed out.
    pub(crate) async fn issued(&self, to: &Sender) -> Result<(), Reason> {
        let mut written = {
            let mut known = self.known.lock();
            known.at(to)?;
            // Under the lock, so that who takes the records under it has this one.
            known.written.subscribe()
        };
        self.urgent.notify_one();
        let stops = |_| Reason::StoreFailed("the server stops".to_owned());
        written.changed().await.map_err(stops)?;
        written.borrow().clone().map_or(Ok(()), Err)
    }

    /// Counts a watch as open until what is returned is dropped.
    pub(crate) fn connected(&self, sender: &Sender) -> Result<Connected, Reason> {
        Ok(self.known.lock().at(sender)?.1.subscribe())
    }

    /// Takes a report; a watch of it is told of other services.
    pub(crate) fn reported(&self, from: &Sender, mut report: Report) -> Result<(), Reason> {
        report.curb();
        let mut known = self.known.lock();
        let (it, services) = known.at(from)?;
        if report.leaving {
            it.not_after = it.not_after.min(from.seen + LEAVING);
        }
        if it.report.services != report.services {
            services.send_replace(report.services.clone());
        }
        it.report = report;
        Ok(())
    }

    /// All sidecars whose certificate is valid, ordered by id and instance.
    pub(crate) fn all(&self, now: Duration) -> Vec<Sidecar> {
        let mut known = self.known.lock();
        known.settle(now);
        let own = known.own.values().map(|(it, _)| it.clone());
        let others = known.others.iter().map(|it| Sidecar {
            connected: it.connected && now.as_secs().saturating_sub(SILENCE) < it.seen,
            ..it.clone()
        });
        let mut all: BTreeMap<Name, Sidecar> = BTreeMap::new();
        for it in others.chain(own).filter(|it| now.as_secs() < it.not_after) {
            let newest = all.entry(it.key()).or_default();
            let not_after = newest.not_after.max(it.not_after);
            if newest.seen <= it.seen {
                *newest = it;
            }
            newest.not_after = not_after;
        }
        all.into_values().collect()
    }

    /// How many are known to this replica.
    pub(crate) fn len(&self) -> usize {
        self.known.lock().own.len()
    }

    /// Writes and reads, until the drain begins; a last time then.
    pub(crate) async fn run(&self, store: &Store, drain: &Drain) {
        let mut lazily = tokio::time::interval(LAZY);
        loop {
            tokio::select! {
                () = self.urgent.notified() => tokio::time::sleep(GROUP).await,
                _ = lazily.tick() => {
                    if let Err(error) = self.refresh(store, clock::wall()).await {
                        tracing::warn!(%error, "other replicas' sidecars not read");
                    }
                }
                () = drain.begun() => break,
            }
            self.flush(store, clock::wall()).await;
        }
        self.flush(store, clock::wall()).await;
    }

    /// Writes what is new, and tells those who wait for it.
    pub(crate) async fn flush(&self, store: &Store, now: Duration) {
        let (dirty, written) = {
            let mut known = self.known.lock();
            known.settle(now);
            let dirty = take(&mut known.dirty).into_iter();
            let dirty: Vec<_> = dirty.map(|shard| (shard, known.of(shard))).collect();
            (dirty, take(&mut known.written))
        };
        let mut failed = None;
        for (shard, sidecars) in dirty {
            let key = Kind::FLEET.key(format!("{}-{shard:x}", self.replica));
            let kept = match &sidecars[..] {
                [] => store.remove(&key).await.map(drop),
                _ => store.put_json(&key, &sidecars, Expected::Any).await.map(drop),
            };
            if let Err(error) = kept {
                tracing::error!(%error, "sidecars not recorded");
                self.known.lock().dirty.insert(shard);
                failed = Some(error.into());
            }
        }
        written.send_replace(failed);
    }

    /// Reads what other replicas wrote, and removes what nobody writes any more.
    pub(crate) async fn refresh(&self, store: &Store, now: Duration) -> Result<(), Error> {
        let others = self.read(store, false, now).await?;
        self.known.lock().others = others;
        Ok(())
    }

    /// What this replica wrote, or what others did; removes what nobody writes any more.
    async fn read(&self, store: &Store, own: bool, now: Duration) -> Result<Vec<Sidecar>, Error> {
        let mut sidecars = Vec::new();
        let is_own = |it: &str| it.rsplit_once('-').is_some_and(|(it, _)| it == self.replica);
        for name in store.list(Kind::FLEET).await?.into_iter().filter(|it| own == is_own(it)) {
            let key = Kind::FLEET.key(name);
            let Some((value, _)) = store.get(&key).await? else { continue };
            // What is damaged is left as it is, and reported anew by those it was about.
            let found: Vec<Sidecar> = serde_json::from_slice(&value)
                .inspect_err(|error| tracing::error!(%error, "record of sidecars is damaged"))
                .unwrap_or_default();
            // A replica that lives would have written anew by now.
            let ended = found.iter().map(|it| it.not_after).max();
            if ended.is_some_and(|it| it <= now.as_secs().saturating_sub(SILENCE)) {
                let _gone = store.remove(&key).await?;
            }
            sidecars.extend(found);
        }
        Ok(sidecars)
    }
}

impl Known {
    /// The record of a sender, who was heard of just now; made when there is none.
    ///
    /// # Errors
    ///
    /// [`Reason::FleetFull`] when there is no room for another.
    fn at(&mut self, sender: &Sender) -> Result<&mut Record, Reason> {
        let name = (sender.id.to_string(), sender.instance.clone());
        let instances = self.own.keys().filter(|it| it.0 == name.0);
        let is_full = || SIDECARS_MAX <= self.own.len() || INSTANCES_MAX <= instances.count();
        if !self.own.contains_key(&name) && is_full() {
            return Err(Reason::FleetFull);
        }
        self.dirty.insert(shard_of(&name));
        let record = self.own.entry(name.clone()).or_default();
        let it = &mut record.0;
        (it.id, it.report.instance) = name;
        (it.seen, it.peer) = (sender.seen, Some(sender.peer));
        it.not_after = it.not_after.max(sender.not_after);
        Ok(record)
    }

    /// Drops those whose certificate has ended, and notes which watches are open.
    fn settle(&mut self, now: Duration) {
        self.own.retain(|name, (it, services)| {
            let connected = 0 < services.receiver_count();
            let stays = connected || now.as_secs() < it.not_after;
            if !stays || it.connected != connected {
                self.dirty.insert(shard_of(name));
            }
            it.connected = connected;
            stays
        });
    }

    /// What is to be in a shard.
    fn of(&self, shard: u64) -> Vec<Sidecar> {
        let own = self.own.iter().filter(|(name, _)| shard_of(name) == shard);
        own.map(|(_, (it, _))| it.clone()).collect()
    }
}

/// The object that the record of an instance is in.
fn shard_of(name: &Name) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name) % SHARDS
}

#[cfg(test)]
mod tests;
