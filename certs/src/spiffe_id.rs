//! SPIFFE id: a name that passed every rule of the standard, or none at all.
//!
//! A [`SpiffeId`] exists only when its text is valid, so nothing later asks again.
//! The parser takes the narrowest reading: lower-case scheme and trust domain, no
//! percent-encoding, no port, no query, no empty or dot segment. Two different texts are
//! therefore two different ids, and comparing bytes is comparing ids; a lenient parser
//! here would be a way round every rule that names an id.
//!
//! Any valid path parses, for identities of other systems. A Kubernetes workload has the
//! form `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`; for it [`SpiffeId::namespace`]
//! and [`SpiffeId::service_account`] answer.
//!
//! # Sources
//!
//! - SPIFFE-ID, sections 2.1 to 2.3:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>

use std::{fmt, str::FromStr, sync::Arc};

/// What every SPIFFE id begins with.
const SCHEME: &str = "spiffe://";

//= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#23-maximum-spiffe-id-length
//# the maximum length of a SPIFFE ID is 2048 bytes
const ID_BYTES_MAX: usize = 2048;

//= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#23-maximum-spiffe-id-length
//# a maximum length of a trust domain name is 255 bytes
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// A valid SPIFFE id; a clone is a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the trust domain ends in `text` and the path begins.
    path_at: usize,
}

/// Why a text is not a SPIFFE id.
///
/// Positions count bytes from the start of the text, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE id begins with `spiffe://`")]
    Scheme,
    /// More than 2,048 bytes.
    #[error("a SPIFFE id has at most 2048 bytes, this one {0}")]
    TooLong(usize),
    /// `spiffe:///path`.
    #[error("the trust domain is empty")]
    NoTrustDomain,
    /// More than 255 bytes.
    #[error("a trust domain has at most 255 bytes, this one {0}")]
    TrustDomainTooLong(usize),
    /// A character outside `[a-z0-9._-]`: upper case, a port, user information, an escape.
    #[error("`{found}` at byte {at} is not allowed in a trust domain (a-z, 0-9, `.`, `-`, `_`)")]
    TrustDomainCharacter {
        /// Where.
        at: usize,
        /// The character, escaped when it is not printable.
        found: String,
    },
    /// A character outside `[a-zA-Z0-9._-]`: a query, a fragment, an escape.
    #[error("`{found}` at byte {at} is not allowed in a path (letters, digits, `.`, `-`, `_`)")]
    PathCharacter {
        /// Where.
        at: usize,
        /// The character, escaped when it is not printable.
        found: String,
    },
    /// `//`, or a `/` at the end.
    #[error("the path segment at byte {at} is empty")]
    EmptySegment {
        /// Where.
        at: usize,
    },
    /// `/./` or `/../`.
    #[error("the path segment at byte {at} is `.` or `..`")]
    DotSegment {
        /// Where.
        at: usize,
    },
}

/// Parses the bytes of a SPIFFE id, as found in a certificate.
///
/// Total: it returns for every input, and `parse(id.as_str().as_bytes())` gives `id` back.
///
/// # Errors
///
/// The first rule broken, from the left.
pub fn parse(bytes: &[u8]) -> Result<SpiffeId, ParseError> {
    let rest = bytes.strip_prefix(SCHEME.as_bytes()).ok_or(ParseError::Scheme)?;
    if ID_BYTES_MAX < bytes.len() {
        return Err(ParseError::TooLong(bytes.len()));
    }
    let domain = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
    check_trust_domain(domain, SCHEME.len())?;
    let path_at = SCHEME.len() + domain.len();
    check_path(&bytes[path_at..], path_at)?;
    // Every byte has been checked to be ASCII, so this cannot lose anything.
    Ok(SpiffeId { text: String::from_utf8_lossy(bytes).into(), path_at })
}

//= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#21-trust-domain
//# The `userinfo` and `port` parts of the authority component MUST NOT be set
fn check_trust_domain(name: &[u8], offset: usize) -> Result<(), ParseError> {
    if name.is_empty() {
        return Err(ParseError::NoTrustDomain);
    }
    let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if let Some(at) = name.iter().position(|byte| !allowed(byte)) {
        return Err(ParseError::TrustDomainCharacter {
            at: offset + at,
            found: shown(&name[at..]),
        });
    }
    if TRUST_DOMAIN_BYTES_MAX < name.len() {
        return Err(ParseError::TrustDomainTooLong(name.len()));
    }
    Ok(())
}

