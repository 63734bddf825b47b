//! Deadline: how long a caller waits, and what of that is left for whoever works for it.
//!
//! Time is said as what remains, never as an instant: two clocks need not agree. Each party
//! takes off what has passed since it was told, and rounds down ([`coarse`]), so a deadline
//! shrinks from hop to hop and never grows. What a message itself took is not known and not
//! taken off; rounding leaves about that much, up to a hundredth.
//!
//! # Sources
//!
//! - gRPC over HTTP/2, `Timeout`: at most eight digits and a unit.
//!   <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>
//! - Finagle `DeadlineFilter`: work nobody waits for any more is refused.

use std::time::Duration;

/// The longest time that is ever spoken of: what fits `x-remora-deadline-ms`, 49 days.
pub const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// How much longer than its caller a callee of the mesh waits: the caller's sidecar gives up
/// first, whose policy it is and who knows the endpoint. The callee's limit is for the case
/// that its word is lost.
pub const GRACE: Duration = Duration::from_millis(100);

/// The least time a try has, if its request has as much.
pub const TRY_MIN: Duration = Duration::from_millis(250);

/// How many times as long as usual an answer takes until it is late.
const SLOW: u32 = 3;

/// How long a request may take until the head of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// How long it is waited for here.
    pub timeout: Option<Duration>,
    /// What whoever works for it is told; never more than that.
    pub told: Option<Duration>,
    /// Whether it is the caller's rather than ours.
    pub callers: bool,
}

impl Limit {
    /// The shorter of our `own` time and of what the caller `said`, whom we outwait by
    /// `grace`.
    pub fn new(own: Option<Duration>, said: Option<Duration>, grace: Duration) -> Self {
        let [own, said] = [own, said].map(|it| it.map(|it| it.min(LONGEST)));
        let waited = said.map(|it| it.saturating_add(grace));
        Self {
            timeout: least(own, waited),
            told: least(own, said),
            callers: waited.is_some_and(|it| own.is_none_or(|own| it < own)),
        }
    }

    /// Whether nobody waits any more.
    pub fn is_over(&self) -> bool {
        self.told.is_some_and(|it| it.is_zero())
    }
}

/// The shorter of two times, where there is one at all.
pub fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The time one try of a request may take that has so much time and so many tries `left`,
/// this one included: an equal share, at least [`TRY_MIN`]. A request that has less than that
/// ends first.
///
/// Nor is a try late while answers `usually` take so long, or a third of it: where all of a
/// service is slow, another try would only wait at the end of the same queue, and what was
/// given up is worked on all the same.
pub fn share_of(left: Duration, tries: u8, usually: Option<Duration>) -> Duration {
    let slow = usually.unwrap_or_default().saturating_mul(SLOW);
    (left / u32::from(tries.max(1))).max(TRY_MIN).max(slow)
}

