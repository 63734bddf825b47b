//! Record: which generation everybody gets, which some, and which there were.
//!
//! Pure: what happens to a generation is a change of this, and the store keeps it. A number
//! is given once and never means other documents than it did.
//!
//! A new generation may be tried by some sidecars first. A sidecar is in one of [`BUCKETS`]
//! by its name, so that every replica asks the same ones without a word; of those that are
//! connected, one is asked at least. Nobody to ask is no reason to go on: the first to
//! connect is asked, and it is a matter of milliseconds.

use aws_lc_rs::digest::{SHA256, digest};
use remora::sync::wire::{self, Sidecar};
use serde::{Deserialize, Serialize};

use super::{Error, content::Content};
use crate::store::{Key, Kind};

/// Generations that can be returned to, the current one among them.
const HISTORY_MAX: usize = 10;

/// Sidecars fall into so many, of which a percentage takes the lowest ones.
const BUCKETS: u32 = 10_000;

/// How far above ours a sidecar's number is believed, or one of them could use all up.
const LEAP_MAX: u64 = 1_000_000;

/// Why a source that has nothing is not taken.
const EMPTY: &str = "the policy folder is empty, which is not taken for an order to forget all\n\
                     hint: leave a file with a comment in it";

/// What is handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// The highest number that was given, or that a sidecar has.
    pub(super) number: u64,
    /// What everybody gets, and behind it what everybody got, newest first.
    pub(super) history: Vec<Entry>,
    /// What only some get as yet.
    pub(super) canary: Option<Trial>,
    /// Digest of the source's content that was decided upon last.
    pub(super) source: String,
    /// Why that is not what everybody gets.
    pub(super) held: Option<String>,
}

/// A generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its number.
    pub(super) number: u64,
    /// The number its documents had first.
    pub(super) origin: u64,
    /// Of its documents.
    pub(super) digest: String,
}

/// A generation on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trial {
    /// Which.
    pub(super) entry: Entry,
    /// Sidecars of a hundred that get it.
    pub(super) percent: u8,
    /// The sidecars whose bucket is below get it; `None` as long as there was nobody to ask.
    pub(super) below: Option<u32>,
}

impl Record {
    /// Where the record is kept.
    pub(super) fn key() -> Key {
        Kind::STATE.key("policy")
    }

    /// What everybody gets.
    pub(super) fn current(&self) -> Option<&Entry> {
        self.history.first()
    }

