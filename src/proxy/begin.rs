//! Begin (step 3): what a request is, or why it is none.
//!
//! # Sources
//!
//! - RFC 9112, section 3.2: a request without exactly one `Host` is answered with 400; the
//!   authority of an absolute target replaces it.
//!   <https://www.rfc-editor.org/rfc/rfc9112#section-3.2>
//! - RFC 9110, section 9.2.2: idempotent methods; section 9.3.6: CONNECT.

use std::time::Instant;

use http::{HeaderValue, Method, Request, Version, header};

use super::{
    context::{Facts, Manner},
    failure::Failure,
    headers::{self, Seen},
    upgrade,
};

/// A request that may be handled: its head is fit to be sent on.
#[derive(Debug)]
pub struct Begun {
    /// What it is.
    pub facts: Facts,
    /// The name it is for; empty where an HTTP/1.0 client gave none.
    pub authority: Authority,
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
    now: Instant,
) -> Result<Begun, Failure> {
    let version = request.version();
    if *request.method() == Method::CONNECT {
        return Err(Failure::BadRequest);
    }
    let authority = authority(request, seen)?;
    let manner = manner(request, seen);
    let believed = mesh && seen.ours;
    let said = believed.then(|| request.headers().get(&headers::HTTP).cloned()).flatten();
    let fields = request.headers_mut();
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
    let facts = Facts {
        version: said.map_or(version, |it| said_version(&it, version)),
        manner,
        idempotent: request.method().is_idempotent(),
        grpc,
        started: now,
        timeout: None,
        try_timeout: None,
        idle: None,
    };
    Ok(Begun { facts, authority })
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
    // RFC 9110, section 7.8: an intermediary must not switch to what it does not know to
    // be safe; h2c by upgrade is obsolete (RFC 9113, section 3.1) and not offered.
    let is_h2c = |it: &[u8]| it.trim_ascii().eq_ignore_ascii_case(b"h2c");
    let offered = || fields.get_all(header::UPGRADE).iter().map(HeaderValue::as_bytes);
    let h2c = || offered().any(|it| it.split(|it| *it == b',').any(is_h2c));
    if seen.upgrade && seen.connection && !h2c() {
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

    fn begun(uri: &str, version: Version, fields: &[(&str, &str)]) -> (Request<()>, Begun) {
        let request = Request::get(uri).version(version);
        let mut request = fields
            .iter()
            .fold(request, |it, (name, value)| it.header(*name, *value))
            .body(())
            .unwrap();
        let seen = Seen::of(request.headers());
        let now = crate::clock::now();
        let begun = begin(&mut request, (seen, false), (false, [1, 2, 3]), now).unwrap();
        (request, begun)
    }
}
