//! Breaker: stops what keeps failing, and lets it come back by degrees.
//!
//! ```text
//!             a rule trips, and the cap allows it
//!   Closed ─────────────────────────────────────────▶ Open
//!     ▲                                               │  ▲
//!     │ three steps                its time is over   ▼  │ a probe fails, or a request
//!     └──────────── Ramp ◀───────────────────── HalfOpen ┤ in the first step of the ramp
//!               10, 25, 50 %    probes succeeded         │
//!                     └──────────────────────────────────┘
//! ```
//!
//! **It opens** on failures in a row, or else when the share of failures in a window is too
//! large. Both, because the first alone misses an endpoint that fails three requests of
//! four, and the second alone is late where there is little traffic. To open is only a
//! *wish* ([`Verdict::Trip`]): how many of a pool may be open is for its owner to say
//! ([`super::outlier`]), who then calls [`Breaker::open`]. A wish that is not granted is
//! repeated by the next failure a second later: nothing is reset, so an endpoint that keeps
//! failing opens as soon as another comes back.
//!
//! **It stays open** for `open_for`, twice as long each time it opens again, up to
//! `open_for_max`; all of it again from `open_for` once it has been closed for
//! `open_for_max`. What is taken is uniform between half of that and all of it, at the
//! maximum too: so callers do not come back in step. Not between nothing and all of it: what
//! has just failed would be asked again at once by some of its callers.
//!
//! **It comes back** over a few probes at once, all of which have to succeed, and then in
//! steps of 10, 25 and 50 % of its traffic ([`Breaker::share`]: the owner thins it). Each
//! step ends after as many successes as there are probes, at least three. It also ends when
//! it has lasted for `open_for` without a failure, unless requests were sent and none was
//! answered: with hardly any traffic nobody waits longer than that. A failure takes it one
//! step back, and in the first step opens it again. One failure is not yet the end because
//! all of a service may fail now and then: at 10 % of failures the endpoint returns in three
//! of five attempts, at 30 % in one of twenty, at 60 % in one of eight thousand.
//!
//! **No result is taken for another.** A [`Ticket`] carries the generation of the state it
//! was made in, and one of an earlier state changes nothing: a success that was under way
//! when the breaker opened does not close it. A request that ends without a result
//! ([`Outcome::Excluded`]: its client left) gives a probe's place back, and neither ends nor
//! prolongs a row of failures. A probe that says nothing for `probe_timeout` no longer keeps
//! others from being sent; where the head of its response has come ([`Breaker::answered`]), as
//! of a stream without end, it has succeeded.
//!
//! # Sources
//!
//! - gobreaker v2: generations, the lazy step to half-open, `requests - excluded`.
//! - Linkerd's unified failure accrual: both rules in one, the first tested first.
//! - M. Brooker, *Exponential Backoff And Jitter*, 2015: the lower bound is "equal jitter".

mod comeback;
mod config;

use std::time::{Duration, Instant};

use comeback::{Probes, Progress, Ramp};
pub use config::{Config, Scope};

use super::{
    Mode,
    service::{State, Why},
    window::{Tick, Window},
};

/// How long a wish that was not granted is kept to itself.
const WISH_EVERY: Duration = Duration::from_secs(1);

/// One breaker.
///
/// Pure state: it reads no clock and draws no number. The settings are arguments, so that
/// it is small and a change of them takes effect at once.
#[derive(Debug)]
pub struct Breaker {
    window: Window,
    phase: Phase,
    /// Of the state: what began in an earlier one changes nothing.
    generation: u32,
    /// How often it opened since it was last closed for long.
    opened: u32,
}

/// The answer to [`Breaker::admits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// Requests go through, [`Breaker::share`] percent of them.
    Yes,
    /// One may, to see how it fares.
    Probe,
    /// None.
    No,
}

/// A request under way, and the chance that decides for how long a breaker opens if it
/// fails, drawn when there was a generator at hand. To be settled exactly once; worth nothing
/// to another breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    tick: Tick,
    generation: u32,
    draw: u32,
    /// Of the probe: earlier ones are presumed lost.
    round: u16,
    answered: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// In a failure of whom the breaker is for.
    Failure,
    /// In something that says nothing of it: the client left.
    Excluded,
}

