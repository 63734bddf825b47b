//! Group: the endpoints of one priority, and those of them that requests are drawn from.

use std::time::{Duration, Instant};

use super::{
    eject::{Ejections, Rules},
    pool::Pool,
    ring::Ring,
    slot::Slot,
    subset::{self, Band},
};
use crate::endpoint::Zone;

/// The endpoints of one priority.
#[derive(Debug)]
pub(super) struct Group {
    priority: u16,
    all: Pool,
    available: Pool,
    /// Those of `available` that are near, and the others, where there are both and it is
    /// known of some that they are far.
    near: Pool,
    far: Pool,
    ring: Option<Ring>,
    /// Requests under way at those available.
    load: u32,
    /// Whether only a subset is used.
    is_subset: bool,
    band: Band,
    wants_probe: bool,
}

/// What a group is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Of the process, for subsets.
    pub(super) seed: u64,
    /// Whether keys are hashed.
    pub(super) is_hashed: bool,
}

/// What time may have changed, and is to be looked at.
#[derive(Debug)]
pub(super) struct Look<'a> {
    pub(super) now: Instant,
    pub(super) slow_start: Duration,
    pub(super) rules: &'a Rules,
    /// What happened to breakers.
    pub(super) ejections: &'a mut Ejections,
    /// When time will change something next.
    pub(super) next: Option<Instant>,
}

impl Group {
    /// The group of these slots, all of one priority and at least one. `band` is that of the
    /// group of this priority before.
    pub(super) fn new(
        mut members: Vec<u32>,
        slots: &mut [Slot],
        layout: Layout,
        band: Band,
    ) -> Self {
        rank(&mut members, slots, layout.seed);
        members.sort_unstable();
        let priority = members.first().map_or(0, |it| slots[*it as usize].endpoint.priority);
        let mut all = Pool::with_capacity(members.len());
        for slot in &members {
            all.push(*slot, slots, u64::from(slots[*slot as usize].weight()));
        }
        let ring = layout.is_hashed.then(|| Ring::new(&members, slots));
        let empty = || Pool::with_capacity(members.len());
        let (available, near, far) = (empty(), empty(), empty());
        let (load, is_subset, wants_probe) = (0, false, false);
        Self { priority, all, available, near, far, ring, load, is_subset, band, wants_probe }
    }

    pub(super) fn priority(&self) -> u16 {
        self.priority
    }

    pub(super) fn band(&self) -> Band {
        self.band
    }

    pub(super) fn all(&self) -> &Pool {
        &self.all
    }

    pub(super) fn available(&self) -> &Pool {
        &self.available
    }

    /// The near ones and the others, where that makes a difference.
    pub(super) fn zones(&self) -> Option<[&Pool; 2]> {
        (!self.near.is_empty()).then_some([&self.near, &self.far])
    }

    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Requests under way at those available.
    pub(super) fn load(&self) -> u32 {
        self.load
    }

    /// Whether the breaker of one asks for a probe.
    pub(super) fn wants_probe(&self) -> bool {
        self.wants_probe
    }

    /// Counts a request that began or ended at one of those available; says whether the
    /// subset is to be another one.
    pub(super) fn count(&mut self, began: bool, now: Instant) -> bool {
        let is_moved = self.is_subset && self.band.observe(self.load, self.all.len(), now);
        self.load = if began { self.load + 1 } else { self.load.saturating_sub(1) };
        is_moved
    }

    /// Finds again what is available. Allocates nothing: there is room for all.
    pub(super) fn refresh(&mut self, slots: &mut [Slot], look: &mut Look<'_>) {
        let mut up = 0;
        self.wants_probe = false;
        for slot in self.all.slots() {
            let slot = &mut slots[*slot as usize];
            let before = slot.breaker.state();
            let next = slot.look(look.slow_start, &look.rules.breaker, look.now);
            look.ejections.compare(before, slot);
            look.next = look.next.into_iter().chain(next).min();
            up += usize::from(slot.share > 0);
            self.wants_probe |= slot.wants_probe;
        }
        self.is_subset = subset::LARGE < up && self.all.is_equal() && self.ring.is_none();
        let size = if self.is_subset { self.band.size() } else { u32::MAX };
        self.list(slots, size);
        if self.available.is_empty() {
            self.list(slots, u32::MAX);
        }
        self.split(slots);
    }

    /// Makes those available that can be, and rank below `size`.
    fn list(&mut self, slots: &mut [Slot], size: u32) {
        self.available.clear();
        self.load = 0;
        for at in self.all.slots() {
            let slot = &mut slots[*at as usize];
            slot.listed = slot.share > 0 && slot.rank < size;
            if slot.listed {
                let (pending, stake) = (slot.pending, slot.stake());
                self.load += pending;
                self.available.push(*at, slots, stake);
            }
        }
    }

    fn split(&mut self, slots: &[Slot]) {
        self.near.clear();
        self.far.clear();
        let zone = |it: &u32| slots[*it as usize].endpoint.zone;
        let has = |wanted| self.available.slots().iter().any(|it| zone(it) == wanted);
        if !has(Zone::Near) || !has(Zone::Far) {
            return;
        }
        for slot in self.available.slots() {
            let pool = if zone(slot) == Zone::Near { &mut self.near } else { &mut self.far };
            pool.push(*slot, slots, slots[*slot as usize].stake());
        }
    }
}

/// Ranks these slots, the near ones and the others each on their own: a subset has both.
fn rank(members: &mut [u32], slots: &mut [Slot], seed: u64) {
    let is_near = |slots: &[Slot], it: u32| slots[it as usize].endpoint.zone == Zone::Near;
    members.sort_by_cached_key(|it| subset::rank(seed, slots[*it as usize].endpoint.address));
    let mut ranked = [0, 0];
    for at in members.iter() {
        let next = &mut ranked[usize::from(is_near(slots, *at))];
        slots[*at as usize].rank = *next;
        *next += 1;
    }
}
