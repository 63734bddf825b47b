//! Trust bundle: the roots that may vouch for peers, each of them able to.
//!
//! A bundle is read whole or refused: an entry that is skipped because it could not be
//! read is a root that operators believe to be trusted, and the peers below it fail much
//! later. Refusals name the line.

use std::{sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};

use crate::{pem, x509::Facts};

/// More roots than any rotation needs; each costs time in a failing handshake.
const ROOTS_MAX: usize = 64;

/// The roots of a trust domain; never empty.
#[derive(Clone, Debug)]
pub struct Bundle {
    roots: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
}

/// Why a file is not a trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not PEM.
    #[error("{0}")]
    Pem(pem::Error),
    /// It holds no certificate.
    #[error("no certificate in the trust bundle")]
    Empty,
    /// Something else than certificates.
    #[error("line {line}: a trust bundle holds certificates, not a `{label}`")]
    NotACertificate {
        /// Where it begins.
        line: usize,
        /// What it says it is.
        label: String,
    },
    /// A block that is no X.509 certificate.
    #[error("line {line}: not a readable X.509 certificate")]
    Unreadable {
        /// Where it begins.
        line: usize,
    },
    /// A certificate that may not sign others.
    #[error("line {line}: `{subject}` is not a signing certificate")]
    NotCa {
        /// Where it begins.
        line: usize,
        /// Its subject.
        subject: String,
    },
    /// More than 64 certificates.
    #[error("a trust bundle has at most 64 certificates, this one {0}")]
    TooMany(usize),
}

impl Bundle {
    /// Reads a file of one or more root certificates in PEM.
    ///
    /// # Errors
    ///
    /// When it is empty, or anything in it is not the certificate of an authority.
    pub fn from_pem(file: &[u8]) -> Result<Self, Error> {
        let blocks = pem::blocks(file).map_err(Error::Pem)?;
        if blocks.is_empty() {
            return Err(Error::Empty);
        }
        if ROOTS_MAX < blocks.len() {
            return Err(Error::TooMany(blocks.len()));
        }
        let (mut roots, mut store) = (Vec::new(), RootCertStore::empty());
        for block in blocks {
            let line = block.line;
            if !block.is_certificate() {
                return Err(Error::NotACertificate { line, label: block.label.to_owned() });
            }
            let root = block.certificate().map_err(Error::Pem)?;
            let facts = Facts::of(&root).map_err(|_| Error::Unreadable { line })?;
            if !facts.is_ca {
                return Err(Error::NotCa { line, subject: facts.subject });
            }
            store.add(root.clone()).map_err(|_| Error::Unreadable { line })?;
            roots.push(root);
        }
        Ok(Self { roots, store: Arc::new(store) })
    }

    /// The certificates, in the file's order.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// What each of them says.
    pub fn facts(&self) -> impl Iterator<Item = Facts> {
        self.roots.iter().filter_map(|it| Facts::of(it).ok())
    }

    /// Whether one of the roots vouches for `chain`, leaf first, at `now`: as a client of
    /// the leaf's holder asks it.
    ///
    /// # Errors
    ///
    /// What rustls says.
    pub fn vouch(&self, chain: &[CertificateDer<'_>], now: Duration) -> Result<(), rustls::Error> {
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let algorithms = default_provider().signature_verification_algorithms.all;
        let (leaf, now) = (ParsedCertificate::try_from(leaf)?, UnixTime::since_unix_epoch(now));
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.store, rest, now, algorithms)
    }

    /// The same, as rustls takes them.
    pub fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    use super::*;

    #[test]
    fn every_root_of_the_file_is_in_the_bundle() {
        let file = format!("# old\n{}# new\n{}", root("old", true), root("new", true));
        let bundle = Bundle::from_pem(file.as_bytes()).unwrap();
        assert_eq!((bundle.roots().len(), bundle.store().len()), (2, 2));
    }

    #[test]
    fn every_refusal_names_its_line() {
        let (good, leaf) = (root("root", true), root("leaf", false));
        let after = good.lines().count() + 1;
        let key = KeyPair::generate().unwrap().serialize_pem();
        let pem = |error| Error::Pem(error);
        let certificate = || "CERTIFICATE".to_owned();
        for (rest, error) in [
            (leaf.as_str(), Error::NotCa { line: after, subject: "CN=leaf".into() }),
            (&key, Error::NotACertificate { line: after, label: "PRIVATE KEY".into() }),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                Error::Unreadable { line: after },
            ),
            (
                "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n",
                pem(pem::Error::Damaged { line: after, label: certificate() }),
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n",
                pem(pem::Error::NoEnd { line: after, label: certificate() }),
            ),
        ] {
            let file = format!("{good}{rest}");
            assert_eq!(Bundle::from_pem(file.as_bytes()).unwrap_err(), error);
        }
    }

    #[test]
    fn an_empty_bundle_trusts_nobody_and_is_refused() {
        for file in ["", "\n", "garbage\n"] {
            assert_eq!(Bundle::from_pem(file.as_bytes()).unwrap_err(), Error::Empty);
        }
    }

    #[test]
    fn a_bundle_is_bounded() {
        let file = root("root", true).repeat(65);
        assert_eq!(Bundle::from_pem(file.as_bytes()).unwrap_err(), Error::TooMany(65));
    }

    fn root(name: &str, ca: bool) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }
}
