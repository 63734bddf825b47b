//! Init: an authority that is new, or below a root that exists, or taken over.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, ValueEnum, builder::PossibleValue};

use super::Error;
use crate::{
    authority::{
        self, ISSUER_CERTIFICATE, ISSUER_KEY, Key, ROOT_CERTIFICATE, ROOT_KEY, Setup, Source,
    },
    duration::{date, parse as duration},
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
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("signer").args(["root_key", "issuer"]))]
pub struct Init {
    /// The folder to write to, made when absent
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The trust domain: what every id of this authority begins with; without it, the one that
    /// the root or issuer given names, or cluster.local where all is new
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// How long a new root is valid, such as 3650d
    #[arg(long, value_name = "LIFE", default_value = "3650d", value_parser = duration)]
    #[arg(conflicts_with_all = ["root", "issuer"])]
    root_life: Duration,
    /// How long a new issuer is valid, such as 365d
    #[arg(long, value_name = "LIFE", default_value = "365d", value_parser = duration)]
    #[arg(conflicts_with = "issuer")]
    issuer_life: Duration,
    /// The kind of new keys, those of workloads included: ECDSA on this curve
    #[arg(long, value_name = "CURVE", value_enum, default_value_t, conflicts_with = "issuer")]
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

impl ValueEnum for Key {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::P256, Self::P384]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
        }))
    }
}

impl Init {
    /// Sets the authority up, and says what there is now.
    ///
    /// # Errors
    ///
    /// As [`authority::setup`], and when nobody takes the output.
    pub fn run(&self, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
        let &Self { root_life, issuer_life, key, force, .. } = self;
        let (source, named) = (self.source(), self.trust_domain.as_deref());
        let is_new = matches!(source, Source::New);
        let trust_domain = named.or(is_new.then_some(CLUSTER_LOCAL));
        let setup = Setup { source, trust_domain, root_life, issuer_life, key, force };
        let authority = authority::setup(&self.dir, &setup, now)?;
        let (name, dir) = (authority.trust_domain(), self.dir.display());
        let root_ends = date(now.saturating_add(root_life));
        let (made, root, last) = match source {
            Source::New => (
                format!("made the authority of `{name}` in `{dir}`"),
                format!("{ROOT_CERTIFICATE}, {ROOT_KEY}: the root, until {root_ends}"),
                format!("keep `{ROOT_KEY}` elsewhere: it is needed only for the next issuer\n"),
            ),
            Source::Root { .. } => (
                format!("made an issuer of `{name}` in `{dir}`"),
                format!("{ROOT_CERTIFICATE}: the root given; its key was read, and not kept"),
                String::new(),
            ),
            Source::Issuer { .. } => (
                format!("took over an issuer of `{name}` into `{dir}`"),
                format!("{ROOT_CERTIFICATE}: the root that vouches for it"),
                "when it is renewed where it was made: `init` again, with `--force`\n".to_owned(),
            ),
        };
        let ends = date(authority.not_after());
        writeln!(out, "{made}\n  {root}")?;
        writeln!(out, "  {ISSUER_CERTIFICATE}, {ISSUER_KEY}: the issuer, until {ends}")?;
        Ok(write!(out, "{last}")?)
    }

    fn source(&self) -> Source<'_> {
        let root = self.root.as_deref();
        match (root, &self.root_key, &self.issuer, &self.issuer_key) {
            (root, _, Some(certificate), Some(key)) => Source::Issuer { certificate, key, root },
            (Some(certificate), Some(key), ..) => Source::Root { certificate, key },
            _ => Source::New,
        }
    }
}
