//! Units: the values a setting or a document may hold, read exactly or refused.
//!
//! A value carries its unit (`250ms`, `1%`), so that nobody has to know what a bare
//! number counts. Zero is not a way to say "off": leaving a setting out is.
//!
//! # Sources
//!
//! - GEP-2257, Gateway API `Duration`: up to four parts of `h`, `m`, `s`, `ms`.
//!   <https://gateway-api.sigs.k8s.io/geps/gep-2257/>
//! - RFC 1123, section 2.1: the labels of a host name; Kubernetes' object names.
//! - RFC 9110, section 5.6.2: tokens. <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2>
//! - SPIFFE-ID, sections 2.1 and 2.2: trust domain and path.
//!   <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>

use std::time::Duration;

use super::report::{Complaint, quoted};

/// No wait in here is longer than a day on purpose.
pub const DURATION_MAX: Duration = Duration::from_hours(24);

const UNITS_MS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// A duration above zero, such as `250ms` or `1h30m`.
///
/// # Errors
///
/// What is wrong with it: its form, zero, or over [`DURATION_MAX`].
pub fn duration(text: &str) -> Result<Duration, Complaint> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err(Complaint::new(
            format!("duration {} is zero", quoted(text)),
            "leave it out to get the default; zero does not mean off",
        )),
        duration => Ok(duration),
    }
}

/// A duration, such as `250ms`, `1h30m` or `0s`.
///
/// # Errors
///
/// What is wrong with it: its form, or over [`DURATION_MAX`].
pub fn duration_or_zero(text: &str) -> Result<Duration, Complaint> {
    let duration = parts(text).map(Duration::from_millis).ok_or_else(|| {
        Complaint::new(
            format!("{} is not a duration", quoted(text)),
            "write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`",
        )
    })?;
    if DURATION_MAX < duration {
        let message = format!("duration {} is over a day", quoted(text));
        return Err(Complaint::new(message, "the longest is `24h`"));
    }
    Ok(duration)
}

/// A duration as a document would write it: `250ms`, `2s`, `1h30m`.
pub fn written(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if ms <= rest_ms {
            text += &(rest_ms / ms).to_string();
            text += unit;
            rest_ms %= ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// `([0-9]{1,5}(h|m|s|ms)){1,4}` in milliseconds.
fn parts(text: &str) -> Option<u64> {
    let (mut rest, mut total_ms, mut count) = (text, 0, 0);
    while !rest.is_empty() && count < 4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).filter(|_| (1..=5).contains(&digits))?;
        let number: u64 = number.parse().ok()?;
        let (tail, unit_ms) =
            UNITS_MS.iter().find_map(|(unit, ms)| Some((tail.strip_prefix(unit)?, ms)))?;
        total_ms += number * unit_ms;
        rest = tail;
        count += 1;
    }
    (rest.is_empty() && 0 < count).then_some(total_ms)
}

/// A share such as `1%` or `0.25%`, in ten-thousandths, `1..=10_000`.
///
/// # Errors
///
/// What is wrong with it: its form or its range.
pub fn ten_thousandths(text: &str) -> Result<u16, Complaint> {
    let parse = || {
        let (whole, fraction) =
            text.strip_suffix('%').map(|it| it.split_once('.').unwrap_or((it, "0")))?;
        let is_number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || 2 < fraction.len() {
            return None;
        }
        let hundredths: u16 = format!("{fraction:0<2}").parse().ok()?;
        let share = whole.parse::<u16>().ok()?.checked_mul(100)?.checked_add(hundredths)?;
        (1..=10_000).contains(&share).then_some(share)
    };
    parse().ok_or_else(|| {
        Complaint::new(
            format!("{} is not a share", quoted(text)),
            "write a percentage from `0.01%` to `100%`",
        )
    })
}

/// A share in whole percents, such as `20%`: the number before the sign.
///
/// # Errors
///
/// What is wrong with its form; the range is the caller's.
pub fn percent(text: &str) -> Result<u32, Complaint> {
    let digits = text.strip_suffix('%').filter(|it| (1..=3).contains(&it.len()));
    let digits = digits.filter(|it| it.bytes().all(|it| it.is_ascii_digit()));
    digits.and_then(|it| it.parse().ok()).ok_or_else(|| {
        let message = format!("{} is not a whole percentage", quoted(text));
        Complaint::new(message, "write a number and the sign: `20%`")
    })
}

/// Whether `text` is a label of a host name: what a Service or a namespace is called.
pub fn is_label(text: &str) -> bool {
    let inside = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is labels with dots between: what most objects are called.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Whether `text` is what HTTP calls a token: the name of a header or a cookie.
pub fn is_token(text: &str) -> bool {
    let inside = |it: u8| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it);
    (1..=256).contains(&text.len()) && text.bytes().all(inside)
}

