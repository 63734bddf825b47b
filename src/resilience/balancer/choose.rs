//! Choose: which of the endpoints available is picked, by each algorithm.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use super::{
    super::service::Ask, Algorithm, Balancer, group::Group, latency::FLOOR, pool::Pool, slot::Slot,
};

/// How many times its cost an endpoint in another zone counts: it is used once the near ones
/// have about twice as much to do, without anybody having to decide when that is.
const FAR: f64 = 2.0;

/// How much more than the mean an endpoint may have under way before keys move on, as a
/// fraction.
const LOAD_MAX: (u64, u64) = (5, 4);

/// One that may be picked.
#[derive(Clone, Copy)]
struct Candidate {
    slot: u32,
    cost: f64,
}

impl Balancer {
    /// A slot of the first group that has one besides `avoid` in its `pool`.
    pub(super) fn choose(
        &self,
        pool: fn(&Group) -> &Pool,
        ask: &Ask<'_>,
        rng: &mut impl FnMut() -> u32,
        avoid: Option<u32>,
    ) -> Option<u32> {
        let group = self.groups.iter().find(|it| pool(it).has_other(avoid))?;
        let pool = pool(group);
        match (self.config.algorithm, ask.key) {
            (Algorithm::Random, _) => pool.draw(rng(), [avoid, None]),
            (Algorithm::RoundRobin, _) => pool.turn(self.turn, avoid),
            (Algorithm::ConsistentHash, Some(key)) => {
                self.owner(group, key, avoid).or_else(|| self.cheaper(pool, ask.now, rng, avoid))
            }
            _ => match group.zones() {
                Some(zones) if zones[0].has_other(avoid) => self.nearer(zones, ask.now, rng, avoid),
                _ => self.cheaper(pool, ask.now, rng, avoid),
            },
        }
    }

    /// The cheaper of two.
    fn cheaper(
        &self,
        pool: &Pool,
        now: Instant,
        rng: &mut impl FnMut() -> u32,
        avoid: Option<u32>,
    ) -> Option<u32> {
        let first = pool.draw(rng(), [avoid, None])?;
        let Some(second) = pool.draw(rng(), [avoid, Some(first)]) else { return Some(first) };
        let [a, b] = [first, second].map(|slot| self.candidate(slot, pool, now));
        // Where both are drawn with the same chance there is nothing to make up for.
        let odds = if pool.is_equal() { 1.0 } else { odds(self.of(b), self.of(a), Slot::stake) };
        Some(contest(a, b, odds, rng).slot)
    }

    /// The cheapest of two that are near and one that is not.
    fn nearer(
        &self,
        [near, far]: [&Pool; 2],
        now: Instant,
        rng: &mut impl FnMut() -> u32,
        avoid: Option<u32>,
    ) -> Option<u32> {
        let best = self.cheaper(near, now, rng, avoid)?;
        let Some(other) = far.draw(rng(), [avoid, None]) else { return Some(best) };
        let a = self.candidate(best, near, now);
        let mut b = self.candidate(other, far, now);
        b.cost *= FAR;
        let odds = odds(self.of(b), self.of(a), |it| u64::from(it.share));
        Some(contest(a, b, odds, rng).slot)
    }

    /// The first owner of the key that is available and has no more to do than the others.
    fn owner(&self, group: &Group, key: &[u8], avoid: Option<u32>) -> Option<u32> {
        let pool = group.available();
        let mut owners = group.ring()?.walk(key).filter_map(|it| self.by_address.get(&it));
        let fits = |at: u32| {
            let it = &self.slots[at as usize];
            let load = (u64::from(group.load()) + 1) * u64::from(it.weight()) * LOAD_MAX.0;
            it.listed
                && Some(at) != avoid
                && u64::from(it.pending) < load.div_ceil(LOAD_MAX.1 * pool.weights().max(1))
                && takes(it, key)
        };
        owners.find(|it| fits(**it)).copied()
    }

    fn candidate(&self, slot: u32, pool: &Pool, now: Instant) -> Candidate {
        let it = &self.slots[slot as usize];
        let latency = match self.config.algorithm {
            Algorithm::LeastRequest => 1.0,
            Algorithm::PeakEwma
            | Algorithm::RoundRobin
            | Algorithm::Random
            | Algorithm::ConsistentHash => self.latency(it, now),
        };
        let load = f64::from(it.pending) * pool.mean_weight() / f64::from(it.weight());
        Candidate { slot, cost: latency * (1.0 + load) }
    }

    /// What its answers cost, or one that has not come yet will.
    fn latency(&self, slot: &Slot, now: Instant) -> f64 {
        let ages = self
            .waiting
            .firsts(&slot.lines)
            .map(|(start, route)| self.baselines.wait(route, now.saturating_duration_since(start)));
        ages.fold(slot.estimate.read(now).max(FLOOR), f64::max)
    }

    fn of(&self, candidate: Candidate) -> &Slot {
        &self.slots[candidate.slot as usize]
    }
}

/// The cheaper of two, the first where they are equal.
///
/// The second has been drawn among the others, so more often than its stake says where that
/// is the smaller one. By these `odds` it is a candidate like any; otherwise its cost counts
/// as many times more: it is better than one that hangs, but not for being a little quicker.
fn contest(a: Candidate, b: Candidate, odds: f64, rng: &mut impl FnMut() -> u32) -> Candidate {
    let is_held_back = odds < 1.0 && odds * (f64::from(u32::MAX) + 1.0) <= f64::from(rng());
    let cost = if is_held_back { b.cost / odds } else { b.cost };
    if a.cost <= cost { a } else { b }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn odds(of: &Slot, to: &Slot, stake: fn(&Slot) -> u64) -> f64 {
    stake(of) as f64 / stake(to).max(1) as f64
}

/// Whether a slot that gets a share of its traffic takes this key: which keys it takes grows
/// with the share, so that each moves once.
fn takes(slot: &Slot, key: &[u8]) -> bool {
    if slot.share == 100 {
        return true;
    }
    let mut hasher = DefaultHasher::new();
    (slot.endpoint.address, key).hash(&mut hasher);
    hasher.finish() % 100 < u64::from(slot.share)
}
