//! Chance: every draw of a simulation, from one seed.
//!
//! Each part of a simulation has a stream of its own, so that another rule that draws more
//! often does not meet other requests: what differs between two runs of one seed is what
//! the rules did.
//!
//! # Sources
//!
//! - G. Steele, D. Lea, C. Flood, *Fast Splittable Pseudorandom Number Generators*, 2014:
//!   `SplitMix64`, of which [`Chance::word`] is one step.

use std::time::Duration;

use super::time::{At, nanos};
use crate::config::scenario::{Spread, Work};

/// Standard deviation of the logarithm of a lognormal time.
const SIGMA: f64 = 0.5;

/// A stream of draws.
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Stream `number` of `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut mixed = Self(seed);
        let seed = mixed.word();
        let mut mixed = Self(number ^ 0x5851_f42d_4c95_7f2d);
        Self(seed ^ mixed.word())
    }

    /// Uniform over `u64`.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform over `u32`.
    pub(super) fn draw(&mut self) -> u32 {
        (self.word() >> 32) as u32
    }

    /// Uniform below `bound`; 0 where that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.word()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Whether something happens that does in `percent` cases of a hundred.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < u64::from(percent)
    }

    /// Uniform between 0 and 1, without either.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&mut self) -> f64 {
        ((self.word() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// The time to the next of independent events that come every `mean`.
    pub(super) fn exponential(&mut self, mean: Duration) -> At {
        scaled(nanos(mean), -self.unit().ln())
    }

    /// How long some work takes.
    pub(super) fn work(&mut self, work: Work) -> At {
        match work.spread {
            Spread::Constant => nanos(work.mean),
            Spread::Exponential => self.exponential(work.mean),
            Spread::Lognormal => {
                let angle = std::f64::consts::TAU * self.unit();
                let normal = (-2.0 * self.unit().ln()).sqrt() * angle.cos();
                // Less half the variance, so that the mean is the mean.
                scaled(nanos(work.mean), (SIGMA * normal - SIGMA * SIGMA / 2.0).exp())
            }
        }
    }
}

/// `time` times `factor`, which is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "hours in nanoseconds; a cast saturates"
)]
pub(super) fn scaled(time: At, factor: f64) -> At {
    (time as f64 * factor) as At
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_split_mix_64() {
        // The first outputs of the reference implementation for seed 1234567.
        let mut chance = Chance(1_234_567);
        assert_eq!(chance.word(), 6_457_827_717_110_365_317);
        assert_eq!(chance.word(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn each_distribution_has_its_mean() {
        let mean = Duration::from_millis(10);
        for spread in [Spread::Constant, Spread::Exponential, Spread::Lognormal] {
            let mut chance = Chance::new(1, 1);
            let sum: u64 = (0..20_000).map(|_| chance.work(Work { mean, spread })).sum();
            let found = sum / 20_000;
            assert!((9_700_000..10_300_000).contains(&found), "{spread:?}: {found}");
        }
    }

    #[test]
    fn streams_of_one_seed_differ() {
        assert_ne!(Chance::new(1, 1).word(), Chance::new(1, 2).word());
        assert_ne!(Chance::new(1, 1).word(), Chance::new(2, 1).word());
    }
}
