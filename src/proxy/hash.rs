//! Hash key: what of a request decides which endpoint it reaches, where a policy says so.

use http::{HeaderMap, header};

use super::context::Call;
use crate::policy::{HashKey, ServicePolicy};

/// Calls `with` with the key of `call`; there is none where the policy asks for none, or the
/// request has none.
pub fn with_key<T>(
    call: &Call,
    policy: &ServicePolicy,
    with: impl FnOnce(Option<&[u8]>) -> T,
) -> T {
    let fields = call.request.headers();
    match &policy.hash_key {
        None => with(None),
        Some(HashKey::Header(name)) => with(fields.get(&**name).map(http::HeaderValue::as_bytes)),
        Some(HashKey::Cookie(name)) => with(cookie(fields, name.as_bytes())),
        Some(HashKey::Source) => match call.facts.client {
            std::net::IpAddr::V4(it) => with(Some(&it.octets())),
            std::net::IpAddr::V6(it) => with(Some(&it.octets())),
        },
    }
}

/// The value of the cookie `name`: RFC 6265, section 4.2.1.
fn cookie<'a>(fields: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let lines = fields.get_all(header::COOKIE).iter();
    let mut pairs = lines.flat_map(|it| it.as_bytes().split(|it| *it == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name)?.strip_prefix(b"=")?;
        Some(value.trim_ascii_end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut fields = HeaderMap::new();
        fields.append(header::COOKIE, "xsession=1; session2=2".parse().unwrap());
        fields.append(header::COOKIE, "a=b; session=42 ".parse().unwrap());
        assert_eq!(cookie(&fields, b"session"), Some(&b"42"[..]));
        assert_eq!(cookie(&fields, b"sess"), None);
    }
}
