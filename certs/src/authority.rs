//! Authority: a root, one issuer below it, and the leaves the issuer signs.
//!
//! Sidecars trust the root alone, and the root signs nothing but issuers, so its key can
//! be taken off the machine after [`create`]; an issuer that leaks or ages is replaced
//! without a change of trust. Keys are ECDSA, P-256 unless [`Key::P384`] is asked for, and
//! leaves have keys like their issuer's. An issuer's path length is zero: it can sign
//! workloads and no further authority. Nothing is revoked: a leaf lives for hours, and an
//! issuer is replaced.
//!
//! An authority signs for its own trust domain only. X.509 could bind that with a name
//! constraint on URIs, but rustls refuses every chain that carries one (a test keeps watch
//! on that), so verifiers here check the trust domain themselves, and an issuer made
//! elsewhere that carries one is refused before anybody depends on it.
//!
//! Private keys are in memory only as long as they are used, and wiped when dropped.
//!
//! # Sources
//!
//! - X509-SVID, section 4:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#4-constraints-and-usage>
//! - RFC 5280, section 4.1.2.2 (serial numbers): <https://www.rfc-editor.org/rfc/rfc5280>

mod error;
mod given;
mod setup;

use std::{fmt, fs, net::IpAddr, path::Path, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SanType,
    SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::crypto::aws_lc_rs::default_provider;
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use self::{
    error::{Error, Unfit},
    setup::{Setup, Source, create, setup},
};
use crate::{
    bundle::Bundle,
    folder::{self, File},
    pem,
    spiffe_id::{SpiffeId, trust_domain},
    x509::Facts,
};

/// The file of the root certificate.
pub const ROOT_CERTIFICATE: &str = "root.crt";
/// The file of the root's key.
pub const ROOT_KEY: &str = "root.key";
/// The file of the issuer's certificate.
pub const ISSUER_CERTIFICATE: &str = "issuer.crt";
/// The file of the issuer's key.
pub const ISSUER_KEY: &str = "issuer.key";

/// The file that says the trust domain, where an imported issuer's certificate does not.
pub const TRUST_DOMAIN: &str = "trust-domain";

/// Certificates begin this long before they are made: a peer's clock may be behind.
const BACKDATING: Duration = Duration::from_mins(5);

/// What a new authority is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The trust domain it signs for.
    pub trust_domain: &'a str,
    /// How long the root is valid.
    pub root_life: Duration,
    /// How long the issuer is valid.
    pub issuer_life: Duration,
}

/// The kind of the keys an authority makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    /// ECDSA on the curve P-256: what everything understands, and fast.
    #[default]
    P256,
    /// ECDSA on the curve P-384, where rules ask for it.
    P384,
}

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

/// An issuer that can sign leaves.
pub struct Authority {
    issuer: Issuer<'static, Secret>,
    /// The issuer's certificate, and those between it and the root.
    issuer_pem: String,
    root_pem: String,
    trust_domain: String,
    not_after: Duration,
    leaf_key: Key,
}

/// A private key that is wiped when dropped.
struct Secret(Zeroizing<KeyPair>);

