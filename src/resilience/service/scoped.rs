//! Scoped: the breakers that are for a route or the whole service, and refuse its requests.

use std::time::Instant;

use super::{
    super::breaker::{self, Breaker, Scope},
    Change, RouteId, Service, State, Why,
};

impl Service {
    /// Which of the breakers is for this route, if any is.
    pub(super) fn breaker_of(&self, route: RouteId) -> Option<usize> {
        match self.config.breaker.scope {
            Scope::Endpoint => None,
            Scope::Service => Some(0),
            Scope::Route => Some(usize::from(route.0.min(RouteId::MAX.0))),
        }
    }

    /// The same, made if it is the first time.
    pub(super) fn breaker(&mut self, route: RouteId, now: Instant) -> Option<usize> {
        let index = self.breaker_of(route)?;
        while self.breakers.len() <= index {
            self.breakers.push(Breaker::new(now));
        }
        Some(index)
    }

    /// Whether a breaker lets a request through: on its way back, only so many.
    pub(super) fn breaker_admits(
        &mut self,
        index: usize,
        now: Instant,
        rng: &mut impl FnMut() -> u32,
    ) -> bool {
        let (config, breaker) = (&self.config.breaker, &mut self.breakers[index]);
        let before = breaker.state();
        let admits = breaker.admits(config, now);
        let (to, share) = (breaker.state(), u32::from(breaker.share()));
        if before != to {
            let why = if to == State::Closed { Why::Recovered } else { Why::Elapsed };
            self.tell(Change { address: None, to, why });
        }
        match admits {
            breaker::Admits::Yes => share == 100 || rng() % 100 < share,
            breaker::Admits::Probe => true,
            breaker::Admits::No => false,
        }
    }

    /// Takes a request back from its breaker; no cap forbids this one to open.
    pub(super) fn settle_breaker(
        &mut self,
        index: usize,
        ticket: breaker::Ticket,
        outcome: breaker::Outcome,
        now: Instant,
    ) {
        let config = self.config.breaker;
        let Some(breaker) = self.breakers.get_mut(index) else { return };
        let (to, why) = match breaker.settle(&config, ticket, outcome, now) {
            breaker::Verdict::None => return,
            breaker::Verdict::Trip(why) => {
                breaker.open(&config, now, ticket.draw());
                (State::Open, why)
            }
            breaker::Verdict::WouldOpen(why) => (State::WouldOpen, why),
            breaker::Verdict::Reopened => (State::Open, Why::Probe),
            breaker::Verdict::Closed => (State::Closed, Why::Recovered),
        };
        self.tell(Change { address: None, to, why });
    }
}
