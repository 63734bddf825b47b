//! Rollback: has the server hand out older policy documents.

use std::io::Write;

use clap::Args;
use remora::sync::wire::{self, PolicyChange, PolicyStatus};

use super::error::Error;
use crate::client::{self, Client, Operator};

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

pub(super) fn run(args: &Rollback, out: &mut dyn Write) -> Result<(), Error> {
    let change = PolicyChange { rollback: args.to };
    let status: PolicyStatus = client::block_on(async {
        Client::open(&args.operator)?.post(wire::POLICY, &change).await
    })??;
    let kept: Vec<_> = status.history.iter().map(ToString::to_string).collect();
    writeln!(out, "every sidecar gets generation {}", status.generation)?;
    writeln!(out, "  kept: {}", kept.join(", "))?;
    Ok(())
}