/// The parts of an authority, wherever they come from.
struct Parts<'a> {
    /// The issuer's certificate, and those between it and the root.
    issuer_pem: String,
    root_pem: String,
    key: Secret,
    /// Where they come from, for messages: certificate, root, key.
    paths: [&'a Path; 3],
    /// Of an issuer whose certificate names none.
    trust_domain: Option<String>,
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

impl Authority {
    /// Reads an issuer back from `dir`; the root's key is neither needed nor read.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, or the key is not the issuer's.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let [root, issuer, key_path, domain] =
            [ROOT_CERTIFICATE, ISSUER_CERTIFICATE, ISSUER_KEY, TRUST_DOMAIN].map(|it| dir.join(it));
        let (root_pem, issuer_pem) = (read(&root)?, read(&issuer)?);
        let key = Secret::read(&key_path)?.ok_or_else(|| Error::Key(key_path.clone()))?;
        let trust_domain =
            if domain.exists() { Some(read(&domain)?.trim().to_owned()) } else { None };
        let paths = [&*issuer, &*root, &*key_path];
        Self::of(Parts { issuer_pem, root_pem, key, paths, trust_domain })
    }

    fn of(parts: Parts<'_>) -> Result<Self, Error> {
        let Parts { issuer_pem, root_pem, key, paths: [path, root_path, key_path], .. } = parts;
        let bundle = |path: &Path, text: &str| {
            let refused = |reason| Error::Certificate { path: path.to_owned(), reason };
            Bundle::from_pem(text.as_bytes()).map_err(refused)
        };
        let roots = bundle(root_path, &root_pem)?;
        let chain = bundle(path, &issuer_pem)?;
        let unnamed = || Error::NoTrustDomain(path.to_owned());
        let der = chain.roots().first().ok_or_else(unnamed)?;
        let facts = Facts::of(der).map_err(|_| unnamed())?;
        let name = own_trust_domain(&facts).or(parts.trust_domain).ok_or_else(unnamed)?;
        trust_domain(&name).map_err(|reason| Error::TrustDomain { name: name.clone(), reason })?;
        if !key.is_of(&facts) {
            return Err(Error::Key(key_path.to_owned()));
        }
        let leaf_key = key.kind();
        let issuer = Issuer::from_ca_cert_der(der, key)?;
        let not_after = ends(&chain).min().min(ends(&roots).max()).unwrap_or_default();
        Ok(Self { issuer, issuer_pem, root_pem, trust_domain: name, not_after, leaf_key })
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// When the issuer, or what vouches for it, ends: since the Unix epoch.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// Signs a leaf with a fresh key.
    ///
    /// # Errors
    ///
    /// When the id is not a workload of the trust domain, or the leaf would outlive the
    /// issuer.
    pub fn issue(&self, leaf: &Leaf<'_>, now: Duration) -> Result<Issued, Error> {
        if leaf.id.trust_domain() != self.trust_domain {
            let trust_domain = self.trust_domain.clone();
            return Err(Error::OtherTrustDomain { id: leaf.id.clone(), trust_domain });
        }
        if leaf.id.path().is_empty() {
            return Err(Error::NoPath(leaf.id.clone()));
        }
        let left = self.not_after.checked_sub(now).ok_or(Error::IssuerEnded)?;
        if left < leaf.life {
            return Err(Error::LongerThanSigner { asked: leaf.life, left });
        }
        let mut params = params(leaf.life, now)?;
        params.subject_alt_names = names(leaf)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = Secret::generate(self.leaf_key)?;
        let chain = params.signed_by(&key, &self.issuer)?.pem() + &self.issuer_pem;
        let not_after = Duration::from_secs((now + leaf.life).as_secs());
        Ok(Issued { chain, key: key.pem(), roots: self.root_pem.clone(), not_after })
    }
}

impl Issued {
    /// Writes `tls.crt`, `tls.key` and `ca.crt` into `folder` by one atomic swap.
    ///
    /// # Errors
    ///
    /// As [`folder::replace`].
    pub fn write(&self, folder: &Path, now: Duration) -> Result<(), folder::Error> {
        let public = |name, content| File { name, content, secret: false };
        let files = [
            public("tls.crt", self.chain.as_bytes()),
            File { name: "tls.key", content: self.key.as_bytes(), secret: true },
            public("ca.crt", self.roots.as_bytes()),
        ];
        folder::replace(folder, &files, now)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// What all certificates have: a life and a serial number.
fn params(life: Duration, now: Duration) -> Result<CertificateParams, Error> {
    let time = |at: Duration| {
        let seconds = i64::try_from(at.as_secs()).map_err(|_| Error::Life(life))?;
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Life(life))
    };
    if life.as_secs() == 0 {
        return Err(Error::Life(life));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = time(now.saturating_sub(BACKDATING))?;
    params.not_after = time(now.saturating_add(life))?;
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// A random serial number: positive, and 16 octets of the at most 20 allowed.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = random::<16>()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    default_provider().secure_random.fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
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

impl Secret {
    fn generate(kind: Key) -> Result<Self, Error> {
        let algorithm = match kind {
            Key::P256 => &PKCS_ECDSA_P256_SHA256,
            Key::P384 => &PKCS_ECDSA_P384_SHA384,
        };
        Ok(Self(Zeroizing::new(KeyPair::generate_for(algorithm)?)))
    }

    /// Reads the one private key of a file; `None` when there is not one that can be used.
    fn read(path: &Path) -> Result<Option<Self>, Error> {
        Ok(Self::from_pem(&Zeroizing::new(read(path)?)))
    }

    fn from_pem(file: &str) -> Option<Self> {
        let blocks = pem::blocks(file.as_bytes()).ok()?;
        let mut keys = blocks.iter().filter(|it| it.is_private_key());
        let (key, None) = (keys.next()?, keys.next()) else { return None };
        let der = Zeroizing::new(key.private_key().ok()?);
        KeyPair::try_from(&*der).ok().map(|it| Self(Zeroizing::new(it)))
    }

    /// What leaves get below it.
    fn kind(&self) -> Key {
        if *self.algorithm() == PKCS_ECDSA_P384_SHA384 { Key::P384 } else { Key::P256 }
    }

    fn is_of(&self, certificate: &Facts) -> bool {
        self.subject_public_key_info() == certificate.public_key
    }

    fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl PublicKeyData for Secret {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Secret {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// When each of these certificates ends.
fn ends(bundle: &Bundle) -> impl Iterator<Item = Duration> {
    bundle.roots().iter().filter_map(|it| Facts::of(it).ok()).map(|it| it.not_after)
}

/// The trust domain that an authority's own SPIFFE id names.
fn own_trust_domain(facts: &Facts) -> Option<String> {
    let id: SpiffeId = facts.names.iter().find_map(|it| it.strip_prefix("URI:"))?.parse().ok()?;
    id.path().is_empty().then(|| id.trust_domain().to_owned())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
