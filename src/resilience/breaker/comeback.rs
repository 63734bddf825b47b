//! Comeback: what has failed is asked by probes first, and then for a share of its traffic.

use std::time::Instant;

use super::{Config, Outcome};

/// The steps of the return, in percent.
const STEPS: [u8; 3] = [10, 25, 50];

/// Fewer successes than this end no step: one is luck.
const STEP_MIN: u32 = 3;

/// How a comeback goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// On.
    Stays,
    /// It has made it.
    Passed,
    /// It has not.
    Failed,
}

/// A few requests at once, all of which have to succeed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probes {
    /// Those of this round that have not ended.
    pending: u32,
    /// Of these, how many had the head of a response.
    answered: u32,
    succeeded: u32,
    /// Those of an earlier round are presumed lost.
    round: u16,
    /// When the latest was sent.
    sent: Instant,
}

/// A growing share of the traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ramp {
    step: u8,
    /// Requests that succeeded in this step.
    succeeded: u32,
    /// When the step began.
    since: Instant,
    /// Whether there was a request in this step.
    asked: bool,
    /// Whether there was an answer in this step that is no failure.
    heard: bool,
}

impl Probes {
    pub(super) fn new(now: Instant) -> Self {
        Self { pending: 0, answered: 0, succeeded: 0, round: 0, sent: now }
    }

    /// Whether there is room for another one.
    pub(super) fn admit(&self, config: &Config) -> bool {
        self.pending + self.succeeded < needed(config)
    }

    /// Counts one that is sent, and says of which round it is.
    pub(super) fn send(&mut self, now: Instant) -> u16 {
        self.pending += 1;
        self.sent = now;
        self.round
    }

    /// Whether the head of a response says something: not when its probe is presumed lost.
    pub(super) fn answered(&mut self, round: u16) -> bool {
        let counts = self.round == round;
        self.answered += u32::from(counts);
        counts
    }

    /// Presumes probes lost whose time is over, or to have succeeded if they were answered.
    pub(super) fn pass_time(&mut self, config: &Config, now: Instant) -> Progress {
        let waited = now.saturating_duration_since(self.sent);
        if self.pending == 0 || waited < config.probe_timeout {
            return Progress::Stays;
        }
        self.succeeded += std::mem::take(&mut self.answered);
        self.pending = 0;
        self.round = self.round.wrapping_add(1);
        self.progress(config)
    }

    pub(super) fn end(
        &mut self,
        config: &Config,
        (round, answered): (u16, bool),
        outcome: Outcome,
    ) -> Progress {
        let presumed_lost = self.round != round;
        if !presumed_lost {
            debug_assert!(self.pending > 0, "a ticket is settled once");
            self.pending = self.pending.saturating_sub(1);
            self.answered = self.answered.saturating_sub(u32::from(answered));
        }
        match outcome {
            Outcome::Failure => return Progress::Failed,
            // It was taken for a success when its time was over.
            Outcome::Success if presumed_lost && answered => (),
            Outcome::Success => self.succeeded += 1,
            Outcome::Excluded => (),
        }
        self.progress(config)
    }

    fn progress(&self, config: &Config) -> Progress {
        if self.succeeded < needed(config) { Progress::Stays } else { Progress::Passed }
    }
}

impl Ramp {
    pub(super) fn new(now: Instant) -> Self {
        Self::at(0, now)
    }

    /// The share of the traffic, in percent.
    pub(super) fn share(&self) -> u8 {
        STEPS.get(usize::from(self.step)).copied().unwrap_or(100)
    }

    pub(super) fn send(&mut self) {
        self.asked = true;
    }

    pub(super) fn answered(&mut self) {
        self.heard = true;
    }

    /// Ends a step that has lasted for long, unless it owes its first answer.
    pub(super) fn pass_time(&mut self, config: &Config, now: Instant) -> Progress {
        let long = config.open_for <= now.saturating_duration_since(self.since);
        if long && (self.heard || !self.asked) { self.step_up(now) } else { Progress::Stays }
    }

    pub(super) fn end(&mut self, config: &Config, outcome: Outcome, now: Instant) -> Progress {
        match outcome {
            Outcome::Excluded => Progress::Stays,
            Outcome::Success => {
                self.heard = true;
                self.succeeded += 1;
                let enough = needed(config).max(STEP_MIN) <= self.succeeded;
                if enough { self.step_up(now) } else { Progress::Stays }
            }
            Outcome::Failure if self.step == 0 => Progress::Failed,
            Outcome::Failure => {
                *self = Self::at(self.step - 1, now);
                Progress::Stays
            }
        }
    }

    fn at(step: u8, now: Instant) -> Self {
        Self { step, succeeded: 0, since: now, asked: false, heard: false }
    }

    /// What began in an earlier step counts in a later one.
    fn step_up(&mut self, now: Instant) -> Progress {
        *self = Self::at(self.step + 1, now);
        if usize::from(self.step) < STEPS.len() { Progress::Stays } else { Progress::Passed }
    }
}

/// How many probes at once, and successes for a step: none would let nothing come back.
fn needed(config: &Config) -> u32 {
    config.probes.max(1)
}
