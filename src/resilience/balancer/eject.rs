//! Eject: which breakers of a pool open, and how many at most.
//!
//! An endpoint whose breaker is not closed is left out. What its results ask for is granted
//! while no more than the cap of [`outlier`] are left out, and while another one is available:
//! the last one that answers at all is worth more than a choice among the unreachable. Where
//! a wish is refused, the endpoint keeps its share, [`State::WouldOpen`] is told, and the
//! pool is held back: nothing but fewer requests can help it then.
//!
//! An endpoint whose dial failed is not ejected but set aside: it is unreachable for now
//! rather than failing, and charges neither its breaker nor the cap.

use std::time::{Duration, Instant};

use super::{
    super::{
        Mode,
        breaker::{self, Scope, Ticket, Verdict},
        outlier,
        service::{self, Change, State, Why},
    },
    Balancer, Outcome,
    slot::Slot,
};

/// How many changes are kept for whoever tells them; the oldest give way.
const CHANGES: usize = 16;

/// How often endpoints are compared with their peers.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// What makes a breaker open.
#[derive(Debug)]
pub(super) struct Rules {
    /// What breakers follow: in the strictest of both modes.
    pub(super) breaker: breaker::Config,
    /// What an endpoint's own results do.
    own: Mode,
    outlier: outlier::Config,
}

/// What happened to breakers.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    changes: Vec<Change>,
    /// When endpoints were compared.
    compared: Option<Instant>,
    /// When an endpoint was last to be left out, and could not be.
    refused: Option<Instant>,
}

impl Rules {
    pub(super) fn new(config: &service::Config) -> Self {
        let own = match config.breaker.scope {
            Scope::Endpoint => config.breaker.mode,
            Scope::Service | Scope::Route => Mode::Off,
        };
        let mode = match (own, config.outlier.mode) {
            (Mode::Enforce, _) | (_, Mode::Enforce) => Mode::Enforce,
            (Mode::Off, Mode::Off) => Mode::Off,
            (Mode::Observe, _) | (_, Mode::Observe) => Mode::Observe,
        };
        let mut breaker = breaker::Config { mode, ..config.breaker };
        if own == Mode::Off {
            (breaker.consecutive_failures, breaker.failure_percent) = (None, None);
        }
        Self { breaker, own, outlier: config.outlier }
    }

    fn mode(&self, why: Why) -> Mode {
        if why == Why::Relative { self.outlier.mode } else { self.own }
    }
}

impl Ejections {
    pub(super) fn take(&mut self) -> Option<Vec<Change>> {
        (!self.changes.is_empty()).then(|| std::mem::take(&mut self.changes))
    }

    /// That all endpoints are left out, and one was picked all the same.
    pub(super) fn refuse(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// What became of a breaker that was `before`, if it is another now.
    pub(super) fn compare(&mut self, before: State, slot: &Slot) {
        let to = slot.breaker.state();
        let why = match to {
            _ if to == before => return,
            State::HalfOpen => Why::Elapsed,
            State::Open => Why::Probe,
            State::Closed
            | State::WouldOpen
            | State::WouldRefuse
            | State::WouldExhaust
            | State::WouldHedge => Why::Recovered,
        };
        self.note(slot, to, why);
    }

    fn note(&mut self, slot: &Slot, to: State, why: Why) {
        if self.changes.len() == CHANGES {
            self.changes.remove(0);
        }
        self.changes.push(Change { address: Some(slot.endpoint.address), to, why });
    }
}

impl Balancer {
    /// Whether more endpoints fail than may be left out: they get their share all the same,
    /// and only the callers can hold back.
    pub fn held_back(&self, now: Instant) -> bool {
        let window = self.rules.breaker.window;
        self.ejections.refused.is_some_and(|it| now.saturating_duration_since(it) < window)
    }

    /// What happened to the endpoints' breakers since this was asked last, the oldest first;
    /// `None` where nothing did. The latest sixteen are kept.
    pub fn changes(&mut self) -> Option<Vec<Change>> {
        self.ejections.take()
    }

