//! Leaf: the certificate of a workload, for a key made here or for one that was asked for.
//!
//! What a leaf says is decided here alone: one SPIFFE id, signatures in handshakes of both
//! sides, and never a right to sign. A request adds its public key and nothing else.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use rcgen::{
    Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use zeroize::Zeroizing;

use super::{Authority, Error, params, secret::Secret};
use crate::{
    csr::Asked,
    folder::{self, File},
    spiffe_id::SpiffeId,
    svid::Svid,
    x509::Facts,
};

/// What a new leaf is to be.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// Whose it is.
    pub id: &'a SpiffeId,
    /// How long it is valid.
    pub life: Duration,
    /// Host names beside the SPIFFE id, usually none.
    pub dns_names: &'a [String],
    /// Addresses beside the SPIFFE id, usually none.
    pub addresses: &'a [IpAddr],
}

/// What those who know hosts rather than ids, such as curl, may call the holder of a leaf.
#[derive(Clone, Debug)]
pub struct Names {
    /// Host names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

impl Default for Names {
    /// This machine, as seen from itself.
    fn default() -> Self {
        let addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self { dns: vec!["localhost".to_owned()], addresses }
    }
}

impl Extend<String> for Names {
    /// Adds addresses, each of them once, and as host names what are none.
    fn extend<I: IntoIterator<Item = String>>(&mut self, names: I) {
        for name in names {
            match name.parse() {
                Ok(address) if self.addresses.contains(&address) => (),
                Ok(address) => self.addresses.push(address),
                Err(_) => self.dns.push(name),
            }
        }
    }
}

/// A leaf as the files a sidecar watches.
pub struct Issued {
    /// `tls.crt`: the leaf, then the issuer.
    pub chain: String,
    /// `tls.key`.
    pub key: Zeroizing<String>,
    /// `ca.crt`: the root.
    pub roots: String,
    /// When the leaf ends, since the Unix epoch.
    pub not_after: Duration,
}

/// A leaf for a key that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The leaf, then the issuer, in PEM.
    pub chain: String,
    /// When the leaf ends, since the Unix epoch.
    pub not_after: Duration,
    /// The leaf's serial number, as [`Facts::serial`] has it.
    pub serial: String,
}

impl Authority {
    /// Signs a leaf with a fresh key.
    ///
    /// # Errors
    ///
    /// When the id is not a workload of the trust domain, or the leaf would outlive the
    /// issuer.
    pub fn issue(&self, leaf: &Leaf<'_>, now: Duration) -> Result<Issued, Error> {
        let key = Secret::generate(self.leaf_key)?;
        let chain = self.certify(leaf, &key, now)?.pem() + &self.issuer_pem;
        let (key, roots) = (key.pem().clone(), self.root_pem.clone());
        Ok(Issued { chain, key, roots, not_after: end(leaf, now) })
    }

    /// Signs a leaf for whoever has this authority, and so need not ask: for `path` in its trust
    /// domain, for `life` or as long as the issuer lives, with names beside the id.
    ///
    /// # Errors
    ///
    /// As [`Authority::issue`].
    pub fn own(
        &self,
        path: &str,
        life: Duration,
        names: &Names,
        now: Duration,
    ) -> Result<Svid, Error> {
        let name = format!("spiffe://{}{path}", self.trust_domain);
        let id = name.parse().map_err(|reason| Error::TrustDomain { name, reason })?;
        let life = life.min(self.not_after.saturating_sub(now));
        let Names { dns, addresses } = names;
        let issued = self.issue(&Leaf { id: &id, life, dns_names: dns, addresses }, now)?;
        Ok(Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes())?)
    }

    /// Signs a leaf of `id` for the key that is `asked` for.
    ///
    /// Whether the caller is `id` must have been proved before.
    ///
    /// # Errors
    ///
    /// As [`Authority::issue`], and when the request names another id.
    pub fn sign(
        &self,
        asked: &Asked,
        id: &SpiffeId,
        life: Duration,
        now: Duration,
    ) -> Result<Signed, Error> {
        if let Some(other) = asked.id().filter(|it| *it != id) {
            return Err(Error::OtherId { asked: other.clone(), id: id.clone() });
        }
        let leaf = Leaf { id, life, dns_names: &[], addresses: &[] };
        let certificate = self.certify(&leaf, asked.public_key(), now)?;
        let facts = Facts::of(certificate.der()).map_err(|_| rcgen::Error::X509("leaf".into()))?;
        let chain = certificate.pem() + &self.issuer_pem;
        Ok(Signed { chain, not_after: end(&leaf, now), serial: facts.serial })
    }

    /// Whether `id` is one it may sign for.
    ///
    /// # Errors
    ///
    /// When it is of another trust domain, or names no workload.
    pub fn admit(&self, id: &SpiffeId) -> Result<(), Error> {
        if id.trust_domain() != self.trust_domain {
            let trust_domain = self.trust_domain.clone();
            return Err(Error::OtherTrustDomain { id: id.clone(), trust_domain });
        }
        if id.path().is_empty() { Err(Error::NoPath(id.clone())) } else { Ok(()) }
    }

    fn certify(
        &self,
        leaf: &Leaf<'_>,
        key: &impl PublicKeyData,
        now: Duration,
    ) -> Result<Certificate, Error> {
        self.admit(leaf.id)?;
        let left = self.not_after.checked_sub(now).ok_or(Error::IssuerEnded)?;
        if left < leaf.life {
            return Err(Error::LongerThanSigner { asked: leaf.life, left });
        }
        Ok(leaf_params(leaf, now)?.signed_by(key, &self.issuer)?)
    }
}

fn leaf_params(leaf: &Leaf<'_>, now: Duration) -> Result<CertificateParams, Error> {
    let mut params = params(leaf.life, now)?;
    params.subject_alt_names = names(leaf)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// When a leaf made `now` ends: certificates count whole seconds.
fn end(leaf: &Leaf<'_>, now: Duration) -> Duration {
    Duration::from_secs((now + leaf.life).as_secs())
}

fn names(leaf: &Leaf<'_>) -> Result<Vec<SanType>, Error> {
    let mut names = vec![SanType::URI(leaf.id.as_str().try_into()?)];
    for name in leaf.dns_names {
        let dns = name.as_str().try_into().map_err(|_| Error::DnsName(name.clone()))?;
        names.push(SanType::DnsName(dns));
    }
    names.extend(leaf.addresses.iter().map(|it| SanType::IpAddress(*it)));
    Ok(names)
}

impl Issued {
    /// Writes `tls.crt`, `tls.key` and `ca.crt` into `folder` by one atomic swap.
    ///
    /// # Errors
    ///
    /// As [`folder::replace`].
    pub fn write(&self, folder: &Path, now: Duration) -> Result<(), folder::Error> {
        let files = [
            File::public("tls.crt", &self.chain),
            File::secret("tls.key", self.key.as_bytes()),
            File::public("ca.crt", &self.roots),
        ];
        folder::replace(folder, &files, now)
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}
