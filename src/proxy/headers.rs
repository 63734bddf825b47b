//! Headers: what may pass from one connection to another, and what is added.
//!
//! One pass over the names says what is there ([`Seen`]); only what is there is touched.
//!
//! # Sources
//!
//! - RFC 9110, section 7.6.1: a proxy removes `Connection` and what it nominates.
//!   <https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1>
//! - W3C Trace Context, section 3.2: `traceparent`.

use std::net::IpAddr;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, CONNECTION, TE, UPGRADE},
};

/// Why Remora answered itself.
pub const REASON: HeaderName = HeaderName::from_static("x-remora-reason");
/// The version the application's client spoke, where it was HTTP/1: between mesh peers.
pub const HTTP: HeaderName = HeaderName::from_static("x-remora-http");
/// Who called, verified: towards the application only.
pub const PEER: HeaderName = HeaderName::from_static("x-remora-peer");
/// Which try this is, from the second on: between mesh peers.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-remora-attempt");
/// Milliseconds the caller still waits: between mesh peers.
pub const DEADLINE: HeaderName = HeaderName::from_static("x-remora-deadline-ms");
/// `no` where the request must not be sent again: between mesh peers.
pub const RETRY: HeaderName = HeaderName::from_static("x-remora-retry");
/// How long a gRPC caller still waits.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Milliseconds a gRPC caller waits before it sends again; below zero, it does not.
pub const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Names one request in every log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Names one trace and one span of it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Through whom a request came.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Over what it came first.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What all our own headers begin with.
const OURS: &str = "x-remora-";

/// Hop-by-hop without being nominated: RFC 9110, section 7.6.1.
const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    UPGRADE,
];

/// Which headers a message has, of those that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
pub struct Seen {
    /// `Connection`.
    pub connection: bool,
    /// One of those that are hop-by-hop by themselves.
    pub hop_by_hop: bool,
    /// `TE`.
    pub te: bool,
    /// `Upgrade`.
    pub upgrade: bool,
    /// `Expect`.
    pub expect: bool,
    /// `Host`.
    pub host: bool,
    /// One of ours.
    pub ours: bool,
    /// `x-request-id`.
    pub request_id: bool,
    /// `traceparent`.
    pub traceparent: bool,
    /// `grpc-timeout`.
    pub grpc_timeout: bool,
    /// `Content-Type`.
    pub content_type: bool,
}

impl Seen {
    /// Looks at each name once.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => seen.connection = true,
                "upgrade" => (seen.upgrade, seen.hop_by_hop) = (true, true),
                "keep-alive"
                | "proxy-connection"
                | "transfer-encoding"
                | "proxy-authenticate"
                | "proxy-authorization" => seen.hop_by_hop = true,
                "te" => seen.te = true,
                "expect" => seen.expect = true,
                "host" => seen.host = true,
                "x-request-id" => seen.request_id = true,
                "traceparent" => seen.traceparent = true,
                "grpc-timeout" => seen.grpc_timeout = true,
                "content-type" => seen.content_type = true,
                name => seen.ours |= name.starts_with(OURS),
            }
        }
        seen
    }
}

