//! Server: one copy of a service, its workers, its queue and what is wrong with it.

use std::{collections::VecDeque, time::Duration};

use super::{
    chance::{Chance, scaled},
    slab::Key,
    time::{At, nanos},
};
use crate::config::scenario::{Fault, Hop, Scenario, Trouble, Work};

/// How much longer work takes with cold caches, at first.
const COLD: f64 = 3.0;

/// One copy of a service.
#[derive(Debug)]
pub(super) struct Server {
    workers: usize,
    room: usize,
    work: Work,
    faults: Vec<Fault>,
    chance: Chance,
    /// Jobs that have a worker.
    pub(super) working: Vec<Key>,
    /// Jobs that wait for one.
    pub(super) queue: VecDeque<Key>,
}

/// What a copy does with a request that reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It is worked on, or queued.
    Takes,
    /// It is answered with this status after this long.
    Answers(u16, At),
    /// It is never answered.
    Keeps,
    /// Nobody listens.
    Refuses,
}

impl Server {
    /// Copy `instance` of `hop`, whose index is `at`.
    pub(super) fn new(
        hop: &Hop,
        (at, instance): (usize, u32),
        scenario: &Scenario,
        chance: Chance,
    ) -> Self {
        let faults = scenario.faults.iter().filter(|it| it.concerns(at, instance));
        Self {
            workers: hop.workers as usize,
            room: hop.queue as usize,
            work: hop.work,
            faults: faults.cloned().collect(),
            chance,
            working: Vec::new(),
            queue: VecDeque::new(),
        }
    }

    /// What becomes of a request that reaches it at `now`.
    pub(super) fn manner(&mut self, now: At) -> Manner {
        for fault in &self.faults {
            let (from, until) = (nanos(fault.from), nanos(fault.until));
            if now < from || until <= now {
                continue;
            }
            match fault.trouble {
                Trouble::Error { status, after, percent } if self.chance.percent(percent) => {
                    return Manner::Answers(status, nanos(after));
                }
                Trouble::Hang => return Manner::Keeps,
                Trouble::Refuse | Trouble::Restart { .. } | Trouble::Crash { .. } => {
                    return Manner::Refuses;
                }
                Trouble::Flap { period } if is_off(now - from, period) => {
                    return Manner::Refuses;
                }
                Trouble::Flap { .. } | Trouble::Slow { .. } | Trouble::Error { .. } => (),
            }
        }
        if self.working.len() < self.workers || self.queue.len() < self.room {
            Manner::Takes
        } else {
            Manner::Answers(503, 0)
        }
    }

    /// Whether nothing it works on is ever answered at `now`.
    pub(super) fn hangs(&self, now: At) -> bool {
        self.faults.iter().any(|it| {
            it.trouble == Trouble::Hang && (nanos(it.from)..nanos(it.until)).contains(&now)
        })
    }

    /// Takes `job`, and says which one a worker begins with.
    pub(super) fn take(&mut self, job: Key) -> Option<Key> {
        self.queue.push_back(job);
        self.begin()
    }

    /// A worker that had `job` is free, and begins with another one.
    pub(super) fn release(&mut self, job: Key) -> Option<Key> {
        self.working.retain(|it| *it != job);
        self.begin()
    }

    fn begin(&mut self) -> Option<Key> {
        if self.workers <= self.working.len() {
            return None;
        }
        let job = self.queue.pop_front()?;
        self.working.push(job);
        Some(job)
    }

    /// How long the work on one request takes that is begun at `now`: of faults at once, the
    /// slowest counts.
    pub(super) fn work(&mut self, now: At) -> At {
        let time = self.chance.work(self.work);
        scaled(time, self.faults.iter().map(|it| slowness(it, now)).fold(1.0, f64::max))
    }
}

/// Whether a part of length `period` is one in which nobody listens: the first is.
fn is_off(since: At, period: Duration) -> bool {
    (since / nanos(period).max(1)).is_multiple_of(2)
}

/// How many times as long work takes because of `fault`.
#[expect(clippy::cast_precision_loss, reason = "seconds in nanoseconds")]
fn slowness(fault: &Fault, now: At) -> f64 {
    let (from, until) = (nanos(fault.from), nanos(fault.until));
    match fault.trouble {
        Trouble::Slow { factor } if (from..until).contains(&now) => f64::from(factor),
        Trouble::Restart { warm_up } | Trouble::Crash { warm_up } if until <= now => {
            let passed = (now - until) as f64 / nanos(warm_up).max(1) as f64;
            1.0 + (COLD - 1.0) * (1.0 - passed).max(0.0)
        }
        Trouble::Slow { .. }
        | Trouble::Error { .. }
        | Trouble::Hang
        | Trouble::Refuse
        | Trouble::Flap { .. }
        | Trouble::Restart { .. }
        | Trouble::Crash { .. } => 1.0,
    }
}
