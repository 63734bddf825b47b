//! Authority: a root, one issuer below it, and the leaves the issuer signs.
//!
//! Sidecars trust the root alone, and the root signs nothing but issuers, so its key can
//! be taken off the machine after [`create`]; an issuer that leaks or ages is replaced
//! without a change of trust. All keys are ECDSA P-256. An issuer's path length is zero: it
//! can sign workloads and no further authority.
//!
//! An authority signs for its own trust domain only. X.509 could bind that with a name
//! constraint on URIs, but rustls (like most verifiers) refuses certificates that carry
//! one; verifiers here check the trust domain themselves.
//!
//! # Sources
//!
//! - X509-SVID, section 4:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#4-constraints-and-usage>
//! - RFC 5280, section 4.1.2.2 (serial numbers): <https://www.rfc-editor.org/rfc/rfc5280>

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::default_provider;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{
    bundle::{self, Bundle},
    folder::{self, File, write_new},
    spiffe_id::{ParseError, SpiffeId, trust_domain},
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
    issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    root_pem: String,
    trust_domain: String,
    not_after: Duration,
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

/// Why an authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust domain's name is not one.
    #[error("`{name}` is not a trust domain: {reason}")]
    TrustDomain {
        /// The name.
        name: String,
        /// Why.
        reason: ParseError,
    },
    /// The id is of another trust domain.
    #[error("`{id}` is not in the trust domain `{trust_domain}` of this authority")]
    OtherTrustDomain {
        /// The id asked for.
        id: SpiffeId,
        /// What the authority signs for.
        trust_domain: String,
    },
    /// The id names no workload.
    #[error("`{0}` names a trust domain, not a workload in it")]
    NoPath(SpiffeId),
    /// A life of nothing, or beyond what a certificate can say.
    #[error("a certificate cannot live {} seconds", .0.as_secs())]
    Life(Duration),
    /// A certificate must end before the one that signs it.
    #[error("a life of {} seconds is longer than the {} the signing certificate has left", asked.as_secs(), left.as_secs())]
    LongerThanSigner {
        /// What was asked for.
        asked: Duration,
        /// What is left of the signing certificate.
        left: Duration,
    },
    /// The issuer's certificate has ended.
    #[error("the issuer's certificate has ended")]
    IssuerEnded,
    /// A host name that no certificate can carry.
    #[error("`{0}` is not a host name")]
    DnsName(String),
    /// A file of the authority cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root's or issuer's certificate is damaged.
    #[error("`{path}` is not an authority's certificate: {reason}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: bundle::Error,
    },
    /// The issuer's certificate names no trust domain.
    #[error("`{0}` does not carry the SPIFFE id of a trust domain")]
    NoTrustDomain(PathBuf),
    /// The issuer's key is damaged or another's.
    #[error("`{0}` is not the key of the issuer's certificate")]
    Key(PathBuf),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] folder::Error),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Makes a root and an issuer and writes their four files into `dir`.
