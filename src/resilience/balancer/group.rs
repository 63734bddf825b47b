//! Group: the endpoints of one priority, drawn by weight.

use std::time::Instant;

use super::Slot;

/// The endpoints of one priority.
#[derive(Debug)]
pub(super) struct Group {
    priority: u16,
    all: Pool,
    available: Pool,
    /// When the first of those set aside comes back.
    returns: Option<Instant>,
}

/// Slots to draw from.
#[derive(Debug)]
pub(super) struct Pool {
    /// Ascending, so that a slot is found by bisection.
    slots: Vec<u32>,
    /// The sums of the weights up to and with each slot.
    ends: Vec<u64>,
    /// Whether all weights are the same, and a draw needs no bisection.
    equal: bool,
}

impl Group {
    /// The group of these slots, all of one priority and at least one.
    pub(super) fn new(mut members: Vec<u32>, slots: &[Slot]) -> Self {
        members.sort_unstable();
        let priority = members.first().map_or(0, |it| slots[*it as usize].endpoint.priority);
        let mut all = Pool::with_capacity(members.len());
        for slot in &members {
            all.push(*slot, slots);
        }
        let available = Pool::with_capacity(members.len());
        let mut group = Self { priority, all, available, returns: None };
        group.refresh(slots);
        group
    }

    pub(super) fn priority(&self) -> u16 {
        self.priority
    }

    pub(super) fn all(&self) -> &Pool {
        &self.all
    }

    pub(super) fn available(&self) -> &Pool {
        &self.available
    }

    /// Brings back what has been set aside for long enough.
    pub(super) fn release(&mut self, now: Instant, slots: &mut [Slot]) {
        if self.returns.is_none_or(|it| now < it) {
            return;
        }
        for slot in &self.all.slots {
            let slot = &mut slots[*slot as usize];
            slot.until = slot.until.filter(|it| now < *it);
        }
        self.refresh(slots);
    }

    /// Finds again what is available. Allocates nothing: there is room for all.
    pub(super) fn refresh(&mut self, slots: &[Slot]) {
        self.available.clear();
        self.returns = None;
        for slot in &self.all.slots {
            match slots[*slot as usize].until {
                None => self.available.push(*slot, slots),
                Some(until) => {
                    self.returns = Some(self.returns.map_or(until, |it| it.min(until)));
                }
            }
        }
    }
}

impl Pool {
    fn with_capacity(capacity: usize) -> Self {
        let (slots, ends) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        Self { slots, ends, equal: true }
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.ends.clear();
        self.equal = true;
    }

    fn push(&mut self, slot: u32, slots: &[Slot]) {
        // A weight of zero would never be drawn, and its owner never be tried.
        let weight = u64::from(slots[slot as usize].endpoint.weight.max(1));
        self.equal = self.equal && (self.ends.is_empty() || self.weight(0) == weight);
        self.ends.push(self.total() + weight);
        self.slots.push(slot);
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn has(&self, slot: u32) -> bool {
        self.slots.binary_search(&slot).is_ok()
    }

    /// The slot that owns the point `draw` of the weights, with those to `skip` left out;
    /// `None` where no other is left.
    pub(super) fn draw(&self, draw: u32, skip: [Option<u32>; 2]) -> Option<u32> {
        let skipped = self.positions(skip).into_iter().flatten();
        if self.equal {
            let mut at = scale(draw, (self.len() - skipped.clone().count()) as u64)?;
            skipped.for_each(|it| at += u64::from(it as u64 <= at));
            return self.slots.get(usize::try_from(at).ok()?).copied();
        }
        let left = self.total() - skipped.clone().map(|it| self.weight(it)).sum::<u64>();
        let mut point = scale(draw, left)?;
        skipped.for_each(|it| {
            if self.start(it) <= point {
                point += self.weight(it);
            }
        });
        self.slots.get(self.ends.partition_point(|end| *end <= point)).copied()
    }

    /// The slot whose turn it is. With weights that differ the turns of each are spread as
    /// evenly as multiples of the golden ratio are over a circle.
    pub(super) fn turn(&self, turn: u32, skip: Option<u32>) -> Option<u32> {
        if !self.equal {
            return self.draw(turn.wrapping_mul(0x9e37_79b9), [skip, None]);
        }
        let [skipped, _] = self.positions([skip, None]);
        let left = self.len() - usize::from(skipped.is_some());
        let at = (turn as usize).checked_rem(left)?;
        self.slots.get(at + usize::from(skipped.is_some_and(|it| it <= at))).copied()
    }

    /// Where in the pool the slots are, each once and in order.
    fn positions(&self, skip: [Option<u32>; 2]) -> [Option<usize>; 2] {
        let find = |it: Option<u32>| it.and_then(|slot| self.slots.binary_search(&slot).ok());
        match skip.map(find) {
            [Some(a), Some(b)] if a == b => [Some(a), None],
            [Some(a), Some(b)] => [Some(a.min(b)), Some(a.max(b))],
            one => one,
        }
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn start(&self, position: usize) -> u64 {
        position.checked_sub(1).map_or(0, |it| self.ends[it])
    }

    fn weight(&self, position: usize) -> u64 {
        self.ends[position] - self.start(position)
    }
}

/// `draw` as a point of `0..size`; `None` where there is none.
fn scale(draw: u32, size: u64) -> Option<u64> {
    let point = (u128::from(draw) * u128::from(size)) >> 32;
    (size != 0).then(|| u64::try_from(point).unwrap_or(0))
}
