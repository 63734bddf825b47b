//! Service: everything that decides about the tries of one service, in one state machine.
//!
//! It picks an endpoint ([`Balancer`]), refuses what would only add to a failure, grants
//! retries and hedges out of one budget, and learns from how each try ended. A try is a
//! [`Pick`] until it is settled:
//!
//! ```text
//! pick → answered (the head of a response came) → settle (its body ended, or nothing came)
//!   └─ retry: granted → pick again, or abandon
//! ```
//!
//! Every token is settled exactly once and every grant is picked for or abandoned once,
//! cancellation included; then the counts of what is under way are exact.

mod ask;
mod change;
mod config;
mod scoped;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Mode,
    admission::{self, Admission},
    balancer::{self, Balancer, Outcome, Stats},
    breaker::{self, Breaker},
    budget::{self, Budget},
    hedge::{self, Latencies},
};
use crate::endpoint::EndpointSet;
pub use ask::{Ask, Grant, Kind, Refused, RouteId, Wish};
pub use change::{Change, State, Why};
pub use config::{Config, Limits};

/// Changes that are kept until they are asked for.
const CHANGES_MAX: usize = 16;

/// A try under way. To be settled exactly once; worth nothing to another service.
#[must_use = "a try counts as under way until its token is settled"]
#[derive(Debug)]
pub struct Token {
    at: balancer::Token,
    /// Of the breaker of its route or service, where there is one.
    ticket: Option<breaker::Ticket>,
    route: RouteId,
    granted: bool,
    start: Instant,
    answered: bool,
}

/// The answer to [`Service::pick`].
#[must_use = "a try counts as under way until its token is settled"]
#[derive(Debug)]
pub struct Pick {
    /// The endpoint.
    pub address: SocketAddr,
    /// What [`Service::settle`] takes back.
    pub token: Token,
    /// No endpoint is available; this one was picked all the same.
    pub panic: bool,
    /// It was left out until now: its answer decides whether it comes back.
    pub probe: bool,
}

/// The state of one service's resilience.
#[derive(Debug)]
pub struct Service {
    config: Config,
    balancer: Balancer,
    /// One for the service or one for each of its routes, as they are used; none where each
    /// endpoint has its own.
    breakers: Vec<Breaker>,
    admission: Admission,
    budget: Budget,
    /// Only where there are hedges.
    hedges: Option<Box<Hedges>>,
    /// Tries under way.
    tries: u32,
    /// Grants that are neither settled nor abandoned.
    granted: u32,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Hedges {
    budget: hedge::Budget,
    latencies: Latencies,
}

impl Service {
    /// A service whose endpoints are `set`, of which nothing is known yet.
    pub fn new(config: Config, set: &EndpointSet, now: Instant) -> Self {
        Self {
            balancer: Balancer::new(&config, set, now),
            breakers: Vec::new(),
            admission: Admission::new(now),
            budget: Budget::new(&config.budget, now),
            hedges: Hedges::wanted(config.hedge, now),
            tries: 0,
            granted: 0,
            changes: Vec::new(),
            config,
        }
    }

    /// Changes the settings; what is known stays wherever its own settings did not change.
    pub fn configure(&mut self, config: Config, now: Instant) {
        self.balancer.configure(&config, now);
        if config.breaker.scope != self.config.breaker.scope {
            self.breakers.clear();
        }
        if config.budget != self.config.budget {
            self.budget = Budget::new(&config.budget, now);
        }
        if config.hedge != self.config.hedge {
            self.hedges = Hedges::wanted(config.hedge, now);
        }
        self.config = config;
    }

    /// Makes `set` the endpoints. What is known of one that is in both stays.
    pub fn update(&mut self, set: &EndpointSet, now: Instant) {
        self.balancer.update(set, now);
    }