/// Removes what concerns only the connection the message came on.
///
/// `TE: trailers` stays, because it is an offer this proxy keeps.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, seen: Seen) {
    if seen.connection {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|it| it.as_bytes().split(|it| *it == b','))
            .filter_map(|it| HeaderName::from_bytes(it.trim_ascii()).ok())
            .collect();
        headers.remove(CONNECTION);
        for name in nominated.iter().filter(|it| **it != TE) {
            headers.remove(name);
        }
    }
    if seen.te {
        let trailers = headers.get_all(TE).iter().any(|it| {
            it.as_bytes()
                .split(|it| *it == b',')
                .any(|it| it.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    if seen.hop_by_hop {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

/// Removes every header of ours: nobody outside may set one.
pub fn strip_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> =
        headers.keys().filter(|it| it.as_str().starts_with(OURS)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Makes `x-request-id` and `traceparent` where absent. `random` is never all zero.
pub fn identify(headers: &mut HeaderMap, seen: Seen, random: [u64; 3]) {
    const TRACE: usize = 3;
    const SPAN: usize = 36;
    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    if seen.request_id && seen.traceparent {
        return;
    }
    hex(random[0], &mut parent[TRACE..TRACE + 16]);
    hex(random[1], &mut parent[TRACE + 16..TRACE + 32]);
    hex(random[2], &mut parent[SPAN..SPAN + 16]);
    // One allocation for both.
    let parent = Bytes::copy_from_slice(&parent);
    if !seen.request_id
        && let Ok(value) = HeaderValue::from_maybe_shared(parent.slice(TRACE..TRACE + 32))
    {
        headers.insert(REQUEST_ID, value);
    }
    if !seen.traceparent
        && let Ok(value) = HeaderValue::from_maybe_shared(parent)
    {
        headers.insert(TRACEPARENT, value);
    }
}

/// Says that a request must not be sent again: to a mesh peer, and where the answer ends with
/// its head, to a gRPC client as well.
pub fn forbid_retry(headers: &mut HeaderMap) {
    headers.insert(RETRY, HeaderValue::from_static("no"));
    if headers.contains_key("grpc-status") {
        // gRFC A6: a client that is pushed back for a negative time does not retry.
        headers.insert(GRPC_PUSHBACK, HeaderValue::from_static("-1"));
    }
}

fn hex(value: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

/// Appends the client to `x-forwarded-for`, and says what it spoke unless somebody has.
pub fn forwarded(headers: &mut HeaderMap, client: IpAddr) {
    let client = client.to_canonical().to_string();
    let chain = match headers.get(&FORWARDED_FOR).and_then(|it| it.to_str().ok()) {
        Some(before) => format!("{before}, {client}"),
        None => client,
    };
    if let Ok(value) = HeaderValue::try_from(chain) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_nominates_goes_with_it() {
        let mut headers = map(&[
            ("connection", "close, x-secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        let seen = Seen::of(&headers);
        strip_hop_by_hop(&mut headers, seen);
        assert_eq!(headers, map(&[("te", "trailers"), ("accept", "*/*")]));
    }

    #[test]
    fn a_header_of_ours_is_removed_whatever_its_name() {
        let mut headers =
            map(&[("x-remora-peer", "spiffe://a/b"), ("x-remora-new", "1"), ("x", "1")]);
        assert!(Seen::of(&headers).ours);
        strip_ours(&mut headers);
        assert_eq!(headers, map(&[("x", "1")]));
    }

    #[test]
    fn names_of_the_request_are_made_only_where_absent() {
        let mut headers = map(&[("x-request-id", "mine")]);
        let seen = Seen::of(&headers);
        identify(&mut headers, seen, [1, 0xabc, 7]);
        assert_eq!(headers["x-request-id"], "mine");
        assert_eq!(
            headers["traceparent"],
            "00-00000000000000010000000000000abc-0000000000000007-00"
        );
    }

    #[test]
    fn the_client_is_appended_to_those_before_it() {
        let mut headers = map(&[("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "https")]);
        forwarded(&mut headers, "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(headers["x-forwarded-for"], "10.0.0.9, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn a_retry_is_forbidden_in_grpc_terms_where_the_answer_ends_with_its_head() {
        let mut headers = map(&[("content-type", "application/grpc")]);
        forbid_retry(&mut headers);
        assert_eq!(headers.get("x-remora-retry").unwrap(), "no");
        assert!(!headers.contains_key("grpc-retry-pushback-ms"));
        let mut headers = map(&[("grpc-status", "14")]);
        forbid_retry(&mut headers);
        assert_eq!(headers.get("grpc-retry-pushback-ms").unwrap(), "-1");
    }

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }
}
