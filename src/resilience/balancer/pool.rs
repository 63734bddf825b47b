//! Pool: slots to draw from, each in proportion to its weight and its share.

use super::slot::Slot;

/// Slots to draw from.
#[derive(Debug)]
pub(super) struct Pool {
    /// Ascending, so that a slot is found by bisection.
    slots: Vec<u32>,
    /// The sums of the stakes up to and with each slot.
    ends: Vec<u64>,
    /// Whether all stakes are the same, and a draw needs no bisection.
    equal: bool,
    /// The sum of the weights.
    weights: u64,
}

impl Pool {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let (slots, ends) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        Self { slots, ends, equal: true, weights: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.ends.clear();
        (self.equal, self.weights) = (true, 0);
    }

    /// Adds a slot with this stake in the draw. Slots are added in ascending order.
    pub(super) fn push(&mut self, slot: u32, slots: &[Slot], stake: u64) {
        self.equal = self.equal && (self.ends.is_empty() || self.stake(0) == stake);
        self.ends.push(self.total() + stake);
        self.slots.push(slot);
        self.weights += u64::from(slots[slot as usize].weight());
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Whether it makes no difference which slot is drawn.
    pub(super) fn is_equal(&self) -> bool {
        self.equal
    }

    pub(super) fn has(&self, slot: u32) -> bool {
        self.slots.binary_search(&slot).is_ok()
    }

    /// Whether there is a slot besides this one.
    pub(super) fn has_other(&self, than: Option<u32>) -> bool {
        usize::from(than.is_some_and(|it| self.has(it))) < self.len()
    }

    /// The sum of the weights.
    pub(super) fn weights(&self) -> u64 {
        self.weights
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(super) fn mean_weight(&self) -> f64 {
        self.weights as f64 / self.len() as f64
    }

    /// The slot that owns the point `draw` of the stakes, with those to `skip` left out;
    /// `None` where no other is left.
    pub(super) fn draw(&self, draw: u32, skip: [Option<u32>; 2]) -> Option<u32> {
        let skipped = self.positions(skip).into_iter().flatten();
        if self.equal {
            let mut at = scale(draw, (self.len() - skipped.clone().count()) as u64)?;
            skipped.for_each(|it| at += u64::from(it as u64 <= at));
            return self.slots.get(usize::try_from(at).ok()?).copied();
        }
        let left = self.total() - skipped.clone().map(|it| self.stake(it)).sum::<u64>();
        let mut point = scale(draw, left)?;
        skipped.for_each(|it| {
            if self.start(it) <= point {
                point += self.stake(it);
            }
        });
        self.slots.get(self.ends.partition_point(|end| *end <= point)).copied()
    }

    /// The slot whose turn it is. With stakes that differ the turns of each are spread as
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

    fn stake(&self, position: usize) -> u64 {
        self.ends[position] - self.start(position)
    }
}

/// `draw` as a point of `0..size`; `None` where there is none.
fn scale(draw: u32, size: u64) -> Option<u64> {
    let point = (u128::from(draw) * u128::from(size)) >> 32;
    (size != 0).then(|| u64::try_from(point).unwrap_or(0))
}
