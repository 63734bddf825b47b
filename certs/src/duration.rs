//! Durations as people write them, and instants as people read them.

use std::time::Duration;

use time::OffsetDateTime;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No number before the unit, or a sign, a point or a blank.
    #[error("expected a whole number and a unit, such as `24h`")]
    Number,
    /// No unit, or none that is known.
    #[error("expected a unit behind the number: `s`, `m`, `h` or `d`")]
    Unit,
    /// Nothing.
    #[error("a life of nothing is none")]
    Zero,
    /// More than fits.
    #[error("longer than any certificate can live")]
    TooLong,
}

/// Reads `90s`, `90m`, `24h` or `365d`.
///
/// # Errors
///
/// When it is none of those, or nothing.
pub fn parse(text: &str) -> Result<Duration, Error> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(Error::Number);
    }
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(Error::Unit),
    };
    let number: u64 = number.parse().map_err(|_| Error::TooLong)?;
    match number.checked_mul(seconds).ok_or(Error::TooLong)? {
        0 => Err(Error::Zero),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// An instant since the Unix epoch: `2026-02-03 04:05:06 UTC`.
pub fn date(at: Duration) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(it) => {
            let (date, (hour, minute, second)) = (it.date(), it.to_hms());
            format!("{date} {hour:02}:{minute:02}:{second:02} UTC")
        }
        Err(_) => "after the year 9999".to_owned(),
    }
}

/// A span in its two largest units: `23 h 59 min`.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (whole, part) = match (hours / 24, hours, minutes) {
        (0, 0, 0) => (format!("{seconds} s"), None),
        (0, 0, _) => (format!("{minutes} min"), Some((seconds % 60, "s"))),
        (0, _, _) => (format!("{hours} h"), Some((minutes % 60, "min"))),
        (days, _, _) => (format!("{days} d"), Some((hours % 24, "h"))),
    };
    match part {
        None | Some((0, _)) => whole,
        Some((part, unit)) => format!("{whole} {part} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_duration() {
        for (text, seconds) in [("1s", 1), ("90m", 5400), ("24h", 86_400), ("365d", 31_536_000)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, error) in [
            ("", Error::Number),
            ("h", Error::Number),
            ("-1h", Error::Number),
            ("90", Error::Unit),
            ("1.5h", Error::Unit),
            ("1 h", Error::Unit),
            ("1h30m", Error::Unit),
            ("1H", Error::Unit),
            ("0d", Error::Zero),
            ("213503982334602d", Error::TooLong),
            ("99999999999999999999s", Error::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn instants_and_spans_read_as_people_say_them() {
        assert_eq!(date(Duration::from_secs(1_770_091_506)), "2026-02-03 04:05:06 UTC");
        assert_eq!(date(Duration::MAX), "after the year 9999");
        for (seconds, text) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (86_399, "23 h 59 min"),
            (90_000, "1 d 1 h"),
            (86_400, "1 d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
