//! Init: an authority that is new, or below a root that exists, or taken over.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, ValueEnum};
use remora_certs::authority::{
    self, Authority, ISSUER_CERTIFICATE, ISSUER_KEY, ROOT_CERTIFICATE, ROOT_KEY, Setup, Source,
};

use super::error::Error;
use crate::{
    client,
    duration::{date, parse as duration},
    issuing,
    store::{Folder, Store},
};

/// The trust domain of an authority that is not told another.
const CLUSTER_LOCAL: &str = "cluster.local";

/// Make a new authority: a root and one issuer under it
///
/// Writes root.crt, root.key, issuer.crt and issuer.key, and never overwrites one unless told
/// to. Only root.crt is trusted and only issuer.key signs workloads, so keep root.key elsewhere.
///
/// With --root and --root-key, only the issuer is new. With --issuer and --issuer-key, nothing
/// is: an issuer that cert-manager, Vault or the like made is checked and taken over.
#[derive(Args)]
#[command(group = ArgGroup::new("signer").args(["root_key", "issuer"]))]
pub(super) struct Init {
    /// The folder to write to, made when absent
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain: what every id of this authority begins with; without it, the one that
    /// the root or issuer given names, or cluster.local where all is new
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// How long a new root is valid, such as 3650d
    #[arg(
        long,
        value_name = "LIFE",
        default_value = "3650d",
        value_parser = duration,
        conflicts_with_all = ["root", "issuer"],
    )]
    root_life: Duration,
    /// How long a new issuer is valid, such as 365d
    #[arg(
        long,
        value_name = "LIFE",
        default_value = "365d",
        value_parser = duration,
        conflicts_with = "issuer",
    )]
    issuer_life: Duration,
    /// The kind of new keys, those of workloads included: ECDSA on this curve
    #[arg(
        long,
        value_name = "CURVE",
        value_enum,
        default_value_t = Key::P256,
        conflicts_with = "issuer",
    )]
    key: Key,
    /// A root that exists, in PEM: to sign a new issuer, or the one of --issuer
    #[arg(long, value_name = "FILE", requires = "signer")]
    root: Option<PathBuf>,
    /// Its key, in PEM; read, and not kept
    #[arg(long, value_name = "FILE", requires = "root")]
    root_key: Option<PathBuf>,
    /// An issuer that exists, in PEM; the certificates up to its root may follow
    #[arg(long, value_name = "FILE", requires = "issuer_key")]
    issuer: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "issuer")]
    issuer_key: Option<PathBuf>,
    /// Replace the files of an earlier authority, keys included
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Key {
    P256,
    P384,
}

impl From<Key> for authority::Key {
    fn from(key: Key) -> Self {
        match key {
            Key::P256 => Self::P256,
            Key::P384 => Self::P384,
        }
    }
}

pub(super) fn run(args: &Init, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let (root, dir) = (args.root.as_deref(), &args.dir);
    let store = Store::Folder(Folder::new(dir));
    if client::block_on(issuing::record(&store))??.is_some() {
        return Err(Error::InUse(dir.clone()));
    }
    let source = match (root, &args.root_key, &args.issuer, &args.issuer_key) {
        (root, _, Some(certificate), Some(key)) => Source::Issuer { certificate, key, root },
        (Some(certificate), Some(key), ..) => Source::Root { certificate, key },
        _ => Source::New,
    };
    let named = args.trust_domain.as_deref();
    let setup = Setup {
        source,
        trust_domain: if let Source::New = source { named.or(Some(CLUSTER_LOCAL)) } else { named },
        root_life: args.root_life,
        issuer_life: args.issuer_life,
        key: args.key.into(),
        force: args.force,
    };
    let authority = authority::setup(dir, &setup, now)?;
    tell(args, &setup, &authority, now, out)
}

fn tell(
    Init { dir, .. }: &Init,
    setup: &Setup<'_>,
    authority: &Authority,
    now: Duration,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (name, dir) = (authority.trust_domain(), dir.display());
    match setup.source {
        Source::New => {
            let root_ends = date(now.saturating_add(setup.root_life));
            writeln!(out, "made the authority of `{name}` in `{dir}`")?;
            writeln!(out, "  {ROOT_CERTIFICATE}, {ROOT_KEY}: the root, until {root_ends}")?;
        }
        Source::Root { .. } => {
            writeln!(out, "made an issuer of `{name}` in `{dir}`")?;
            writeln!(out, "  {ROOT_CERTIFICATE}: the root given; its key was read, and not kept")?;
        }
        Source::Issuer { .. } => {
            writeln!(out, "took over an issuer of `{name}` into `{dir}`")?;
            writeln!(out, "  {ROOT_CERTIFICATE}: the root that vouches for it")?;
        }
    }
    let ends = date(authority.not_after());
    writeln!(out, "  {ISSUER_CERTIFICATE}, {ISSUER_KEY}: the issuer, until {ends}")?;
    match setup.source {
        Source::New => {
            writeln!(out, "keep `{ROOT_KEY}` elsewhere: it is needed only for the next issuer")?;
        }
        Source::Root { .. } => {}
        Source::Issuer { .. } => {
            writeln!(out, "when it is renewed where it was made: `init` again, with `--force`")?;
        }
    }
    Ok(())
}
