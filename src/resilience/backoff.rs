//! Backoff: how long to wait before the next try, so that callers do not return together.
//!
//! Full jitter: anything from nothing to the bound, equally likely. The bound doubles with
//! each retry up to [`Config::max`], and the jitter stays whole there; callers that all
//! failed together at the cap would otherwise come back together for good.
//!
//! # Sources
//!
//! - *Exponential Backoff And Jitter*, AWS Architecture Blog: full jitter does the least
//!   work. <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
//! - RFC 9110, section 10.2.3: `Retry-After`.
//! - gRPC A6: pushback is waited for exactly.

use std::time::Duration;

/// The longest wait that an answer may ask for.
pub const ASKED_MAX: Duration = Duration::from_mins(5);

/// Bounds of the wait before a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The bound before the first retry; twice as much before each further one.
    pub base: Duration,
    /// The bound is never more than this.
    pub max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// A wait that an answer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// So long or longer: everybody was told the same (`Retry-After`).
    AtLeast(Duration),
    /// Just so long: the server spreads its callers itself (`grpc-retry-pushback-ms`).
    Exactly(Duration),
}

impl Config {
    /// The wait before retry `number` of a request, from 1. `draw` is uniform over `u32`.
    pub fn wait(&self, number: u8, draw: u32) -> Duration {
        let doublings = u32::from(number.saturating_sub(1)).min(63);
        let bound = u128::from(nanos(self.base)) << doublings;
        let bound = bound.min(u128::from(nanos(self.max)));
        share(u64::try_from(bound).unwrap_or(u64::MAX), draw)
    }
}

impl Asked {
    /// The wait to keep: up to half as much again where everybody was told the same.
    /// `draw` is uniform over `u32`.
    pub fn wait(self, draw: u32) -> Duration {
        match self {
            Self::AtLeast(least) => least.saturating_add(share(nanos(least) / 2, draw)),
            Self::Exactly(wait) => wait,
        }
    }
}

/// That share of `bound` nanoseconds which `draw` is of all draws.
fn share(bound: u64, draw: u32) -> Duration {
    let nanos = (u128::from(bound) * u128::from(draw)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Nanoseconds of up to five centuries.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Draws that share their range evenly.
    fn draws() -> impl Iterator<Item = u32> {
        (0..1000_u32).map(|it| it * (u32::MAX / 1000) + u32::MAX / 2000)
    }

    fn mean(waits: impl Iterator<Item = Duration>) -> Duration {
        waits.sum::<Duration>() / 1000
    }

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let longest =
            |number| Config::default().wait(number, u32::MAX).as_nanos().div_ceil(1_000_000);
        assert_eq!([1, 2, 3, 4, 5, 6].map(longest), [25, 50, 100, 200, 250, 250]);
        // There is no retry before the first.
        assert_eq!(longest(0), 25);
    }

    #[test]
    fn the_wait_is_spread_evenly_from_nothing_to_the_bound_even_at_the_cap() {
        for (number, bound) in [(1, 25), (3, 100), (5, 250), (255, 250)] {
            let bound = Duration::from_millis(bound);
            let waits = || draws().map(|it| Config::default().wait(number, it));
            assert!(mean(waits()).abs_diff(bound / 2) < bound / 1000, "retry {number}");
            for quarter in 0..4 {
                let part = bound * quarter / 4..bound * (quarter + 1) / 4;
                let within = waits().filter(|it| part.contains(it)).count();
                assert!((249..=251).contains(&within), "retry {number}: {within}");
            }
        }
    }

    #[test]
    fn a_wait_everybody_was_told_is_spread_over_half_as_much_again() {
        let least = Duration::from_secs(10);
        let waits = || draws().map(|it| Asked::AtLeast(least).wait(it));
        assert!(waits().all(|it| least <= it && it < least * 3 / 2));
        assert!(mean(waits()).abs_diff(least * 5 / 4) < Duration::from_millis(10));
    }

    #[test]
    fn a_wait_of_ones_own_is_kept_exactly() {
        for wait in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
            assert!(draws().all(|it| Asked::Exactly(wait).wait(it) == wait));
        }
    }

    proptest! {
        /// No retry, base or cap overflows, or waits longer than the cap.
        #[test]
        fn no_wait_is_over_the_cap(number: u8, draw: u32, base: u64, max: u64) {
            let config = Config { base: Duration::from_nanos(base), max: Duration::from_nanos(max) };
            prop_assert!(config.wait(number, draw) <= config.max);
            let longest = Config { base: Duration::MAX, max: Duration::MAX };
            prop_assert!(config.wait(number, draw) <= longest.wait(number, draw));
            prop_assert!(Asked::AtLeast(Duration::MAX).wait(draw) == Duration::MAX);
        }
    }
}
