//! The command line: each command one function, each error with what to do next.
//!
//! Exit codes: 0 done, 1 the machine said no (a file that cannot be read or written),
//! 78 the input was wrong (`EX_CONFIG`).

use std::{
    error::Error as StdError,
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use remora_certs::{
    authority::{
        self, Authority, ISSUER_CERTIFICATE, ISSUER_KEY, Leaf, Plan, ROOT_CERTIFICATE, ROOT_KEY,
    },
    folder, pem,
    spiffe_id::{ParseError, SpiffeId},
};

use crate::{
    duration::{date, parse as duration},
    inspect,
};

/// A file that `inspect` reads is at most so large.
const INSPECT_BYTES_MAX: u64 = 1024 * 1024;

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
  remora-control inspect orders/tls.crt orders/ca.crt";

#[derive(Subcommand)]
enum Command {
    Init(Init),
    Issue(Issue),
    Inspect(Inspect),
}

/// Make a new authority: a root and one issuer under it
///
/// Writes root.crt, root.key, issuer.crt and issuer.key, and never overwrites one. Only
/// root.crt is trusted and only issuer.key signs workloads, so keep root.key elsewhere.
#[derive(Args)]
struct Init {
    /// The folder to write to, made when absent
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain: what every id of this authority begins with
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// How long the root is valid, such as 3650d
    #[arg(long, value_name = "LIFE", default_value = "3650d", value_parser = duration)]
    root_life: Duration,
    /// How long the issuer is valid, such as 365d
    #[arg(long, value_name = "LIFE", default_value = "365d", value_parser = duration)]
    issuer_life: Duration,
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
    /// The folder a sidecar watches, made when absent
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How long the certificate is valid: 90m, 24h, 30d
    #[arg(long, value_name = "LIFE", default_value = "24h", value_parser = duration)]
    life: Duration,
}

/// Say in words what certificate files hold
///
/// Reads certificates, chains and bundles in PEM. Private keys are never shown.
#[derive(Args)]
struct Inspect {
    /// Files in PEM
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Authority(#[from] authority::Error),
    #[error("`{text}` is not a SPIFFE id: {reason}")]
    Id { text: String, reason: ParseError },
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{0}` has more than 1 MiB")]
    TooLarge(PathBuf),
    #[error("`{path}`, {reason}")]
    Pem { path: PathBuf, reason: pem::Error },
    #[error("`{0}` holds nothing in PEM")]
    NoPem(PathBuf),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
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
        Ok(Cli { command: Command::Init(it) }) => init(&it, now, out),
        Ok(Cli { command: Command::Issue(it) }) => issue(&it, now, out),
        Ok(Cli { command: Command::Inspect(it) }) => inspect(&it, now, out),
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

/// The input was wrong: sysexits(3).
const EX_CONFIG: u8 = 78;

fn init(args: &Init, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let Init { dir, trust_domain, root_life, issuer_life } = args;
    let plan = Plan { trust_domain, root_life: *root_life, issuer_life: *issuer_life };
    let authority = authority::create(dir, &plan, now)?;
    let ends = |life| date(now.saturating_add(life));
    writeln!(out, "made the authority of `{}` in `{}`", authority.trust_domain(), dir.display())?;
    writeln!(out, "  {ROOT_CERTIFICATE}, {ROOT_KEY}: the root, until {}", ends(*root_life))?;
    writeln!(
        out,
        "  {ISSUER_CERTIFICATE}, {ISSUER_KEY}: the issuer, until {}",
        ends(*issuer_life)
    )?;
    writeln!(out, "keep `{ROOT_KEY}` elsewhere: it is needed only for the next issuer")?;
    Ok(())
}

fn issue(args: &Issue, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let authority = Authority::open(&args.dir)?;
    let id = asked_id(args, authority.trust_domain())?;
    let leaf = Leaf { id: &id, life: args.life, dns_names: &[], addresses: &[] };
    let issued = authority.issue(&leaf, now)?;
    issued.write(&args.out, now).map_err(authority::Error::Write)?;
    writeln!(out, "issued `{id}` until {}", date(issued.not_after))?;
    writeln!(out, "  in `{}`: tls.crt, tls.key, ca.crt", args.out.display())?;
    Ok(())
}

/// The id that `--id`, or `--namespace` and `--service-account`, ask for.
fn asked_id(args: &Issue, trust_domain: &str) -> Result<SpiffeId, Error> {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let (text, id) = if let Some(text) = &args.id {
        (text.clone(), text.parse())
    } else {
        let (namespace, account) = (part(&args.namespace), part(&args.service_account));
        let text = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
        (text, SpiffeId::workload(trust_domain, &namespace, &account))
    };
    id.map_err(|reason| Error::Id { text, reason })
}

fn inspect(args: &Inspect, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    for path in &args.files {
        let file = read(path)?;
        let parts = inspect::describe(&file, now)
            .map_err(|reason| Error::Pem { path: path.clone(), reason })?;
        if parts.is_empty() {
            return Err(Error::NoPem(path.clone()));
        }
        writeln!(out, "{}", path.display())?;
        for (index, part) in parts.iter().enumerate() {
            write!(out, "  {}. {part}", index + 1)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if INSPECT_BYTES_MAX < length {
        return Err(Error::TooLarge(path.to_owned()));
    }
    fs::read(path).map_err(failed)
}

/// Prints an error with its causes in one line, then what to do.
fn tell(error: &Error, err: &mut dyn Write) -> io::Result<()> {
    write!(err, "error: {error}")?;
    let mut cause = error.source();
    while let Some(it) = cause {
        write!(err, ": {it}")?;
        cause = it.source();
    }
    writeln!(err)?;
    error.hint().map_or(Ok(()), |hint| writeln!(err, "hint: {hint}"))
}

impl Error {
    /// Whether the input or the machine is at fault.
    fn code(&self) -> u8 {
        match self {
            Self::Read { .. }
            | Self::Output(_)
            | Self::Authority(
                authority::Error::Read { .. }
                | authority::Error::Write(folder::Error::Io { .. } | folder::Error::Read { .. })
                | authority::Error::Sign(_)
                | authority::Error::Random,
            ) => 1,
            Self::Authority(_)
            | Self::Id { .. }
            | Self::TooLarge(_)
            | Self::Pem { .. }
            | Self::NoPem(_) => EX_CONFIG,
        }
    }

    /// What to do about it.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Authority(error) => return authority_hint(error),
            Self::Id { .. } => "the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
            Self::Read { .. } => "check the path and who may read it",
            Self::TooLarge(_) | Self::Pem { .. } | Self::NoPem(_) => {
                "expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`"
            }
            Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }
}

