//! Inspect: a certificate or bundle in words, and what is wrong with it.
//!
//! It reads what an operator is looking at, so it goes on where the sidecar would refuse,
//! and says so.

use std::time::Duration;

use remora_certs::{
    pem::{self, Block},
    x509::{Facts, id_of},
};

use crate::duration::{date, span};

/// What is in `file`, at `now`.
///
/// One text for each block of PEM; none when there is none.
pub(crate) fn describe(file: &[u8], now: Duration) -> Result<Vec<String>, pem::Error> {
    pem::blocks(file)?.iter().map(|block| part(block, now)).collect()
}

fn part(block: &Block<'_>, now: Duration) -> Result<String, pem::Error> {
    if block.is_private_key() {
        return Ok("private key, not shown\n".to_owned());
    }
    if !block.is_certificate() {
        return Ok(format!("`{}`, not read\n", block.label.escape_debug()));
    }
    let der = block.certificate()?;
    Ok(match Facts::of(&der) {
        Err(error) => format!("{error}\n"),
        Ok(facts) => certificate(&facts, &der, now),
    })
}

fn certificate(facts: &Facts, der: &[u8], now: Duration) -> String {
    let identity = id_of(der);
    let role = match (facts.is_ca, facts.subject == facts.issuer) {
        (true, true) => "root".to_owned(),
        (true, false) => "issuer".to_owned(),
        (false, _) => match &identity {
            Ok(id) => format!("workload `{id}`"),
            Err(error) => format!("not a workload: {error}"),
        },
    };
    let below = match facts.path_len {
        Some(0) if facts.is_ca => "workloads only",
        _ if facts.is_ca => "further authorities, too",
        _ => "nothing",
    };
    let or_none = |text: &str| if text.is_empty() { "(none)".to_owned() } else { text.to_owned() };
    let rows = [
        ("valid", format!("{} to {}", date(facts.not_before), date(facts.not_after))),
        ("", validity(facts, now)),
        ("names", or_none(&facts.names.join(", "))),
        ("subject", or_none(&facts.subject)),
        ("signed by", or_none(&facts.issuer)),
        ("may sign", below.to_owned()),
        ("key", facts.key.clone()),
        ("serial", facts.serial.clone()),
    ];
    let lines = rows.map(|(name, value)| format!("     {name:<10} {value}\n"));
    format!("{role}\n{}", lines.concat())
}

fn validity(facts: &Facts, now: Duration) -> String {
    if now < facts.not_before {
        format!("begins in {}", span(facts.not_before.saturating_sub(now)))
    } else if facts.not_after <= now {
        format!("ended {} ago", span(now.saturating_sub(facts.not_after)))
    } else {
        format!("ends in {}", span(facts.not_after.saturating_sub(now)))
    }
}
