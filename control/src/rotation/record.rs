//! Record: how far a rotation is, and so what signs and who is trusted: one object.
//!
//! It is written before anything is done, by compare-and-swap, so that a crash resumes where
//! it was and two replicas cannot be at two steps.

use remora::sync::wire;
use remora_certs::pem;
use serde::{Deserialize, Serialize};

use crate::store::{Key, Kind};

/// What a rotation is waiting for. Each step is only left when nobody is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Nothing: no rotation is under way.
    Rest,
    /// The server, to take up what was prepared.
    Prepare,
    /// Everybody to trust the new root beside the old one.
    Trust,
    /// Everybody to have a leaf of the new issuer, which signs from here on.
    Renew,
    /// A live handshake with everybody to show that leaf.
    Prove,
    /// Everybody to trust the old root no longer.
    Retire,
    /// The old issuer's key to be removed.
    Clean,
}

/// The object `rotation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// How far.
    pub(crate) step: Step,
    /// What signs now.
    pub(crate) signs: Issuer,
    /// What will sign, up to [`Step::Trust`]; what signed before, from [`Step::Renew`] on.
    pub(crate) other: Option<Issuer>,
    /// Whom to trust now.
    pub(crate) bundle: wire::Bundle,
    /// Number of rotations finished.
    pub(crate) finished: u64,
}

/// An issuer, without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issuer {
    /// SHA-256 of its certificate, in lower-case hexadecimal.
    pub(crate) fingerprint: String,
    /// The roots above it, in PEM.
    pub(crate) root: String,
}

impl Step {
    /// As a status has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Prepare => "prepare",
            Self::Trust => "trust",
            Self::Renew => "renew",
            Self::Prove => "prove",
            Self::Retire => "retire",
            Self::Clean => "clean",
        }
    }
}

impl Record {
    /// Where the record is kept.
    pub(crate) fn key() -> Key {
        Kind::State.key("rotation")
    }

    /// An authority that has never been rotated.
    pub(crate) fn first(signs: Issuer) -> Self {
        let bundle = wire::Bundle { sequence: 1, roots: union(&signs.root, "") };
        Self { step: Step::Rest, signs, other: None, bundle, finished: 0 }
    }

    /// The issuer that everybody is to have a leaf of, where that is to be asked for.
    pub(crate) fn renew(&self) -> Option<&str> {
        let asked = matches!(self.step, Step::Renew | Step::Prove | Step::Retire);
        asked.then_some(self.signs.fingerprint.as_str())
    }
}

impl Issuer {
    /// Where the issuer's key is kept.
    pub(crate) fn key(&self) -> Key {
        Kind::Authority.key(self.fingerprint.get(..16).unwrap_or_default())
    }
}

/// The certificates of both, each once, without the text around them.
pub(super) fn union(one: &str, other: &str) -> String {
    let mut all: Vec<String> = Vec::new();
    let blocks = [one, other].map(|it| pem::blocks(it.as_bytes()).unwrap_or_default());
    for block in blocks.iter().flatten().filter(|it| it.is_certificate()) {
        let text = block.to_pem();
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all.concat()
}
