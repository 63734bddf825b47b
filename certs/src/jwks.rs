//! JWKS: a trust bundle as SPIFFE federates it, written and read.
//!
//! Each root is one key whose `x5c` holds the whole certificate; the key's own fields say
//! the same once more, as RFC 7517 wants. What else a bundle may hold (keys of JWT-SVIDs,
//! kinds that are not known) is read by its name only.
//!
//! # Sources
//!
//! - SPIFFE Trust Domain and Bundle, section 4:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md#4-spiffe-bundle-format>
//! - X509-SVID, section 6 (`use`, one `x5c`):
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#6-representation-in-the-spiffe-bundle>
//! - RFC 7517 (JWK), section 4.7 (`x5c`), and RFC 7518, section 6 (the keys' fields)

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::x509::{self, PublicParts};

/// The `use` of a root of X.509-SVIDs.
const X509_SVID: &str = "x509-svid";

/// Why a bundle cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A root whose key has no name here.
    #[error("certificate {0} of the bundle has neither an ECDSA key (P-256, P-384, P-521) nor RSA")]
    Key(usize),
    /// Not JSON, or not of this form.
    #[error("not a SPIFFE bundle in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A root must have exactly one certificate.
    #[error(
        "key {index} of the bundle has {certificates} certificates in `x5c`, and must have one"
    )]
    Certificates {
        /// Which key, from 1.
        index: usize,
        /// How many it has.
        certificates: usize,
    },
    /// The certificate is no base64.
    #[error("the `x5c` of key {0} of the bundle is damaged")]
    Damaged(usize),
}

/// A bundle as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Grows with each change.
    pub sequence: Option<u64>,
    /// How often to look for a newer one.
    pub refresh: Option<Duration>,
    /// In the file's order.
    pub keys: Vec<Found>,
}

