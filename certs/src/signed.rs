//! Signed data: policy that its reader knows the author of, however it came.
//!
//! Policy is kept in files and travels by way of others, so the connection it came through
//! proves nothing about it. The signature is by a workload's own key, which also signs
//! handshakes; what is signed begins with [`DOMAIN`], which nothing that is signed in a
//! handshake begins with (TLS 1.3 begins with 64 spaces), so neither signature can be used
//! as the other.
//!
//! A signature says who signed, and when it could have been: the signer's certificate must
//! be valid when it is verified. That it is not an older one played again is not its
//! matter: payloads carry a number.
//!
//! # Sources
//!
//! - RFC 8446, section 4.4.3 (what handshakes sign): <https://www.rfc-editor.org/rfc/rfc8446>

use std::time::Duration;

use rustls::SignatureScheme;

use crate::{
    bundle::Bundle,
    ecdsa::PublicKey,
    spiffe_id::SpiffeId,
    svid::{self, Svid},
    x509::{Facts, IdError, id_of},
};

/// What comes before the payload in what is signed.
pub const DOMAIN: &[u8] = b"remora policy v1\0";

/// Eight certificates of 8 KiB; ours have less than one each.
const CHAIN_BYTES_MAX: usize = 64 * 1024;

/// Why data could not be signed, or its signature is not believed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The signer's key is not on one of the two curves.
    #[error("the signer's key is not ECDSA on P-256 or P-384")]
    Key,
    /// The key did not sign.
    #[error("cannot sign: {0}")]
    Sign(rustls::Error),
    /// More certificates than any chain has.
    #[error("the signer's chain has at most {CHAIN_BYTES_MAX} bytes, this one {0}")]
    TooLarge(usize),
    /// The signer's chain cannot be read.
    #[error("the signer's chain: {0}")]
    Chain(svid::Error),
    /// The signer is no workload.
    #[error("the signer's certificate: {0}")]
    Id(IdError),
    /// The roots do not vouch for the signer, or its certificate is not valid now.
    #[error("the roots do not vouch for the signer `{id}`: {reason}")]
    Untrusted {
        /// Who says to have signed.
        id: SpiffeId,
        /// What rustls says.
        reason: rustls::Error,
    },
    /// The signature is over other data, or by another key.
    #[error("the signature is not that of `{0}` over this data")]
    Signature(SpiffeId),
}

/// Signs `payload` with the key of `svid`; its chain is what [`verify`] needs beside it.
///
/// # Errors
///
/// When the key is not on P-256 or P-384.
pub fn sign(payload: &[u8], svid: &Svid) -> Result<Vec<u8>, Error> {
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];
    let signer = svid.certified().key.choose_scheme(&schemes).ok_or(Error::Key)?;
    signer.sign(&message(payload)).map_err(Error::Sign)
}

