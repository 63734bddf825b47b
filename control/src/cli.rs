//! The command line: each command one function, each error with what to do next.
//!
//! Exit codes: 0 done, 1 the machine said no (a file that cannot be read or written),
//! 78 the input was wrong (`EX_CONFIG`).

mod check;
mod error;
mod init;
mod push;
mod rollback;
mod rotate;
mod serve;
mod status;
mod table;
mod token;

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use remora_certs::{
    authority::{self, Authority, Leaf, ROOT_CERTIFICATE},
    bundle, jwks,
    spiffe_id::SpiffeId,
};

use self::error::{EX_CONFIG, Error, tell};
use crate::{
    client,
    duration::{date, parse as duration},
    inspect, issuing,
    store::{Folder, Store},
};

/// A file that is read is at most so large.
const BYTES_MAX: u64 = 1024 * 1024;

/// Remora's authority: gives workloads the identities that sidecars prove to each other.
#[derive(Parser)]
#[command(name = "remora-control", version, term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  remora-control init --dir authority
  remora-control issue --dir authority --namespace shop --service-account orders --out orders
  remora-control inspect orders/tls.crt orders/ca.crt
  remora-control bundle --dir authority --format spiffe
  remora-control serve --dir authority --policy policies
  remora-control token create --dir authority --namespace shop --service-account orders
  remora-control rotate --prove --dir authority --root
  remora-control check --dir authority --min-life 6h
  remora-control rollback --dir authority
  remora-control push --policy policies --to /etc/remora/policy";

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Issue(Issue),
    Inspect(Inspect),
    Bundle(Bundle),
    Serve(serve::Serve),
    Token(token::Token),
    Rotate(rotate::Rotate),
    Status(status::Status),
    Check(check::Check),
    Push(push::Push),
    Rollback(rollback::Rollback),
}

/// Give a workload an identity: a fresh key and a certificate for it
///
/// Writes tls.crt (leaf and issuer), tls.key and ca.crt by one atomic swap, so that a
/// sidecar watching the folder never sees the old and the new mixed. Run it again for the
/// same folder to rotate.
#[derive(Args)]
struct Issue {
    /// The authority's folder, made by `init`
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    workload: Workload,
    /// The folder a sidecar watches, made when absent
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How long the certificate is valid: 90m, 24h, 30d
    #[arg(long, value_name = "LIFE", default_value = "24h", value_parser = duration)]
    life: Duration,
}

/// Which workload: its whole id, or the parts of one.
#[derive(Args)]
struct Workload {
    /// The whole SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
    #[arg(
        long,
        value_name = "ID",
        required_unless_present = "namespace",
        conflicts_with_all = ["namespace", "service_account"],
    )]
    id: Option<String>,
    /// The workload's Kubernetes namespace, instead of --id
    #[arg(long, value_name = "NS", requires = "service_account")]
    namespace: Option<String>,
    /// The workload's service account, instead of --id
    #[arg(long, value_name = "SA", requires = "namespace")]
    service_account: Option<String>,
}

/// Say in words what certificate files hold
///
/// Reads certificates, chains and bundles in PEM, a certificate in DER, and SPIFFE bundles in
/// JSON. Private keys are never shown.
#[derive(Args)]
struct Inspect {
    /// Files in PEM, DER or JSON
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Print the trust bundle: whoever has it can tell this authority's workloads
///
/// Needs no key. Of the folder, only root.crt is read, or what a server says is to be trusted
/// now: two roots while one is replaced.
#[derive(Args)]
struct Bundle {
    /// The authority's folder, made by `init`
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
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

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Pem,
    Spiffe,
}

/// Runs the program: `args` as a process gets them, its own name first.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ExitCode::from(run_at(now, args, out, err))
}