///
/// # Errors
///
/// When one of the files exists (nothing is then written), a life is impossible, or on IO
/// errors.
pub fn create(dir: &Path, plan: &Plan<'_>, now: Duration) -> Result<Authority, Error> {
    let name = plan.trust_domain;
    trust_domain(name).map_err(|reason| Error::TrustDomain { name: name.to_owned(), reason })?;
    if plan.root_life < plan.issuer_life {
        let (asked, left) = (plan.issuer_life, plan.root_life);
        return Err(Error::LongerThanSigner { asked, left });
    }
    let (root_key, issuer_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let root_params = authority_params(name, "root", plan.root_life, now)?;
    let root_pem = root_params.self_signed(&root_key)?.pem();
    let mut params = authority_params(name, "issuer", plan.issuer_life, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = Issuer::from_params(&root_params, &root_key);
    let issuer_pem = params.signed_by(&issuer_key, &root)?.pem();

    let (root_secret, issuer_secret) = (secret(&root_key), secret(&issuer_key));
    let public = |name, content| File { name, content, secret: false };
    let private = |name, content| File { name, content, secret: true };
    let files = [
        private(ROOT_KEY, root_secret.as_bytes()),
        public(ROOT_CERTIFICATE, root_pem.as_bytes()),
        private(ISSUER_KEY, issuer_secret.as_bytes()),
        public(ISSUER_CERTIFICATE, issuer_pem.as_bytes()),
    ];
    folder::create_dir(dir, 0o700, true)?;
    if let Some(taken) = files.iter().map(|it| dir.join(it.name)).find(|it| it.exists()) {
        return Err(folder::Error::Exists(taken).into());
    }
    files.iter().try_for_each(|file| write_new(&dir.join(file.name), file))?;
    Authority::open(dir)
}

impl Authority {
    /// Reads an issuer back from `dir`; the root's key is neither needed nor read.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, or the key is not the issuer's.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (root_path, path) = (dir.join(ROOT_CERTIFICATE), dir.join(ISSUER_CERTIFICATE));
        let (root_pem, issuer_pem) = (read(&root_path)?, read(&path)?);
        let bundle = |path: &Path, text: &str| {
            let refused = |reason| Error::Certificate { path: path.to_owned(), reason };
            Bundle::from_pem(text.as_bytes()).map_err(refused)
        };
        bundle(&root_path, &root_pem)?;
        let bundle = bundle(&path, &issuer_pem)?;
        let der = bundle.roots().first().ok_or_else(|| Error::NoTrustDomain(path.clone()))?;
        let facts = Facts::of(der).map_err(|_| Error::NoTrustDomain(path.clone()))?;
        let trust_domain = own_trust_domain(&facts).ok_or(Error::NoTrustDomain(path))?;

        let key_path = dir.join(ISSUER_KEY);
        let key_pem = Zeroizing::new(read(&key_path)?);
        let key = KeyPair::from_pem(&key_pem).map_err(|_| Error::Key(key_path.clone()))?;
        if rcgen::PublicKeyData::subject_public_key_info(&key) != facts.public_key {
            return Err(Error::Key(key_path));
        }
        let issuer = Issuer::from_ca_cert_der(der, key)?;
        Ok(Self { issuer, issuer_pem, root_pem, trust_domain, not_after: facts.not_after })
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// When the issuer ends, since the Unix epoch.
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
        let key = KeyPair::generate()?;
        let chain = params.signed_by(&key, &self.issuer)?.pem() + &self.issuer_pem;
        let not_after = Duration::from_secs((now + leaf.life).as_secs());
        Ok(Issued { chain, key: secret(&key), roots: self.root_pem.clone(), not_after })
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

//= https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#32-signing-certificates
//# the SPIFFE ID of a signing certificate MUST NOT have a path component
fn authority_params(
    trust_domain: &str,
    role: &str,
    life: Duration,
    now: Duration,
) -> Result<CertificateParams, Error> {
    let mut params = params(life, now)?;
    params.distinguished_name.push(DnType::OrganizationName, "Remora");
    // Two authorities of one name would be taken for each other in error messages, and
    // by verifiers that find a signer by its name.
    let tag = u32::from_be_bytes(random()?);
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} {role} {tag:08x}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
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

fn secret(key: &KeyPair) -> Zeroizing<String> {
    Zeroizing::new(key.serialize_pem())
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
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::{pki_types::UnixTime, server::ParsedCertificate};
    use tempfile::TempDir;

    use super::*;
    use crate::{svid::Svid, x509::id_of};

    const NOW: Duration = Duration::from_secs(1_770_000_007);
    const HOUR: Duration = Duration::from_hours(1);
    const PLAN: Plan<'static> = Plan {
        trust_domain: "cluster.local",
        root_life: Duration::from_hours(48),
        issuer_life: Duration::from_hours(24),
    };

    #[test]
    fn an_issued_leaf_is_an_svid_that_its_root_vouches_for() {
        let (_dir, authority) = authority();
        let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
        let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
        assert_eq!((svid.id(), svid.chain().len()), (&orders(), 2));
        assert_eq!((svid.not_after(), issued.not_after), (NOW + HOUR, NOW + HOUR));
        let bundle = Bundle::from_pem(issued.roots.as_bytes()).unwrap();
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(&svid.chain()[0]).unwrap(),
            bundle.store(),
            &svid.chain()[1..],
            UnixTime::since_unix_epoch(NOW),
            default_provider().signature_verification_algorithms.all,
        )
        .unwrap();
    }

    #[test]
    fn a_leaf_carries_the_names_asked_for_and_no_more() {
        let (_dir, authority) = authority();
        let id = orders();
        let (dns_names, addresses) = (["orders.shop".to_owned()], [[127, 0, 0, 1].into()]);
        let leaf = Leaf { dns_names: &dns_names, addresses: &addresses, ..leaf(&id, HOUR) };
        let facts = facts(&authority.issue(&leaf, NOW).unwrap().chain);
        let uri = format!("URI:{id}");
        assert_eq!(facts.names, [uri.as_str(), "DNS:orders.shop", "IP:127.0.0.1"]);
        assert_eq!((facts.subject.as_str(), facts.is_ca), ("", false));
    }

    #[test]
    fn certificates_begin_five_minutes_early_for_clocks_that_are_behind() {
        let (_dir, authority) = authority();
        let facts = facts(&authority.issue(&leaf(&orders(), HOUR), NOW).unwrap().chain);
        assert_eq!(facts.not_before + Duration::from_mins(5), NOW);
    }

    #[test]
    fn serial_numbers_are_positive_and_differ() {
        let (_dir, authority) = authority();
        let serial = || {
            let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
            facts(&issued.chain).serial
        };
        let (first, second) = (serial(), serial());
        assert_ne!(first, second);
        // Sixteen octets, the first of them below 0x80.
        assert_eq!(first.split(':').count(), 16);
        assert!(u8::from_str_radix(first.split(':').next().unwrap(), 16).unwrap() < 0x80);
    }

    #[test]
    fn the_issuer_signs_workloads_and_no_further_authority() {
        let (dir, _authority) = authority();
        let read = |name| facts(&fs::read_to_string(dir.path().join(name)).unwrap());
        let (root, issuer) = (read(ROOT_CERTIFICATE), read(ISSUER_CERTIFICATE));
        assert_eq!((root.is_ca, root.path_len), (true, Some(1)));
        assert_eq!((issuer.is_ca, issuer.path_len), (true, Some(0)));
        assert_eq!(issuer.names, ["URI:spiffe://cluster.local"]);
        assert_eq!((&root.issuer, &issuer.issuer), (&root.subject, &root.subject));
        assert_ne!(root.subject, issuer.subject);
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let (dir, _authority) = authority();
        for name in [ROOT_KEY, ISSUER_KEY] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn an_authority_is_never_overwritten() {
        let (dir, _authority) = authority();
        let before = fs::read(dir.path().join(ROOT_KEY)).unwrap();
        for left in [ISSUER_CERTIFICATE, ISSUER_KEY, ROOT_CERTIFICATE] {
            let error = create(dir.path(), &PLAN, NOW).unwrap_err();
            assert!(matches!(error, Error::Write(folder::Error::Exists(_))), "{error}");
            fs::remove_file(dir.path().join(left)).unwrap();
        }
        assert!(create(dir.path(), &PLAN, NOW).is_err());
        assert_eq!(fs::read(dir.path().join(ROOT_KEY)).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_the_authority_may_not_sign_is_refused() {
        let (_dir, authority) = authority();
        let refused = |id: &str, life, now| {
            authority.issue(&leaf(&id.parse().unwrap(), life), now).unwrap_err().to_string()
        };
        let own = orders();
        let own = own.as_str();
        for (error, message) in [
            (
                refused("spiffe://other/ns/shop/sa/orders", HOUR, NOW),
                "`spiffe://other/ns/shop/sa/orders` is not in the trust domain `cluster.local` of this authority",
            ),
            (
                refused("spiffe://cluster.local", HOUR, NOW),
                "`spiffe://cluster.local` names a trust domain, not a workload in it",
            ),
            (
                refused(own, HOUR, NOW + 23 * HOUR + Duration::from_mins(59)),
                "a life of 3600 seconds is longer than the 60 the signing certificate has left",
            ),
            (refused(own, HOUR, NOW + 25 * HOUR), "the issuer's certificate has ended"),
            (refused(own, Duration::ZERO, NOW), "a certificate cannot live 0 seconds"),
        ] {
            assert_eq!(error, message);
        }
        let id = orders();
        let dns_names = ["ä".to_owned()];
        let error = authority.issue(&Leaf { dns_names: &dns_names, ..leaf(&id, HOUR) }, NOW);
        assert_eq!(error.unwrap_err().to_string(), "`ä` is not a host name");
    }

    #[test]
    fn what_cannot_be_an_authority_is_refused_and_nothing_written() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |plan| create(dir.path(), &plan, NOW).unwrap_err().to_string();
        let life = Duration::from_secs(u64::MAX);
        assert_eq!(
            refused(Plan { trust_domain: "Cluster.local", ..PLAN }),
            "`Cluster.local` is not a trust domain: `C` at byte 9 is not allowed in a trust domain (a-z, 0-9, `.`, `-`, `_`)"
        );
        assert!(refused(Plan { root_life: HOUR, ..PLAN }).starts_with("a life of 86400 seconds"));
        assert!(refused(Plan { root_life: life, ..PLAN }).starts_with("a certificate cannot live"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        for (damaged, content) in [
            (ROOT_CERTIFICATE, Some("")),
            (ISSUER_CERTIFICATE, Some("garbage")),
            (ISSUER_KEY, Some("garbage")),
            (ISSUER_KEY, None),
        ] {
            let (dir, _authority) = authority();
            let path = dir.path().join(damaged);
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = Authority::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        let (dir, _authority) = authority();
        fs::copy(dir.path().join(ROOT_KEY), dir.path().join(ISSUER_KEY)).unwrap();
        assert!(matches!(Authority::open(dir.path()), Err(Error::Key(_))));
    }

    #[test]
    fn debug_never_prints_a_key() {
        let (_dir, authority) = authority();
        let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
        let inside = issued.key.lines().nth(1).unwrap().to_owned();
        assert!(!format!("{issued:?}{authority:?}").contains(&inside));
    }

    fn authority() -> (TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let authority = create(dir.path(), &PLAN, NOW).unwrap();
        (dir, authority)
    }

    fn orders() -> SpiffeId {
        SpiffeId::workload("cluster.local", "shop", "orders").unwrap()
    }

    fn leaf(id: &SpiffeId, life: Duration) -> Leaf<'_> {
        Leaf { id, life, dns_names: &[], addresses: &[] }
    }

    /// Of the first certificate.
    fn facts(file: &str) -> Facts {
        let der = pem(file);
        assert!(id_of(&der).is_ok() || Facts::of(&der).unwrap().is_ca);
        Facts::of(&der).unwrap()
    }

    fn pem(file: &str) -> Vec<u8> {
        crate::pem::blocks(file.as_bytes()).unwrap()[0].certificate().unwrap().to_vec()
    }
}
