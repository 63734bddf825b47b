//! Begin (step 3): what a request is, or why it is none.
//!
//! # Sources
//!
//! - RFC 9112, section 3.2: a request without exactly one `Host` is answered with 400; the
//!   authority of an absolute target replaces it.
//!   <https://www.rfc-editor.org/rfc/rfc9112#section-3.2>
//! - RFC 9110, section 9.2.2: idempotent methods; section 9.3.6: CONNECT.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Method, Request, Version, header};

use super::{
    context::{Facts, Manner},
    failure::Failure,
    headers::{self, Seen},
    upgrade,
};
use crate::policy::deadline;

/// A request that may be handled: its head is fit to be sent on.
#[derive(Debug)]
pub struct Begun {
    /// What it is.
    pub facts: Facts,
    /// The name it is for; empty where an HTTP/1.0 client gave none.
    pub authority: Authority,
    /// How long its caller waits, as it says.
    pub said: Option<Duration>,
}

/// The name a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// None, which HTTP/1.0 allows.
    None,
    /// That of the target.
    Target(http::uri::Authority),
    /// That of the `Host` field.
    Host(HeaderValue),
}

impl Authority {
    /// The name as text; `None` where it is not text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::None => Some(""),
            Self::Target(authority) => Some(authority.as_str()),
            Self::Host(value) => value.to_str().ok(),
        }
    }
}

/// Reads a request's head, and makes it fit to be sent on.
///
/// `seen` and `grpc` say what is in it; `mesh`, that the peer is a mesh peer, whose
/// `x-remora-` headers are believed.
///
/// # Errors
///
/// Why the request is refused.
pub fn begin<B>(
    request: &mut Request<B>,
    (seen, grpc): (Seen, bool),
    (mesh, random): (bool, [u64; 3]),
    (client, now): (IpAddr, Instant),
) -> Result<Begun, Failure> {
    let version = request.version();
    if *request.method() == Method::CONNECT {
        return Err(Failure::BadRequest);
    }
    let authority = authority(request, seen)?;
    let manner = manner(request, seen);
    let believed = mesh && seen.ours;
    let ours = |it: HeaderName| if believed { request.headers().get(it) } else { None };
    let spoken = ours(headers::HTTP).map_or(version, |it| said_version(it, version));
    let retried = ours(headers::ATTEMPT).is_some_and(is_retry);
    let left = ours(headers::DEADLINE).and_then(|it| deadline::from_millis(it.as_bytes()));
    let fields = request.headers_mut();
    let timeout = if grpc && seen.grpc_timeout { fields.get(&headers::GRPC_TIMEOUT) } else { None };
    let timeout = timeout.and_then(|it| deadline::from_grpc(it.as_bytes()));
    let timeout = timeout.map(|it| it.min(deadline::LONGEST));
    let protocol = seen.upgrade.then(|| fields.get(header::UPGRADE).cloned()).flatten();
    headers::strip_hop_by_hop(fields, seen);
    if let (Manner::Upgrade, Some(protocol)) = (manner, protocol) {
        upgrade::renew(fields, protocol);
    }
    if seen.ours {
        headers::strip_ours(fields);
    }
    headers::identify(fields, seen, random);
    if let Authority::Target(name) = &authority
        && (version != Version::HTTP_2 || seen.host)
        && let Ok(host) = HeaderValue::from_str(name.as_str())
    {
        // RFC 9112, section 3.2.2: a proxy "MUST ignore the received Host header field (if
        // any) and instead replace it with the host information of the request-target". RFC
        // 9113, section 8.3.1, says the same of `:authority`.
        fields.insert(header::HOST, host);
    }
    let ends = timeout.map(|it| now + it);
    let facts = Facts { manner, grpc, ends, retried, ..Facts::new(spoken, client, now) };
    Ok(Begun { facts, authority, said: deadline::least(timeout, left) })
}

/// Whether a mesh peer says that this is not the first try.
fn is_retry(attempt: &HeaderValue) -> bool {
    matches!(attempt.as_bytes(), [b'2'..=b'9'] | [b'1'..=b'9', b'0'..=b'9'])
}

/// The version a mesh peer says the application's client spoke.
fn said_version(said: &HeaderValue, spoken: Version) -> Version {
    match said.as_bytes() {
        b"1.0" => Version::HTTP_10,
        b"1.1" => Version::HTTP_11,
        _ => spoken,
    }
}

fn authority<B>(request: &Request<B>, seen: Seen) -> Result<Authority, Failure> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next().filter(|_| seen.host), hosts.next()) {
        (host, None) => host.filter(|it| !it.is_empty()),
        (_, Some(_)) => return Err(Failure::BadRequest),
    };
    let target = request.uri().authority();
    let is_named = seen.host || target.is_some() && request.version() == Version::HTTP_2;
    if !is_named && request.version() != Version::HTTP_10 {
        return Err(Failure::BadRequest);
    }
    match (target, host) {
        (Some(target), _) if is_host(target.as_str().as_bytes()) => {
            Ok(Authority::Target(target.clone()))
        }
        (None, Some(host)) if is_host(host.as_bytes()) => Ok(Authority::Host(host.clone())),
        (None, None) => Ok(Authority::None),
        _ => Err(Failure::BadRequest),
    }
}

/// Whether bytes may be a host and a port: RFC 3986, section 3.2.2. There is no `@` in one,
/// which RFC 9110, section 4.2.4, wants refused.
fn is_host(bytes: &[u8]) -> bool {
    let is_fine = |it: &u8| it.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(it);
    bytes.iter().all(is_fine)
}

