//! Inspect: a certificate or bundle in words, and what is wrong with it.
//!
//! It reads what an operator is looking at, so it goes on where the sidecar would refuse,
//! and says so.

use std::time::Duration;

use crate::{
    duration::{date, span},
    jwks::{self, Found},
    pem::{self, Block},
    x509::{Facts, id_of},
};

/// What is in a file.
#[derive(Debug)]
pub struct Description {
    /// Of the whole, to follow the file's name; mostly empty.
    pub heading: String,
    /// One text for each certificate, key or other thing in it; at least one.
    pub parts: Vec<String>,
}

/// Why a file cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It begins as PEM.
    #[error("{0}")]
    Pem(pem::Error),
    /// It begins as JSON.
    #[error("{0}")]
    Json(jwks::Error),
    /// It is JSON without a key.
    #[error("a SPIFFE bundle without keys")]
    NoKeys,
    /// Nothing known.
    #[error("holds no certificate: no PEM, DER, or SPIFFE bundle in JSON")]
    Unknown,
}

impl Error {
    /// What is between the file's name and this.
    pub fn joint(&self) -> &'static str {
        match self {
            Self::Pem(_) => ", ",
            Self::Json(_) | Self::NoKeys => ": ",
            Self::Unknown => " ",
        }
    }
}

/// What is in `file`, at `now`.
///
/// # Errors
///
/// When nothing in it is a certificate.
pub fn describe(file: &[u8], now: Duration) -> Result<Description, Error> {
    if file.trim_ascii_start().starts_with(b"{") {
        return bundle(file, now);
    }
    if let Ok(facts) = Facts::of(file) {
        let parts = vec![certificate(&facts, file, now)];
        return Ok(Description { heading: String::new(), parts });
    }
    let blocks = pem::blocks(file).map_err(Error::Pem)?;
    let parts = blocks.iter().map(|block| part(block, now));
    let parts: Vec<_> = parts.collect::<Result<_, _>>().map_err(Error::Pem)?;
    if parts.is_empty() {
        return Err(Error::Unknown);
    }
    Ok(Description { heading: String::new(), parts })
}

fn bundle(file: &[u8], now: Duration) -> Result<Description, Error> {
    let bundle = jwks::read(file).map_err(Error::Json)?;
    if bundle.keys.is_empty() {
        return Err(Error::NoKeys);
    }
    let sequence = bundle.sequence.map(|it| format!(", sequence {it}")).unwrap_or_default();
    let refresh = bundle.refresh.map(|it| format!(", look again every {}", span(it)));
    let heading = format!(": SPIFFE bundle{sequence}{}", refresh.unwrap_or_default());
    let key = |found: &Found| match found {
        Found::Root(der) => any(der, now),
        Found::Other { usage, id } => {
            let id = id.as_deref().unwrap_or("(unnamed)");
            format!("`{}` key `{}`, not read\n", usage.escape_debug(), id.escape_debug())
        }
    };
    Ok(Description { heading, parts: bundle.keys.iter().map(key).collect() })
}

fn part(block: &Block<'_>, now: Duration) -> Result<String, pem::Error> {
    if block.is_private_key() {
        return Ok("private key, not shown\n".to_owned());
    }
    if !block.is_certificate() {
        return Ok(format!("`{}`, not read\n", block.label.escape_debug()));
    }
    Ok(any(&block.certificate()?, now))
}

/// Of a certificate that may be none.
fn any(der: &[u8], now: Duration) -> String {
    match Facts::of(der) {
        Err(error) => format!("{error}\n"),
        Ok(facts) => certificate(&facts, der, now),
    }
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
    let below = match (facts.is_ca, facts.path_len) {
        (false, _) => "nothing".to_owned(),
        (true, Some(0)) => "workloads only".to_owned(),
        (true, Some(1)) => "workloads, and issuers of workloads".to_owned(),
        (true, Some(depth)) => format!("further authorities, too, {depth} deep"),
        (true, None) => "further authorities, too, however deep".to_owned(),
    };
    let or_none = |text: &str| if text.is_empty() { "(none)".to_owned() } else { text.to_owned() };
    let rows = [
        ("valid", format!("{} to {}", date(facts.not_before), date(facts.not_after))),
        ("", validity(facts, now)),
        ("names", or_none(&facts.names.join(", "))),
        ("subject", or_none(&facts.subject)),
        ("signed by", or_none(&facts.issuer)),
        ("may sign", below),
        ("key", facts.key.clone()),
        ("serial", facts.serial.clone()),
        ("sha-256", facts.fingerprint.clone()),
    ];
    // A constraint is rare, and changes what the rest means.
    let limits = (!facts.constraints.is_empty()).then(|| ("limits", facts.constraints.join(", ")));
    let lines = rows.into_iter().chain(limits);
    let lines: Vec<_> = lines.map(|(name, value)| format!("     {name:<10} {value}\n")).collect();
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
