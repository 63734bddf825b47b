//! Records: what one replica knows of each sidecar, and which of it is not in the store yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use remora::sync::wire::{Report, Sidecar};
use remora_certs::spiffe_id::SpiffeId;
use tokio::sync::watch;

use super::{INSTANCES_MAX, SHARDS, SIDECARS_MAX, Sender, Unrecorded};

/// A SPIFFE id, and an instance of it.
type Name = (String, String);

/// Sidecars by name, and the shards that the store has an older state of.
#[derive(Debug, Default)]
pub(super) struct Records {
    sidecars: BTreeMap<Name, Record>,
    dirty: BTreeSet<usize>,
}

/// How often other replicas are told that a sidecar was heard of, in seconds; a sidecar
/// reports every 30 s.
const TELL: u64 = 20;

/// For how many seconds a sidecar still counts that is about to end: longer than a pod may take.
const LEAVING: u64 = 60;

#[derive(Debug)]
struct Record {
    sidecar: Sidecar,
    /// How many watches are open.
    watches: usize,
    /// When other replicas were last told that it was heard of.
    told: u64,
    /// Told of other services.
    services: watch::Sender<u64>,
}

/// The object that the record of an instance is in.
fn shard_of(name: &Name) -> usize {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
}

impl Record {
    fn new(sidecar: Sidecar) -> Self {
        Self { told: sidecar.seen, sidecar, watches: 0, services: watch::Sender::new(0) }
    }

    fn heard(&mut self, from: &Sender, now: u64) {
        self.sidecar.seen = now;
        self.sidecar.not_after = self.sidecar.not_after.max(from.not_after);
        self.sidecar.peer = Some(from.peer);
    }
}

impl Records {
    /// Takes what an object holds. All are written anew: they may have been spread otherwise.
    pub(super) fn restore(&mut self, sidecars: Vec<Sidecar>) {
        for mut sidecar in sidecars {
            sidecar.connected = false;
            let name = (sidecar.id.clone(), sidecar.report.instance.clone());
            self.sidecars.insert(name, Record::new(sidecar));
            self.dirty.extend(0..SHARDS);
        }
    }

    pub(super) fn issued(&mut self, to: &Sender, now: u64) -> Result<(), Unrecorded> {
        let record = self.at(to, now).ok_or(Unrecorded::Full)?;
        record.sidecar.not_after = record.sidecar.not_after.max(to.not_after);
        self.dirty.insert(shard_of(&name(&to.id, &to.instance)));
        Ok(())
    }

    /// What tells of other services; `None` where there is no room.
    pub(super) fn connected(&mut self, sender: &Sender, now: u64) -> Option<watch::Receiver<u64>> {
        let record = self.at(sender, now)?;
        record.watches += 1;
        record.sidecar.connected = true;
        record.heard(sender, now);
        let services = record.services.subscribe();
        self.dirty.insert(shard_of(&name(&sender.id, &sender.instance)));
        Some(services)
    }

    pub(super) fn disconnected(&mut self, id: &SpiffeId, instance: &str) {
        let name = name(id, instance);
        if let Some(record) = self.sidecars.get_mut(&name) {
            record.watches = record.watches.saturating_sub(1);
            record.sidecar.connected = 0 < record.watches;
            self.dirty.insert(shard_of(&name));
        }
    }

    /// `None` where there is no room.
    pub(super) fn reported(&mut self, from: &Sender, report: Report, now: u64) -> Option<()> {
        let record = self.at(from, now)?;
        let before = record.sidecar.peer;
        record.heard(from, now);
        if report.leaving {
            record.sidecar.not_after = record.sidecar.not_after.min(now + LEAVING);
        }
        let is_due = record.told + TELL <= now;
        let is_new = is_due || record.sidecar.report != report || before != record.sidecar.peer;
        if record.sidecar.report.services != report.services {
            record.services.send_modify(|it| *it += 1);
        }
        record.sidecar.report = report;
        if is_new {
            record.told = now;
            self.dirty.insert(shard_of(&name(&from.id, &from.instance)));
        }
        Some(())
    }

    pub(super) fn services(&self, id: &SpiffeId, instance: &str) -> Vec<String> {
        let record = self.sidecars.get(&name(id, instance));
        record.map(|it| it.sidecar.report.services.clone()).unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.sidecars.len()
    }

    /// Those whose certificate is valid.
    pub(super) fn valid(&self, now: u64) -> Vec<Sidecar> {
        let all = self.sidecars.values().map(|it| &it.sidecar);
        all.filter(|it| now < it.not_after).cloned().collect()
    }

    /// Drops those whose certificate has ended.
    pub(super) fn forget(&mut self, now: u64) {
        let dirty = &mut self.dirty;
        self.sidecars.retain(|name, it| {
            let stays = now < it.sidecar.not_after || 0 < it.watches;
            if !stays {
                dirty.insert(shard_of(name));
            }
            stays
        });
    }

    /// The shards to be written, and what is to be in them.
    pub(super) fn take_dirty(&mut self) -> BTreeMap<usize, Vec<Sidecar>> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut shards: BTreeMap<_, Vec<_>> = dirty.into_iter().map(|it| (it, vec![])).collect();
        if !shards.is_empty() {
            for (name, it) in &self.sidecars {
                if let Some(shard) = shards.get_mut(&shard_of(name)) {
                    shard.push(it.sidecar.clone());
                }
            }
        }
        shards
    }

    /// What was taken is not in the store after all.
    pub(super) fn soil(&mut self, shard: usize) {
        self.dirty.insert(shard);
    }

    /// The record of a sender, made when there is none; `None` where there is no room.
    fn at(&mut self, sender: &Sender, now: u64) -> Option<&mut Record> {
        let name = name(&sender.id, &sender.instance);
        if !self.sidecars.contains_key(&name) {
            let of_id = (name.0.clone(), String::new())..;
            let instances = self.sidecars.range(of_id).take_while(|(it, _)| it.0 == name.0);
            if SIDECARS_MAX <= self.sidecars.len() || INSTANCES_MAX <= instances.count() {
                return None;
            }
            let sidecar = Sidecar {
                id: name.0.clone(),
                connected: false,
                seen: now,
                not_after: sender.not_after,
                peer: Some(sender.peer),
                report: Report { instance: name.1.clone(), ..Report::default() },
            };
            self.sidecars.insert(name.clone(), Record::new(sidecar));
        }
        self.sidecars.get_mut(&name)
    }
}

fn name(id: &SpiffeId, instance: &str) -> Name {
    (id.as_str().to_owned(), instance.to_owned())
}