/// Checks a path: empty, or segments each behind a `/`.
fn check_path(path: &[u8], offset: usize) -> Result<(), ParseError> {
    let allowed =
        |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let mut at = offset;
    // The first piece is what stands before the first `/`: nothing.
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        at += 1;
        if let Some(wrong) = segment.iter().position(|byte| !allowed(byte)) {
            return Err(ParseError::PathCharacter {
                at: at + wrong,
                found: shown(&segment[wrong..]),
            });
        }
        match segment {
            b"" => return Err(ParseError::EmptySegment { at }),
            b"." | b".." => return Err(ParseError::DotSegment { at }),
            _ => at += segment.len(),
        }
    }
    Ok(())
}

/// The first character of `rest`, fit for a message.
fn shown(rest: &[u8]) -> String {
    let character = rest.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
    match (character, rest.first()) {
        (Some(character), _) => character.escape_debug().to_string(),
        (None, Some(byte)) => format!("\\x{byte:02x}"),
        (None, None) => String::new(),
    }
}

impl SpiffeId {
    /// The id of a Kubernetes service account.
    ///
    /// # Errors
    ///
    /// When a part is not a valid trust domain or path segment; positions are those in
    /// the id the parts would make.
    pub fn workload(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseError> {
        let at = SCHEME.len() + trust_domain.len();
        check_trust_domain(trust_domain.as_bytes(), SCHEME.len())?;
        for (part, at) in [
            (namespace, at + "/ns/".len()),
            (service_account, at + "/ns//sa/".len() + namespace.len()),
        ] {
            // A `/` in a part would make another id than the one asked for.
            if let Some(slash) = part.find('/') {
                return Err(ParseError::PathCharacter { at: at + slash, found: "/".into() });
            }
        }
        parse(format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").as_bytes())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Who vouches for it: `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// What follows the trust domain: empty, or `/ns/shop/sa/orders`.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The Kubernetes namespace, for an id of a workload's form.
    pub fn namespace(&self) -> Option<&str> {
        self.parts().map(|(namespace, _)| namespace)
    }

    /// The Kubernetes service account, for an id of a workload's form.
    pub fn service_account(&self) -> Option<&str> {
        self.parts().map(|(_, account)| account)
    }

    /// Namespace and service account, when the path is exactly `/ns/NAMESPACE/sa/ACCOUNT`.
    fn parts(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().split('/').skip(1);
        let parts = match (segments.next()?, segments.next()?, segments.next()?, segments.next()?) {
            ("ns", namespace, "sa", account) => (namespace, account),
            _ => return None,
        };
        segments.next().is_none().then_some(parts)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse(text.as_bytes())
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Checks a trust domain's name by itself.
///
/// # Errors
///
/// When it is empty, too long, or has a character that is not allowed; positions are
/// those in an id that begins with it.
pub fn trust_domain(name: &str) -> Result<(), ParseError> {
    check_trust_domain(name.as_bytes(), SCHEME.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_workload_id_gives_its_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/shop/sa/orders");
        assert_eq!((id.namespace(), id.service_account()), (Some("shop"), Some("orders")));
        assert_eq!(SpiffeId::workload("cluster.local", "shop", "orders"), Ok(id));
    }

    #[test]
    fn other_valid_paths_are_ids_without_a_namespace() {
        for text in [
            "spiffe://td",
            "spiffe://td/x",
            "spiffe://td/ns/shop",
            "spiffe://td/ns/shop/sa/orders/extra",
            "spiffe://td/NS/shop/SA/orders",
            "spiffe://1.2.3.4/a.b/..c/_-",
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.as_str(), id.namespace()), (text, None));
        }
    }

    #[test]
    fn every_rule_has_its_refusal() {
        let trust_domain =
            |at, found: &str| ParseError::TrustDomainCharacter { at, found: found.into() };
        let path = |at, found: &str| ParseError::PathCharacter { at, found: found.into() };
        for (text, error) in [
            ("", ParseError::Scheme),
            ("spiffe:/td/x", ParseError::Scheme),
            ("https://td/x", ParseError::Scheme),
            ("SPIFFE://td/x", ParseError::Scheme),
            (" spiffe://td/x", ParseError::Scheme),
            ("spiffe://", ParseError::NoTrustDomain),
            ("spiffe:///ns//sa/", ParseError::NoTrustDomain),
            ("spiffe://Td/x", trust_domain(9, "T")),
            ("spiffe://td:80/x", trust_domain(11, ":")),
            ("spiffe://user@td/x", trust_domain(13, "@")),
            ("spiffe://td?q", trust_domain(11, "?")),
            ("spiffe://t%64/x", trust_domain(10, "%")),
            ("spiffe://tä/x", trust_domain(10, "ä")),
            ("spiffe://td\0/x", trust_domain(11, "\\0")),
            ("spiffe://td/x?q", path(13, "?")),
            ("spiffe://td/x#f", path(13, "#")),
            ("spiffe://td/%2e", path(12, "%")),
            ("spiffe://td/x y", path(13, " ")),
            ("spiffe://td/ns/sh\nop", path(17, "\\n")),
            ("spiffe://td/", ParseError::EmptySegment { at: 12 }),
            ("spiffe://td/x/", ParseError::EmptySegment { at: 14 }),
            ("spiffe://td//x", ParseError::EmptySegment { at: 12 }),
            ("spiffe://td/./x", ParseError::DotSegment { at: 12 }),
            ("spiffe://td/x/..", ParseError::DotSegment { at: 14 }),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
        }
        assert_eq!(parse(b"spiffe://t\xff"), Err(trust_domain(10, "\\xff")));
    }

    #[test]
    fn lengths_are_bounded_at_the_limit() {
        let domain = "d".repeat(255);
        assert!(format!("spiffe://{domain}/x").parse::<SpiffeId>().is_ok());
        assert_eq!(
            format!("spiffe://{domain}d/x").parse::<SpiffeId>(),
            Err(ParseError::TrustDomainTooLong(256))
        );
        let longest = format!("spiffe://td/{}", "x".repeat(2048 - 12));
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{longest}x").parse::<SpiffeId>(), Err(ParseError::TooLong(2049)));
    }

    #[test]
    fn a_part_cannot_smuggle_in_a_segment() {
        let found = |at| Err(ParseError::PathCharacter { at, found: "/".into() });
        assert_eq!(SpiffeId::workload("td", "a/sa/root", "b"), found(16));
        assert_eq!(SpiffeId::workload("td", "a", "b/../c"), found(21));
        assert!(SpiffeId::workload("td/ns/x", "a", "b").is_err());
        assert_eq!(SpiffeId::workload("td", "", "b"), Err(ParseError::EmptySegment { at: 15 }));
    }

    proptest! {
        /// Total, and what parses is exactly what was given.
        #[test]
        fn parsing_any_bytes_gives_them_back_or_refuses(bytes in any::<Vec<u8>>()) {
            if let Ok(id) = parse(&bytes) {
                prop_assert_eq!(id.as_str().as_bytes(), &bytes[..]);
            }
        }

        /// Against the rules written as plainly as possible.
        #[test]
        fn a_text_parses_exactly_when_the_rules_say_so(text in "spiffe://[a-zA-B.:_]{0,4}(/[a-c.%A]{0,3}){0,4}") {
            let rest = text.strip_prefix("spiffe://").unwrap();
            let mut pieces = rest.split('/');
            let domain = pieces.next().unwrap();
            let valid = !domain.is_empty()
                && domain.chars().all(|it| it.is_ascii_lowercase() || "._".contains(it))
                && pieces.all(|it| !it.is_empty() && it != "." && it != ".." && !it.contains('%'));
            prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), valid);
        }

        /// The parts of an id make the id again.
        #[test]
        fn parts_and_whole_agree(domain in "[a-z0-9._-]{1,20}", namespace in "[a-z0-9-]{1,20}", account in "[a-zA-Z0-9-]{1,20}") {
            let id = SpiffeId::workload(&domain, &namespace, &account).unwrap();
            prop_assert_eq!(id.trust_domain(), domain);
            prop_assert_eq!(id.namespace(), Some(namespace.as_str()));
            prop_assert_eq!(id.service_account(), Some(account.as_str()));
            prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), id.as_str());
        }
    }
}