    /// Tells a result to the breaker of its endpoint; says whether another set of endpoints
    /// may be available for it.
    pub(super) fn judge(
        &mut self,
        at: u32,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
    ) -> bool {
        let outcome = match outcome {
            Outcome::Success => breaker::Outcome::Success,
            Outcome::Failure => breaker::Outcome::Failure,
            Outcome::Busy(_) | Outcome::ConnectFailed | Outcome::Cancelled => {
                breaker::Outcome::Excluded
            }
        };
        let slot = &mut self.slots[at as usize];
        let before = (slot.breaker.state(), slot.breaker.share());
        let verdict = slot.breaker.settle(&self.rules.breaker, ticket, outcome, now);
        self.ejections.compare(before.0, slot);
        let is_opened = match verdict {
            Verdict::Trip(why) => self.grant(at, why, ticket.draw(), now),
            Verdict::WouldOpen(why) => {
                self.ejections.note(slot, State::WouldOpen, why);
                false
            }
            Verdict::None if outcome == breaker::Outcome::Failure => {
                self.find_outlier(ticket.draw(), now)
            }
            Verdict::None | Verdict::Reopened | Verdict::Closed => false,
        };
        is_opened || self.has_moved(at, before)
    }

    /// Lets back in what the cap no longer allows to be left out, the first to return first.
    pub(super) fn keep_cap(&mut self, now: Instant) {
        let off = breaker::Config { mode: Mode::Off, ..self.rules.breaker };
        let most = outlier::max_ejected(&self.rules.outlier, self.by_address.len());
        for _ in most..self.ejected() {
            let open = self.by_address.values().filter(|it| is_open(&self.slots[**it as usize]));
            let until = |it: &&u32| self.slots[**it as usize].breaker.until();
            let Some(first) = open.min_by_key(until) else { return };
            let slot = &mut self.slots[*first as usize];
            let before = slot.breaker.state();
            slot.breaker.admits(&off, now);
            self.ejections.compare(before, slot);
        }
    }

    /// Whether the breaker of an endpoint lets more or fewer requests through than `before`.
    fn has_moved(&self, at: u32, before: (State, u8)) -> bool {
        let breaker = &self.slots[at as usize].breaker;
        let after = (breaker.state(), breaker.share());
        // Half-open, it may have a place for a probe again.
        after != before || after.0 == State::HalfOpen
    }

    /// Opens a breaker, if its rule is in force and the cap allows.
    fn grant(&mut self, at: u32, why: Why, draw: u32, now: Instant) -> bool {
        let mode = self.rules.mode(why);
        let may = self.may_eject(at);
        let slot = &mut self.slots[at as usize];
        if mode == Mode::Enforce && may {
            slot.breaker.open(&self.rules.breaker, now, draw);
            self.ejections.note(slot, State::Open, why);
            return true;
        }
        self.ejections.note(slot, State::WouldOpen, why);
        if mode == Mode::Enforce {
            self.ejections.refuse(now);
            return false;
        }
        why != Why::Relative && self.find_outlier(draw, now)
    }

    fn may_eject(&self, at: u32) -> bool {
        let most = outlier::max_ejected(&self.rules.outlier, self.by_address.len());
        let is_other = |it: &u32| *it != at && self.slots[*it as usize].share > 0;
        self.ejected() < most && self.by_address.values().any(is_other)
    }

    fn ejected(&self) -> usize {
        self.by_address.values().filter(|it| is_open(&self.slots[**it as usize])).count()
    }

    /// Compares the worst endpoint with its peers, now and then, and ejects it if it is much
    /// worse; says whether it did.
    fn find_outlier(&mut self, draw: u32, now: Instant) -> bool {
        let is_recent = |it| now.saturating_duration_since(it) < COMPARE_EVERY;
        let config = self.rules.outlier;
        if config.mode == Mode::Off || self.ejections.compared.is_some_and(is_recent) {
            return false;
        }
        self.ejections.compared = Some(now);
        let counts = |it: &u32| self.slots[*it as usize].breaker.failures(&self.rules.breaker, now);
        let known = self.by_address.values().filter(|it| !is_open(&self.slots[**it as usize]));
        let rated = known.filter(|it| config.min_requests.max(1) <= counts(it).1);
        let Some(worst) = rated.max_by(|a, b| {
            let ((a, of_a), (b, of_b)) = (counts(a), counts(b));
            (u64::from(a) * u64::from(of_b)).cmp(&(u64::from(b) * u64::from(of_a)))
        }) else {
            return false;
        };
        let worst = *worst;
        let peers = self.by_address.values().filter(|it| **it != worst).map(counts);
        if !outlier::is_outlier(&config, counts(&worst), peers) {
            return false;
        }
        if config.mode == Mode::Enforce {
            return self.grant(worst, Why::Relative, draw, now);
        }
        let rules = breaker::Config { mode: config.mode, ..self.rules.breaker };
        let slot = &mut self.slots[worst as usize];
        if let Verdict::WouldOpen(why) = slot.breaker.wish(&rules, Why::Relative, now) {
            self.ejections.note(slot, State::WouldOpen, why);
        }
        false
    }
}

fn is_open(slot: &Slot) -> bool {
    slot.breaker.state() != State::Closed
}
