//! Slab: things that come and go, by keys that never mean a later one.

/// What a thing in a slab is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

/// Some things of one kind.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl Key {
    /// As a number, for the trace.
    pub(super) fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

impl<T> Slab<T> {
    /// A slab without anything in it.
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// Puts `thing` in.
    pub(super) fn insert(&mut self, thing: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            // A simulation with more at once than this has no memory left.
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        let (generation, place) = &mut self.entries[index as usize];
        *place = Some(thing);
        Key { index, generation: *generation }
    }

    /// The thing at `key`, unless it was taken out.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (generation, thing) = self.entries.get(key.index as usize)?;
        thing.as_ref().filter(|_| *generation == key.generation)
    }

    /// As [`Self::get`], to change it.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, thing) = self.entries.get_mut(key.index as usize)?;
        thing.as_mut().filter(|_| *generation == key.generation)
    }

    /// Takes the thing at `key` out.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, thing) = self.entries.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let thing = thing.take()?;
        *generation += 1;
        self.free.push(key.index);
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_means_a_later_thing() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
    }
}
