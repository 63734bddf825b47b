//! Setup: a new authority, of which all or only the issuer is new, or nothing.
//!
//! What is made elsewhere is refused here rather than found unfit by the first sidecar: it
//! is looked at (see [`given`]), and then a workload's certificate is signed
//! for trial, and must be accepted by the verifier that sidecars use, before a file is
//! written.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, SanType};
use rustls::{
    crypto::aws_lc_rs::default_provider, pki_types::UnixTime, server::WebPkiClientVerifier,
};
use zeroize::Zeroizing;

use super::{
    Authority, Error, ISSUER_CERTIFICATE, ISSUER_KEY, Key, Leaf, Parts, Pem, Plan,
    ROOT_CERTIFICATE, ROOT_KEY, Secret, TRUST_DOMAIN, Unfit,
    given::{self, Given},
    own_trust_domain, params, random, read,
};
use crate::{
    bundle::Bundle,
    folder::{self, File, write_new, write_over},
    spiffe_id::{SpiffeId, trust_domain},
    svid::Svid,
    x509::Facts,
};

/// The longest life of a certificate signed for trial, which nobody ever sees.
const TRIAL: Duration = Duration::from_mins(1);

/// Where an authority comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Root and issuer are made.
    New,
    /// An issuer is made below a root that exists; its key is read, and not kept.
    Root {
        /// Its certificate, in PEM.
        certificate: &'a Path,
        /// Its key, in PEM.
        key: &'a Path,
    },
    /// Nothing is made: an issuer that cert-manager, Vault or the like made is taken over.
    Issuer {
        /// Its certificate in PEM; what is between it and its root may follow, and the root.
        certificate: &'a Path,
        /// Its key, in PEM.
        key: &'a Path,
        /// Its root, where that does not end the chain.
        root: Option<&'a Path>,
    },
}

/// How an authority is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Where it comes from.
    pub source: Source<'a>,
    /// The trust domain, where no certificate names it.
    pub trust_domain: Option<&'a str>,
    /// How long a new root is valid.
    pub root_life: Duration,
    /// How long a new issuer is valid.
    pub issuer_life: Duration,
    /// The kind of new keys.
    pub key: Key,
    /// Whether files of an earlier authority are replaced.
    pub force: bool,
}

/// How long what is new is valid.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// A new root.
    pub root: Duration,
    /// A new issuer.
    pub issuer: Duration,
}

/// The authority that is to follow another.
#[derive(Debug)]
pub struct Next {
    /// It, of the same trust domain.
    pub authority: Authority,
    /// The new root's key in PEM, when the root is new: the caller's to keep, or to drop.
    pub root_key: Option<Zeroizing<String>>,
}

/// Makes a root and an issuer with keys of the usual kind: their four files are in `dir`.
///
/// # Errors
///
/// As [`setup`].
pub fn create(dir: &Path, plan: &Plan<'_>, now: Duration) -> Result<Authority, Error> {
    let Plan { trust_domain, root_life, issuer_life } = *plan;
    let setup_of_new = Setup {
        source: Source::New,
        trust_domain: Some(trust_domain),
        root_life,
        issuer_life,
        key: Key::default(),
        force: false,
    };
    setup(dir, &setup_of_new, now)
}

/// Sets an authority up and writes its files into `dir`: whole ones, one after the other.
///
/// A crash in between leaves a key that is not its certificate's, which
/// [`Authority::open`] refuses.
///
/// # Errors
///
/// When what was given does not do, one of the files exists and `force` is not given
/// (nothing is then written), a life is impossible, or on IO errors.
pub fn setup(dir: &Path, setup: &Setup<'_>, now: Duration) -> Result<Authority, Error> {
    if let Some(name) = setup.trust_domain {
        trust_domain(name)
            .map_err(|reason| Error::TrustDomain { name: name.to_owned(), reason })?;
    }
    let made = match setup.source {
        Source::New => new(dir, setup, now)?,
        Source::Root { certificate, key } => {
            below(dir, setup, &Given::read(certificate)?, key, now)?
        }
        Source::Issuer { certificate, key, root } => {
            taken_over(setup, [certificate, key], root, now)?
        }
    };
    write(dir, &made.authority, made.root_key.as_deref(), setup.force)?;
    Ok(made.authority)
}

/// Makes the authority that is to follow `current`, and writes nothing.
///
/// With the path of the key of the root of `current`, a new issuer below that root; else a
/// new root, too, with keys of the kind `key`.
///
/// # Errors
///
/// When the root or its key do not do, or a life is impossible.
pub fn next(
    current: &Authority,
    root_key: Option<&Path>,
    lives: Lives,
    key: Key,
    now: Duration,
) -> Result<Next, Error> {
    let setup = Setup {
        source: Source::New,
        trust_domain: Some(&current.trust_domain),
        root_life: lives.root,
        issuer_life: lives.issuer,
        key,
        force: false,
    };
    let nowhere = Path::new("");
    match root_key {
        None => new(nowhere, &setup, now),
        Some(path) => {
            let root = Given::of(Path::new(ROOT_CERTIFICATE), &current.root_pem)?;
            below(nowhere, &setup, &root, path, now)
        }
    }
}

