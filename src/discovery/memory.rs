//! Memory: which endpoints a name has, after any answer or failure.
//!
//! Pure state: `now` is an argument, and what to do is returned.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{State, Timing};
use crate::endpoint::EndpointSet;

/// What one resolution brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Endpoints.
    Found {
        endpoints: EndpointSet,
        ttl: Duration,
        /// Why some of them are of an earlier answer.
        stale: Option<Arc<str>>,
    },
    /// That there are none.
    Nothing { ttl: Duration },
    /// No answer.
    Failed { error: Arc<str> },
}

/// What is known of one name.
#[derive(Debug)]
pub(super) struct Memory {
    timing: Timing,
    endpoints: EndpointSet,
    /// When it was last answered, or first asked for.
    answered: Instant,
    /// Since when it does not exist.
    gone: Option<Instant>,
    /// Failures since the last answer.
    failures: u32,
}

/// What is to be done about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) endpoints: EndpointSet,
    pub(super) state: State,
    /// Time to the next question, jitter apart.
    pub(super) wait: Duration,
    /// Age of the last good answer.
    pub(super) age: Duration,
}

impl Memory {
    pub(super) fn new(timing: Timing, now: Instant) -> Self {
        Self { timing, endpoints: EndpointSet::default(), answered: now, gone: None, failures: 0 }
    }

    /// Takes in what a resolution brought.
    pub(super) fn learn(&mut self, answer: Answer, now: Instant) -> Verdict {
        let (ttl, retry) = (self.timing.ttl, self.timing.retry);
        let (state, wait) = match answer {
            Answer::Found { endpoints, ttl: wait, stale: None } => {
                (self.endpoints, self.answered, self.gone) = (endpoints, now, None);
                self.failures = 0;
                (State::Fresh, wait.clamp(ttl.0, ttl.1))
            }
            Answer::Found { endpoints, ttl: _, stale: Some(error) } => {
                (self.endpoints, self.gone) = (endpoints, None);
                (State::Stale { error }, self.back_off())
            }
            Answer::Nothing { ttl: wait } => {
                self.failures = 0;
                (self.lose(now), wait.clamp(retry.0, retry.1))
            }
            Answer::Failed { error } if self.endpoints.is_empty() => {
                (State::Failed { error }, self.back_off())
            }
            Answer::Failed { error } => (State::Stale { error }, self.back_off()),
        };
        let age = now.saturating_duration_since(self.answered);
        Verdict { endpoints: self.endpoints.clone(), state, wait, age }
    }

    /// Keeps the endpoints of a name that is gone through the grace, and then forgets them.
    fn lose(&mut self, now: Instant) -> State {
        let gone = *self.gone.get_or_insert(now);
        let over = self.timing.grace <= now.saturating_duration_since(gone);
        if !self.endpoints.is_empty() && !over {
            return State::Stale { error: "the name does not exist any more".into() };
        }
        // "It does not exist" is an answer too, and in use.
        (self.endpoints, self.answered) = (EndpointSet::default(), now);
        State::NotFound
    }

    fn back_off(&mut self) -> Duration {
        let (least, most) = self.timing.retry;
        let wait = least.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        wait.clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, endpoint::Endpoint};

    #[test]
    fn a_ttl_is_clamped() {
        let (mut memory, now) = memory();
        for (ttl, wait) in [(0, 1), (7, 7), (86_400, 30)] {
            assert_eq!(memory.learn(found(1, ttl), now).wait, Duration::from_secs(wait));
        }
    }

    #[test]
    fn the_last_good_answer_is_kept_while_dns_fails() {
        let (mut memory, now) = memory();
        let good = memory.learn(found(1, 5), now);
        let hour = Duration::from_hours(1);
        let later = memory.learn(failed(), now + hour);
        assert_eq!(later.endpoints, good.endpoints);
        assert_eq!((later.state, later.age), (State::Stale { error: "down".into() }, hour));
        let again = memory.learn(found(2, 5), now + hour);
        assert_eq!((again.state, again.age), (State::Fresh, Duration::ZERO));
    }

    #[test]
    fn failures_are_asked_again_at_growing_intervals() {
        let (mut memory, now) = memory();
        let waits: Vec<_> = (0..5).map(|_| memory.learn(failed(), now).wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        memory.learn(found(1, 5), now);
        assert_eq!(memory.learn(failed(), now).wait.as_secs(), 1);
    }

    #[test]
    fn a_name_that_is_gone_keeps_its_endpoints_for_a_grace() {
        let (mut memory, now) = memory();
        memory.learn(found(1, 5), now);
        let nothing = Answer::Nothing { ttl: Duration::from_hours(1) };
        let first = memory.learn(nothing.clone(), now);
        assert_eq!((first.endpoints.len(), first.wait.as_secs()), (1, 5));
        let grace = Timing::default().grace;
        assert_eq!(memory.learn(failed(), now + grace).endpoints.len(), 1);
        let after = memory.learn(nothing.clone(), now + grace);
        assert_eq!((after.endpoints.len(), after.state), (0, State::NotFound));
        // It came back and went again: a new grace.
        memory.learn(found(1, 5), now + grace);
        assert_eq!(memory.learn(nothing, now + grace).endpoints.len(), 1);
    }

    #[test]
    fn a_name_that_never_existed_has_no_grace() {
        let (mut memory, now) = memory();
        let verdict = memory.learn(Answer::Nothing { ttl: Duration::ZERO }, now);
        assert_eq!((verdict.state, verdict.wait.as_secs()), (State::NotFound, 1));
    }

    fn memory() -> (Memory, Instant) {
        let now = clock::now();
        (Memory::new(Timing::default(), now), now)
    }

    fn found(last: u8, ttl: u64) -> Answer {
        let endpoint = Endpoint::new(([10, 0, 0, last], 80).into());
        let endpoints = [endpoint].into_iter().collect();
        Answer::Found { endpoints, ttl: Duration::from_secs(ttl), stale: None }
    }

    fn failed() -> Answer {
        Answer::Failed { error: "down".into() }
    }
}
