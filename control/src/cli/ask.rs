//! Ask: what a server tells an operator and does for one: `status`, `check` and `rollback`.

use std::{io::Write, time::Duration};

use clap::Args;
use remora::sync::{wire, words};

use super::{error::Error, operator::Operator};
use crate::duration::parse as duration;

/// Say which sidecars there are, and how they do
#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    operator: Operator,
    /// Print all that is known as JSON
    #[arg(long)]
    json: bool,
}

/// Exit with 1 unless every sidecar is well and certificates last
///
/// Prints a line for each certificate of a sidecar, issuer or root with less life left than
/// --min-life, and for each sidecar that is not connected, refuses the policy, or is behind.
#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    operator: Operator,
    /// What a certificate must have left; sidecars renew theirs with 20 to 40 % left
    #[arg(long, value_name = "LIFE", default_value = "4h", value_parser = duration)]
    min_life: Duration,
}

/// Return to the policy documents of an earlier generation
///
/// They become a new generation, which every sidecar gets, and which stays until the
/// documents that the server follows change. A generation on trial is given up.
#[derive(Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    operator: Operator,
    /// The generation with the documents to return to, one of the last ten; without it, the
    /// one before
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
}

pub(super) async fn status(args: &Status, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let all = args.operator.call(words::Overview::of).await?;
    if args.json {
        return Ok(writeln!(out, "{}", super::json(&all)?)?);
    }
    Ok(write!(out, "{}", all.page(now))?)
}

pub(super) async fn check(args: &Check, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let asked = args.operator.call(async |client| {
        let signers = words::signers(&client.get(wire::BUNDLE).await?, client.issuer());
        Ok((signers, words::Overview::of(client).await?))
    });
    let (signers, all) = asked.await?;
    let found = all.findings(signers, args.min_life, now);
    if found.is_empty() {
        let (count, number) = (all.sidecars.sidecars.len(), all.policy.generation);
        return Ok(writeln!(out, "ok: {count} sidecars, generation {number}")?);
    }
    found.iter().try_for_each(|it| writeln!(out, "{it}"))?;
    Err(Error::Unwell(found.len()))
}

pub(super) async fn rollback(args: &Rollback, out: &mut dyn Write) -> Result<(), Error> {
    let change = wire::PolicyChange { rollback: args.to };
    let asked = args.operator.call(async |it| it.post(wire::POLICY, &change).await);
    let status: wire::PolicyStatus = asked.await?;
    let kept: Vec<_> = status.history.iter().map(ToString::to_string).collect();
    writeln!(out, "every sidecar gets generation {}", status.generation)?;
    Ok(writeln!(out, "  kept: {}", kept.join(", "))?)
}