/// Where the key of a new root is until `issuer`, the first under it, signs alone. Each attempt
/// has its own: what one leaves behind never takes the place of the key of the root in use.
pub fn next_root_key(dir: &Path, issuer: &str) -> PathBuf {
    dir.join(format!("next-root-{}.key", issuer.get(..16).unwrap_or_default()))
}

/// Makes a root and an issuer of `trust_domain` with keys of the usual kind, and writes
/// nothing: the root's key is dropped, so that all it ever signs is this issuer.
///
/// # Errors
///
/// When the name is none, or a life is impossible.
pub fn fresh(trust_domain: &str, lives: Lives, now: Duration) -> Result<Authority, Error> {
    let setup = Setup {
        source: Source::New,
        trust_domain: Some(trust_domain),
        root_life: lives.root,
        issuer_life: lives.issuer,
        key: Key::default(),
        force: false,
    };
    Ok(new(Path::new(""), &setup, now)?.authority)
}

/// Takes over an issuer that cert-manager, Vault or the like made, from texts.
///
/// # Errors
///
/// When they are damaged, or nobody would take a certificate it signs.
pub fn take_over(pem: &Pem, now: Duration) -> Result<Authority, Error> {
    let authority = Authority::from_pem(pem)?;
    prove(&authority, now).map_err(|reason| {
        let subject = format!("the issuer of {}", authority.trust_domain());
        Error::Given {
            path: ISSUER_CERTIFICATE.into(),
            reason: Unfit::Unvouched { subject, reason },
        }
    })?;
    Ok(authority)
}

impl Authority {
    /// Writes the files that [`Authority::open`] reads over those in `dir`: the issuer's key
    /// before its certificate.
    ///
    /// The key of its root is moved there from [`next_root_key`], if it is there; without it, a
    /// key of `retired`, the roots of before, is removed: nothing it signs is trusted any more.
    ///
    /// # Errors
    ///
    /// On IO errors; it may be done again.
    pub fn replace(&self, dir: &Path, retired: &str) -> Result<(), Error> {
        write(dir, self, None, true)?;
        let (next, path) = (next_root_key(dir, &self.fingerprint), dir.join(ROOT_KEY));
        let done = if next.exists() {
            fs::rename(next, &path)
        } else if is_key_of(&path, retired) && !is_key_of(&path, &self.root_pem) {
            fs::remove_file(&path)
        } else {
            Ok(())
        };
        done.map_err(|source| folder::Error::Io { path, source }.into())
    }
}

fn new(dir: &Path, setup: &Setup<'_>, now: Duration) -> Result<Next, Error> {
    let name = setup.trust_domain.unwrap_or_default();
    trust_domain(name).map_err(|reason| Error::TrustDomain { name: name.to_owned(), reason })?;
    if setup.root_life < setup.issuer_life {
        let (asked, left) = (setup.issuer_life, setup.root_life);
        return Err(Error::LongerThanSigner { asked, left });
    }
    let key = Secret::generate(setup.key)?;
    let root_key = key.pem().clone();
    let params = authority_params(name, "root", setup.root_life, now)?;
    let root_pem = params.self_signed(&key)?.pem();
    let signer = (Issuer::new(params, key), root_pem);
    let made = signed(dir, setup, name, signer, now)?;
    Ok(Next { root_key: Some(root_key), ..made })
}

/// A new issuer below `root`, whose key is in the file `key`.
fn below(
    dir: &Path,
    setup: &Setup<'_>,
    root: &Given,
    key: &Path,
    now: Duration,
) -> Result<Next, Error> {
    let facts = root.root(now)?;
    let name = root.trust_domain(facts, setup.trust_domain)?;
    let left = facts.not_after.saturating_sub(now);
    if left < setup.issuer_life {
        return Err(Error::LongerThanSigner { asked: setup.issuer_life, left });
    }
    let key = given::key(facts, key)?;
    let signer = Issuer::from_ca_cert_der(&root.certificates[0].1, key)?;
    let made = signed(dir, setup, &name, (signer, root.pem(0..1)), now)?;
    prove(&made.authority, now).map_err(|reason| root.unfit(unvouched(facts, reason)))?;
    Ok(made)
}

