//! Schedule: when a certificate is renewed, and how long to wait after a failure.
//!
//! ```text
//! life    = end - (begin + backdating)
//! renewal = begin + backdating + life × (70 % ± 10 %)
//! wait    = anything up to min(base × 2^failures, longest, left / 8), full jitter
//! ```
//!
//! Issuers date a certificate back, so that clocks may differ; what is dated back is no
//! part of its life, or a short-lived one would be renewed as soon as it is there. The
//! spread keeps a deployment that started as one from renewing as one, and the wait after a
//! failure gets shorter as the certificate's end comes near, never below [`URGENT`].

use std::time::Duration;

use crate::resilience::backoff::{self, Asked};

/// How far certificates are dated back by the issuer.
pub const BACKDATING: Duration = Duration::from_mins(5);

/// The least wait that nearness of the end leads to.
const URGENT: Duration = Duration::from_millis(250);

/// How many more attempts the rest of a certificate's life should be good for.
const ATTEMPTS_LEFT: u32 = 8;

/// The longest that a certificate counts as ending.
const ENDING_MAX: Duration = Duration::from_mins(1);

/// When a certificate is valid, since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// What it says.
    pub not_before: Duration,
    /// What it says.
    pub not_after: Duration,
}

/// How near a certificate is to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nearness {
    /// It has at least a fifth of its life left.
    Far,
    /// It should have been renewed by now.
    Near,
    /// Handshakes are about to fail.
    Ending,
}

impl Life {
    /// When it begins to be used, but for clocks that differ.
    fn begin(self) -> Duration {
        let begin = self.not_before + BACKDATING;
        if begin < self.not_after { begin } else { self.not_before }
    }

    /// How long it is used for.
    pub fn length(self) -> Duration {
        self.not_after.saturating_sub(self.begin())
    }

    /// When to renew it, since the Unix epoch. `draw` is uniform over `u32`.
    pub fn renewal(self, draw: u32) -> Duration {
        let length = self.length();
        self.begin() + length * 6 / 10 + share(length / 5, draw)
    }

    /// How near its end is at `now`.
    pub fn nearness(self, now: Duration) -> Nearness {
        let (left, length) = (self.not_after.saturating_sub(now), self.length());
        if left < (length / 50).min(ENDING_MAX) {
            Nearness::Ending
        } else if left < length / 5 {
            Nearness::Near
        } else {
            Nearness::Far
        }
    }

    /// When it comes nearer next, after `now`; nothing once it is [`Nearness::Ending`].
    pub fn nearer(self, now: Duration) -> Option<Duration> {
        let length = self.length();
        let marks = [length / 5, (length / 50).min(ENDING_MAX)];
        let marks = marks.map(|it| self.not_after.saturating_sub(it) + Duration::from_nanos(1));
        marks.into_iter().find(|it| now < *it)
    }
}

/// A moment up to `within` after `now`, so that not everybody comes at once.
pub fn spread(now: Duration, within: Duration, draw: u32) -> Duration {
    now.saturating_add(share(within, draw))
}

/// The wait after `failures` in a row, from 1: no longer than an eighth of what is `left` of
/// the certificate, but as long as control `asked` for. `draw` is uniform over `u32`.
pub fn wait(
    retry: (Duration, Duration),
    failures: u32,
    left: Option<Duration>,
    asked: Option<Duration>,
    draw: u32,
) -> Duration {
    if let Some(asked) = asked {
        return Asked::AtLeast(asked.min(backoff::ASKED_MAX)).wait(draw);
    }
    let (base, max) = retry;
    let max = left.map_or(max, |it| max.min((it / ATTEMPTS_LEFT).max(URGENT)));
    let config = backoff::Config { base: base.min(max), max };
    config.wait(u8::try_from(failures).unwrap_or(u8::MAX), draw)
}

