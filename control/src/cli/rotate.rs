//! Rotate: has the server replace the issuer, and watches until it is proved everywhere.
//!
//! What is to sign next is prepared here and put into the store, together with the wish; the
//! server does the rest, whether anybody watches or not.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Args;
use remora::{
    clock,
    sync::wire::{self, RotationStatus},
};
use remora_certs::{
    authority::{self, Authority, Lives, ROOT_KEY},
    folder::{File, write_over},
};
use tokio::time;

use super::{
    error::Error,
    init::Key,
    table::{table, yes},
};
use crate::{
    client::{self, Client, Operator},
    duration::{date, parse as duration},
    issuing::{self, Issuing},
    rotation::{Issuer, Step, next_root_key},
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
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Rotate {
    #[command(flatten)]
    operator: Operator,
    /// Watch until the new certificate is proved everywhere and the old issuer gone; exit with
    /// 1 while anybody is behind at the timeout
    #[arg(long)]
    prove: bool,
    /// Make a new root, too; its key is in DIR/next-root-*.key, and in DIR/root.key in the end
    #[arg(long, conflicts_with_all = ["root_key", "to"])]
    root: bool,
    /// The key of the present root, in PEM, to sign a new issuer with; without it, DIR/root.key
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    root_key: Option<PathBuf>,
    /// Go over to an authority that exists: a folder made by `init`, which also takes over
    /// issuers of cert-manager and Vault
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
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
    #[arg(long, value_name = "CURVE", value_enum, default_value_t = Key::P256)]
    key: Key,
    /// Watch for at most so long; the server goes on
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Give up one under way; possible until the step `renew`, when the new issuer signs
    #[arg(long, conflicts_with_all = ["prove", "root", "root_key", "to"])]
    abort: bool,
    /// Print what came of it as JSON
    #[arg(long)]
    json: bool,
}

/// Why a rotation was not begun, or has not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("an identity is not enough to begin or to abort a rotation")]
    NoStore,
    #[error("the key of the root is needed, to sign a new issuer with")]
    NoRootKey,
    #[error("the issuer in `{0}` signs already")]
    Same(PathBuf),
    #[error("the new issuer is of another trust domain: `{0}`")]
    OtherTrustDomain(String),
    #[error("the rotation has gone too far to give it up")]
    TooFar,
    #[error("no rotation is under way")]
    None,
    #[error("the rotation was given up meanwhile")]
    GivenUp,
    #[error("{behind} of {all} sidecars are behind, at `{step}`")]
    Behind { behind: usize, all: usize, step: String },
}

impl Failure {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoStore => "name the authority with `--dir` or `--kubernetes`",
            Self::NoRootKey => "name its file with `--root-key`, or make a new root: `--root`",
            Self::Same(_) => "have `init` make another in another folder",
            Self::OtherTrustDomain(_) => "`init --trust-domain` makes one of the same",
            Self::TooFar => "certificates of the new issuer are in use: let it go on",
            Self::None => "`remora-control status` shows what there is",
            Self::GivenUp => "somebody ran `rotate --abort`",
            Self::Behind { .. } => {
                "the server goes on with it: `remora-control rotate --prove` again watches on"
            }
        }
    }
}

pub(super) fn run(args: &Rotate, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    client::block_on(async {
        let client = Client::open(&args.operator)?;
        if args.abort {
            return abort(args, &client, out).await;
        }
        // Asked first: without a server, nothing is prepared.
        let before: RotationStatus = client.get(wire::ROTATION).await?;
        let quiet = args.json;
        if let Some(step) = &before.step {
            say(out, quiet, &under_way(step))?;
        } else {
            let said = begin(args, &client, now).await?;
            say(out, quiet, &said)?;
        }
        if args.prove {
            return watch(args, &client, &before, out).await;
        }
        say(out, quiet, "the server goes on with it: `rotate --prove` watches")
    })?
}

/// Prepares what is to sign next, and asks the server to go over to it.
fn under_way(step: &str) -> String {
    format!("a rotation is under way, at `{step}`")
}

