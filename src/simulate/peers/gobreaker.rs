//! Gobreaker: one breaker for the whole service, as a library in the application has it.
//!
//! It opens on the sixth failure in a row, refuses everything for a minute, and lets one
//! request decide then. The application picks endpoints in turn and tries three times,
//! at once, as the loops around such breakers do.
//!
//! # Sources
//!
//! - gobreaker v2, `gobreaker.go`: the defaults, the generations, the lazy half-open.

use super::super::{
    rules::{Ended, Failure, Kind, Next},
    time::At,
};

const FAILURES: u32 = 5;
const TIMEOUT: At = 60_000_000_000;
const TRIES: u8 = 3;

/// A caller with a breaker.
#[derive(Debug)]
pub(in super::super) struct Gobreaker {
    endpoints: u32,
    turn: u32,
    state: State,
    generation: u64,
    /// How often it opened.
    pub(in super::super) ejections: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: At },
    HalfOpen { asked: bool },
}

impl Gobreaker {
    /// A caller of so many endpoints.
    pub(in super::super) fn new(endpoints: u32) -> Self {
        let state = State::Closed { failures: 0 };
        Self { endpoints, turn: 0, state, generation: 0, ejections: 0 }
    }

    /// The next endpoint and the generation; `None` while the breaker is open.
    pub(in super::super) fn pick(&mut self, now: At) -> Option<(u32, u64)> {
        self.wake(now);
        match &mut self.state {
            State::Closed { .. } => (),
            State::HalfOpen { asked: asked @ false } => *asked = true,
            State::Open { .. } | State::HalfOpen { asked: true } => return None,
        }
        self.turn = (self.turn + 1) % self.endpoints;
        Some((self.turn, self.generation))
    }

    /// Counts how a try ended.
    pub(in super::super) fn settle(&mut self, generation: u64, ended: Option<Ended>, now: At) {
        self.wake(now);
        if generation != self.generation {
            return;
        }
        let good = ended.is_some_and(Ended::is_good);
        match &mut self.state {
            State::Closed { failures } if good => *failures = 0,
            State::Closed { failures } if *failures < FAILURES => *failures += 1,
            State::HalfOpen { .. } if good => self.turn_to(State::Closed { failures: 0 }),
            State::Closed { .. } | State::HalfOpen { .. } => {
                self.ejections += 1;
                self.turn_to(State::Open { until: now + TIMEOUT });
            }
            State::Open { .. } => (),
        }
    }

    /// A naive loop: again, at once, whatever it was.
    pub(in super::super) fn judge(Failure { tries, .. }: Failure) -> Next {
        if tries < TRIES { Next::Try(Kind::Granted, 0) } else { Next::End { last: false } }
    }

    fn wake(&mut self, now: At) {
        if let State::Open { until } = self.state
            && until < now
        {
            self.turn_to(State::HalfOpen { asked: false });
        }
    }

    fn turn_to(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_failure_in_a_row_opens_it_for_a_minute() {
        let mut breaker = Gobreaker::new(3);
        let fail = |breaker: &mut Gobreaker, now| {
            let (_, generation) = breaker.pick(now).unwrap();
            breaker.settle(generation, Some(Ended::Reset), now);
        };
        (0..5).for_each(|_| fail(&mut breaker, 0));
        assert!(breaker.pick(0).is_some(), "five do not");
        fail(&mut breaker, 0);
        assert_eq!((breaker.pick(TIMEOUT), breaker.ejections), (None, 1));
        assert!(breaker.pick(TIMEOUT + 1).is_some(), "the probe");
        assert_eq!(breaker.pick(TIMEOUT + 1), None, "and no other");
    }
}
