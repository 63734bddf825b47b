//! The command line: each command one function, each error with what to do next.
//!
//! Exit codes: 0 done, 1 the machine said no (a file that cannot be read or written),
//! 78 the input was wrong (`EX_CONFIG`).

mod ask;
mod error;
mod operator;
mod push;
mod rotate;
mod serve;
mod token;

use std::{ffi::OsString, io::Write, process::ExitCode, time::Duration};

use clap::Parser;
use remora::clock;
use remora_certs::cli as ca;
use tokio::runtime;

use self::error::{EX_CONFIG, Error};
use crate::{issuing, store::Folder};

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

/// Remora's authority: gives workloads the identities that sidecars prove to each other.
#[derive(Parser)]
#[command(name = "remora-control", version, term_width = 100, after_help = EXAMPLES)]
enum Command {
    Init(ca::Init),
    Issue(ca::Issue),
    Inspect(ca::Inspect),
    Bundle(ca::Bundle),
    Serve(serve::Serve),
    #[command(subcommand)]
    Token(token::Token),
    Rotate(rotate::Rotate),
    Status(ask::Status),
    Check(ask::Check),
    Push(push::Push),
    Rollback(ask::Rollback),
}

/// Runs the program: `args` as a process gets them, its own name first.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitCode {
    ExitCode::from(run_at(clock::wall(), args, out, err))
}

/// [`run`] at a given time, to its exit code.
fn run_at(
    now: Duration,
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let result = match Command::try_parse_from(args) {
        Ok(Command::Init(it)) => block_on(init(&it, now, out)),
        Ok(Command::Issue(it)) => block_on(issue(&it, now, out)),
        Ok(Command::Inspect(it)) => it.run(now, out).map_err(Error::from),
        Ok(Command::Bundle(it)) => block_on(bundle(&it, now, out)),
        Ok(Command::Serve(it)) => serve::run(it, out),
        Ok(Command::Token(it)) => block_on(token::run(&it, now, out, err)),
        Ok(Command::Rotate(it)) => block_on(rotate::run(&it, now, out)),
        Ok(Command::Status(it)) => block_on(ask::status(&it, now, out)),
        Ok(Command::Check(it)) => block_on(ask::check(&it, now, out)),
        Ok(Command::Push(it)) => push::run(&it, now, out),
        Ok(Command::Rollback(it)) => block_on(ask::rollback(&it, out)),
        Err(error) => return usage(&error, out, err),
    };
    result.map_or_else(|error| error.tell(err), |()| 0)
}

/// Runs a command that waits, to its end.
fn block_on(command: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// What clap has to say: help that was asked for, or what was wrong with the arguments.
fn usage(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let (to, code): (&mut dyn Write, _) =
        if error.use_stderr() { (err, EX_CONFIG) } else { (out, 0) };
    // Where the stream is gone, the exit code still tells.
    let _told = write!(to, "{}", error.render()).is_ok();
    code
}

async fn init(args: &ca::Init, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    // Where a server has begun to serve, the store says what signs, and whom to trust.
    if issuing::record(&Folder::new(&args.dir)).await?.is_some() {
        return Err(Error::InUse(args.dir.clone()));
    }
    Ok(args.run(now, out)?)
}

async fn issue(args: &ca::Issue, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let signer = issuing::signer(&Folder::new(&args.dir)).await?;
    let signs = signer.map(|(authority, record, _)| (authority, record.bundle.roots));
    Ok(args.run(signs, now, out)?)
}

async fn bundle(args: &ca::Bundle, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let record = issuing::record(&Folder::new(&args.dir)).await?;
    let served = record.map(|(it, _)| (it.bundle.roots, it.bundle.sequence));
    Ok(args.run(served, now, out)?)
}

/// What is of interest to programs.
fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string_pretty(value).map_err(std::io::Error::other)?)
}

#[cfg(test)]
mod tests;