/// The time a `grpc-timeout` says; `None` where it does not say one.
pub fn from_grpc(text: &[u8]) -> Option<Duration> {
    //= https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
    //# TimeoutValue → {positive integer as ASCII string of at most 8 digits}
    let (unit, digits) = text.split_last()?;
    let count = number(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_hours(count),
        b'M' => Duration::from_mins(count),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The `grpc-timeout` that says `left`, rounded down; at most [`LONGEST`].
pub fn to_grpc(left: Duration) -> String {
    let left = left.min(LONGEST);
    // Eight digits of milliseconds are 27 hours, of microseconds 99 seconds.
    let (count, unit) = match left.as_secs() {
        0 if left.subsec_micros() == 0 => (u128::from(left.subsec_nanos()), 'n'),
        0 => (left.as_micros(), 'u'),
        1..86_400 => (left.as_millis(), 'm'),
        _ => (u128::from(left.as_secs()), 'S'),
    };
    format!("{}{unit}", coarse(u64::try_from(count).unwrap_or(u64::MAX)))
}

/// The time an `x-remora-deadline-ms` says; `None` where it does not say one.
pub fn from_millis(text: &[u8]) -> Option<Duration> {
    let count = number(text, 10)?;
    u32::try_from(count).is_ok().then(|| Duration::from_millis(count))
}

/// The `x-remora-deadline-ms` that says `left`, rounded down; at most [`LONGEST`].
pub fn to_millis(left: Duration) -> u32 {
    let millis = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    u32::try_from(coarse(millis.into())).unwrap_or(millis)
}

/// Rounds down to three digits, so that a minute of which a little has passed is told by
/// the same words each time: a table of headers seen before (HPACK) then holds them.
pub const fn coarse(count: u64) -> u64 {
    let mut unit = 1;
    while count / unit >= 1000 {
        unit *= 10;
    }
    count / unit * unit
}

/// A number of one to `most` digits.
fn number(digits: &[u8], most: usize) -> Option<u64> {
    let fine = (1..=most).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    fine.then(|| digits.iter().fold(0, |it, digit| it * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_timeout_is_at_most_eight_digits_and_a_unit() {
        for (text, expected) in [
            ("1H", Duration::from_hours(1)),
            ("2M", Duration::from_mins(2)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("100m", ms(100)),
            ("0100u", Duration::from_micros(100)),
            ("7n", Duration::from_nanos(7)),
            ("0m", Duration::ZERO),
        ] {
            assert_eq!(from_grpc(text.as_bytes()), Some(expected), "{text}");
        }
        for text in ["", "m", "1", "100000000m", "-1m", "+1m", "1.5S", " 1m", "1m ", "1s", "1mm"] {
            assert_eq!(from_grpc(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_deadline_is_a_decimal_of_32_bits() {
        assert_eq!(from_millis(b"250"), Some(ms(250)));
        assert_eq!(from_millis(b"4294967295"), Some(LONGEST));
        for text in ["", "4294967296", "99999999999", "1 ", "0x1", "-1"] {
            assert_eq!(from_millis(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_shorter_of_what_is_said_and_of_our_own_counts() {
        let said = Limit::new(Some(ms(500)), Some(ms(300)), GRACE);
        assert_eq!(said, Limit { timeout: Some(ms(400)), told: Some(ms(300)), callers: true });
        let own = Limit::new(Some(ms(500)), Some(ms(800)), GRACE);
        assert_eq!(own, Limit { timeout: Some(ms(500)), told: Some(ms(500)), callers: false });
        // A stream has no time of its own, only its caller's.
        let stream = Limit::new(None, Some(ms(9)), Duration::ZERO);
        assert_eq!(stream, Limit { timeout: Some(ms(9)), told: Some(ms(9)), callers: true });
        assert_eq!(Limit::new(None, None, GRACE), Limit::default());
    }

    #[test]
    fn a_caller_is_outwaited_and_still_never_told_more_than_it_said() {
        let limit = Limit::new(Some(ms(350)), Some(ms(300)), GRACE);
        assert_eq!(limit, Limit { timeout: Some(ms(350)), told: Some(ms(300)), callers: false });
    }

    #[test]
    fn nobody_waits_for_what_has_no_time_left() {
        assert!(Limit::new(Some(ms(500)), Some(Duration::ZERO), GRACE).is_over());
        assert!(!Limit::new(Some(ms(500)), Some(ms(1)), GRACE).is_over());
        assert!(!Limit::new(None, None, GRACE).is_over());
    }

    #[test]
    fn a_minute_is_told_in_the_same_words_for_a_while() {
        assert_eq!(to_millis(ms(59_999)), 59_900);
        assert_eq!(to_millis(ms(59_901)), 59_900);
        assert_eq!(to_millis(ms(999)), 999);
        assert_eq!(to_grpc(ms(59_999)), "59900m");
        assert_eq!(to_grpc(ms(250)), "250000u");
        assert_eq!(to_grpc(Duration::from_nanos(999)), "999n");
        assert_eq!(to_grpc(Duration::MAX), "4290000S");
    }

    #[test]
    fn a_try_has_an_equal_share_and_time_enough() {
        assert_eq!(share_of(ms(3000), 3, None), ms(1000));
        assert_eq!(share_of(ms(600), 3, None), TRY_MIN);
        assert_eq!(share_of(ms(100), 3, None), TRY_MIN);
        assert_eq!(share_of(ms(3000), 0, None), ms(3000));
        assert_eq!(share_of(ms(3000), 3, Some(ms(10))), ms(1000));
        assert_eq!(share_of(ms(3000), 3, Some(ms(500))), ms(1500), "everything is slow");
    }

    proptest! {
        #[test]
        fn what_is_told_is_understood_and_never_grows(nanos in any::<u64>()) {
            let left = Duration::from_nanos(nanos);
            let text = to_grpc(left);
            prop_assert!(text.len() <= 9, "{text}");
            let read = from_grpc(text.as_bytes()).unwrap();
            prop_assert!(read <= left);
            prop_assert!(left.min(LONGEST) <= read + left / 100 + Duration::from_nanos(1));
            let read = from_millis(to_millis(left).to_string().as_bytes()).unwrap();
            prop_assert!(read <= left);
            prop_assert!(left.min(LONGEST) <= read + left / 100 + Duration::from_millis(1));
        }

        #[test]
        fn any_text_is_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..14)) {
            if let Some(read) = from_grpc(&text) {
                prop_assert!(text.len() <= 9);
                prop_assert!(read <= Duration::from_hours(99_999_999));
            }
            if let Some(read) = from_millis(&text) {
                prop_assert!(read <= LONGEST);
            }
        }

        #[test]
        fn shares_are_no_more_than_the_whole(millis in 0_u64..100_000, tries in 1_u8..9) {
            let share = share_of(ms(millis), tries, None);
            prop_assert!(share == TRY_MIN || share * u32::from(tries) <= ms(millis));
        }
    }
}
