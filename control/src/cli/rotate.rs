//! Rotate: has the server replace the issuer, and watches until it is proved everywhere.
//!
//! What is to sign next is prepared here and put into the store, together with the wish; the
//! server does the rest, whether anybody watches or not.

use std::{fmt::Display, io::Write, time::Duration};

use clap::Args;
use remora::{
    clock,
    sync::wire::{self, RotationStatus},
};
use remora_certs::cli::Next;
use tokio::time;

use super::{error::Error, operator::Operator};
use crate::{
    duration::{date, parse as duration},
    issuing,
    rotation::{Issuer, Record, Step},
    store::{Expected, Store},
};

/// How often to ask how far it is.
const POLL: Duration = Duration::from_millis(500);

/// So many answers in a row that know of no rotation mean that there is none: one replica of
/// control may be a second behind another.
const IDLE_MAX: u32 = 5;

/// Replace the issuer, or the root too, with nobody left behind
///
/// The server goes from step to step only when every sidecar with a valid certificate is
/// ready: it trusts the new root, it has a certificate of the new issuer, a live handshake
/// shows that certificate, it trusts the old root no longer. Then the old issuer's key is
/// removed. One that cannot be reached counts until its certificate ends. What is interrupted
/// goes on: run it again to watch on.
///
/// Certificates made by `issue` are in no list: make them anew while the step is `renew` or
/// `prove`, or they end with the old root.
#[derive(Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    operator: Operator,
    /// Watch until the new certificate is proved everywhere and the old issuer gone; exit with
    /// 1 while anybody is behind at the timeout
    #[arg(long)]
    prove: bool,
    #[command(flatten)]
    next: Next,
    /// Do not wait for this instance while it is not connected: a pod that was killed; may be
    /// repeated, and given for a rotation under way
    #[arg(long, value_name = "[ID/]INSTANCE")]
    without: Vec<String>,
    /// Watch for at most so long; the server goes on
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Give up one under way; possible until the step `renew`, when the new issuer signs
    #[arg(long, conflicts_with_all = ["prove", "root", "root_key", "to", "without"])]
    abort: bool,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Rotate, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let store = args.operator.store().await?;
    let store = store.as_deref().ok_or(Error::NoStore);
    if args.abort {
        return abort(args, store?, out).await;
    }
    // Asked first: without a server, nothing is prepared.
    let before = status(&args.operator).await?;
    let said = match &before.step {
        Some(step) if args.without.is_empty() => under_way(step),
        Some(_) | None => begin(args, store?, now).await?,
    };
    say(out, args.json, &said)?;
    if args.prove {
        return watch(args, &before, out).await;
    }
    say(out, args.json, "the server goes on with it: `rotate --prove` watches")
}

async fn status(operator: &Operator) -> Result<RotationStatus, Error> {
    operator.call(async |it| it.get(wire::ROTATION).await).await
}

fn under_way(step: impl Display) -> String {
    format!("a rotation is under way, at `{step}`")
}

/// Prepares what is to sign next, and asks the server to go over to it.
async fn begin(args: &Rotate, store: &Store, now: Duration) -> Result<String, Error> {
    let signer = issuing::signer(store).await?;
    let (present, mut record, version) = signer.ok_or(issuing::Error::None)?;
    let (key, version) = (Record::key(), Expected::Version(&version));
    if record.step != Step::Rest {
        // The server may go on at any moment, and would be in the way of a needless write.
        if !args.without.is_empty() {
            record.without.extend_from_slice(&args.without);
            store.put_json(&key, &record, version).await?;
        }
        return Ok(under_way(record.step));
    }
    let dir = args.operator.dir.as_deref();
    let next = args.next.make(&present, dir, now)?;
    let issuer = Issuer::of(&next.authority);
    let same = || Error::Same(args.next.to.clone().unwrap_or_default());
    let mut begun = record.begun(issuer.clone()).ok_or_else(same)?;
    begun.without.clone_from(&args.without);
    args.next.keep_root_key(&next, dir)?;
    issuing::keep(store, &next.authority).await?;
    if let Err(error) = store.put_json(&key, &begun, version).await {
        // Another may have begun first.
        issuing::forget(store, dir, &issuer).await?;
        return Err(error.into());
    }
    Ok(format!("prepared a new issuer, until {}", date(next.authority.not_after())))
}

