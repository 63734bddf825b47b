//! SVID: a workload's certificate chain with its key, checked to belong together.
//!
//! What is read from files another process writes may be half of one generation and half
//! of the next. An [`Svid`] exists only when the key is the leaf's, the leaf is a
//! workload's, and what follows it are signing certificates; so a mixture is refused here
//! and never reaches a handshake. Whether it is valid *now*, and whether a root vouches for
//! it, are questions of the reader.
//!
//! The key cannot be got out again: the bytes read are wiped once the signing key is
//! made, and `Debug` prints the id only.
//!
//! # Sources
//!
//! - X509-SVID, sections 3 to 5:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::{
    pem,
    spiffe_id::SpiffeId,
    x509::{Facts, IdError, fingerprint, id_of},
};

/// Longer than any chain in use; each link costs every peer a signature check.
const CHAIN_MAX: usize = 8;

/// A workload's identity document.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    certified: Arc<CertifiedKey>,
    not_before: Duration,
    not_after: Duration,
}

/// Why two files are not an SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The certificate file is not PEM.
    #[error("certificate file: {0}")]
    ChainPem(pem::Error),
    /// The certificate file holds no certificate.
    #[error("no certificate in the certificate file")]
    NoCertificate,
    /// The certificate file holds something else, too.
    #[error("certificate file, line {line}: expected a certificate, found a `{label}`")]
    NotACertificate {
        /// Where it begins.
        line: usize,
        /// What it says it is.
        label: String,
    },
    /// A block that is no X.509 certificate.
    #[error("certificate file, line {line}: not a readable X.509 certificate")]
    Unreadable {
        /// Where it begins.
        line: usize,
    },
    /// What follows the leaf must sign what is before it.
    #[error("certificate file, line {line}: only the first may be no signing certificate")]
    NotCa {
        /// Where it begins.
        line: usize,
    },
    /// More than 8 certificates.
    #[error("a certificate chain has at most 8 certificates, this one {0}")]
    ChainTooLong(usize),
    /// The leaf is not a workload's.
    #[error("{0}")]
    Id(IdError),
    /// The leaf's key may not sign handshakes.
    #[error("the certificate's key usage lacks `digitalSignature`")]
    NoDigitalSignature,
    /// The key file is not PEM.
    #[error("key file: {0}")]
    KeyPem(pem::Error),
    /// The key file holds no private key.
    #[error("no private key in the key file")]
    NoKey,
    /// The key file holds several.
    #[error("{0} private keys in the key file, expected one")]
    ManyKeys(usize),
    /// The key is of a kind we cannot sign with, or damaged.
    #[error("the private key is damaged or of an unsupported kind")]
    UnusableKey,
    /// Certificate and key are of two generations.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
}

impl Svid {
    /// Reads a chain, leaf first, and the leaf's key, both in PEM.
    ///
    /// # Errors
    ///
    /// When they do not belong together or are not a workload's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = read_chain(chain)?;
        let leaf = chain.first().ok_or(Error::NoCertificate)?;
        let id = id_of(leaf).map_err(Error::Id)?;
        let facts = Facts::of(leaf).map_err(Error::Id)?;
        if !facts.digital_signature {
            return Err(Error::NoDigitalSignature);
        }
        let key = read_key(key)?;
        let signing = any_supported_type(&key).map_err(|_| Error::UnusableKey)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| Error::KeyMismatch)?;
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        Ok(Self { id, certified: Arc::new(certified), not_before, not_after })
    }

    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Chain and signing key, as rustls takes them.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// SHA-256 of the certificate above the leaf, in lower-case hexadecimal; `None` when the
    /// leaf stands alone.
    pub fn issuer_fingerprint(&self) -> Option<String> {
        self.chain().get(1).map(|it| fingerprint(it))
    }

    /// When the leaf begins, since the Unix epoch.
    pub fn not_before(&self) -> Duration {
        self.not_before
    }

    /// When half of the leaf's life is over, since the Unix epoch.
    pub fn half_life(&self) -> Duration {
        self.not_before + self.not_after.saturating_sub(self.not_before) / 2
    }

    /// When the leaf ends, since the Unix epoch.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads a chain in PEM: at most 8 certificates, of which only the first may be a leaf's.
pub(crate) fn read_chain(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let blocks = pem::blocks(file).map_err(Error::ChainPem)?;
    if CHAIN_MAX < blocks.len() {
        return Err(Error::ChainTooLong(blocks.len()));
    }
    let mut chain = Vec::with_capacity(blocks.len());
    for block in blocks {
        let line = block.line;
        if !block.is_certificate() {
            return Err(Error::NotACertificate { line, label: block.label.to_owned() });
        }
        let certificate = block.certificate().map_err(Error::ChainPem)?;
        let facts = Facts::of(&certificate).map_err(|_| Error::Unreadable { line })?;
        if !chain.is_empty() && !facts.is_ca {
            return Err(Error::NotCa { line });
        }
        chain.push(certificate);
    }
    Ok(chain)
}

