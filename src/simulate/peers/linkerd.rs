//! Linkerd: its proxy with a retryable route and failure accrual switched on.
//!
//! Two choices over a peak-EWMA that every look lets decay; retries at once, as long as
//! the budget of this proxy has any left: a fifth of the requests of 10 s, and ten a
//! second whatever they are. Seven failures in a row shut an endpoint until one probe
//! succeeds; there is no cap, so that all may be shut.
//!
//! # Sources
//!
//! - tower, `peak_ewma.rs`, `tps_budget.rs`: the load, the budget.
//! - linkerd2-proxy, `consecutive_failures.rs`: the accrual, its backoff and probation.

use super::super::{
    chance::{Chance, scaled},
    rules::{Ended, Failure, Kind, Next},
    time::At,
};

const SECOND: At = 1_000_000_000;
const DEFAULT_RTT: At = 30_000_000;
const DECAY: At = 10 * SECOND;
const FAILURES: u32 = 7;
const SHUT: At = SECOND;
const SHUT_MAX: At = 60 * SECOND;
/// Hundredths of the wait that jitter may add.
const JITTER_PERCENT: u64 = 50;
/// How long a connection that was refused is not made again; ten times as long at most.
const RECONNECT: At = 100_000_000;

const SLOTS: usize = 10;
/// Requests that pay for a retry: a ratio of 0.2.
const PRICE: i64 = 5;
/// Ten a second, for the ten seconds of the budget.
const RESERVE: i64 = 10 * 10 * PRICE;

/// A caller as Linkerd's proxy is one.
#[derive(Debug)]
pub(in super::super) struct Linkerd {
    endpoints: Vec<Endpoint>,
    budget: Budget,
    /// How often an endpoint was shut.
    pub(in super::super) ejections: u64,
}

#[derive(Clone, Copy, Debug)]
struct Endpoint {
    estimate: At,
    at: At,
    pending: u32,
    refused: u32,
    refused_until: At,
    gate: Gate,
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Open { failures: u32 },
    Shut { times: u32, until: At },
    Probation { times: u32, asked: bool },
}

#[derive(Debug, Default)]
struct Budget {
    slots: [i64; SLOTS],
    second: u64,
}

impl Linkerd {
    /// A caller of so many endpoints.
    pub(in super::super) fn new(endpoints: u32) -> Self {
        let endpoint = Endpoint {
            estimate: DEFAULT_RTT,
            at: 0,
            pending: 0,
            refused: 0,
            refused_until: 0,
            gate: Gate::Open { failures: 0 },
        };
        let endpoints = vec![endpoint; endpoints as usize];
        Self { endpoints, budget: Budget::default(), ejections: 0 }
    }

    /// Of two endpoints that are ready, the one with less load; `None` where none is, which
    /// is answered at once (fail-fast).
    pub(in super::super) fn pick(
        &mut self,
        kind: Kind,
        now: At,
        chance: &mut Chance,
    ) -> Option<(u32, u64)> {
        if kind == Kind::First {
            self.budget.deposit(now);
        }
        let mut ready = Vec::with_capacity(self.endpoints.len());
        for (at, it) in self.endpoints.iter_mut().enumerate() {
            if it.is_ready(now) {
                ready.push(at);
            }
        }
        let mut draw = || {
            let at = usize::try_from(chance.below(ready.len() as u64)).unwrap_or(0);
            (!ready.is_empty()).then(|| ready.swap_remove(at))
        };
        let (first, second) = (draw()?, draw());
        let mut load = |at: usize| self.endpoints[at].load(now);
        let found = match second {
            Some(second) if load(second) < load(first) => second,
            Some(_) | None => first,
        };
        let it = &mut self.endpoints[found];
        it.pending += 1;
        if let Gate::Probation { asked, .. } = &mut it.gate {
            *asked = true;
        }
        u32::try_from(found).ok().map(|found| (found, chance.word()))
    }

    /// Counts how a try ended. `draw` is for the jitter of a wait.
    pub(in super::super) fn settle(
        &mut self,
        (at, draw): (u32, u64),
        ended: Option<Ended>,
        (now, took): (At, At),
    ) {
        let it = &mut self.endpoints[at as usize];
        it.pending = it.pending.saturating_sub(1);
        it.observe(took, now);
        let Some(ended) = ended else { return };
        if ended == Ended::Refused {
            it.refused_until = now + RECONNECT * u64::from(1 + it.refused.min(9));
            it.refused += 1;
        } else {
            it.refused = 0;
        }
        let shut = |times: u32| {
            let wait = (SHUT << times.min(6)).min(SHUT_MAX);
            let jitter = wait * JITTER_PERCENT / 100;
            let until = now + (wait + Chance::new(draw, 0).below(jitter)).min(SHUT_MAX);
            Gate::Shut { times, until }
        };
        it.gate = match (it.gate, ended.is_good()) {
            (Gate::Open { .. } | Gate::Probation { .. }, true) => Gate::Open { failures: 0 },
            (Gate::Open { failures }, false) if failures + 1 < FAILURES => {
                Gate::Open { failures: failures + 1 }
            }
            (Gate::Open { .. }, false) => {
                self.ejections += 1;
                shut(0)
            }
            (Gate::Probation { times, .. }, false) => shut(times + 1),
            (gate @ Gate::Shut { .. }, _) => gate,
        };
    }

