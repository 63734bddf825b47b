//! JSON: one entry as one line, without an allocation.

use std::{io::Write, net::SocketAddr, time::Duration};

use time::OffsetDateTime;

use super::Entry;

/// Bytes of one string that are written: a path may be as long as a head may be.
const STRING_MAX: usize = 2_048;

/// Appends the line of `entry`, with its line feed.
pub(super) fn write(entry: &Entry<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"time\":\"");
    timestamp(entry.time, out);
    out.push(b'"');
    string("direction", entry.direction.as_str(), out);
    string("method", entry.method, out);
    string("authority", entry.authority, out);
    string("path", entry.path, out);
    string("protocol", entry.protocol, out);
    number("status", u64::from(entry.status), out);
    optional("reason", entry.reason, out);
    string("service", entry.service, out);
    string("route", entry.route, out);
    address("upstream", entry.upstream, out);
    number("attempts", u64::from(entry.attempts), out);
    milliseconds("duration_ms", entry.duration, out);
    optional("peer", entry.peer, out);
    string("request_id", entry.request_id, out);
    number("bytes_in", entry.bytes_in, out);
    number("bytes_out", entry.bytes_out, out);
    key("tls", out);
    out.extend_from_slice(if entry.tls { b"true" } else { b"false" });
    out.extend_from_slice(b"}\n");
}

fn key(name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn string(name: &str, value: &str, out: &mut Vec<u8>) {
    key(name, out);
    quoted(value, out);
}

fn optional(name: &str, value: Option<&str>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        string(name, value, out);
    }
}

fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    key(name, out);
    format(format_args!("{value}"), out);
}

fn address(name: &str, value: Option<SocketAddr>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        key(name, out);
        format(format_args!("\"{value}\""), out);
    }
}

fn milliseconds(name: &str, value: Duration, out: &mut Vec<u8>) {
    key(name, out);
    let micros = value.as_micros();
    format(format_args!("{}.{:03}", micros / 1_000, micros % 1_000), out);
}

/// RFC 3339 with milliseconds, in UTC; the epoch for a time no calendar has.
fn timestamp(time: Duration, out: &mut Vec<u8>) {
    let at = i64::try_from(time.as_secs())
        .ok()
        .and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    let millis = time.subsec_millis();
    let date = format_args!("{year:04}-{month:02}-{day:02}");
    format(format_args!("{date}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"), out);
}

fn format(text: std::fmt::Arguments<'_>, out: &mut Vec<u8>) {
    // Memory does not refuse to be written to.
    let _written = out.write_fmt(text).is_ok();
}

/// > All Unicode characters may be placed within the quotation marks, except for the
/// > characters that MUST be escaped: quotation mark, reverse solidus, and the control
/// > characters (U+0000 through U+001F).
///
/// RFC 8259, section 7. <https://www.rfc-editor.org/rfc/rfc8259#section-7>
fn quoted(value: &str, out: &mut Vec<u8>) {
    let bytes = &value.as_bytes()[..value.floor_char_boundary(STRING_MAX)];
    out.push(b'"');
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|it| matches!(it, b'"' | b'\\' | 0..0x20)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control @ 0..0x20 => format(format_args!("\\u{control:04x}"), out),
            other => out.extend_from_slice(&[b'\\', other]),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