/// Whose signature over `payload` this is; `chain` has the signer's leaf and issuers in PEM.
///
/// Whether *that* workload may sign policy is the caller's question: every workload that
/// `roots` vouch for, of every trust domain, can sign.
///
/// # Errors
///
/// When the chain is damaged, not a workload's or not vouched for at `now`, or the
/// signature is not its.
pub fn verify(
    payload: &[u8],
    signature: &[u8],
    chain: &str,
    roots: &Bundle,
    now: Duration,
) -> Result<SpiffeId, Error> {
    if CHAIN_BYTES_MAX < chain.len() {
        return Err(Error::TooLarge(chain.len()));
    }
    let chain = svid::read_chain(chain.as_bytes()).map_err(Error::Chain)?;
    let leaf = chain.first().ok_or(Error::Chain(svid::Error::NoCertificate))?;
    let id = id_of(leaf).map_err(Error::Id)?;
    let facts = Facts::of(leaf).map_err(Error::Id)?;
    if !facts.digital_signature {
        return Err(Error::Chain(svid::Error::NoDigitalSignature));
    }
    let untrusted = |reason| Error::Untrusted { id: id.clone(), reason };
    roots.vouch(&chain, now).map_err(untrusted)?;
    let key = PublicKey::from_der(&facts.public_key).ok_or(Error::Key)?;
    if key.verify(key.hash(), &message(payload), signature) {
        Ok(id)
    } else {
        Err(Error::Signature(id))
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    [DOMAIN, payload].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::authority::{self, Authority, Issued, Key, Leaf, Setup, Source};

    const NOW: Duration = Duration::from_secs(1_770_000_007);
    const HOUR: Duration = Duration::from_hours(1);
    const PAYLOAD: &[u8] = br#"{"number":7}"#;

    #[test]
    fn a_signature_tells_who_signed() {
        for key in [Key::P256, Key::P384] {
            let signer = Signer::of(key);
            let signature = sign(PAYLOAD, &signer.svid()).unwrap();
            assert_eq!(signer.verified(PAYLOAD, &signature), Ok(control()));
        }
    }

    #[test]
    fn other_data_or_another_key_is_refused() {
        let (signer, other) = (Signer::of(Key::P256), Signer::of(Key::P256));
        let signature = sign(PAYLOAD, &signer.svid()).unwrap();
        let refused = Err(Error::Signature(control()));
        assert_eq!(signer.verified(b"{}", &signature), refused);
        assert_eq!(signer.verified(PAYLOAD, b""), refused);
        assert_eq!(signer.verified(PAYLOAD, &signature[1..]), refused);
        assert!(matches!(
            verify(PAYLOAD, &signature, &signer.issued.chain, &other.roots(), NOW),
            Err(Error::Untrusted { .. })
        ));
        assert_eq!(signer.again().verified(PAYLOAD, &signature), refused);
    }

    #[test]
    fn what_the_key_signed_for_another_purpose_is_no_signature() {
        let signer = Signer::of(Key::P256);
        let svid = signer.svid();
        let key = svid.certified().key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let bare = key.unwrap().sign(PAYLOAD).unwrap();
        assert_eq!(signer.verified(PAYLOAD, &bare), Err(Error::Signature(control())));
        assert!(!DOMAIN.starts_with(b" "), "as what a handshake signs");
    }

    #[test]
    fn a_signature_counts_only_while_its_signer_is_valid() {
        let signer = Signer::of(Key::P256);
        let signature = sign(PAYLOAD, &signer.svid()).unwrap();
        let at = |now| verify(PAYLOAD, &signature, &signer.issued.chain, &signer.roots(), now);
        assert_eq!(at(NOW + HOUR), Ok(control()));
        assert!(matches!(at(NOW + 2 * HOUR), Err(Error::Untrusted { .. })));
        assert!(matches!(at(NOW.saturating_sub(HOUR)), Err(Error::Untrusted { .. })));
    }

    #[test]
    fn who_is_no_workload_signs_nothing() {
        let signer = Signer::of(Key::P256);
        let signature = sign(PAYLOAD, &signer.svid()).unwrap();
        let refused =
            |chain: &str| verify(PAYLOAD, &signature, chain, &signer.roots(), NOW).unwrap_err();
        // The issuer, and the root.
        let issuer = signer.authority.to_pem().issuer;
        assert_eq!(refused(&issuer), Error::Id(IdError::Signing));
        assert_eq!(refused(&signer.issued.roots), Error::Id(IdError::Signing));
        assert_eq!(refused(""), Error::Chain(svid::Error::NoCertificate));
        let long = signer.issued.chain.repeat(100);
        assert_eq!(refused(&long), Error::TooLarge(long.len()));
    }

    /// Made once: hundreds of them take seconds.
    static ONE: LazyLock<Signer> = LazyLock::new(|| Signer::of(Key::P256));

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(
            signature in any::<Vec<u8>>(),
            chain in any::<String>(),
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
        ) {
            let signer = &*ONE;
            let roots = signer.roots();
            prop_assert!(verify(PAYLOAD, &signature, &chain, &roots, NOW).is_err());
            prop_assert!(signer.verified(PAYLOAD, &signature).is_err());
            let mut bytes = signer.issued.chain.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= change & 0x7f;
            let good = sign(PAYLOAD, &signer.svid()).unwrap();
            let verified = verify(PAYLOAD, &good, &String::from_utf8_lossy(&bytes), &roots, NOW);
            prop_assert!(verified.map_or(true, |it| it == control()));
        }
    }

    struct Signer {
        _dir: TempDir,
        authority: Authority,
        issued: Issued,
    }

    impl Signer {
        fn of(key: Key) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let setup = Setup {
                source: Source::New,
                trust_domain: Some("td"),
                root_life: 48 * HOUR,
                issuer_life: 24 * HOUR,
                key,
                force: false,
            };
            let authority = authority::setup(dir.path(), &setup, NOW).unwrap();
            let issued = issue(&authority);
            Self { _dir: dir, authority, issued }
        }

        /// The same workload with its next certificate.
        fn again(self) -> Self {
            Self { issued: issue(&self.authority), ..self }
        }

        fn svid(&self) -> Svid {
            Svid::from_pem(self.issued.chain.as_bytes(), self.issued.key.as_bytes()).unwrap()
        }

        fn roots(&self) -> Bundle {
            Bundle::from_pem(self.issued.roots.as_bytes()).unwrap()
        }

        fn verified(&self, payload: &[u8], signature: &[u8]) -> Result<SpiffeId, Error> {
            verify(payload, signature, &self.issued.chain, &self.roots(), NOW)
        }
    }

    fn issue(authority: &Authority) -> Issued {
        let leaf = Leaf { id: &control(), life: HOUR, dns_names: &[], addresses: &[] };
        authority.issue(&leaf, NOW).unwrap()
    }

    fn control() -> SpiffeId {
        "spiffe://td/ns/remora/sa/control".parse().unwrap()
    }
}
