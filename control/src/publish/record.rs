//! Record: which generation everybody gets, which some, and which there were.
//!
//! Pure: what happens to a generation is a change of this, and the store keeps it. A number
//! is given once and never means other documents than it did.

use serde::{Deserialize, Serialize};

/// Generations that can be returned to, the current one among them.
pub(super) const HISTORY_MAX: usize = 10;

/// What is handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// The highest number that was given, or that a sidecar has.
    pub(super) number: u64,
    /// What everybody gets.
    pub(super) current: Option<Entry>,
    /// What only some get as yet.
    pub(super) canary: Option<Trial>,
    /// Newest first, the current one among them.
    pub(super) history: Vec<Entry>,
    /// Digest of the source's content that was decided upon last.
    pub(super) source: String,
    /// Why that is not what everybody gets.
    pub(super) held: Option<String>,
    /// Why the source's newest content was refused.
    pub(super) error: Option<String>,
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
    /// Those that an earlier trial gave a higher number than everybody's are below this; they
    /// get it at once, for theirs must not go down.
    pub(super) floor: u32,
}

impl Record {
    /// New documents: on trial, or for everybody.
    pub(super) fn publish(&mut self, number: u64, digest: &str, percent: Option<u8>) {
        self.decided(digest);
        self.number = number;
        let entry = Entry { number, origin: number, digest: digest.to_owned() };
        // The first ones are for everybody: there is nothing else to have.
        match percent.filter(|_| self.current.is_some()) {
            Some(percent) => {
                let before = self.canary.take();
                let floor = before.map_or(0, |it| it.floor.max(it.below.unwrap_or(0)));
                self.canary = Some(Trial { entry, percent, below: None, floor });
            }
            None => self.make_current(entry),
        }
    }

    /// The trial went well.
    pub(super) fn promote(&mut self) {
        if let Some(trial) = self.canary.take() {
            self.make_current(trial.entry);
        }
    }

    /// The trial did not go well: who has its documents gets the old ones, as `number`.
    pub(super) fn stop(&mut self, number: u64, why: Option<String>) {
        self.canary = None;
        self.held = why;
        self.renumber(number);
    }

    /// Gives the current documents another number, of which there is no other use.
    pub(super) fn renumber(&mut self, number: u64) {
        self.number = number;
        if let Some(current) = &mut self.current {
            self.history.retain(|it| it.number != current.number);
            current.number = number;
            self.history.insert(0, current.clone());
        }
    }

    /// Returns to the documents of `to`, as `number`, until the source's content changes.
    pub(super) fn roll_back(&mut self, number: u64, to: &Entry) {
        self.number = number;
        self.held = Some(format!(
            "rolled back: generation {number} has the documents of generation {}\n\
             hint: change the folder's documents to publish them again",
            to.number
        ));
        self.make_current(Entry { number, ..to.clone() });
    }

    /// The source's content is this, and it is good.
    pub(super) fn decided(&mut self, digest: &str) {
        self.error = None;
        if self.source != digest {
            digest.clone_into(&mut self.source);
            self.held = None;
        }
    }

    /// The generation of this number, if it is still there.
    pub(super) fn kept(&self, number: u64) -> Option<&Entry> {
        self.history.iter().find(|it| it.number == number)
    }

    /// The one before the current one.
    pub(super) fn before(&self) -> Option<&Entry> {
        let current = self.current.as_ref()?;
        self.history.iter().filter(|it| it.origin < current.origin).max_by_key(|it| it.origin)
    }

    /// Whether anybody may still get the generation `number`.
    pub(super) fn names(&self, number: u64) -> bool {
        let trial = self.canary.as_ref().is_some_and(|it| it.entry.number == number);
        trial || self.kept(number).is_some()
    }

    fn make_current(&mut self, entry: Entry) {
        self.canary = None;
        self.history.insert(0, entry.clone());
        self.history.truncate(HISTORY_MAX);
        self.current = Some(entry);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Publish(Option<u8>),
        Ask(u32),
        Promote,
        Stop,
        Renumber(u64),
        RollBack(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => option::of(1..100_u8).prop_map(Step::Publish),
            3 => (0..10_000_u32).prop_map(Step::Ask),
            1 => Just(Step::Promote),
            1 => Just(Step::Stop),
            1 => (0..5_u64).prop_map(Step::Renumber),
            1 => (0..HISTORY_MAX).prop_map(Step::RollBack),
        ]
    }

    proptest! {
        #[test]
        fn no_sidecar_ever_gets_a_lower_number(steps in vec(step(), 0..40)) {
            let mut record = Record::default();
            let mut before = vec![0; 30];
            let mut documents: Vec<(u64, String)> = Vec::new();
            for (index, step) in steps.into_iter().enumerate() {
                apply(&mut record, &step, index);
                let trial = record.canary.as_ref();
                let now: Vec<_> = (0..30).map(|it| {
                    let tries = trial.filter(|trial| trial.asks("id", &it.to_string()));
                    tries.map(|it| &it.entry).or(record.current.as_ref()).map_or(0, |it| it.number)
                }).collect();
                prop_assert!(before.iter().zip(&now).all(|(a, b)| a <= b), "{before:?} {now:?}");
                prop_assert!(now.iter().all(|it| *it <= record.number));
                before = now;
                // A number never means other documents than it did.
                for Entry { number, digest, .. } in record.history.iter().chain(trial.map(|it| &it.entry)) {
                    let known = documents.iter().find(|(it, _)| it == number);
                    prop_assert!(known.is_none_or(|(_, it)| it == digest));
                    documents.push((*number, digest.clone()));
                }
                prop_assert!(record.history.len() <= HISTORY_MAX);
                prop_assert_eq!(record.history.first(), record.current.as_ref());
            }
        }
    }

    /// What the publisher does, and when.
    fn apply(record: &mut Record, step: &Step, index: usize) {
        let next = record.number + 1;
        match step {
            Step::Publish(percent) => record.publish(next, &index.to_string(), *percent),
            Step::Ask(below) => {
                if let Some(trial) = record.canary.as_mut().filter(|it| it.below.is_none()) {
                    trial.below = Some(trial.floor.max(*below));
                }
            }
            Step::Promote => record.promote(),
            Step::Stop if record.canary.is_some() => record.stop(next, None),
            Step::Renumber(above) if record.canary.is_none() => record.renumber(next + above),
            Step::RollBack(at) => {
                if let Some(to) = record.history.get(*at).cloned() {
                    record.roll_back(next, &to);
                }
            }
            Step::Stop | Step::Renumber(_) => (),
        }
    }
}