/// The one private key of a file; other blocks, such as EC parameters, do not count.
fn read_key(file: &[u8]) -> Result<Zeroizing<PrivateKeyDer<'static>>, Error> {
    let blocks = pem::blocks(file).map_err(Error::KeyPem)?;
    let keys: Vec<_> = blocks.iter().filter(|it| it.is_private_key()).collect();
    match keys[..] {
        [] => Err(Error::NoKey),
        [key] => key.private_key().map(Zeroizing::new).map_err(Error::KeyPem),
        _ => Err(Error::ManyKeys(keys.len())),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    };

    use super::*;

    const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";

    #[test]
    fn leaf_chain_and_key_make_an_svid() {
        let files = Files::of(|_| ());
        let svid = Svid::from_pem(files.chain().as_bytes(), files.key.as_bytes()).unwrap();
        assert_eq!((svid.id().as_str(), svid.chain().len()), (ORDERS, 2));
        assert_eq!(svid.not_before().as_secs(), 157_766_400);
        assert_eq!(svid.not_after().as_secs(), 67_090_118_400);
    }

    #[test]
    fn debug_never_prints_a_key() {
        let files = Files::of(|_| ());
        let svid = Svid::from_pem(files.leaf.as_bytes(), files.key.as_bytes()).unwrap();
        assert_eq!(format!("{svid:?}"), format!("Svid {{ id: {ORDERS}, .. }}"));
    }

    #[test]
    fn files_of_two_generations_are_refused() {
        let (old, new) = (Files::of(|_| ()), Files::of(|_| ()));
        assert_eq!(refusal(&old.leaf, &new.key), Error::KeyMismatch);
    }

    #[test]
    fn a_leaf_that_is_no_workloads_is_refused() {
        let ca = Files::of(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert_eq!(refusal(&ca.leaf, &ca.key), Error::Id(IdError::Signing));
        let nameless = Files::of(|it| it.subject_alt_names.clear());
        assert_eq!(refusal(&nameless.leaf, &nameless.key), Error::Id(IdError::NoUri));
        let two = Files::of(|it| it.subject_alt_names.push(it.subject_alt_names[0].clone()));
        assert_eq!(refusal(&two.leaf, &two.key), Error::Id(IdError::ManyUris(2)));
        let mute = Files::of(|it| it.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
        assert_eq!(refusal(&mute.leaf, &mute.key), Error::NoDigitalSignature);
    }

    #[test]
    fn a_damaged_certificate_file_is_refused() {
        let files = Files::of(|_| ());
        let refused = |chain: &str| refusal(chain, &files.key);
        assert_eq!(refused(""), Error::NoCertificate);
        let line = files.leaf.lines().count() + 1;
        let label = "PRIVATE KEY".to_owned();
        assert_eq!(
            refused(&format!("{}{}", files.leaf, files.key)),
            Error::NotACertificate { line, label }
        );
        assert_eq!(refused(&files.leaf.repeat(2)), Error::NotCa { line });
        assert_eq!(refused(&files.leaf.repeat(9)), Error::ChainTooLong(9));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(refused(garbage), Error::Unreadable { line: 1 });
        let half: String = files.leaf.lines().take(3).flat_map(|it| [it, "\n"]).collect();
        let label = "CERTIFICATE".to_owned();
        assert_eq!(refused(&half), Error::ChainPem(pem::Error::NoEnd { line: 1, label }));
    }

    #[test]
    fn a_damaged_key_file_is_refused() {
        let files = Files::of(|_| ());
        let refused = |key: &str| refusal(&files.leaf, key);
        assert_eq!(refused(""), Error::NoKey);
        assert_eq!(refused(&files.leaf), Error::NoKey);
        assert_eq!(refused(&files.key.repeat(2)), Error::ManyKeys(2));
        let label = "PRIVATE KEY".to_owned();
        let block = |inside| format!("-----BEGIN {label}-----\n{inside}\n-----END {label}-----\n");
        assert_eq!(refused(&block("AAAA")), Error::UnusableKey);
        assert_eq!(refused(&block("?")), Error::KeyPem(pem::Error::Damaged { line: 1, label }));
    }

    fn refusal(chain: &str, key: &str) -> Error {
        Svid::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err()
    }

    struct Files {
        leaf: String,
        issuer: String,
        key: String,
    }

    impl Files {
        fn of(change: impl FnOnce(&mut CertificateParams)) -> Self {
            let mut ca = CertificateParams::default();
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca_key = KeyPair::generate().unwrap();
            let issuer = ca.self_signed(&ca_key).unwrap().pem();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(ORDERS.try_into().unwrap())];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            change(&mut params);
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
            Self { leaf, issuer, key: key.serialize_pem() }
        }

        fn chain(&self) -> String {
            format!("{}{}", self.leaf, self.issuer)
        }
    }
}
