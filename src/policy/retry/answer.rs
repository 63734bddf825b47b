//! Answer: what a response says about sending its request again.
//!
//! Three fields do, and each is read the cautious way: a server that asks for calm and is
//! misunderstood must not get the retry. Of the forms of a date only the one that anybody
//! may still send is read; another says nothing.
//!
//! # Sources
//!
//! - RFC 9110, sections 5.6.7 (dates) and 10.2.3 (`Retry-After`).
//!   <https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3>
//! - gRPC A6: `grpc-retry-pushback-ms`, "if the value … is negative or unparsable, … the
//!   call is not retried".
//!   <https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>

use std::time::Duration;

use super::Said;
use crate::resilience::backoff::{ASKED_MAX, Asked};

/// The fields of a response that speak of another try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// `x-remora-retry`, of a mesh peer.
    pub retry: Option<&'a [u8]>,
    /// `grpc-retry-pushback-ms`.
    pub pushback: Option<&'a [u8]>,
    /// `Retry-After`.
    pub retry_after: Option<&'a [u8]>,
}

/// What pushback says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// To try again after just so long.
    After(Duration),
    /// Not to.
    Stop,
}

impl Fields<'_> {
    /// What they say together. `wall` is the time since the Unix epoch.
    ///
    /// A wait of more than [`ASKED_MAX`] is a no: nobody waits for that long.
    pub fn said(self, wall: Duration) -> Said {
        let after = self.retry_after.and_then(|it| retry_after(it, wall));
        match (self.retry, self.pushback.map(pushback), after) {
            (Some(b"no"), ..) | (_, Some(Pushback::Stop), _) => Said::Never,
            (_, Some(Pushback::After(wait)), _) if ASKED_MAX < wait => Said::Never,
            (_, Some(Pushback::After(wait)), _) => Said::After(Asked::Exactly(wait)),
            (_, None, Some(wait)) if ASKED_MAX < wait => Said::Never,
            // No wait at all is no wish: callers that all failed together would return so.
            (_, None, None | Some(Duration::ZERO)) => Said::Nothing,
            (_, None, Some(wait)) => Said::After(Asked::AtLeast(wait)),
        }
    }
}

/// The wait that `value`, of `Retry-After`, asks for: in seconds, or until a date. `wall`
/// is the time since the Unix epoch.
pub fn retry_after(value: &[u8], wall: Duration) -> Option<Duration> {
    let value = value.trim_ascii();
    match number(value) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => Some(date(value)?.saturating_sub(wall)),
    }
}

/// What `value`, of `grpc-retry-pushback-ms`, says.
pub fn pushback(value: &[u8]) -> Pushback {
    // A 32-bit integer with a sign, for every implementation there is.
    match number(value).filter(|it| i32::try_from(*it).is_ok()) {
        Some(millis) => Pushback::After(Duration::from_millis(millis)),
        None => Pushback::Stop,
    }
}