/// A new issuer that `signer`, whose certificate is `root_pem`, vouches for.
fn signed(
    dir: &Path,
    setup: &Setup<'_>,
    name: &str,
    (signer, root_pem): (Issuer<'_, Secret>, String),
    now: Duration,
) -> Result<Next, Error> {
    let key = Secret::generate(setup.key)?;
    let mut params = authority_params(name, "issuer", setup.issuer_life, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuer_pem = params.signed_by(&key, &signer)?.pem();
    let paths = [ISSUER_CERTIFICATE, ROOT_CERTIFICATE, ISSUER_KEY].map(|it| dir.join(it));
    let paths = [&*paths[0], &*paths[1], &*paths[2]];
    let authority = Authority::of(Parts { issuer_pem, root_pem, key, paths, trust_domain: None })?;
    Ok(Next { authority, root_key: None })
}

/// The issuer of these files, certificate and key.
fn taken_over(
    setup: &Setup<'_>,
    [certificate, key_path]: [&Path; 2],
    root: Option<&Path>,
    now: Duration,
) -> Result<Next, Error> {
    let given = Given::read(certificate)?;
    let (facts, below_root) = given.issuer(now)?;
    let (root_pem, root_path) = match root {
        Some(path) => (read(path)?, path),
        None if below_root < given.certificates.len() => {
            (given.pem(below_root..below_root + 1), certificate)
        }
        None => return Err(given.unfit(Unfit::NoRoot(facts.subject.clone()))),
    };
    let name = given.trust_domain(facts, setup.trust_domain)?;
    let key = given::key(facts, key_path)?;
    let authority = Authority::of(Parts {
        issuer_pem: given.pem(0..below_root),
        root_pem,
        key,
        paths: [certificate, root_path, key_path],
        trust_domain: Some(name),
    })?;
    prove(&authority, now).map_err(|reason| given.unfit(unvouched(facts, reason)))?;
    Ok(Next { authority, root_key: None })
}

fn unvouched(facts: &Facts, reason: String) -> Unfit {
    Unfit::Unvouched { subject: facts.subject.clone(), reason }
}

/// Signs a certificate for trial, and asks rustls about it as both ends of a handshake do.
fn prove(authority: &Authority, now: Duration) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let id =
        SpiffeId::workload(&authority.trust_domain, "trial", "trial").map_err(|it| text(&it))?;
    let life = authority.not_after.saturating_sub(now).min(TRIAL);
    let leaf = Leaf { id: &id, life, dns_names: &[], addresses: &[] };
    let issued = authority.issue(&leaf, now).map_err(|it| text(&it))?;
    let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes());
    let svid = svid.map_err(|it| text(&it))?;
    let bundle = Bundle::from_pem(issued.roots.as_bytes()).map_err(|it| text(&it))?;
    let [leaf, intermediates @ ..] = svid.chain() else { return Err("no chain".to_owned()) };
    bundle.vouch(svid.chain(), now).map_err(|it| text(&it))?;
    let (provider, at) = (default_provider(), UnixTime::since_unix_epoch(now));
    let roots = std::sync::Arc::clone(bundle.store());
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.into()).build();
    let clients = clients.map_err(|it| text(&it))?;
    clients.verify_client_cert(leaf, intermediates, at).map(|_| ()).map_err(|it| text(&it))
}

/// Whether the file `path` has the key of one of `certificates`.
fn is_key_of(path: &Path, certificates: &str) -> bool {
    let key = Secret::read(path).ok().flatten();
    let given = Given::of(path, certificates);
    key.zip(given.ok()).is_some_and(|(key, it)| it.certificates.iter().any(|it| key.is_of(&it.2)))
}

fn write(dir: &Path, it: &Authority, root_key: Option<&String>, force: bool) -> Result<(), Error> {
    let root_key = root_key.map(|key| File::secret(ROOT_KEY, key.as_bytes()));
    let issuer = Given::of(dir, &it.issuer_pem)?;
    let is_named = own_trust_domain(&issuer.certificates[0].2).is_some();
    let domain = (!is_named).then(|| File::public(TRUST_DOMAIN, &it.trust_domain));
    let files = [
        File::public(ROOT_CERTIFICATE, &it.root_pem),
        File::secret(ISSUER_KEY, it.issuer.key().pem().as_bytes()),
        File::public(ISSUER_CERTIFICATE, &it.issuer_pem),
    ];
    let files: Vec<_> = root_key.into_iter().chain(files).chain(domain).collect();
    folder::create_dir(dir, 0o700, true)?;
    let mut paths = files.iter().map(|it| dir.join(it.name));
    if let Some(taken) = paths.find(|it| !force && it.exists()) {
        return Err(folder::Error::Exists(taken).into());
    }
    let write = if force { write_over } else { write_new };
    Ok(files.iter().try_for_each(|file| write(&dir.join(file.name), file))?)
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