/// A key of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A root of X.509-SVIDs.
    Root(CertificateDer<'static>),
    /// Another key.
    Other {
        /// What it is for, such as `jwt-svid`.
        usage: String,
        /// Its name, if it has one.
        id: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct Set {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    x5c: Vec<String>,
}

//= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md#411-sequence-number
//# its value MUST be a monotonically increasing integer, and MUST be changed whenever the
//# contents of the bundle are updated
/// Writes the bundle of these roots.
///
/// # Errors
///
/// When a root's key is neither ECDSA nor RSA.
pub fn write(
    roots: &[CertificateDer<'_>],
    sequence: u64,
    refresh: Duration,
) -> Result<String, Error> {
    let key = |(index, root): (usize, &CertificateDer<'_>)| jwk(root).ok_or(Error::Key(index + 1));
    let set = Set {
        keys: roots.iter().enumerate().map(key).collect::<Result<_, _>>()?,
        spiffe_sequence: Some(sequence),
        spiffe_refresh_hint: Some(refresh.as_secs()),
    };
    Ok(serde_json::to_string_pretty(&set)? + "\n")
}

/// Reads a bundle.
///
/// # Errors
///
/// When it is not one. What the roots are, and whether they may be that, is not looked at.
pub fn read(file: &[u8]) -> Result<Document, Error> {
    let set: Set = serde_json::from_slice(file)?;
    let found = |(index, key): (usize, Jwk)| {
        let index = index + 1;
        if key.usage != X509_SVID {
            return Ok(Found::Other { usage: key.usage, id: key.kid });
        }
        let [certificate] = &key.x5c[..] else {
            return Err(Error::Certificates { index, certificates: key.x5c.len() });
        };
        let der = STANDARD.decode(certificate).map_err(|_| Error::Damaged(index))?;
        Ok(Found::Root(der.into()))
    };
    Ok(Document {
        sequence: set.spiffe_sequence,
        refresh: set.spiffe_refresh_hint.map(Duration::from_secs),
        keys: set.keys.into_iter().enumerate().map(found).collect::<Result<_, _>>()?,
    })
}

fn jwk(root: &CertificateDer<'_>) -> Option<Jwk> {
    let text = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
    let key = match x509::public_parts(root)? {
        PublicParts::Ec { x, y } => {
            let curve = match x.len() {
                32 => "P-256",
                48 => "P-384",
                66 => "P-521",
                _ => return None,
            };
            let crv = Some(curve.to_owned());
            Jwk { kty: "EC".to_owned(), crv, x: text(&x), y: text(&y), ..Jwk::default() }
        }
        PublicParts::Rsa { n, e } => {
            Jwk { kty: "RSA".to_owned(), n: text(&n), e: text(&e), ..Jwk::default() }
        }
    };
    Some(Jwk { usage: X509_SVID.to_owned(), x5c: vec![STANDARD.encode(root)], ..key })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        PKCS_RSA_SHA256, PublicKeyData as _, SignatureAlgorithm,
    };
    use serde_json::Value;

    use super::*;

    const HINT: Duration = Duration::from_mins(5);

    #[test]
    fn what_is_written_is_read_again() {
        let roots = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384].map(|it| root(it).0);
        let document = read(write(&roots, 7, HINT).unwrap().as_bytes()).unwrap();
        assert_eq!((document.sequence, document.refresh), (Some(7), Some(HINT)));
        assert_eq!(document.keys, roots.map(Found::Root));
    }

    #[test]
    fn a_root_is_a_jwk_of_its_curve_with_its_coordinates() {
        for (algorithm, curve) in
            [(&PKCS_ECDSA_P256_SHA256, "P-256"), (&PKCS_ECDSA_P384_SHA384, "P-384")]
        {
            let (root, key) = root(algorithm);
            let text = write(&[root], 1, HINT).unwrap();
            let json: Value = serde_json::from_str(&text).unwrap();
            let jwk = &json["keys"][0];
            let field = |name: &str| jwk[name].as_str().unwrap().to_owned();
            assert_eq!([field("kty"), field("use"), field("crv")], ["EC", X509_SVID, curve]);
            let part = |name| URL_SAFE_NO_PAD.decode(field(name)).unwrap();
            assert_eq!([vec![4], part("x"), part("y")].concat(), key.der_bytes());
            // Nothing that the standard does not name.
            let names: Vec<_> = jwk.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(names, ["crv", "kty", "use", "x", "x5c", "y"]);
            assert_eq!(
                (&json["spiffe_sequence"], &json["spiffe_refresh_hint"]),
                (&1.into(), &300.into())
            );
        }
    }

    #[test]
    fn a_root_of_rsa_is_a_jwk_of_its_modulus_without_a_sign() {
        let text = write(&[root(&PKCS_RSA_SHA256).0], 1, HINT).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let jwk = &json["keys"][0];
        let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
        assert_eq!((&jwk["kty"], &jwk["e"]), (&"RSA".into(), &"AQAB".into()));
        assert_eq!((modulus.len(), 0x80 <= modulus[0]), (256, true));
    }

    #[test]
    fn a_key_that_has_no_name_here_is_refused() {
        let roots = [root(&PKCS_ECDSA_P256_SHA256).0, root(&PKCS_ED25519).0];
        assert!(matches!(write(&roots, 1, HINT), Err(Error::Key(2))));
    }

    #[test]
    fn keys_for_other_uses_are_named_and_not_looked_into() {
        let file = r#"{"keys": [
            {"kty": "RSA", "use": "jwt-svid", "kid": "k1", "n": "AQ", "e": "AQAB", "extra": 1},
            {"kty": "odd"}
        ], "more": {}}"#;
        let document = read(file.as_bytes()).unwrap();
        let other = |usage: &str, id: Option<&str>| Found::Other {
            usage: usage.to_owned(),
            id: id.map(str::to_owned),
        };
        assert_eq!(document.keys, [other("jwt-svid", Some("k1")), other("", None)]);
        assert_eq!((document.sequence, document.refresh), (None, None));
    }

    #[test]
    fn every_refusal_says_which_key() {
        for (file, message) in [
            (
                r#"{"keys": [{"use": "x509-svid"}]}"#,
                "key 1 of the bundle has 0 certificates in `x5c`, and must have one",
            ),
            (
                r#"{"keys": [{}, {"use": "x509-svid", "x5c": ["", ""]}]}"#,
                "key 2 of the bundle has 2 certificates in `x5c`, and must have one",
            ),
            (
                r#"{"keys": [{"use": "x509-svid", "x5c": ["?"]}]}"#,
                "the `x5c` of key 1 of the bundle is damaged",
            ),
            ("{}", "not a SPIFFE bundle in JSON: missing field `keys` at line 1 column 2"),
        ] {
            assert_eq!(read(file.as_bytes()).unwrap_err().to_string(), message);
        }
    }

    fn root(algorithm: &'static SignatureAlgorithm) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let root = CertificateParams::default().self_signed(&key).unwrap();
        (root.der().clone(), key)
    }
}