    /// What anybody may get, or return to.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.canary.iter().map(|it| &it.entry).chain(&self.history)
    }

    /// What a sidecar is to get; behind it what it gets where that cannot be used.
    pub(super) fn offers(&self, id: &str, instance: &str) -> impl Iterator<Item = &Entry> {
        let trial = self.canary.iter().filter(|it| it.asks(id, instance));
        trial.map(|it| &it.entry).chain(self.current())
    }

    /// The source has this, and it is good: what was not decided upon is published, on trial
    /// for `percent` or for everybody. A current generation that is not `usable` any more is
    /// as good as none.
    ///
    /// # Errors
    ///
    /// Why it is not taken.
    pub(super) fn decide(
        &mut self,
        content: &Content,
        percent: Option<u8>,
        usable: bool,
    ) -> Result<(), String> {
        let has_it = self.current().filter(|_| usable).map(|it| it.digest == content.digest);
        match has_it {
            Some(_) if self.source == content.digest => return Ok(()),
            Some(false) if content.files.is_empty() => return Err(EMPTY.to_owned()),
            _ => (),
        }
        self.source.clone_from(&content.digest);
        self.held = None;
        if self.canary.is_some() {
            // Whoever has that goes back to what everybody has: their number must not go down.
            self.give_again();
        }
        if has_it == Some(true) {
            return Ok(());
        }
        self.number += 1;
        let (number, digest) = (self.number, content.digest.clone());
        let entry = Entry { number, origin: number, digest };
        // The first ones are for everybody: there is nothing else to have.
        match percent.filter(|_| has_it.is_some()) {
            Some(percent) => self.canary = Some(Trial { entry, percent, below: None }),
            None => self.make_current(entry),
        }
        Ok(())
    }

    /// Does what the sidecars say about the trial, and tells how it goes; `is_late` when they
    /// have had their time.
    pub(super) fn judge(&mut self, sidecars: &[Sidecar], is_late: bool) -> Option<wire::Canary> {
        let trial = self.canary.as_mut()?;
        let (generation, percent) = (trial.entry.number, trial.percent);
        let is_late = is_late && trial.below.is_some();
        trial.below = trial.below.or_else(|| trial.ask(sidecars));
        let took = |it: &Sidecar| it.report.policy.accepted == generation;
        let asked = sidecars.iter().filter(|it| trial.asks(&it.id, &it.report.instance));
        let refusal = asked.clone().filter(|it| !took(it)).find_map(|it| {
            let policy = &it.report.policy;
            let reason = policy.error.as_ref().filter(|_| policy.received == generation)?;
            Some(format!("{} refused it: {reason}", named(it)))
        });
        let connected = asked.filter(|it| it.connected);
        let (took, silent): (Vec<_>, Vec<_>) = connected.partition(|it| took(it));
        let (accepted, asked) = (took.len(), took.len() + silent.len());
        if let Some(reason) = refusal {
            self.stop(&reason);
        } else if 0 < accepted && silent.is_empty() {
            let entry = trial.entry.clone();
            self.make_current(entry);
        } else if is_late {
            self.stop(&silent.first().map_or("who was asked is gone".to_owned(), |it| {
                format!("{} did not say in time what it makes of it", named(it))
            }));
        }
        Some(wire::Canary { generation, percent, accepted, asked })
    }

    /// Goes above the numbers that sidecars have, which an earlier store gave them; tells
    /// whether documents have another number for it.
    pub(super) fn raise(&mut self, sidecars: &[Sidecar]) -> bool {
        let policies = sidecars.iter().map(|it| &it.report.policy);
        let numbers = policies.map(|it| it.received.max(it.accepted));
        let most = self.number.saturating_add(LEAP_MAX);
        let highest = numbers.filter(|it| *it <= most).max();
        let Some(number) = highest.filter(|it| self.number < *it) else { return false };
        self.number = number;
        self.give_again();
        !self.history.is_empty()
    }

    /// Returns to generation `wanted`, or to the one before, until the source's content
    /// changes.
    pub(super) fn roll_back(&mut self, wanted: Option<u64>) -> Result<(), Error> {
        let current = self.current();
        let before = self.history.iter().filter(|it| Some(it.origin) < current.map(|it| it.origin));
        let to = match wanted {
            Some(number) => self.history.iter().find(|it| it.number == number),
            // What everybody else has is the one before.
            None if self.canary.is_some() => current,
            None => before.max_by_key(|it| it.origin),
        };
        let to = to.cloned().ok_or(wanted.map_or(Error::NoneBefore, Error::NotKept))?;
        if self.canary.is_none() && Some(&to) == current {
            return Ok(());
        }
        self.held = Some(format!(
            "rolled back: generation {} has the documents of generation {}\n\
             hint: change the folder's documents to publish them again",
            self.number + 1,
            to.number
        ));
        self.give(to);
        Ok(())
    }

    /// Ends the trial: all get the current documents, with a number above everybody's.
    fn stop(&mut self, reason: &str) {
        let stopped = self.canary.take().map_or(0, |it| it.entry.number);
        self.held = Some(format!(
            "generation {stopped} was stopped: {reason}\n\
             hint: correct the documents; who had them has the ones before again"
        ));
        self.give_again();
    }

    /// Everybody gets the documents of `entry`, with a number that nobody has.
    fn give(&mut self, entry: Entry) {
        self.number += 1;
        self.make_current(Entry { number: self.number, ..entry });
    }

    fn give_again(&mut self) {
        if let Some(current) = self.current().cloned() {
            self.give(current);
        }
    }

    fn make_current(&mut self, entry: Entry) {
        self.canary = None;
        self.history.insert(0, entry);
        // The same documents twice in a row are of no use.
        self.history.dedup_by_key(|it| it.origin);
        self.history.truncate(HISTORY_MAX);
    }
}

impl Entry {
    /// Where its documents are kept. All that have them share it, and it is nobody else's: of
    /// two replicas that give one number, one will not be heard.
    pub(super) fn key(&self) -> Key {
        Kind::GENERATION.key(format!("{}-{:.16}", self.origin, self.digest))
    }
}

impl Trial {
    /// Whether a sidecar is to get it.
    fn asks(&self, id: &str, instance: &str) -> bool {
        self.below.is_some_and(|it| bucket(id, instance) < it)
    }

    /// Up to which bucket to ask those that are connected.
    fn ask(&self, sidecars: &[Sidecar]) -> Option<u32> {
        let connected = sidecars.iter().filter(|it| it.connected);
        let least = connected.map(|it| bucket(&it.id, &it.report.instance)).min()?;
        let share = u32::from(self.percent) * (BUCKETS / 100);
        Some(share.max(least + 1))
    }
}

/// The bucket of a sidecar.
fn bucket(id: &str, instance: &str) -> u32 {
    let digest = digest(&SHA256, format!("{id}\n{instance}").as_bytes());
    let bytes = digest.as_ref().first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(bytes) % BUCKETS
}

fn named(sidecar: &Sidecar) -> String {
    format!("`{}` ({})", sidecar.id, sidecar.report.instance)
}

#[cfg(test)]
mod tests;
