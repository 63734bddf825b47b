//! Status: which sidecar has what, and since when nobody has heard of it.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use remora::sync::wire::{self, Canary, PolicyStatus, RotationStatus, Sidecar, Sidecars};
use serde::Serialize;

use super::{
    error::Error,
    table::{table, yes},
};
use crate::{
    client::{self, Client, Operator},
    duration::span,
};

/// Say which sidecars there are, and how they do
#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    operator: Operator,
    /// Print all that is known as JSON
    #[arg(long)]
    json: bool,
}

/// All that control knows.
#[derive(Serialize)]
pub(super) struct Everything {
    pub(super) sidecars: Sidecars,
    pub(super) policy: PolicyStatus,
    pub(super) rotation: RotationStatus,
}

impl Everything {
    pub(super) async fn of(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            sidecars: client.get(wire::SIDECARS).await?,
            policy: client.get(wire::POLICY).await?,
            rotation: client.get(wire::ROTATION).await?,
        })
    }
}

pub(super) fn run(args: &Status, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let all = client::block_on(async { Everything::of(&Client::open(&args.operator)?).await })??;
    if args.json {
        writeln!(out, "{}", super::json(&all)?)?;
        return Ok(());
    }
    Ok(print(&all, now, out)?)
}

fn print(all: &Everything, now: Duration, out: &mut dyn Write) -> io::Result<()> {
    let Everything { sidecars, policy, rotation } = all;
    let connected = sidecars.sidecars.iter().filter(|it| it.connected).count();
    writeln!(out, "issuer    {}, bundle {}", short(&sidecars.issuer), sidecars.bundle)?;
    writeln!(out, "policy    {}", in_words(policy))?;
    let step = rotation.step.as_deref().unwrap_or("none under way");
    let error = rotation.error.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
    writeln!(out, "rotation  {step}, {} finished{error}", rotation.finished)?;
    writeln!(out, "sidecars  {}, {connected} connected", sidecars.sidecars.len())?;
    if !sidecars.sidecars.is_empty() {
        writeln!(out)?;
        let names =
            ["ID", "INSTANCE", "CONNECTED", "POLICY", "CERTIFICATE", "ISSUER", "SEEN", "ERROR"];
        let rows: Vec<_> = sidecars.sidecars.iter().map(|it| row(it, now)).collect();
        table(out, names, &rows)?;
    }
    Ok(())
}

fn in_words(policy: &PolicyStatus) -> String {
    let trial = policy.canary.as_ref().map_or_else(String::new, |it| {
        let Canary { generation, percent, accepted, asked } = it;
        format!("; {generation} on trial with {percent} %: {accepted} of {asked} took it")
    });
    let error = policy.error.as_ref().map_or_else(String::new, |it| format!("; {it}"));
    format!("generation {}{trial}{error}", policy.generation)
}

fn row(it: &Sidecar, now: Duration) -> [String; 8] {
    let left = Duration::from_secs(it.report.certificate.not_after).checked_sub(now);
    [
        it.id.clone(),
        it.report.instance.clone(),
        yes(it.connected),
        it.report.policy.accepted.to_string(),
        left.map_or_else(|| "none".to_owned(), span),
        short(&it.report.certificate.issuer),
        format!("{} ago", span(now.saturating_sub(Duration::from_secs(it.seen)))),
        error(it).unwrap_or_default(),
    ]
}

/// What is wrong with it, as it says itself.
pub(super) fn error(it: &Sidecar) -> Option<String> {
    let policy = it.report.policy.error.as_ref();
    let policy = policy.map(|it| format!("policy refused: {it}"));
    policy.or_else(|| it.report.last_error.clone())
}

/// Enough of a fingerprint to tell issuers apart.
fn short(fingerprint: &str) -> String {
    fingerprint.get(..8).unwrap_or("-").to_owned()
}

#[cfg(test)]
pub(super) mod tests;
