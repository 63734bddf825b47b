//! Members: who is in the pool, and in which of its groups.

use std::{collections::BTreeMap, time::Instant};

use super::{
    Algorithm, Balancer,
    group::{Group, Layout, Look},
    slot::Slot,
    subset::Band,
};
use crate::endpoint::EndpointSet;

impl Balancer {
    /// Makes `set` the pool. What is known of an endpoint that is in both stays.
    pub fn update(&mut self, set: &EndpointSet, now: Instant) {
        let are_new = !self.by_address.is_empty();
        let gone: Vec<_> =
            self.by_address.keys().copied().filter(|it| !set.contains(*it)).collect();
        for slot in gone.iter().filter_map(|it| self.by_address.remove(it)) {
            self.slots[slot as usize].generation += 1;
            self.free.push(slot);
        }
        for endpoint in set.endpoints() {
            match self.by_address.get(&endpoint.address) {
                Some(slot) => self.slots[*slot as usize].endpoint = *endpoint,
                None => self.add(Slot::new(*endpoint, are_new, now)),
            }
        }
        self.arrange(now);
    }

    fn add(&mut self, mut slot: Slot) {
        let address = slot.endpoint.address;
        let at = if let Some(at) = self.free.pop() {
            slot.generation = self.slots[at as usize].generation;
            self.slots[at as usize] = slot;
            at
        } else {
            self.slots.push(slot);
            // As many endpoints as there are addresses in an answer, far below `u32`.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_address.insert(address, at);
    }

    /// Puts endpoints in their groups.
    pub(super) fn arrange(&mut self, now: Instant) {
        let mut members = BTreeMap::<u16, Vec<u32>>::new();
        for slot in self.by_address.values() {
            members.entry(self.slots[*slot as usize].endpoint.priority).or_default().push(*slot);
        }
        let is_hashed = self.config.algorithm == Algorithm::ConsistentHash;
        let layout = Layout { seed: self.config.seed, is_hashed };
        let before: BTreeMap<_, _> =
            self.groups.iter().map(|it| (it.priority(), it.band())).collect();
        self.groups.clear();
        for (at, (priority, members)) in (0..).zip(members) {
            for slot in &members {
                self.slots[*slot as usize].group = at;
            }
            let band = before.get(&priority).copied().unwrap_or_else(|| Band::new(now));
            self.groups.push(Group::new(members, &mut self.slots, layout, band));
        }
        self.keep_cap(now);
        self.refresh(now);
    }

    /// Finds again what is available.
    pub(super) fn refresh(&mut self, now: Instant) {
        let slow_start = self.config.slow_start;
        let (rules, ejections) = (&self.rules, &mut self.ejections);
        let mut look = Look { now, slow_start, rules, ejections, next: None };
        for group in &mut self.groups {
            group.refresh(&mut self.slots, &mut look);
        }
        self.next = look.next;
    }
}