fn manner<B>(request: &Request<B>, seen: Seen) -> Manner {
    if request.version() != Version::HTTP_11 {
        return Manner::Plain;
    }
    let fields = request.headers();
    let lists = |name, option: &[u8]| {
        let mut values = fields.get_all(name).iter().map(HeaderValue::as_bytes);
        let is_it = |it: &[u8]| it.trim_ascii().eq_ignore_ascii_case(option);
        values.any(|it| it.split(|it| *it == b',').any(is_it))
    };
    // RFC 9110, section 7.8: "A sender of Upgrade MUST also send an \"Upgrade\" connection
    // option". An intermediary must not switch to what it does not know to be safe; h2c by
    // upgrade is obsolete (RFC 9113, section 3.1) and not offered.
    let nominated = seen.upgrade && seen.connection && lists(header::CONNECTION, b"upgrade");
    if nominated && !lists(header::UPGRADE, b"h2c") {
        return Manner::Upgrade;
    }
    let expects = |it: &HeaderValue| it.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if seen.expect && fields.get(header::EXPECT).is_some_and(expects) {
        return Manner::Expect;
    }
    Manner::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_sent_on_is_the_one_that_was_routed_by() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let (request, begun) = begun("http://orders/", version, &[("host", "admin")]);
            assert_eq!(begun.authority.as_str(), Some("orders"), "{version:?}");
            assert_eq!(request.headers()[header::HOST], "orders", "{version:?}");
        }
    }

    #[test]
    fn http_2_is_never_switched_to_by_upgrade() {
        for offer in ["h2c", "H2C", "websocket, h2c", "h2c,websocket"] {
            let fields = [("host", "a"), ("connection", "upgrade"), ("upgrade", offer)];
            let (request, begun) = begun("/", Version::HTTP_11, &fields);
            assert_eq!(begun.facts.manner, Manner::Plain, "{offer}");
            assert!(!request.headers().contains_key(header::UPGRADE), "{offer}");
        }
        let fields = [("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")];
        let (_, begun) = begun("/", Version::HTTP_11, &fields);
        assert_eq!(begun.facts.manner, Manner::Upgrade);
    }

    #[test]
    fn an_upgrade_that_connection_does_not_nominate_is_none() {
        for (nominated, manner) in
            [("close", Manner::Plain), ("keep-alive, Upgrade", Manner::Upgrade)]
        {
            let fields = [("host", "a"), ("connection", nominated), ("upgrade", "websocket")];
            let (request, begun) = begun("/", Version::HTTP_11, &fields);
            assert_eq!(begun.facts.manner, manner, "{nominated}");
            let stays = manner == Manner::Upgrade;
            assert_eq!(request.headers().contains_key(header::UPGRADE), stays, "{nominated}");
        }
    }

    #[test]
    fn only_a_mesh_peer_is_believed_about_deadlines_and_tries() {
        let fields = [("host", "a"), ("x-remora-deadline-ms", "250"), ("x-remora-attempt", "2")];
        let (request, begun) = begun_by(true, false, &fields);
        assert_eq!((begun.said, begun.facts.retried), (Some(Duration::from_millis(250)), true));
        assert_eq!(request.headers().len(), 3, "{:?}", request.headers());
        let (request, begun) = begun_by(false, false, &fields);
        assert_eq!((begun.said, begun.facts.retried), (None, false));
        assert_eq!(request.headers().len(), 3, "{:?}", request.headers());
    }

    #[test]
    fn a_try_is_a_retry_from_the_second_on() {
        for (attempt, expected) in
            [("2", true), ("11", true), ("1", false), ("0", false), ("", false), ("02", false)]
        {
            let (_, begun) = begun_by(true, false, &[("host", "a"), ("x-remora-attempt", attempt)]);
            assert_eq!(begun.facts.retried, expected, "{attempt}");
        }
    }

    #[test]
    fn a_grpc_call_says_when_it_ends() {
        let fields = [("host", "a"), ("grpc-timeout", "2S"), ("x-remora-deadline-ms", "250")];
        let (_, begun) = begun_by(true, true, &fields);
        assert_eq!(begun.said, Some(Duration::from_millis(250)));
        assert_eq!(begun.facts.ends, Some(begun.facts.started + Duration::from_secs(2)));
        // To anybody else the field is one of the application's.
        let (_, begun) = begun_by(false, false, &fields);
        assert_eq!((begun.said, begun.facts.ends), (None, None));
    }

    fn begun(uri: &str, version: Version, fields: &[(&str, &str)]) -> (Request<()>, Begun) {
        read(Request::get(uri).version(version), (false, false), fields)
    }

    fn begun_by(mesh: bool, grpc: bool, fields: &[(&str, &str)]) -> (Request<()>, Begun) {
        read(Request::get("/"), (mesh, grpc), fields)
    }

    fn read(
        request: http::request::Builder,
        (mesh, grpc): (bool, bool),
        fields: &[(&str, &str)],
    ) -> (Request<()>, Begun) {
        let mut request = fields
            .iter()
            .fold(request, |it, (name, value)| it.header(*name, *value))
            .body(())
            .unwrap();
        let seen = Seen::of(request.headers());
        let now = crate::clock::now();
        let at = ([127, 0, 0, 1].into(), now);
        let begun = begin(&mut request, (seen, grpc), (mesh, [1, 2, 3]), at).unwrap();
        (request, begun)
    }
}