/// [`run`] at a given time, to its exit code.
fn run_at(
    now: Duration,
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let result = match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Init(it) }) => init::run(&it, now, out),
        Ok(Cli { command: Command::Issue(it) }) => issue(&it, now, out),
        Ok(Cli { command: Command::Inspect(it) }) => inspect(&it, now, out),
        Ok(Cli { command: Command::Bundle(it) }) => bundle(&it, now, out),
        Ok(Cli { command: Command::Serve(it) }) => serve::run(it, out),
        Ok(Cli { command: Command::Token(it) }) => token::run(&it, now, out, err),
        Ok(Cli { command: Command::Rotate(it) }) => rotate::run(&it, now, out),
        Ok(Cli { command: Command::Status(it) }) => status::run(&it, now, out),
        Ok(Cli { command: Command::Check(it) }) => check::run(&it, now, out),
        Ok(Cli { command: Command::Push(it) }) => push::run(&it, now, out),
        Ok(Cli { command: Command::Rollback(it) }) => rollback::run(&it, out),
        Err(error) => return usage(&error, out, err),
    };
    let Err(error) = result else { return 0 };
    // Where the error stream is gone, the exit code still tells.
    let _told = tell(&error, err).is_ok();
    error.code()
}

/// What clap has to say: help that was asked for, or what was wrong with the arguments.
fn usage(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let text = error.render();
    let told = if asked { write!(out, "{text}") } else { write!(err, "{text}") };
    // Where the stream is gone, the exit code still tells.
    let _told = told.is_ok();
    if asked { 0 } else { EX_CONFIG }
}

fn issue(args: &Issue, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    // Where a server has begun to serve, the store says what signs, and whom to trust.
    let store = Store::Folder(Folder::new(&args.dir));
    let (authority, roots) = match client::block_on(issuing::signer(&store))?? {
        Some((authority, record, _)) => (authority, Some(record.bundle.roots)),
        None => (Authority::open(&args.dir)?, None),
    };
    let id = args.workload.id(authority.trust_domain())?;
    let leaf = Leaf { id: &id, life: args.life, dns_names: &[], addresses: &[] };
    let mut issued = authority.issue(&leaf, now)?;
    issued.roots = roots.unwrap_or(issued.roots);
    issued.write(&args.out, now).map_err(authority::Error::Write)?;
    writeln!(out, "issued `{id}` until {}", date(issued.not_after))?;
    writeln!(out, "  in `{}`: tls.crt, tls.key, ca.crt", args.out.display())?;
    Ok(())
}

impl Workload {
    fn id(&self, trust_domain: &str) -> Result<SpiffeId, Error> {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let (text, id) = if let Some(text) = &self.id {
            (text.clone(), text.parse())
        } else {
            let (namespace, account) = (part(&self.namespace), part(&self.service_account));
            let text = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
            (text, SpiffeId::workload(trust_domain, &namespace, &account))
        };
        id.map_err(|reason| Error::Id { text, reason })
    }
}

fn inspect(args: &Inspect, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    for path in &args.files {
        let file = read(path)?;
        let found = inspect::describe(&file, now)
            .map_err(|reason| Error::Inspect { path: path.clone(), reason })?;
        writeln!(out, "{}{}", path.display(), found.heading)?;
        for (index, part) in found.parts.iter().enumerate() {
            write!(out, "  {}. {part}", index + 1)?;
        }
    }
    Ok(())
}

fn bundle(args: &Bundle, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let path = args.dir.join(ROOT_CERTIFICATE);
    let store = Store::Folder(Folder::new(&args.dir));
    let (file, sequence) = match client::block_on(issuing::record(&store))?? {
        Some((record, _)) => (record.bundle.roots.into_bytes(), Some(record.bundle.sequence)),
        None => (read(&path)?, None),
    };
    let bundle = bundle::Bundle::from_pem(&file)
        .map_err(|reason| Error::Bundle { path: path.clone(), reason })?;
    match args.format {
        Format::Pem => out.write_all(&file)?,
        Format::Spiffe => {
            let sequence = args.sequence.or(sequence).unwrap_or(now.as_secs());
            let text = jwks::write(bundle.roots(), sequence, args.refresh)
                .map_err(|reason| Error::Jwks { path, reason })?;
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

/// What is of interest to programs.
fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string_pretty(value).map_err(std::io::Error::other)?)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if BYTES_MAX < length {
        return Err(Error::TooLarge(path.to_owned()));
    }
    fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests;