/// That share of `whole` which `draw` is of all draws.
fn share(whole: Duration, draw: u32) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(draw)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const ISSUED: Duration = Duration::from_hours(500_000);
    const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

    /// Of a certificate issued at [`ISSUED`].
    fn life(length: Duration) -> Life {
        Life { not_before: ISSUED.saturating_sub(BACKDATING), not_after: ISSUED + length }
    }

    proptest! {
        #[test]
        fn a_renewal_is_at_70_percent_of_life_give_or_take_10(seconds in 2_u32..10_000_000, draw: u32) {
            let length = Duration::from_secs(seconds.into());
            let after = life(length).renewal(draw).saturating_sub(ISSUED);
            prop_assert!(length * 6 / 10 <= after && after <= length * 8 / 10);
        }

        #[test]
        fn a_wait_is_within_its_bounds(failures in 1_u32..1_000, seconds in 0_u64..100_000, draw: u32) {
            let left = Duration::from_secs(seconds);
            let wait = wait(RETRY, failures, Some(left), None, draw);
            prop_assert!(wait <= RETRY.1 && wait <= (left / 8).max(URGENT));
        }
    }

    #[test]
    fn renewals_spread_evenly() {
        let draws = (0..1_000_u32).map(|it| it * (u32::MAX / 1_000));
        let after = |draw| life(HOUR).renewal(draw).saturating_sub(ISSUED);
        let mean = draws.map(after).sum::<Duration>() / 1_000;
        assert!(mean.abs_diff(HOUR * 7 / 10) < Duration::from_secs(2), "{mean:?}");
    }

    #[test]
    fn what_is_dated_back_is_no_part_of_a_life() {
        assert_eq!(life(Duration::from_secs(10)).length(), Duration::from_secs(10));
        let short = Life { not_before: ISSUED, not_after: ISSUED + BACKDATING };
        assert_eq!(short.length(), BACKDATING);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let nearly = Duration::from_millis(1);
        let bound = |failures| (wait(RETRY, failures, None, None, u32::MAX) + nearly).as_secs();
        assert_eq!([1, 2, 3, 6, 7, 100].map(bound), [1, 2, 4, 32, 60, 60]);
        assert_eq!(wait(RETRY, 100, None, None, 0), Duration::ZERO);
    }

    #[test]
    fn waits_shorten_as_the_end_comes_near() {
        let bound = |left| wait(RETRY, 100, Some(left), None, u32::MAX).as_secs_f64();
        let seconds = |it| bound(Duration::from_secs(it));
        assert!((seconds(80) - 10.0).abs() < 0.001 && (seconds(8) - 1.0).abs() < 0.001);
        assert!((seconds(0) - URGENT.as_secs_f64()).abs() < 0.001);
    }

    #[test]
    fn what_control_asks_for_is_waited_for() {
        let asked = |seconds| {
            let asked = Some(Duration::from_secs(seconds));
            let nearly = Duration::from_millis(1);
            let wait = |draw| (wait(RETRY, 1, Some(HOUR), asked, draw) + nearly).as_secs();
            [0, u32::MAX].map(wait)
        };
        assert_eq!((asked(10), asked(100_000)), ([10, 15], [300, 450]));
    }

    #[test]
    fn an_end_comes_near_in_two_steps() {
        let day = life(HOUR * 24);
        let at = |left: Duration| day.nearness(day.not_after.saturating_sub(left));
        assert_eq!(at(HOUR * 5), Nearness::Far);
        assert_eq!(at(HOUR * 4), Nearness::Near);
        assert_eq!(at(Duration::from_secs(61)), Nearness::Near);
        assert_eq!(at(Duration::from_secs(59)), Nearness::Ending);
        let short = life(Duration::from_secs(10));
        let at = |left| short.nearness(short.not_after.saturating_sub(Duration::from_millis(left)));
        assert_eq!((at(300), at(100)), (Nearness::Near, Nearness::Ending));
    }

    #[test]
    fn each_step_is_seen_when_it_is_due() {
        let (life, mut now) = (life(HOUR), ISSUED);
        let mut seen = Vec::new();
        while let Some(next) = life.nearer(now) {
            assert_ne!(life.nearness(now), life.nearness(next));
            now = next;
            seen.push(life.nearness(now));
        }
        assert_eq!(seen, [Nearness::Near, Nearness::Ending]);
    }

    #[test]
    fn a_renewal_that_is_asked_for_is_spread() {
        let spread = |draw| spread(ISSUED, HOUR, draw).saturating_sub(ISSUED);
        assert_eq!(spread(0), Duration::ZERO);
        assert!(spread(u32::MAX / 2).abs_diff(HOUR / 2) < Duration::from_secs(1));
    }
}
