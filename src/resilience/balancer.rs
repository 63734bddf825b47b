//! Balancer: picks an endpoint, and never one that cannot be reached while another can.
//!
//! Among the endpoints of the most preferred priority that has one available, two distinct
//! candidates are drawn by weight and the one with the lower
//!
//! ```text
//! pending / weight
//! ```
//!
//! is taken, the first drawn where both are equal. Idle endpoints are so shared by weight
//! (the draw decides), and busy ones by weight too (the cost does). Two choices rather than
//! the least of all: the least of all herds many callers onto one endpoint, since each
//! sidecar sees only its own requests.
//!
//! An endpoint whose dial failed is **set aside**: for 500 ms first, twice as long each time
//! it fails again, 10 s at most, each ± 25 % so that callers do not come back in step. When
//! every endpoint is set aside they are all candidates, and the pick is marked
//! [`Pick::panic`]: to try is better than to answer for an endpoint that was not asked.
//!
//! A [`Token`] carries the generation of its endpoint's state, so an outcome from before a
//! change of that state changes nothing but the count of pending requests.
//!
//! A pick allocates nothing. It takes constant time where weights are equal, and the
//! logarithm of the pool where not; only a change of what is available costs its size.
//!
//! # Sources
//!
//! - M. Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001.
//! - RFC 2782: "A client MUST attempt to contact the target host with the lowest-numbered
//!   priority it can reach". <https://www.rfc-editor.org/rfc/rfc2782>
//! - gobreaker v2: results of an earlier generation are dropped.

mod group;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::endpoint::{Endpoint, EndpointSet};
use group::{Group, Pool};

/// How long an endpoint is set aside when its dial fails for the first time: longer than a
/// connection burst, shorter than a person notices.
const SET_ASIDE: Duration = Duration::from_millis(500);

/// How long it is set aside at most: an endpoint that came back waits no longer for traffic.
const SET_ASIDE_MAX: Duration = Duration::from_secs(10);

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Power of two choices over least pending requests.
    #[default]
    LeastRequest,
    /// Power of two choices over latency and pending requests.
    PeakEwma,
    /// Each in turn.
    RoundRobin,
    /// Any of them.
    Random,
}

/// The answer to [`Balancer::pick`].
#[must_use = "a pick counts as pending until its token is settled"]
#[derive(Debug)]
pub struct Pick {
    /// The endpoint.
    pub address: SocketAddr,
    /// What [`Balancer::settle`] takes back.
    pub token: Token,
    /// Every endpoint is set aside; this one was picked all the same.
    pub panic: bool,
}

/// One pending request. To be settled exactly once; worth nothing to another balancer.
#[must_use = "a request counts as pending until its token is settled"]
#[derive(Debug)]
pub struct Token {
    slot: u32,
    /// Of the slot: an endpoint that left.
    generation: u32,
    /// Of the endpoint's state: a set-aside since.
    epoch: u32,
    /// Chance for the jitter of a set-aside, drawn when there was a generator at hand.
    draw: u32,
}

/// How a request ended at its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a response that is no failure.
    Success,
    /// With a response that is a failure, or in the middle of one.
    Failure,
    /// Before there was a connection.
    ConnectFailed,
    /// The client left.
    Cancelled,
}

/// The state of a pool in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Endpoints that may be picked.
    pub available: usize,
    /// Endpoints whose dials fail.
    pub set_aside: usize,
    /// Requests not settled.
    pub pending: u64,
}

/// The endpoints of one service and what is known of each.
#[derive(Debug)]
pub struct Balancer {
    algorithm: Algorithm,
    slots: Vec<Slot>,
    /// Slots without an endpoint.
    free: Vec<u32>,
    by_address: BTreeMap<SocketAddr, u32>,
    /// By priority, the most preferred first.
    groups: Vec<Group>,
    /// Picks made, for [`Algorithm::RoundRobin`].
    turn: u32,
}

/// One endpoint.
#[derive(Debug)]
struct Slot {
    endpoint: Endpoint,
    generation: u32,
    epoch: u32,
    pending: u32,
    /// Dials that failed since one succeeded.
    strikes: u32,
    /// When it is available again; `None` while it is.
    until: Option<Instant>,
}

impl Balancer {
    /// A balancer over `set` that knows nothing of its endpoints yet.
    pub fn new(algorithm: Algorithm, set: &EndpointSet) -> Self {
        let mut balancer = Self {
            algorithm,
            slots: Vec::new(),
            free: Vec::new(),
            by_address: BTreeMap::new(),
            groups: Vec::new(),
            turn: 0,
        };
        balancer.update(set);
        balancer
    }

    /// Changes how endpoints are picked; what is known of them stays.
    pub fn set_algorithm(&mut self, algorithm: Algorithm) {
        self.algorithm = algorithm;
    }

    /// Makes `set` the pool. What is known of an endpoint that is in both stays.
    pub fn update(&mut self, set: &EndpointSet) {
        let gone: Vec<_> =
            self.by_address.keys().copied().filter(|it| !set.contains(*it)).collect();
        for slot in gone.iter().filter_map(|it| self.by_address.remove(it)) {
            self.slots[slot as usize].generation += 1;
            self.free.push(slot);
        }
        for endpoint in set.endpoints() {
            match self.by_address.get(&endpoint.address) {
                Some(slot) => self.slots[*slot as usize].endpoint = *endpoint,
                None => self.add(*endpoint),
            }
        }
        let mut members = BTreeMap::<u16, Vec<u32>>::new();
        for slot in self.by_address.values() {
            members.entry(self.slots[*slot as usize].endpoint.priority).or_default().push(*slot);
        }
        self.groups = members.into_values().map(|it| Group::new(it, &self.slots)).collect();
    }