async fn begin(args: &Rotate, client: &Client, now: Duration) -> Result<String, Error> {
    let store = client.store().await?.ok_or(Failure::NoStore)?;
    let present = Issuing::read(&store, now).await?;
    let step = present.record.step;
    if step != Step::Rest {
        // The server has not seen it yet.
        return Ok(under_way(step.as_str()));
    }
    let (next, root_key) = match (&args.to, args.root) {
        (Some(folder), _) => (Authority::open(folder)?, None),
        (None, root) => {
            let own = args.operator.dir.as_ref().map(|it| it.join(ROOT_KEY));
            let own = own.filter(|it| it.exists());
            let given = args.root_key.clone().or(own).filter(|_| !root);
            if given.is_none() && !root {
                return Err(Failure::NoRootKey.into());
            }
            let lives = Lives { root: args.root_life, issuer: args.issuer_life };
            let made =
                authority::next(&present.authority, given.as_deref(), lives, args.key.into(), now)?;
            (made.authority, made.root_key)
        }
    };
    if next.trust_domain() != present.authority.trust_domain() {
        return Err(Failure::OtherTrustDomain(next.trust_domain().to_owned()).into());
    }
    if let Some(key) = root_key {
        let own = args.operator.dir.as_ref();
        let own = own.map(|it| next_root_key(it, next.issuer_fingerprint()));
        // In Kubernetes nobody need keep it: the next rotation makes another root.
        if let Some(path) = args.root_key_out.clone().or(own) {
            let file = File { name: ROOT_KEY, content: key.as_bytes(), secret: true };
            write_over(&path, &file).map_err(authority::Error::Write)?;
        }
    }
    let issuer = issuing::keep(&store, &next).await?;
    let begun = match present.record.begun(issuer.clone()) {
        Some(record) => {
            let expected = Expected::Version(present.version);
            issuing::write(&store, &record, &expected).await.map(drop).map_err(Error::from)
        }
        None => Err(Failure::Same(args.to.clone().unwrap_or_default()).into()),
    };
    if begun.is_err() {
        forget(args, &store, &issuer).await?;
    }
    begun?;
    Ok(format!("prepared a new issuer, until {}", date(next.not_after())))
}

/// Removes the keys of an issuer that no rotation is about: another may have begun first.
async fn forget(args: &Rotate, store: &Store, issuer: &Issuer) -> Result<(), Error> {
    let (record, _) = issuing::record(store).await?.ok_or(issuing::Error::None)?;
    let mut named = record.other.iter().chain([&record.signs]);
    if named.any(|it| it.fingerprint == issuer.fingerprint) {
        return Ok(());
    }
    let _was_there = store.remove(&issuer.key()).await?;
    if let Some(dir) = &args.operator.dir {
        // Where no new root was made, there is none.
        let _removed = std::fs::remove_file(next_root_key(dir, &issuer.fingerprint));
    }
    Ok(())
}

async fn abort(args: &Rotate, client: &Client, out: &mut dyn Write) -> Result<(), Error> {
    let store = client.store().await?.ok_or(Failure::NoStore)?;
    let (record, version) = issuing::record(&store).await?.ok_or(issuing::Error::None)?;
    let next = record.other.as_ref().ok_or(Failure::None)?;
    let aborted = record.aborted().ok_or(Failure::TooFar)?;
    issuing::write(&store, &aborted, &Expected::Version(version)).await?;
    forget(args, &store, next).await?;
    writeln!(out, "the rotation is given up: the present issuer goes on to sign")?;
    Ok(())
}

/// Says how it goes, until it is finished.
async fn watch(
    args: &Rotate,
    client: &Client,
    before: &RotationStatus,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (begun, mut last, mut line) = (clock::now(), before.clone(), String::new());
    let (mut seen, mut idle) = (before.step.is_some(), 0);
    loop {
        let progress = match client.get::<RotationStatus>(wire::ROTATION).await {
            Ok(status) => {
                last = status;
                progress(&last)
            }
            Err(error) if error.may_pass() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if before.finished < last.finished {
            print(&last, args.json, out)?;
            return say(out, args.json, "finished: the old issuer's key is removed");
        }
        seen |= last.step.is_some();
        idle = if last.step.is_none() { idle + 1 } else { 0 };
        if seen && IDLE_MAX < idle {
            return Err(Failure::GivenUp.into());
        }
        if line != progress {
            say(out, args.json, &progress)?;
            line = progress;
        }
        if args.timeout <= clock::now().saturating_duration_since(begun) {
            print(&last, args.json, out)?;
            let behind = last.sidecars.iter().filter(|it| !it.lacks.is_empty()).count();
            let (all, step) = (last.sidecars.len(), last.step.unwrap_or_default());
            return Err(Failure::Behind { behind, all, step }.into());
        }
        time::sleep(POLL).await;
    }
}

fn progress(status: &RotationStatus) -> String {
    let Some(step) = &status.step else { return "waiting for the server".to_owned() };
    let all = status.sidecars.len();
    let ready = status.sidecars.iter().filter(|it| it.lacks.is_empty()).count();
    let error = status.error.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
    format!("{step}: {ready} of {all} sidecars{error}")
}

fn print(status: &RotationStatus, json: bool, out: &mut dyn Write) -> Result<(), Error> {
    if json {
        writeln!(out, "{}", super::json(status)?)?;
        return Ok(());
    }
    let rows = status.sidecars.iter().map(|it| {
        let (id, instance) = (it.id.clone(), it.instance.clone());
        [id, instance, yes(it.trusts), yes(it.renewed), yes(it.proved), it.lacks.clone()]
    });
    let rows: Vec<_> = rows.collect();
    table(out, ["ID", "INSTANCE", "TRUSTS", "RENEWED", "PROVED", "LACKS"], &rows)?;
    Ok(())
}

/// Progress is for people, and would be in the way of JSON.
fn say(out: &mut dyn Write, quiet: bool, line: &str) -> Result<(), Error> {
    if !quiet {
        writeln!(out, "{line}")?;
        out.flush()?;
    }
    Ok(())
}