/// What a result asks of the owner of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    None,
    /// To open it, if the cap allows: [`Breaker::open`].
    Trip(Why),
    /// To say that it would have opened, were its mode `enforce`.
    WouldOpen(Why),
    /// To say that it opened again, as its probe failed.
    Reopened,
    /// To say that it closed.
    Closed,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed {
        since: Instant,
        /// Failures in a row.
        row: u32,
        /// Until when no wish is repeated.
        quiet: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen(Probes),
    Ramp(Ramp),
}

impl Ticket {
    /// The draw it was made with.
    pub fn draw(self) -> u32 {
        self.draw
    }
}

impl Breaker {
    /// A closed breaker.
    pub fn new(now: Instant) -> Self {
        let phase = Phase::Closed { since: now, row: 0, quiet: None };
        Self { window: Window::new(now), phase, generation: 0, opened: 0 }
    }

    /// Whether a request may go. What time brings happens here: compare [`Breaker::state`]
    /// before and after to tell.
    pub fn admits(&mut self, config: &Config, now: Instant) -> Admits {
        self.obey(config, now);
        self.pass_time(config, now);
        match self.phase {
            Phase::Closed { .. } | Phase::Ramp(_) => Admits::Yes,
            Phase::HalfOpen(probes) if probes.admit(config) => Admits::Probe,
            Phase::Open { .. } | Phase::HalfOpen(_) => Admits::No,
        }
    }

    /// Counts a request as under way, whether it was admitted or nothing better was there.
    /// `draw` is uniform over `u32`.
    #[must_use = "a ticket is settled"]
    pub fn acquire(&mut self, config: &Config, now: Instant, draw: u32) -> Ticket {
        let tick = self.window.tick(config.window, now);
        let generation = self.generation;
        let mut ticket = Ticket { tick, generation, draw, round: 0, answered: false };
        match &mut self.phase {
            Phase::Closed { .. } | Phase::Open { .. } => (),
            Phase::HalfOpen(probes) => ticket.round = probes.send(now),
            Phase::Ramp(ramp) => ramp.send(),
        }
        ticket
    }

    /// Says that the head of a response has come, and that it is no failure.
    pub fn answered(&mut self, ticket: &mut Ticket) {
        if ticket.answered || ticket.generation != self.generation {
            return;
        }
        match &mut self.phase {
            Phase::HalfOpen(probes) => ticket.answered = probes.answered(ticket.round),
            Phase::Ramp(ramp) => ramp.answered(),
            Phase::Closed { .. } | Phase::Open { .. } => (),
        }
    }

