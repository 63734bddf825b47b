//! Command line: what an operator does with the files of an authority.
//!
//! The arguments of each command, and the command: `init`, `issue`, `inspect` and `bundle`.
//! The program that embeds them says what a server signs with and trusts by now, where there
//! is one; else the authority's folder does.

mod error;
mod init;
mod next;

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

pub use self::{error::Error, init::Init, next::Next};
use crate::{
    authority::{self, Authority, Leaf, ROOT_CERTIFICATE},
    bundle,
    duration::{date, parse as duration},
    folder::{Content, read_file},
    inspect, jwks,
    spiffe_id::SpiffeId,
};

/// A file that is read is at most so large.
const BYTES_MAX: usize = 1024 * 1024;

/// Give a workload an identity: a fresh key and a certificate for it
///
/// Writes tls.crt (leaf and issuer), tls.key and ca.crt by one atomic swap, so that a
/// sidecar watching the folder never sees the old and the new mixed. Run it again for the
/// same folder to rotate.
#[derive(Args, Debug)]
pub struct Issue {
    /// The authority's folder, made by `init`
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    workload: Workload,
    /// The folder a sidecar watches, made when absent
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How long the certificate is valid: 90m, 24h, 30d
    #[arg(long, value_name = "LIFE", default_value = "24h", value_parser = duration)]
    life: Duration,
}

impl Issue {
    /// Issues by what `signs` and the roots to trust, where a server says; else by the folder.
    ///
    /// # Errors
    ///
    /// As [`Authority::issue`], and when something cannot be read or written.
    pub fn run(
        &self,
        signs: Option<(Authority, String)>,
        now: Duration,
        out: &mut dyn Write,
    ) -> Result<(), Error> {
        let (authority, roots) = match signs {
            Some((authority, roots)) => (authority, Some(roots)),
            None => (Authority::open(&self.dir)?, None),
        };
        let id = self.workload.id(&authority)?;
        let leaf = Leaf { id: &id, life: self.life, dns_names: &[], addresses: &[] };
        let mut issued = authority.issue(&leaf, now)?;
        issued.roots = roots.unwrap_or(issued.roots);
        issued.write(&self.out, now)?;
        writeln!(out, "issued `{id}` until {}", date(issued.not_after))?;
        writeln!(out, "  in `{}`: tls.crt, tls.key, ca.crt", self.out.display())?;
        Ok(())
    }
}

/// Which workload: its whole id, or the parts of one.
#[derive(Args, Debug)]
pub struct Workload {
    /// The whole SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
    #[arg(long, value_name = "ID", required_unless_present = "namespace")]
    #[arg(conflicts_with_all = ["namespace", "service_account"])]
    id: Option<String>,
    /// The workload's Kubernetes namespace, instead of --id
    #[arg(long, value_name = "NS", requires = "service_account")]
    namespace: Option<String>,
    /// The workload's service account, instead of --id
    #[arg(long, value_name = "SA", requires = "namespace")]
    service_account: Option<String>,
}

impl Workload {
    /// Its id, for which `authority` may sign.
    ///
    /// # Errors
    ///
    /// When it is no id, or not one of this authority.
    pub fn id(&self, authority: &Authority) -> Result<SpiffeId, authority::Error> {
        let (text, id) = if let Some(text) = &self.id {
            (text.clone(), text.parse())
        } else {
            let parts = [&self.namespace, &self.service_account];
            let [namespace, account] = parts.map(|it| it.as_deref().unwrap_or_default());
            let domain = authority.trust_domain();
            let text = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            (text, SpiffeId::workload(domain, namespace, account))
        };
        let id = id.map_err(|reason| authority::Error::Id { text, reason })?;
        authority.admit(&id)?;
        Ok(id)
    }
}

/// Say in words what certificate files hold
///
/// Reads certificates, chains and bundles in PEM, a certificate in DER, and SPIFFE bundles in
/// JSON. Private keys are never shown.
#[derive(Args, Debug)]
pub struct Inspect {
    /// Files in PEM, DER or JSON
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

impl Inspect {
    /// Says what is in the files, one after the other.
    ///
    /// # Errors
    ///
    /// At the first that cannot be read or holds no certificate.
    pub fn run(&self, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
        for path in &self.files {
            let found = inspect::describe(&read_file(path, BYTES_MAX)?, now)
                .map_err(|reason| Error::Inspect(path.clone(), reason))?;
            writeln!(out, "{}{}", path.display(), found.heading)?;
            for (index, part) in found.parts.iter().enumerate() {
                write!(out, "  {}. {part}", index + 1)?;
            }
        }
        Ok(())
    }
}

/// Print the trust bundle: whoever has it can tell this authority's workloads
///
/// Needs no key. Of the folder, only root.crt is read, or what a server says is to be trusted
/// now: two roots while one is replaced.
#[derive(Args, Debug)]
pub struct Bundle {
    /// The authority's folder, made by `init`
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// As it is in ca.crt, or as SPIFFE federates it (JSON)
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Pem)]
    format: Format,
    /// For spiffe: what grows with each change; without it, what the server counts, or the time
    /// in seconds
    #[arg(long, value_name = "NUMBER")]
    sequence: Option<u64>,
    /// For spiffe: how often others are to look for a newer one
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    refresh: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Pem,
    Spiffe,
}

impl Bundle {
    /// Prints the roots of a `served` bundle and its number, where there is one; else root.crt.
    ///
    /// # Errors
    ///
    /// When they cannot be read, are no trust bundle, or are no keys that SPIFFE federates.
    pub fn run(
        &self,
        served: Option<(String, u64)>,
        now: Duration,
        out: &mut dyn Write,
    ) -> Result<(), Error> {
        let path = self.dir.join(ROOT_CERTIFICATE);
        let (roots, counted) = match served {
            Some((roots, sequence)) => (Content::new(roots.into()), sequence),
            None => (read_file(&path, BYTES_MAX)?, now.as_secs()),
        };
        let bundle =
            bundle::Bundle::from_pem(&roots).map_err(|it| Error::Bundle(path.clone(), it))?;
        if let Format::Pem = self.format {
            return Ok(out.write_all(&roots)?);
        }
        let text = jwks::write(bundle.roots(), self.sequence.unwrap_or(counted), self.refresh);
        Ok(out.write_all(text.map_err(|it| Error::Jwks(path, it))?.as_bytes())?)
    }
}
