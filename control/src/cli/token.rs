//! Token: what lets a workload without a certificate ask for its first one.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use remora_certs::{
    authority::{self, Authority},
    spiffe_id::SpiffeId,
};

use super::{Workload, error::Error};
use crate::{
    client,
    duration::{date, parse as duration, span},
    store::{Folder, Store},
    token,
};

/// Join tokens, by which workloads get their first certificate
#[derive(Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(Create),
}

/// Make a join token for one workload, and print it: it is shown this once
///
/// The token is good for one key. Whoever has it can be the workload, so give it to the
/// sidecar as a file that only it can read (`--control-token FILE`). The server need not
/// run, nor be told.
#[derive(Args)]
struct Create {
    /// The authority's folder, made by `init`
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    workload: Workload,
    /// How long it may be used: 10m, 1h, 7d at the most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

/// The token goes to `out` and nothing else, so that a script can take it.
pub(super) fn run(
    args: &Token,
    now: Duration,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Error> {
    let Command::Create(args) = &args.command;
    if token::LIFE_MAX < args.ttl {
        return Err(Error::Ttl(args.ttl));
    }
    let authority = Authority::open(&args.dir)?;
    let id = args.workload.id(authority.trust_domain())?;
    check(&id, authority.trust_domain())?;
    let store = Store::Folder(Folder::new(&args.dir));
    let made = client::block_on(token::create(&store, &id, args.ttl, now))??;
    writeln!(out, "{}", *made.token)?;
    writeln!(err, "join token {} of `{id}`", made.name)?;
    writeln!(err, "  for {}, until {}", span(args.ttl), date(made.expires))?;
    Ok(())
}

/// Whether the server would take it.
fn check(id: &SpiffeId, trust_domain: &str) -> Result<(), Error> {
    if id.trust_domain() != trust_domain {
        let trust_domain = trust_domain.to_owned();
        let id = id.clone();
        return Err(authority::Error::OtherTrustDomain { id, trust_domain }.into());
    }
    if id.path().is_empty() {
        return Err(authority::Error::NoPath(id.clone()).into());
    }
    if token::is_reserved(id) { Err(Error::Reserved(id.clone())) } else { Ok(()) }
}