    /// Picks an endpoint and counts a request as pending there; `None` in an empty pool.
    ///
    /// `avoid` is picked only when nothing else is available: where a failed try went.
    /// `rng` returns draws that are uniform over `u32`.
    pub fn pick(
        &mut self,
        now: Instant,
        rng: &mut impl FnMut() -> u32,
        avoid: Option<SocketAddr>,
    ) -> Option<Pick> {
        let avoid = avoid.and_then(|it| self.by_address.get(&it).copied());
        for group in &mut self.groups {
            group.release(now, &mut self.slots);
        }
        self.turn = self.turn.wrapping_add(1);
        if let Some(slot) = self.choose(Group::available, rng, avoid) {
            return Some(self.take(slot, rng(), false));
        }
        // What is left is the endpoint to avoid, or nothing that is available.
        if let Some(slot) = avoid.filter(|it| self.slots[*it as usize].until.is_none()) {
            return Some(self.take(slot, rng(), false));
        }
        let slot = self.choose(Group::all, rng, avoid).or(avoid)?;
        Some(self.take(slot, rng(), true))
    }

    /// Takes a request back, with how it ended.
    #[expect(clippy::needless_pass_by_value, reason = "a token is settled once")]
    pub fn settle(&mut self, token: Token, outcome: Outcome, now: Instant) {
        let Token { slot, generation, epoch, draw } = token;
        let Some(slot) = self.slots.get_mut(slot as usize) else { return };
        if slot.generation != generation {
            return;
        }
        debug_assert!(slot.pending > 0, "a token is settled once");
        slot.pending = slot.pending.saturating_sub(1);
        if slot.epoch != epoch {
            return;
        }
        match outcome {
            Outcome::ConnectFailed => slot.set_aside(now, draw),
            Outcome::Success if slot.strikes > 0 => slot.bring_back(),
            Outcome::Success | Outcome::Failure | Outcome::Cancelled => return,
        }
        let priority = slot.endpoint.priority;
        if let Some(group) = self.groups.iter_mut().find(|it| it.priority() == priority) {
            group.refresh(&self.slots);
        }
    }

    /// The state of the pool in numbers. An endpoint that comes back counts from the next
    /// pick.
    pub fn stats(&self) -> Stats {
        let live = self.by_address.values().map(|it| &self.slots[*it as usize]);
        live.fold(Stats::default(), |sum, it| {
            let set_aside = usize::from(it.until.is_some());
            Stats {
                available: sum.available + 1 - set_aside,
                set_aside: sum.set_aside + set_aside,
                pending: sum.pending + u64::from(it.pending),
            }
        })
    }

    /// A slot of the first group that has one besides `avoid` in its `pool`.
    fn choose(
        &self,
        pool: fn(&Group) -> &Pool,
        rng: &mut impl FnMut() -> u32,
        avoid: Option<u32>,
    ) -> Option<u32> {
        let has_other = |it: &&Pool| it.len() > usize::from(avoid.is_some_and(|a| it.has(a)));
        let pool = self.groups.iter().map(pool).find(has_other)?;
        match self.algorithm {
            Algorithm::Random => pool.draw(rng(), [avoid, None]),
            Algorithm::RoundRobin => pool.turn(self.turn, avoid),
            // The cost function of `PeakEwma` needs latencies, which nothing reports yet.
            Algorithm::LeastRequest | Algorithm::PeakEwma => {
                let first = pool.draw(rng(), [avoid, None])?;
                let Some(second) = pool.draw(rng(), [avoid, Some(first)]) else {
                    return Some(first);
                };
                let cheaper =
                    |a: u32, b: u32| self.slots[a as usize].is_cheaper(&self.slots[b as usize]);
                Some(if cheaper(first, second) { first } else { second })
            }
        }
    }

    fn take(&mut self, slot: u32, draw: u32, panic: bool) -> Pick {
        let it = &mut self.slots[slot as usize];
        it.pending += 1;
        let token = Token { slot, generation: it.generation, epoch: it.epoch, draw };
        Pick { address: it.endpoint.address, token, panic }
    }

    fn add(&mut self, endpoint: Endpoint) {
        let new = |generation| Slot {
            endpoint,
            generation,
            epoch: 0,
            pending: 0,
            strikes: 0,
            until: None,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(new(0));
            // As many endpoints as there are addresses in an answer, far below `u32`.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let it = &mut self.slots[slot as usize];
        *it = new(it.generation);
        self.by_address.insert(endpoint.address, slot);
    }
}

impl Slot {
    /// Whether its cost is at most that of `other`.
    fn is_cheaper(&self, other: &Self) -> bool {
        let scaled = |it: &Self, by: &Self| u64::from(it.pending) * u64::from(by.endpoint.weight);
        scaled(self, other) <= scaled(other, self)
    }

    fn set_aside(&mut self, now: Instant, draw: u32) {
        let base = SET_ASIDE * 2_u32.pow(self.strikes.min(10));
        let base = base.min(SET_ASIDE_MAX);
        // A draw is a share of the half that jitter may take or leave.
        let jitter = ((base / 2).as_nanos() * u128::from(draw)) >> 32;
        let jitter = Duration::from_nanos(u64::try_from(jitter).unwrap_or(0));
        self.until = Some(now + base * 3 / 4 + jitter);
        self.strikes = self.strikes.saturating_add(1);
        self.epoch = self.epoch.wrapping_add(1);
    }

    fn bring_back(&mut self) {
        self.until = None;
        self.strikes = 0;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
