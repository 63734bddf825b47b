//! Token: what lets a workload without a certificate ask for its first one.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Subcommand;
use remora::sync::wire;
use remora_certs::{authority::Authority, cli as ca};

use super::error::Error;
use crate::{
    duration::{date, parse as duration, span},
    store::Folder,
    token,
};

/// Join tokens, by which workloads get their first certificate
#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a join token for one workload, and print it: it is shown this once
    ///
    /// The token is good for one key. Whoever has it can be the workload, so give it to the
    /// sidecar as a file that only it can read (`--control-token FILE`). The server need not
    /// run, nor be told.
    Create {
        /// The authority's folder, made by `init`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[command(flatten)]
        workload: ca::Workload,
        /// How long it may be used: 10m, 1h, 7d at the most
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
    },
}

/// The token goes to `out` and nothing else, so that a script can take it.
pub(super) async fn run(
    Token::Create { dir, workload, ttl }: &Token,
    now: Duration,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Error> {
    if token::LIFE_MAX < *ttl {
        return Err(Error::Ttl(span(*ttl)));
    }
    let id = Authority::open(dir).and_then(|it| workload.id(&it)).map_err(ca::Error::from)?;
    if wire::is_reserved(id.path()) {
        return Err(Error::Reserved(id));
    }
    let (token, name) = token::create(&Folder::new(dir), &id, *ttl, now).await?;
    writeln!(out, "{}", *token)?;
    writeln!(err, "join token {name} of `{id}`")?;
    Ok(writeln!(err, "  for {}, until {}", span(*ttl), date(now + *ttl))?)
}