    /// Takes a request back, with how it ended.
    #[must_use = "a wish is granted or refused, a change is told"]
    pub fn settle(
        &mut self,
        config: &Config,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> Verdict {
        self.obey(config, now);
        if config.mode == Mode::Off || ticket.generation != self.generation {
            return Verdict::None;
        }
        let progress = match &mut self.phase {
            Phase::Closed { .. } => return self.settle_closed(config, ticket.tick, outcome, now),
            Phase::Open { .. } => return Verdict::None,
            Phase::HalfOpen(probes) => probes.end(config, (ticket.round, ticket.answered), outcome),
            Phase::Ramp(ramp) => ramp.end(config, outcome, now),
        };
        if progress == Progress::Failed {
            self.reopen(config, now, ticket.draw);
            return Verdict::Reopened;
        }
        self.proceed(progress, now);
        if self.state() == State::Closed { Verdict::Closed } else { Verdict::None }
    }

    /// Asks for it to be opened, for a reason found elsewhere; what its own results asked for
    /// within the last second is not asked again.
    #[must_use = "a wish is granted or refused, a change is told"]
    pub fn wish(&mut self, config: &Config, why: Why, now: Instant) -> Verdict {
        let Phase::Closed { quiet, .. } = &mut self.phase else { return Verdict::None };
        if quiet.is_some_and(|until| now < until) {
            return Verdict::None;
        }
        let (every, verdict) = match config.mode {
            Mode::Off => return Verdict::None,
            Mode::Enforce => (WISH_EVERY, Verdict::Trip(why)),
            // As long as it would have been open.
            Mode::Observe => (config.open_for, Verdict::WouldOpen(why)),
        };
        *quiet = now.checked_add(every);
        verdict
    }

    /// Grants a wish: opens it, unless it is open or its mode has changed. `draw` is uniform
    /// over `u32`.
    pub fn open(&mut self, config: &Config, now: Instant, draw: u32) {
        let Phase::Closed { since, .. } = self.phase else { return };
        if config.mode != Mode::Enforce {
            return;
        }
        if config.open_for_max <= now.saturating_duration_since(since) {
            self.opened = 0;
        }
        self.reopen(config, now, draw);
    }

    /// What it is. One that is not closed counts as left out.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen(_) | Phase::Ramp(_) => State::HalfOpen,
        }
    }

    /// How much of its traffic is to go through, in percent, where [`Admits::Yes`] is said.
    pub fn share(&self) -> u8 {
        match self.phase {
            Phase::Closed { .. } => 100,
            Phase::Ramp(ramp) => ramp.share(),
            Phase::Open { .. } | Phase::HalfOpen(_) => 0,
        }
    }

    /// Until when it is open; after that, no longer at that instant, it asks for a probe.
    pub fn until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            Phase::Closed { .. } | Phase::HalfOpen(_) | Phase::Ramp(_) => None,
        }
    }

    /// How many requests failed in the window, and of how many, since it was closed last.
    pub fn failures(&self, config: &Config, now: Instant) -> (u32, u32) {
        let counts = self.window.counts(config.window, now);
        (counts.failed, counts.total())
    }

    /// A breaker that may no longer be open isn't.
    fn obey(&mut self, config: &Config, now: Instant) {
        if config.mode != Mode::Enforce && self.state() != State::Closed {
            self.close(now);
        }
    }

    fn pass_time(&mut self, config: &Config, now: Instant) {
        let progress = match &mut self.phase {
            Phase::Open { until } if *until < now => {
                return self.enter(Phase::HalfOpen(Probes::new(now)));
            }
            Phase::Closed { .. } | Phase::Open { .. } => return,
            Phase::HalfOpen(probes) => probes.pass_time(config, now),
            Phase::Ramp(ramp) => ramp.pass_time(config, now),
        };
        self.proceed(progress, now);
    }

    /// Goes on from probes to a ramp, and from there to closed.
    fn proceed(&mut self, progress: Progress, now: Instant) {
        match self.phase {
            Phase::HalfOpen(_) if progress == Progress::Passed => {
                self.enter(Phase::Ramp(Ramp::new(now)));
            }
            Phase::Ramp(_) if progress == Progress::Passed => self.close(now),
            Phase::Closed { .. } | Phase::Open { .. } | Phase::HalfOpen(_) | Phase::Ramp(_) => (),
        }
    }

    fn settle_closed(
        &mut self,
        config: &Config,
        tick: Tick,
        outcome: Outcome,
        now: Instant,
    ) -> Verdict {
        let Phase::Closed { row, .. } = &mut self.phase else { return Verdict::None };
        match outcome {
            Outcome::Excluded => return Verdict::None,
            Outcome::Success => {
                *row = 0;
                self.window.credit(tick, true);
                return Verdict::None;
            }
            Outcome::Failure => *row = row.saturating_add(1),
        }
        let in_a_row = config.consecutive_failures.is_some_and(|it| it <= *row);
        self.window.credit(tick, false);
        if in_a_row {
            self.wish(config, Why::Consecutive, now)
        } else if self.fails_too_often(config, now) {
            self.wish(config, Why::Ratio, now)
        } else {
            Verdict::None
        }
    }

    fn fails_too_often(&self, config: &Config, now: Instant) -> bool {
        let Some(percent) = config.failure_percent else { return false };
        let (failed, total) = self.failures(config, now);
        config.min_requests <= total
            && u64::from(total) * u64::from(percent) < u64::from(failed) * 100
    }

    fn close(&mut self, now: Instant) {
        self.window.clear();
        self.enter(Phase::Closed { since: now, row: 0, quiet: None });
    }

    fn reopen(&mut self, config: &Config, now: Instant, draw: u32) {
        let doubled = config.open_for.saturating_mul(1 << self.opened.min(31));
        let half = doubled.min(config.open_for_max) / 2;
        let jitter = (half.as_nanos() * u128::from(draw)) >> 32;
        let time = half + Duration::from_nanos(u64::try_from(jitter).unwrap_or(0));
        self.opened = self.opened.saturating_add(1);
        self.window.clear();
        self.enter(Phase::Open { until: now.checked_add(time).unwrap_or(now) });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