    /// Picks an endpoint for a try and counts the try as under way there.
    ///
    /// `rng` returns draws that are uniform over `u32`.
    ///
    /// # Errors
    ///
    /// Why there is no try. A grant is still to be abandoned.
    pub fn pick(&mut self, ask: Ask<'_>, rng: &mut impl FnMut() -> u32) -> Result<Pick, Refused> {
        let Ask { now, kind, route, .. } = ask;
        if self.config.limits.requests <= self.tries {
            return Err(Refused::Full);
        }
        let breaker = self.breaker(route, now);
        if let Some(index) = breaker
            && !self.breaker_admits(index, now, rng)
        {
            return Err(Refused::BreakerOpen);
        }
        if kind == Kind::First && !self.admits(now, rng) {
            return Err(Refused::BreakerOpen);
        }
        let pick = self.place(ask, rng)?;
        if kind == Kind::First {
            self.budget.deposit(&self.config.budget, now);
            if let Some(hedges) = &mut self.hedges {
                hedges.budget.deposit(&self.config.hedge, now);
            }
        }
        let ticket = breaker
            .and_then(|it| self.breakers.get_mut(it))
            .map(|it| it.acquire(&self.config.breaker, now, rng()));
        self.tries += 1;
        let granted = kind == Kind::Granted;
        let balancer::Pick { address, token: at, panic, probe, .. } = pick;
        let token = Token { at, ticket, route, granted, start: now, answered: false };
        Ok(Pick { address, token, panic, probe })
    }

    /// Says that the head of a response has come for this try, and that it is no failure:
    /// its body may take as long as it takes.
    pub fn answered(&mut self, token: &mut Token, now: Instant) {
        if token.answered {
            return;
        }
        token.answered = true;
        self.balancer.answered(&mut token.at, now);
        self.learn(token, now);
        if let (Some(index), Some(ticket)) = (self.breaker_of(token.route), &mut token.ticket)
            && let Some(breaker) = self.breakers.get_mut(index)
        {
            breaker.answered(ticket);
        }
    }

    /// Takes a try back, with how it ended.
    pub fn settle(&mut self, token: Token, outcome: Outcome, now: Instant) {
        debug_assert!(self.tries > 0, "a token is settled once");
        self.tries = self.tries.saturating_sub(1);
        if token.granted {
            self.granted = self.granted.saturating_sub(1);
        }
        let sorted = match outcome {
            Outcome::Success => breaker::Outcome::Success,
            Outcome::Failure | Outcome::ConnectFailed => breaker::Outcome::Failure,
            Outcome::Busy(_) | Outcome::Cancelled => breaker::Outcome::Excluded,
        };
        if sorted != breaker::Outcome::Excluded {
            self.admission.record(sorted == breaker::Outcome::Success, now);
        }
        if sorted == breaker::Outcome::Success && !token.answered {
            self.learn(&token, now);
        }
        if let (Some(index), Some(ticket)) = (self.breaker_of(token.route), token.ticket) {
            self.settle_breaker(index, ticket, sorted, now);
        }
        self.balancer.settle(token.at, outcome, now);
    }

    /// Asks for one retry of a failed request, and charges it when granted.
    pub fn retry(&mut self, wish: Wish, now: Instant, rng: &mut impl FnMut() -> u32) -> Grant {
        let wait = match wish.after {
            Some(asked) => asked.wait(rng()),
            None => wish.backoff.wait(wish.number, rng()),
        };
        // A try that can't be expected to end in time would only be load.
        let expected = self.balancer.baseline(wish.route).unwrap_or_default();
        if wish.left.is_some_and(|it| it <= wait + expected) {
            return Grant::Deadline;
        }
        if self.charge(now) { Grant::After(wait) } else { Grant::Exhausted }
    }

    /// How long to wait for an answer before a hedge is worth it; `None` where there is to
    /// be none.
    pub fn hedge_after(&self) -> Option<Duration> {
        self.hedges.as_ref()?.latencies.after(&self.config.hedge)
    }

    /// Asks for one hedge of a request that has no answer yet, and charges it when granted.
    #[must_use = "a grant is picked for, or abandoned"]
    pub fn hedge(&mut self, now: Instant) -> hedge::Verdict {
        let Some(hedges) = &mut self.hedges else { return hedge::Verdict::Exhausted };
        match hedges.budget.withdraw(&self.config.hedge, now) {
            hedge::Verdict::Granted if !self.charge(now) => {
                if let Some(hedges) = &mut self.hedges {
                    hedges.budget.refund();
                }
                hedge::Verdict::Exhausted
            }
            hedge::Verdict::WouldSend => {
                self.tell(Change { address: None, to: State::WouldHedge, why: Why::Late });
                hedge::Verdict::WouldSend
            }
            verdict @ (hedge::Verdict::Granted | hedge::Verdict::Exhausted) => verdict,
        }
    }

