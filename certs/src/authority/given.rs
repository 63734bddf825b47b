//! Given: certificates and keys that were made elsewhere, and whether they do.
//!
//! Each refusal says what is wrong with which certificate, since whoever reads it has to
//! ask another system for a better one.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{Error, Secret, Unfit, own_trust_domain, read};
use crate::{pem, x509::Facts};

/// The certificates of a file, at least one.
pub(super) struct Given {
    path: PathBuf,
    /// Each as the file has it, decoded, and read.
    pub(super) certificates: Vec<(String, CertificateDer<'static>, Facts)>,
}

impl Given {
    /// Reads a file of certificates in PEM.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        Self::of(path, &read(path)?)
    }

    /// Reads certificates in PEM that stand in, or are known as, `path`.
    pub(super) fn of(path: &Path, text: &str) -> Result<Self, Error> {
        let unfit = |reason| Error::Given { path: path.to_owned(), reason };
        let mut certificates = Vec::new();
        for block in pem::blocks(text.as_bytes()).map_err(|it| unfit(Unfit::Pem(it)))? {
            if block.is_certificate() {
                let der = block.certificate().map_err(|it| unfit(Unfit::Pem(it)))?;
                let unreadable = |_| unfit(Unfit::Unreadable { line: block.line });
                let facts = Facts::of(&der).map_err(unreadable)?;
                certificates.push((block.to_pem(), der, facts));
            }
        }
        if certificates.is_empty() {
            return Err(unfit(Unfit::Empty));
        }
        Ok(Self { path: path.to_owned(), certificates })
    }

    /// The facts of a root that may vouch for an issuer, at `now`.
    pub(super) fn root(&self, now: Duration) -> Result<&Facts, Error> {
        let [(_, _, facts)] = &self.certificates[..] else {
            return Err(self.unfit(Unfit::Many(self.certificates.len())));
        };
        let subject = || facts.subject.clone();
        self.check(facts, now)?;
        if facts.subject != facts.issuer {
            return Err(self.unfit(Unfit::NotRoot(subject())));
        }
        if facts.path_len == Some(0) {
            return Err(self.unfit(Unfit::PathLength(subject())));
        }
        Ok(facts)
    }

    /// The facts of an issuer, and how many certificates there are before its root.
    pub(super) fn issuer(&self, now: Duration) -> Result<(&Facts, usize), Error> {
        for (_, _, facts) in &self.certificates {
            self.check(facts, now)?;
        }
        let is_root = |it: &(_, _, Facts)| it.2.subject == it.2.issuer;
        let below = self.certificates.iter().take_while(|it| !is_root(it)).count();
        let facts = &self.certificates[0].2;
        if below == 0 {
            return Err(self.unfit(Unfit::IsRoot(facts.subject.clone())));
        }
        Ok((facts, below))
    }

    /// What every signing certificate must be.
    fn check(&self, facts: &Facts, now: Duration) -> Result<(), Error> {
        let subject = facts.subject.clone();
        let reason = if !facts.is_ca {
            Unfit::NotCa(subject)
        } else if !facts.cert_sign {
            Unfit::NoCertSign(subject)
        } else if now < facts.not_before {
            Unfit::NotYet { subject, left: facts.not_before.saturating_sub(now) }
        } else if facts.not_after <= now {
            Unfit::Ended { subject, ago: now.saturating_sub(facts.not_after) }
        } else if facts.constraints.iter().any(|it| it.contains("URI:")) {
            Unfit::UriConstraint(subject)
        } else {
            return Ok(());
        };
        Err(self.unfit(reason))
    }

    /// The trust domain that `facts` name, which must be the one asked for, if any is.
    pub(super) fn trust_domain(&self, facts: &Facts, asked: Option<&str>) -> Result<String, Error> {
        let subject = facts.subject.clone();
        match (own_trust_domain(facts), asked.map(str::to_owned)) {
            (Some(named), Some(asked)) if named != asked => {
                Err(self.unfit(Unfit::OtherTrustDomain { subject, named, asked }))
            }
            (Some(name), _) | (None, Some(name)) => Ok(name),
            (None, None) => Err(self.unfit(Unfit::NoTrustDomain(subject))),
        }
    }

    /// Some of the certificates, without the text around them.
    pub(super) fn pem(&self, range: Range<usize>) -> String {
        let certificates = self.certificates.get(range).unwrap_or_default();
        certificates.iter().map(|it| it.0.as_str()).collect()
    }

    pub(super) fn unfit(&self, reason: Unfit) -> Error {
        Error::Given { path: self.path.clone(), reason }
    }
}

/// The key of the certificate of `facts`.
pub(super) fn key(facts: &Facts, path: &Path) -> Result<Secret, Error> {
    let text = Zeroizing::new(read(path)?);
    let unfit = |reason| Error::Given { path: path.to_owned(), reason };
    let key = Secret::from_pem(&text).ok_or_else(|| unfit(Unfit::UnusableKey))?;
    if key.is_of(facts) { Ok(key) } else { Err(unfit(Unfit::OtherKey(facts.subject.clone()))) }
}
