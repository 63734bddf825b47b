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
mod leaf;
mod secret;
mod setup;

use std::{fmt, fs, path::Path, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, Issuer, SerialNumber};
use rustls::crypto::aws_lc_rs::default_provider;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub(crate) use self::secret::Secret;
pub use self::{
    error::{Error, Unfit},
    leaf::{Issued, Leaf, Names, Signed},
    setup::{Lives, Next, Setup, Source, create, fresh, next, next_root_key, setup, take_over},
};
use crate::{
    bundle::Bundle,
    spiffe_id::{SpiffeId, trust_domain},
    x509::{self, Facts},
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

/// An issuer that can sign leaves.
pub struct Authority {
    issuer: Issuer<'static, Secret>,
    /// The issuer's certificate, and those between it and the root.
    issuer_pem: String,
    root_pem: String,
    trust_domain: String,
    /// SHA-256 of the issuer's certificate.
    fingerprint: String,
    not_after: Duration,
    leaf_key: Key,
}

/// An authority as texts, for those that keep it elsewhere than in a folder.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pem {
    /// The root's certificate; several where several vouch for the issuer.
    pub root: String,
    /// The issuer's certificate, and those between it and the root.
    pub issuer: String,
    /// The issuer's key.
    #[serde(serialize_with = "secret::serialize", deserialize_with = "secret::deserialize")]
    pub key: Zeroizing<String>,
    /// The trust domain it signs for.
    pub trust_domain: String,
}

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

    /// Reads an issuer back from texts.
    ///
    /// # Errors
    ///
    /// When one of them is damaged, or the key is not the issuer's; they are named as the
    /// files of [`Authority::open`] are.
    pub fn from_pem(pem: &Pem) -> Result<Self, Error> {
        let paths = [ISSUER_CERTIFICATE, ROOT_CERTIFICATE, ISSUER_KEY].map(Path::new);
        let key = Secret::from_pem(&pem.key).ok_or_else(|| Error::Key(paths[2].to_owned()))?;
        let (issuer_pem, root_pem) = (pem.issuer.clone(), pem.root.clone());
        let trust_domain = Some(pem.trust_domain.clone());
        Self::of(Parts { issuer_pem, root_pem, key, paths, trust_domain })
    }

    /// The texts that [`Authority::from_pem`] reads; the root's key is not among them.
    pub fn to_pem(&self) -> Pem {
        Pem {
            root: self.root_pem.clone(),
            issuer: self.issuer_pem.clone(),
            key: self.issuer.key().pem().clone(),
            trust_domain: self.trust_domain.clone(),
        }
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
        let fingerprint = x509::fingerprint(der);
        trust_domain(&name).map_err(|reason| Error::TrustDomain { name: name.clone(), reason })?;
        if !key.is_of(&facts) {
            return Err(Error::Key(key_path.to_owned()));
        }
        let leaf_key = key.kind();
        let issuer = Issuer::from_ca_cert_der(der, key)?;
        let not_after = end(&chain, &roots);
        let trust_domain = name;
        Ok(Self { issuer, issuer_pem, root_pem, trust_domain, fingerprint, not_after, leaf_key })
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root's certificate in PEM, or those of several.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// SHA-256 of the issuer's certificate, in lower-case hexadecimal.
    pub fn issuer_fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// When the issuer, or what vouches for it, ends: since the Unix epoch.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
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

/// When the first certificate of `chain` ends, or else the root that vouches for it.
///
/// Other roots may live longer without being of any use to the chain.
fn end(chain: &Bundle, roots: &Bundle) -> Duration {
    let chain: Vec<_> = chain.facts().collect();
    let last = chain.last().map(|it| it.issuer.as_str());
    let above = roots.facts().filter(|it| last == Some(&it.subject));
    let (signers, root) = (chain.iter().map(|it| it.not_after), above.map(|it| it.not_after));
    signers.chain(root.max()).min().unwrap_or_default()
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