    /// Gives back a grant that no try was picked for.
    pub fn abandon(&mut self) {
        self.granted = self.granted.saturating_sub(1);
        self.budget.refund();
    }

    /// What happened since this was asked last, the oldest first; `None` where nothing did.
    pub fn changes(&mut self) -> Option<Vec<Change>> {
        let of_endpoints = self.balancer.changes();
        if self.changes.is_empty() {
            return of_endpoints;
        }
        let mut changes = std::mem::take(&mut self.changes);
        changes.extend(of_endpoints.into_iter().flatten());
        Some(changes)
    }

    /// How much may be under way at once.
    pub fn limits(&self) -> Limits {
        self.config.limits
    }

    /// Retries and hedges that the budget would grant at once.
    pub fn retry_tokens(&mut self, now: Instant) -> u32 {
        self.budget.tokens(&self.config.budget, now)
    }

    /// The state of the pool in numbers.
    pub fn stats(&self) -> Stats {
        self.balancer.stats()
    }

    /// Retries and hedges that were granted and have not ended.
    pub fn granted(&self) -> u32 {
        self.granted
    }

    /// An endpoint with room for one more try.
    fn place(
        &mut self,
        mut ask: Ask<'_>,
        rng: &mut impl FnMut() -> u32,
    ) -> Result<balancer::Pick, Refused> {
        // Whoever is full is full for the next draw, too: two draws find room if there is
        // some to speak of.
        for _ in 0..2 {
            let pick = self.balancer.pick(ask, rng).ok_or(Refused::NoEndpoints)?;
            if pick.pending <= self.config.limits.per_endpoint {
                return Ok(pick);
            }
            ask.avoid = Some(pick.address);
            self.balancer.settle(pick.token, Outcome::Cancelled, ask.now);
        }
        Err(Refused::Full)
    }

    /// Charges one more try to the budget, unless too many are under way.
    fn charge(&mut self, now: Instant) -> bool {
        let config = &self.config.budget;
        let gate = budget::gate(config, self.granted, self.tries);
        if gate == budget::Verdict::Exhausted {
            return false;
        }
        match self.budget.withdraw(config, now) {
            budget::Verdict::Exhausted => return false,
            budget::Verdict::Granted if gate == budget::Verdict::Granted => (),
            budget::Verdict::Granted | budget::Verdict::WouldRefuse => {
                self.tell(Change { address: None, to: State::WouldExhaust, why: Why::Spent });
            }
        }
        self.granted += 1;
        true
    }

    /// Whether a request may be sent to a service that fails as a whole.
    fn admits(&mut self, now: Instant, rng: &mut impl FnMut() -> u32) -> bool {
        if !self.balancer.held_back(now) {
            return true;
        }
        match self.admission.admits(self.config.admission, true, rng(), now) {
            admission::Admits::Yes => true,
            admission::Admits::WouldNot => {
                self.tell(Change { address: None, to: State::WouldRefuse, why: Why::Failing });
                true
            }
            admission::Admits::No => false,
        }
    }

    fn learn(&mut self, token: &Token, now: Instant) {
        if let Some(hedges) = &mut self.hedges
            && !token.granted
        {
            let latency = now.saturating_duration_since(token.start);
            hedges.latencies.record(&self.config.hedge, latency, now);
        }
    }

    /// Keeps what happened until it is asked for, the latest [`CHANGES_MAX`].
    fn tell(&mut self, change: Change) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.remove(0);
        }
        self.changes.push(change);
    }
}

impl Hedges {
    fn wanted(config: hedge::Config, now: Instant) -> Option<Box<Self>> {
        let make =
            || Box::new(Self { budget: hedge::Budget::new(now), latencies: Latencies::new(now) });
        (config.mode != Mode::Off).then(make)
    }
}

#[cfg(test)]
mod tests;