/// Whether `text` is a zone: the value of a label of Kubernetes.
pub fn is_zone(text: &str) -> bool {
    let inside = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.');
    (1..=63).contains(&text.len())
        && text.bytes().all(inside)
        && text.starts_with(|it: char| it.is_ascii_alphanumeric())
        && text.ends_with(|it: char| it.is_ascii_alphanumeric())
}

/// Whether `text` is a name DNS can be asked for; a label may begin with `_`, as the ones
/// of an SRV record do.
pub fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |it: &str| is_label(&it.strip_prefix('_').unwrap_or(it).to_ascii_lowercase());
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether `text` is the SPIFFE ID of a workload: a trust domain and a path.
pub fn is_spiffe_id(text: &str) -> bool {
    let segment = |it: &str| {
        let inside = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.');
        !matches!(it, "" | "." | "..") && it.bytes().all(inside)
    };
    let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let is_domain = segment(domain) && !domain.bytes().any(|it| it.is_ascii_uppercase());
    text.len() <= 2_048 && is_domain && path.split('/').all(segment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_is_up_to_four_whole_numbers_with_units() {
        for (text, ms) in
            [("250ms", 250), ("2s", 2_000), ("5m", 300_000), ("1h30m1s5ms", 5_401_005)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "2", "s", "2 s", "-2s", "1.5s", "123456s", "1s1s1s1s1s", "2d", "2S"] {
            let refused = duration(text).unwrap_err();
            assert!(refused.message.ends_with("is not a duration"), "{text}: {refused:?}");
        }
    }

    #[test]
    fn zero_is_refused_where_it_could_be_meant_as_off() {
        assert!(duration("0s").unwrap_err().message.contains("is zero"));
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn nothing_lasts_longer_than_a_day() {
        assert_eq!(duration("24h"), Ok(DURATION_MAX));
        assert!(duration("24h1ms").unwrap_err().message.contains("over a day"));
        assert!(duration("99999h99999h99999h99999h").is_err());
    }

    #[test]
    fn a_share_is_a_percentage_with_two_decimals_at_most() {
        for (text, share) in [("1%", 100), ("0.5%", 50), ("0.01%", 1), ("100%", 10_000)] {
            assert_eq!(ten_thousandths(text), Ok(share), "{text}");
        }
        for text in ["0%", "101%", "1", "%", ".5%", "1.%", "0.001%", "1e1%", "-1%", "99999%"] {
            assert!(ten_thousandths(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_percentage_is_whole_and_has_its_sign() {
        for (text, percent_points) in [("0%", 0), ("20%", 20), ("100%", 100), ("999%", 999)] {
            assert_eq!(percent(text), Ok(percent_points), "{text}");
        }
        for text in ["", "%", "20", "-1%", "2.5%", "1e1%", "1000%", "20 %", "20%%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_spiffe_id_has_a_trust_domain_and_a_path() {
        assert!(is_spiffe_id("spiffe://cluster.local/ns/shop/sa/orders"));
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/../x",
            "spiffe://TD/x",
            "spiffe://td/x?y",
            "https://td/x",
        ] {
            assert!(!is_spiffe_id(text), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_dns() {
        assert!(is_label("orders-2") && !is_label("Orders") && !is_label("-a") && !is_label(""));
        assert!(is_zone("eu-west_1a") && !is_zone("") && !is_zone("a b") && !is_zone("-a"));
        assert!(is_token("X-User_id") && !is_token("") && !is_token("a:b") && !is_token("a b"));
        assert!(is_subdomain("a.b") && !is_subdomain("a..b"));
        assert!(is_dns_name("_http._tcp.orders.shop.svc.cluster.local.") && !is_dns_name("a b"));
    }

    proptest! {
        /// A duration reads back as what was written.
        #[test]
        fn a_duration_reads_back(ms in 1_u64..=99_999) {
            prop_assert_eq!(duration(&format!("{ms}ms")), Ok(Duration::from_millis(ms)));
        }

        /// What is written reads back as the duration it was.
        #[test]
        fn what_is_written_reads_back(ms in 0_u64..=86_400_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(duration_or_zero(&written(duration)), Ok(duration));
        }

        /// Nothing that can be typed makes a reader panic.
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,40}") {
            let _results = (duration(&text), ten_thousandths(&text), percent(&text));
            let _names = (is_subdomain(&text), is_dns_name(&text), is_spiffe_id(&text));
        }
    }
}
