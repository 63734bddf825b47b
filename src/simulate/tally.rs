//! Tally: what came of the requests of each phase.

use std::time::Duration;

use super::{rules::Rules, time::At};
use crate::config::scenario::Scenario;

/// What a run of one scenario under some rules came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose rules.
    pub rules: Rules,
    /// Phase by phase.
    pub phases: Vec<Phase>,
    /// A digest of every step: equal for equal runs.
    pub trace: u64,
    /// How many steps there were.
    pub steps: u64,
}

/// What came of the requests that were offered, and the tries that were sent, in one phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// Requests offered to the first hop.
    pub offered: u64,
    /// Of those, the ones that succeeded.
    pub good: u64,
    /// Tries that reached each copy of each hop.
    pub tries: Vec<Vec<u64>>,
    /// Tries that reached copies that had a fault of their own at that moment.
    pub at_bad: u64,
    /// Tries that reached the hops of such copies meanwhile, those copies included.
    pub near_bad: u64,
    /// How often a caller left an endpoint out.
    pub ejections: u64,
    /// How long the good ones took, in ascending order.
    latencies: Vec<At>,
}

impl Outcome {
    /// The largest amplification of all phases.
    pub fn amplification(&self) -> f64 {
        self.phases.iter().map(Phase::amplification).fold(0.0, f64::max)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
impl Phase {
    /// The share of the offered requests that succeeded.
    pub fn goodput(&self) -> f64 {
        self.good as f64 / self.offered.max(1) as f64
    }

    /// Tries that reached the last hop, for each request offered to the first.
    pub fn amplification(&self) -> f64 {
        let last: u64 = self.tries.last().into_iter().flatten().sum();
        last as f64 / self.offered.max(1) as f64
    }

    /// The share of the tries that went to the bad copies of a hop; `None` where none was.
    pub fn bad_share(&self) -> Option<f64> {
        (self.near_bad != 0).then(|| self.at_bad as f64 / self.near_bad as f64)
    }

    /// How long `percent` of a hundred good requests took at most; `None` without any.
    pub fn latency(&self, percent: u32) -> Option<Duration> {
        let last = self.latencies.len().checked_sub(1)?;
        let at = last * percent.min(100) as usize / 100;
        self.latencies.get(at).copied().map(Duration::from_nanos)
    }
}

/// Phases that are being counted.
#[derive(Debug)]
pub(super) struct Tally {
    phases: Vec<Phase>,
    /// Ejections of the phases before.
    ejections: u64,
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new(scenario: &Scenario) -> Self {
        let tries = || scenario.hops.iter().map(|it| vec![0; it.instances as usize]).collect();
        let phase = || Phase { tries: tries(), ..Phase::default() };
        Self { phases: scenario.phases.iter().map(|_| phase()).collect(), ejections: 0 }
    }

    /// A request is offered.
    pub(super) fn offered(&mut self, phase: usize) {
        self.phases[phase].offered += 1;
    }

    /// A request of `phase` succeeded.
    pub(super) fn good(&mut self, phase: usize, took: At) {
        self.phases[phase].good += 1;
        self.phases[phase].latencies.push(took);
    }

    /// A try reaches a copy; whether some copy of its hop is bad, and this one.
    pub(super) fn reached(
        &mut self,
        phase: usize,
        (hop, instance): (usize, u32),
        (near_bad, at_bad): (bool, bool),
    ) {
        let phase = &mut self.phases[phase];
        phase.tries[hop][instance as usize] += 1;
        phase.near_bad += u64::from(near_bad);
        phase.at_bad += u64::from(at_bad);
    }

    /// A phase is over, after so many ejections since the beginning.
    pub(super) fn over(&mut self, phase: usize, ejections: u64) {
        self.phases[phase].ejections = ejections - self.ejections;
        self.ejections = ejections;
    }

    /// What it came to.
    pub(super) fn finish(mut self) -> Vec<Phase> {
        for phase in &mut self.phases {
            phase.latencies.sort_unstable();
        }
        self.phases
    }
}
