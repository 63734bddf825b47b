//! Trace: a digest of every step of a simulation, to tell whether two runs were the same.
//!
//! # Sources
//!
//! - FNV-1a, 64 bits, over words rather than bytes. <http://www.isthe.com/chongo/tech/comp/fnv/>

/// The steps so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace(u64);

impl Trace {
    /// No step.
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// One more step, of which `words` say what it was.
    pub(super) fn note(&mut self, words: &[u64]) {
        for word in words {
            self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
    }

    /// The digest.
    pub(super) fn digest(self) -> u64 {
        self.0
    }
}