fn authority_hint(error: &authority::Error) -> Option<String> {
    use authority::Error as E;
    Some(match error {
        E::TrustDomain { .. } => "such as `cluster.local`".to_owned(),
        E::OtherTrustDomain { trust_domain, .. } => {
            format!("ids of this authority begin with `spiffe://{trust_domain}/`")
        }
        E::NoPath(id) => format!("name a workload: `{id}/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"),
        E::Life(_) => "give a life such as `24h` or `365d`".to_owned(),
        E::LongerThanSigner { left, .. } => {
            format!("at most {}, or make a new authority with `init`", crate::duration::span(*left))
        }
        E::IssuerEnded => "make a new authority with `remora-control init`".to_owned(),
        E::Read { .. } | E::Certificate { .. } | E::NoTrustDomain(_) | E::Key(_) => {
            "--dir takes a folder made by `remora-control init`, with all its files".to_owned()
        }
        E::Write(folder::Error::Exists(_)) => {
            "nothing was overwritten: choose another folder, or move the old files away".to_owned()
        }
        E::Write(folder::Error::NotALink(_)) => {
            "choose an empty folder, or remove the file: links into `..data` replace it".to_owned()
        }
        E::Write(_) => "check the path, the space left and who may write there".to_owned(),
        E::DnsName(_) | E::Sign(_) | E::Random => return None,
    })
}

#[cfg(test)]
mod tests;
