//! Check: whether all is well, for a probe or a pager.

use std::{io::Write, time::Duration};

use clap::Args;
use remora::sync::wire::{self, Sidecar};
use remora_certs::{bundle::Bundle, x509::Facts};

use super::{
    error::Error,
    status::{self, Everything},
};
use crate::{
    client::{self, Client, Operator},
    duration::{parse as duration, span},
};

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

pub(super) fn run(args: &Check, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let (all, bundle, issuer) = client::block_on(async {
        let client = Client::open(&args.operator)?;
        let bundle = client.ask::<wire::Bundle>(wire::BUNDLE).await?;
        let issuer = bundle.chain.get(1).and_then(|it| Facts::of(it).ok());
        Ok::<_, Error>((Everything::of(&client).await?, bundle.body, issuer))
    })??;
    let roots = Bundle::from_pem(bundle.roots.as_bytes()).ok();
    let roots = roots.iter().flat_map(Bundle::roots).filter_map(|it| Facts::of(it).ok());
    let roots = roots.map(|it| (format!("root `{}`", it.subject), it.not_after));
    let issuer = issuer.map(|it| (format!("issuer `{}`", it.subject), it.not_after));
    let found = findings(&all, roots.chain(issuer), args.min_life, now);
    if found.is_empty() {
        let (count, number) = (all.sidecars.sidecars.len(), all.policy.generation);
        writeln!(out, "ok: {count} sidecars, generation {number}")?;
        return Ok(());
    }
    found.iter().try_for_each(|it| writeln!(out, "{it}"))?;
    Err(Error::Unwell(found.len()))
}

/// What is not well, a line each; `signers` are roots and issuers, and when they end.
fn findings(
    all: &Everything,
    signers: impl Iterator<Item = (String, Duration)>,
    min_life: Duration,
    now: Duration,
) -> Vec<String> {
    let name = |it: &Sidecar| format!("{} {}", it.id, it.report.instance);
    let certificate = |it: &Sidecar| {
        let ends = Duration::from_secs(it.report.certificate.not_after);
        (format!("{}: its certificate", name(it)), ends)
    };
    let sidecars = &all.sidecars.sidecars;
    let lives = signers.chain(sidecars.iter().map(certificate));
    let lives = lives.map(|(what, ends)| (what, ends.saturating_sub(now)));
    let short = lives.filter(|(_, left)| *left < min_life);
    let mut found: Vec<_> =
        short.map(|(what, left)| format!("{what} has {} left", span(left))).collect();
    found.extend(all.policy.error.as_ref().map(|it| format!("policy folder refused: {it}")));
    found.extend(all.rotation.error.as_ref().map(|it| format!("rotation: {it}")));
    let wrong = |it| wrong(all, it).map(|wrong| format!("{}: {wrong}", name(it)));
    found.extend(sidecars.iter().filter_map(wrong));
    found
}

/// What is wrong with a sidecar, but for its certificate's life.
fn wrong(all: &Everything, it: &Sidecar) -> Option<String> {
    let (report, accepted) = (&it.report, it.report.policy.accepted);
    let expected = all.policy.generation;
    if !it.connected {
        Some("not connected".to_owned())
    } else if let Some(error) = status::error(it) {
        Some(error)
    } else if accepted < expected {
        Some(format!("has policy {accepted}, not {expected}"))
    } else if report.bundle < all.sidecars.bundle {
        Some(format!("has trust bundle {}, not {}", report.bundle, all.sidecars.bundle))
    } else if report.certificate.issuer != all.sidecars.issuer {
        Some("its certificate is of another issuer".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
