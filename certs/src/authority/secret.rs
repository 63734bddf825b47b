//! Secret: a private key, and its text, wiped when dropped.

use std::path::Path;

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm,
    SigningKey,
};
use serde::{Deserialize as _, Deserializer, Serializer};
use zeroize::Zeroizing;

use super::{Error, Key, read};
use crate::{pem, x509::Facts};

/// A private key.
pub(crate) struct Secret {
    pair: Zeroizing<KeyPair>,
    /// As it was read, since the pair forgets of which form its bytes are.
    pem: Zeroizing<String>,
}

impl Secret {
    pub(crate) fn generate(kind: Key) -> Result<Self, rcgen::Error> {
        let algorithm = match kind {
            Key::P256 => &PKCS_ECDSA_P256_SHA256,
            Key::P384 => &PKCS_ECDSA_P384_SHA384,
        };
        let pair = Zeroizing::new(KeyPair::generate_for(algorithm)?);
        let pem = Zeroizing::new(pair.serialize_pem());
        Ok(Self { pair, pem })
    }

    /// Reads the one private key of a file; `None` when there is not one that can be used.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Error> {
        Ok(Self::from_pem(&Zeroizing::new(read(path)?)))
    }

    pub(super) fn from_pem(file: &str) -> Option<Self> {
        let blocks = pem::blocks(file.as_bytes()).ok()?;
        let mut keys = blocks.iter().filter(|it| it.is_private_key());
        let (key, None) = (keys.next()?, keys.next()) else { return None };
        let der = Zeroizing::new(key.private_key().ok()?);
        let pair = Zeroizing::new(KeyPair::try_from(&*der).ok()?);
        Some(Self { pair, pem: Zeroizing::new(key.to_pem()) })
    }

    /// What leaves get below it.
    pub(super) fn kind(&self) -> Key {
        if *self.algorithm() == PKCS_ECDSA_P384_SHA384 { Key::P384 } else { Key::P256 }
    }

    pub(super) fn is_of(&self, certificate: &Facts) -> bool {
        self.subject_public_key_info() == certificate.public_key
    }

    pub(crate) fn pem(&self) -> &Zeroizing<String> {
        &self.pem
    }
}

/// Serializes a key's text.
pub(super) fn serialize<S: Serializer>(key: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(key)
}

/// Deserializes a key's text into memory that will be wiped.
pub(super) fn deserialize<'a, D: Deserializer<'a>>(of: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(of).map(Zeroizing::new)
}

impl PublicKeyData for Secret {
    fn der_bytes(&self) -> &[u8] {
        self.pair.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.pair.algorithm()
    }
}

impl SigningKey for Secret {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.pair.sign(message)
    }
}
