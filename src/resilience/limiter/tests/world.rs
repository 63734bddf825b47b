//! World: a workload of a few workers behind a limiter, simulated event by event.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{Class, Config, Decision, Limiter, Outcome, Ticket};

/// How long callers wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// A workload, and what happens to it.
pub(super) struct World<'a> {
    /// What chance begins with.
    pub(super) seed: u64,
    /// How many requests it works at; the others queue in order.
    pub(super) workers: usize,
    /// The mean of its exponential service time in seconds.
    pub(super) service: &'a dyn Fn(Duration) -> f64,
    /// Requests a second.
    pub(super) load: &'a dyn Fn(Duration) -> f64,
    /// What the limiter sees of a caller that has waited long enough.
    pub(super) gives_up: Outcome,
}

/// What was seen in a stretch of time.
pub(super) struct Phase {
    /// Answers a second that came while the caller waited.
    pub(super) goodput: f64,
    /// How many came.
    pub(super) offered: u32,
    /// How many of them were shed.
    pub(super) shed: u32,
    /// Of the answers that came in time.
    pub(super) p99: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Done(u64),
    GivesUp(u64),
}

impl World<'_> {
    /// 8 workers of 20 ms each, 240 requests a second.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, workers: 8, service: &|_| 0.020, load: &|_| 240.0, gives_up: Outcome::Timeout }
    }

    /// Runs until `to`, and reports on what arrives from `from` on.
    pub(super) fn run(&mut self, config: Config, from: Duration, to: Duration) -> Phase {
        let origin = crate::clock::now();
        let mut limiter = Limiter::new(config, PATIENCE, origin);
        let mut events = BinaryHeap::from([Reverse((Duration::ZERO, Event::Arrival))]);
        let mut waiting: HashMap<u64, (Duration, Ticket)> = HashMap::new();
        let (mut queue, mut busy, mut next) = (VecDeque::new(), 0, 0);
        let (mut offered, mut shed, mut latencies) = (0_u32, 0_u32, Vec::new());
        while let Some(Reverse((now, event))) = events.pop().filter(|it| it.0.0 < to) {
            let at: Instant = origin + now;
            match event {
                Event::Arrival => {
                    let gap = self.exponential(1.0 / (self.load)(now));
                    events.push(Reverse((now + gap, Event::Arrival)));
                    offered += u32::from(from <= now);
                    match limiter.admit(Class::Default, at) {
                        Decision::Shed => shed += u32::from(from <= now),
                        Decision::Admit(ticket) | Decision::WouldShed(ticket) => {
                            next += 1;
                            waiting.insert(next, (now, ticket));
                            queue.push_back(next);
                            events.push(Reverse((now + PATIENCE, Event::GivesUp(next))));
                        }
                    }
                }
                Event::Done(id) => {
                    busy -= 1;
                    // What nobody waits for any more was worked at all the same.
                    if let Some((since, ticket)) = waiting.remove(&id) {
                        let latency = now.saturating_sub(since);
                        limiter.settle(ticket, Outcome::Done(latency), at);
                        latencies.extend((from <= now).then_some(latency));
                    }
                }
                Event::GivesUp(id) => {
                    if let Some((_, ticket)) = waiting.remove(&id) {
                        limiter.settle(ticket, self.gives_up, at);
                    }
                }
            }
            while busy < self.workers
                && let Some(id) = queue.pop_front()
            {
                busy += 1;
                let done = now + self.exponential((self.service)(now));
                events.push(Reverse((done, Event::Done(id))));
            }
        }
        latencies.sort_unstable();
        let in_time = f64::from(u32::try_from(latencies.len()).unwrap());
        Phase {
            goodput: in_time / to.saturating_sub(from).as_secs_f64(),
            offered,
            shed,
            p99: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default(),
        }
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        // SplitMix64; see `proxy::context::Draw`.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let uniform = (f64::from(((z ^ (z >> 31)) >> 32) as u32) + 1.0) / f64::from(u32::MAX);
        Duration::from_secs_f64(-mean * uniform.min(1.0).ln())
    }
}