/// The time since the Unix epoch of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`; zero
/// before it.
fn date(value: &[u8]) -> Option<Duration> {
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = value.split(|it| *it == b' ');
    let mut word = || words.next();
    let (_weekday, day, month, year) = (word()?, word()?, word()?, number(word()?)?);
    let (time, zone, rest) = (word()?, word()?, word());
    let month = MONTHS.chunks_exact(3).position(|it| it == month)? as u64;
    let day = number(day).filter(|it| (1..=31).contains(it))?;
    let mut time = time.split(|it| *it == b':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let fits = year <= 9999 && hour < 24 && minute < 60 && second <= 60;
    if !fits || zone != b"GMT" || rest.is_some() || time.next().is_some() {
        return None;
    }
    let days = days_before(year, month)? + day - 1;
    Some(Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

/// Days from the Unix epoch to the first of a month, counted from 0; `None` before it.
fn days_before(year: u64, month: u64) -> Option<u64> {
    const EPOCH: u64 = 719_468;
    // Years that begin in March have their leap day last, and months of 153 days in five.
    let (year, month) =
        if month < 2 { (year.checked_sub(1)?, month + 10) } else { (year, month - 2) };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year * 365 + leap_days + (153 * month + 2) / 5).checked_sub(EPOCH)
}

/// A number of digits and nothing else.
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // More than fits is longer than anybody waits, too.
    let digit =
        |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(value.iter().fold(0, digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Fields<'_> = Fields { retry: None, pushback: None, retry_after: None };
    const SECOND: Duration = Duration::from_secs(1);

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const THEN: Duration = Duration::from_secs(784_111_777);

    #[test]
    fn seconds_are_waited_for() {
        assert_eq!(retry_after(b"120", THEN), Some(SECOND * 120));
        assert_eq!(retry_after(b" 0 ", THEN), Some(Duration::ZERO));
        assert_eq!(
            retry_after(b"99999999999999999999999", THEN),
            Some(Duration::from_secs(u64::MAX))
        );
    }

    #[test]
    fn a_date_is_waited_for() {
        assert_eq!(date(b"Sun, 06 Nov 1994 08:49:37 GMT"), Some(THEN));
        assert_eq!(date(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(date(b"Thu, 29 Feb 2024 23:59:60 GMT"), Some(SECOND * 1_709_251_200));
        assert_eq!(retry_after(b"Sun, 06 Nov 1994 08:50:37 GMT", THEN), Some(SECOND * 60));
        assert_eq!(retry_after(b"Sun, 06 Nov 1994 08:40:00 GMT", THEN), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_neither_says_nothing() {
        for value in [
            "",
            "-1",
            "+1",
            "1.5",
            "1s",
            "soon",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT or later",
            "Wed, 31 Dec 1969 23:59:59 GMT",
        ] {
            assert_eq!(retry_after(value.as_bytes(), THEN), None, "{value}");
        }
    }

    #[test]
    fn pushback_is_kept_exactly_and_stops_where_it_is_not_understood() {
        assert_eq!(pushback(b"0"), Pushback::After(Duration::ZERO));
        assert_eq!(pushback(b"1500"), Pushback::After(SECOND * 3 / 2));
        for value in ["-1", "", "1.5", "soon", " 1", "2147483648", "99999999999999999999999"] {
            assert_eq!(pushback(value.as_bytes()), Pushback::Stop, "{value}");
        }
    }

    #[test]
    fn what_forbids_comes_first_and_pushback_before_retry_after() {
        let (no, ten) = (Some(&b"no"[..]), Some(&b"10"[..]));
        assert_eq!(NONE.said(THEN), Said::Nothing);
        assert_eq!(Fields { retry: no, retry_after: ten, pushback: ten }.said(THEN), Said::Never);
        assert_eq!(Fields { retry: ten, ..NONE }.said(THEN), Said::Nothing);
        let both = Fields { pushback: ten, retry_after: Some(b"1"), ..NONE };
        assert_eq!(both.said(THEN), Said::After(Asked::Exactly(SECOND / 100)));
        let stop = Fields { pushback: Some(b"-1"), retry_after: ten, ..NONE };
        assert_eq!(stop.said(THEN), Said::Never);
        let after = Fields { retry_after: ten, ..NONE };
        assert_eq!(after.said(THEN), Said::After(Asked::AtLeast(SECOND * 10)));
    }

    #[test]
    fn a_wait_of_more_than_five_minutes_is_a_no_and_one_of_nothing_no_wish() {
        let after = |it| Fields { retry_after: Some(it), ..NONE }.said(THEN);
        assert_eq!(after(b"300"), Said::After(Asked::AtLeast(ASKED_MAX)));
        assert_eq!(after(b"301"), Said::Never);
        assert_eq!(after(b"0"), Said::Nothing);
        let pushback = |it| Fields { pushback: Some(it), ..NONE }.said(THEN);
        assert_eq!(pushback(b"300001"), Said::Never);
        assert_eq!(pushback(b"0"), Said::After(Asked::Exactly(Duration::ZERO)));
    }

    proptest! {
        /// Nothing a server sends stops or overflows anything.
        #[test]
        fn any_bytes_are_read(value in "[ -~]{0,40}", wall: u32) {
            let value = Some(value.as_bytes());
            let wall = Duration::from_secs(wall.into());
            let fields = Fields { retry: value, pushback: value, retry_after: value };
            let said = fields.said(wall);
            prop_assert!(said != Said::Nothing);
        }

        /// A day later is a day more.
        #[test]
        fn each_day_is_one_more(days in 0_u64..2_932_000) {
            let text = |days| {
                let at = time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(days);
                let (year, month, day) = at.to_calendar_date();
                format!("Mon, {day:02} {:.3} {year:04} 00:00:00 GMT", month.to_string())
            };
            let found = date(text(i64::try_from(days).unwrap()).as_bytes());
            prop_assert_eq!(found, Some(SECOND * 86_400 * u32::try_from(days).unwrap()));
        }
    }
}