    /// Again at once, while there is budget.
    pub(in super::super) fn judge(&mut self, Failure { ended, .. }: Failure, now: At) -> Next {
        // A timeout is the request's, and ends it.
        if ended != Ended::TimedOut && self.budget.withdraw(now) {
            return Next::Try(Kind::Granted, 0);
        }
        Next::End { last: false }
    }
}

impl Endpoint {
    fn is_ready(&mut self, now: At) -> bool {
        if let Gate::Shut { times, until } = self.gate
            && until <= now
        {
            self.gate = Gate::Probation { times, asked: false };
        }
        let open = match self.gate {
            Gate::Open { .. } => true,
            Gate::Probation { asked, .. } => !asked,
            Gate::Shut { .. } => false,
        };
        open && self.refused_until <= now
    }

    /// What is above the estimate becomes it, what is below pulls it down.
    #[expect(clippy::cast_precision_loss, reason = "seconds in nanoseconds")]
    fn observe(&mut self, took: At, now: At) {
        if self.estimate < took {
            self.estimate = took;
        } else {
            let weight = (-((now - self.at) as f64) / DECAY as f64).exp();
            self.estimate = scaled(self.estimate, weight) + scaled(took, 1.0 - weight);
        }
        self.at = now;
    }

    fn load(&mut self, now: At) -> At {
        self.observe(0, now);
        self.estimate.saturating_mul(u64::from(self.pending) + 1)
    }
}

impl Budget {
    fn deposit(&mut self, now: At) {
        *self.slot(now) += 1;
    }

    fn withdraw(&mut self, now: At) -> bool {
        self.slot(now);
        let granted = PRICE <= self.slots.iter().sum::<i64>() + RESERVE;
        if granted {
            *self.slot(now) -= PRICE;
        }
        granted
    }

    /// The slot of this second; those that are over ten old are forgotten.
    fn slot(&mut self, now: At) -> &mut i64 {
        let second = now / SECOND;
        let index = |second: u64| usize::try_from(second % SLOTS as u64).unwrap_or(0);
        while self.second < second {
            self.second = (self.second + 1).max(second.saturating_sub(SLOTS as u64));
            self.slots[index(self.second)] = 0;
        }
        &mut self.slots[index(second)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_service_gets_a_fifth_and_ten_a_second_more() {
        let mut budget = Budget::default();
        let mut granted = 0;
        for second in 0..100 {
            for step in 0..50 {
                let now = second * SECOND + step;
                budget.deposit(now);
                granted += u64::from(budget.withdraw(now));
            }
        }
        // 5,000 requests in 100 s, and the ten seconds of the reserve at the beginning.
        let expected = 5_000 / 5 + 10 * 100;
        assert!((expected - 100..=expected + 100).contains(&granted), "{granted}");
    }

    #[test]
    fn a_look_lets_the_estimate_decay() {
        let mut endpoint = Linkerd::new(1).endpoints[0];
        endpoint.observe(100_000_000, 0);
        endpoint.observe(0, 10 * SECOND);
        assert_eq!(endpoint.estimate / 1_000, 36_787, "100 ms, by a factor of e");
    }

    #[test]
    fn seven_failures_in_a_row_shut_an_endpoint_until_a_probe_succeeds() {
        let mut linkerd = Linkerd::new(1);
        let mut chance = Chance::new(1, 1);
        for _ in 0..FAILURES {
            let note = linkerd.pick(Kind::First, 0, &mut chance).unwrap();
            linkerd.settle(note, Some(Ended::Reset), (0, 0));
        }
        assert_eq!((linkerd.pick(Kind::First, 0, &mut chance), linkerd.ejections), (None, 1));
        let later = 2 * SECOND;
        let probe = linkerd.pick(Kind::First, later, &mut chance).unwrap();
        assert_eq!(linkerd.pick(Kind::First, later, &mut chance), None, "one probe");
        linkerd.settle(probe, Some(Ended::Answered(OK)), (later, 0));
        assert!(linkerd.pick(Kind::First, later, &mut chance).is_some());
    }

    const OK: super::super::super::rules::Answer =
        super::super::super::rules::Answer { status: 200, last: false };
}
