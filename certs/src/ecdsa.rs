//! ECDSA: public keys on P-256 and P-384, and what they signed.
//!
//! The two curves are what this authority makes; what it is asked to certify, and whose
//! signatures over data it believes, is no wider. A key is checked to be a point of its
//! curve when a signature by it is, so nothing is certified whose holder proved nothing.
//!
//! # Sources
//!
//! - RFC 5480, sections 2.1 and 2.2: <https://www.rfc-editor.org/rfc/rfc5480>

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    UnparsedPublicKey,
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm};
use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384},
    prelude::FromDer,
    x509::SubjectPublicKeyInfo,
};

use crate::authority::Key;

/// The point of a public key, uncompressed: a 4, then both coordinates.
const POINT_BYTES: [(Key, usize); 2] = [(Key::P256, 65), (Key::P384, 97)];

/// The digest that is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
}

/// A public key on one of the two curves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey {
    curve: Key,
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo` in DER; `None` when the key is of another kind.
    pub(crate) fn from_der(der: &[u8]) -> Option<Self> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let of_curves = info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY;
        let parameters = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
        let curve = if parameters == OID_EC_P256 {
            Key::P256
        } else if parameters == OID_NIST_EC_P384 {
            Key::P384
        } else {
            return None;
        };
        let point = info.subject_public_key;
        let sized = POINT_BYTES.contains(&(curve, point.data.len()));
        let whole = rest.is_empty() && point.unused_bits == 0 && point.data.first() == Some(&4);
        (of_curves && sized && whole).then(|| Self { curve, point: point.data.to_vec() })
    }

    /// The digest that goes with the curve.
    pub(crate) fn hash(&self) -> Hash {
        match self.curve {
            Key::P256 => Hash::Sha256,
            Key::P384 => Hash::Sha384,
        }
    }

    /// Whether `signature`, in DER, is the key's over the `hash` of `message`.
    pub(crate) fn verify(&self, hash: Hash, message: &[u8], signature: &[u8]) -> bool {
        let algorithm = match (self.curve, hash) {
            (Key::P256, Hash::Sha256) => &ECDSA_P256_SHA256_ASN1,
            (Key::P256, Hash::Sha384) => &ECDSA_P256_SHA384_ASN1,
            (Key::P384, Hash::Sha256) => &ECDSA_P384_SHA256_ASN1,
            (Key::P384, Hash::Sha384) => &ECDSA_P384_SHA384_ASN1,
        };
        UnparsedPublicKey::new(algorithm, &self.point).verify(message, signature).is_ok()
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.curve {
            Key::P256 => &PKCS_ECDSA_P256_SHA256,
            Key::P384 => &PKCS_ECDSA_P384_SHA384,
        }
    }
}