async fn abort(args: &Rotate, store: &Store, out: &mut dyn Write) -> Result<(), Error> {
    let (record, version) = issuing::record(store).await?.ok_or(issuing::Error::None)?;
    let next = record.other.as_ref().ok_or(Error::NoRotation)?;
    let aborted = record.aborted().ok_or(Error::TooFar)?;
    store.put_json(&Record::key(), &aborted, Expected::Version(&version)).await?;
    issuing::forget(store, args.operator.dir.as_deref(), next).await?;
    say(out, false, "the rotation is given up: the present issuer goes on to sign")
}

/// Says how it goes, until it is finished.
async fn watch(args: &Rotate, before: &RotationStatus, out: &mut dyn Write) -> Result<(), Error> {
    let (begun, mut last, mut line) = (clock::now(), before.clone(), String::new());
    // Answers in a row without a rotation, once one was seen.
    let mut idle = before.step.is_some().then_some(0);
    let ended = loop {
        // The first answer came: what is wrong since, such as a server that is away, may pass.
        let asked = status(&args.operator).await;
        let progress = asked.as_ref().map_or_else(ToString::to_string, RotationStatus::words);
        last = asked.unwrap_or(last);
        if before.finished < last.finished {
            break Ok(());
        }
        idle = if last.step.is_some() { Some(0) } else { idle.map(|it| it + 1) };
        if Some(IDLE_MAX) < idle {
            return Err(Error::GivenUp);
        }
        if line != progress {
            say(out, args.json, &progress)?;
            line = progress;
        }
        if args.timeout <= begun.elapsed() {
            let step = last.step.clone().unwrap_or_default();
            break Err(Error::Behind(last.behind(), last.sidecars.len(), step));
        }
        time::sleep(POLL).await;
    };
    if args.json {
        writeln!(out, "{}", super::json(&last)?)?;
    } else {
        write!(out, "{}", last.table())?;
    }
    ended?;
    say(out, args.json, "finished: the old issuer's key is removed")
}

/// Progress is for people, and would be in the way of JSON.
fn say(out: &mut dyn Write, quiet: bool, line: &str) -> Result<(), Error> {
    if !quiet {
        writeln!(out, "{line}")?;
        out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use clap::Parser;
    use remora_certs::authority::{Plan, create};

    use super::*;
    use crate::store::Folder;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        rotate: Rotate,
    }

    #[tokio::test]
    async fn one_under_way_is_written_only_for_whom_to_leave_out() {
        let (dir, now) = (tempfile::tempdir().unwrap(), clock::wall());
        let life = Duration::from_hours(24 * 365);
        let plan = Plan { trust_domain: "td", root_life: life, issuer_life: life };
        let first = create(dir.path(), &plan, now).unwrap();
        let store = Folder::new(dir.path());
        issuing::begin(&store, &first).await.unwrap();
        let rotate = async |arguments: &[&str]| {
            let dir = dir.path().to_str().unwrap();
            let arguments = [&["rotate", "--dir", dir, "--root"][..], arguments].concat();
            begin(&Command::parse_from(arguments).rotate, &store, now).await.unwrap()
        };
        let written = || fs::metadata(dir.path().join("state/state/rotation")).unwrap().ino();
        assert!(rotate(&[]).await.starts_with("prepared a new issuer, until "));
        let before = written();
        assert_eq!(rotate(&[]).await, "a rotation is under way, at `trust`");
        assert_eq!(written(), before);
        rotate(&["--without", "orders-0"]).await;
        assert_ne!(written(), before);
        let (record, _) = issuing::record(&store).await.unwrap().unwrap();
        assert_eq!(record.without, ["orders-0"]);
    }
}
