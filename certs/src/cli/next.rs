//! Next: the authority that is to sign after another, by what an operator says of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::Error;
use crate::{
    authority::{self, Authority, Key, Lives, ROOT_KEY, next_root_key},
    duration::parse as duration,
    folder::{File, write_over},
};

/// Which authority is to follow.
#[derive(Args, Debug)]
pub struct Next {
    /// Make a new root, too; its key is in DIR/next-root-*.key, and in DIR/root.key in the end
    #[arg(long, conflicts_with_all = ["root_key", "to"])]
    root: bool,
    /// The key of the present root, in PEM, to sign a new issuer with; without it, DIR/root.key
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    root_key: Option<PathBuf>,
    /// Go over to an authority that exists: a folder made by `init`, which also takes over
    /// issuers of cert-manager and Vault
    #[arg(long, value_name = "FOLDER")]
    pub to: Option<PathBuf>,
    /// Where to put a new root's key, instead of DIR/next-root-*.key; without either, as with
    /// --kubernetes, it is not kept
    #[arg(long, value_name = "FILE", requires = "root")]
    root_key_out: Option<PathBuf>,
    /// How long a new issuer is valid, such as 365d
    #[arg(long, value_name = "LIFE", default_value = "365d", value_parser = duration)]
    issuer_life: Duration,
    /// How long a new root is valid, such as 3650d
    #[arg(long, value_name = "LIFE", default_value = "3650d", value_parser = duration)]
    root_life: Duration,
    /// The kind of new keys, those of workloads included: ECDSA on this curve
    #[arg(long, value_name = "CURVE", value_enum, default_value_t)]
    key: Key,
}

impl Next {
    /// The authority that is to follow `present`, whose folder is `dir` if it has one; writes
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`authority::next`], and when it is of another trust domain.
    pub fn make(
        &self,
        present: &Authority,
        dir: Option<&Path>,
        now: Duration,
    ) -> Result<authority::Next, Error> {
        let own = dir.map(|it| it.join(ROOT_KEY)).filter(|it| it.exists());
        let root_key = self.root_key.clone().or(own);
        let lives = Lives { root: self.root_life, issuer: self.issuer_life };
        let next = match (&self.to, root_key) {
            (Some(folder), _) => {
                authority::Next { authority: Authority::open(folder)?, root_key: None }
            }
            (None, _) if self.root => authority::next(present, None, lives, self.key, now)?,
            (None, Some(root)) => authority::next(present, Some(&root), lives, self.key, now)?,
            (None, None) => return Err(Error::NoRootKey),
        };
        let trust_domain = next.authority.trust_domain();
        if trust_domain == present.trust_domain() {
            Ok(next)
        } else {
            Err(Error::OtherTrustDomain(trust_domain.to_owned()))
        }
    }

    /// Keeps the key of a new root where the operator wants it, or else in `dir`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn keep_root_key(&self, next: &authority::Next, dir: Option<&Path>) -> Result<(), Error> {
        let own = dir.map(|it| next_root_key(it, next.authority.issuer_fingerprint()));
        // Without a folder nobody need keep it: the authority after it has another root.
        let path = self.root_key_out.clone().or(own);
        let Some((key, path)) = next.root_key.as_ref().zip(path) else { return Ok(()) };
        Ok(write_over(&path, &File::secret(ROOT_KEY, key.as_bytes()))?)
    }
}
