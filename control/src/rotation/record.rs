//! Record: how far a rotation is, and so what signs and who is trusted: one object.
//!
//! It is written before anything is done, by compare-and-swap, so that a crash resumes where
//! it was and two replicas cannot be at two steps. The next one follows from it by a pure
//! function, [`Record::advance`]: the record, what is known of the sidecars, and the time go in; the
//! record of the next step, or nothing while anybody is behind, comes out. A sidecar counts
//! until the newest certificate it was given ends, whether it is connected or not: it may come
//! back, or still be talking to its peers where control cannot see it.

use std::{collections::BTreeMap, fmt, time::Duration};

use remora::sync::wire::{Bundle, LEFT_OUT, Sidecar, Standing};
use remora_certs::{authority::Authority, duration::span, pem};
use serde::{Deserialize, Serialize};

use crate::store::{Key, Kind};

/// What a rotation is waiting for. Each step is only left when nobody is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Nothing: no rotation is under way. One that an earlier version had but prepared, of which
    /// nobody was told, is begun anew.
    #[serde(alias = "prepare")]
    Rest,
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
    pub(crate) bundle: Bundle,
    /// Number of rotations finished.
    pub(crate) finished: u64,
    /// Whom an operator wants left out while they are not connected: `ID/INSTANCE`, or
    /// `INSTANCE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) without: Vec<String>,
}

/// An issuer, without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issuer {
    /// SHA-256 of its certificate, in lower-case hexadecimal.
    pub(crate) fingerprint: String,
    /// The roots above it, in PEM.
    pub(crate) root: String,
}

/// What handshakes with sidecars showed, by id and instance: nothing wrong, or why not.
pub(crate) type Proofs = BTreeMap<(String, String), Result<(), String>>;

impl fmt::Display for Step {
    /// As the record has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Issuer {
    /// Of an authority.
    pub(crate) fn of(authority: &Authority) -> Self {
        let (fingerprint, root) = (authority.issuer_fingerprint(), authority.root_pem());
        Self { fingerprint: fingerprint.to_owned(), root: root.to_owned() }
    }

    /// Where the issuer's key is kept.
    pub(crate) fn key(&self) -> Key {
        Kind::AUTHORITY.key(self.fingerprint.get(..16).unwrap_or_default())
    }
}

impl Record {
    /// Where the record is kept.
    pub(crate) fn key() -> Key {
        Kind::STATE.key("rotation")
    }

    /// An authority that has never been rotated.
    pub(crate) fn first(signs: Issuer) -> Self {
        let bundle = Bundle { sequence: 1, roots: pem::certificates([&signs.root]) };
        let (step, without) = (Step::Rest, Vec::new());
        Self { step, signs, other: None, bundle, finished: 0, without }
    }

    /// The issuer that everybody is to have a leaf of, where that is to be asked for.
    pub(crate) fn renew(&self) -> Option<&str> {
        let asked = matches!(self.step, Step::Renew | Step::Prove | Step::Retire);
        asked.then_some(self.signs.fingerprint.as_str())
    }

    /// The record of a rotation to `next`; nothing when one is under way.
    pub(crate) fn begun(&self, next: Issuer) -> Option<Self> {
        let begins = self.step == Step::Rest && next.fingerprint != self.signs.fingerprint;
        let begun = self.at(Step::Trust).trusting(&next.root);
        begins.then_some(Self { other: Some(next), ..begun })
    }

    /// The record with the rotation given up; nothing once the new issuer signs, since then
    /// going on is the only way to leave nobody behind.
    pub(crate) fn aborted(&self) -> Option<Self> {
        (self.step == Step::Trust).then(|| self.rested().trusting(""))
    }

    /// The record when the old issuer's key has been removed; nothing before.
    pub(crate) fn cleaned(&self) -> Option<Self> {
        let finished = self.finished + 1;
        (self.step == Step::Clean).then(|| Self { finished, ..self.rested() })
    }

    /// The record of the next step; nothing while somebody is behind, or nothing is to be done.
    pub(super) fn advance(&self, all: &[Sidecar], proofs: &Proofs, now: Duration) -> Option<Self> {
        if all.iter().any(|it| self.standing(it, proofs, now).is_behind()) {
            return None;
        }
        match self.step {
            Step::Rest | Step::Clean => None,
            Step::Trust => {
                let (signs, other) = (self.other.clone()?, Some(self.signs.clone()));
                Some(Self { signs, other, ..self.at(Step::Renew) })
            }
            Step::Renew => Some(self.at(Step::Prove)),
            Step::Prove => Some(self.at(Step::Retire).trusting("")),
            Step::Retire => Some(self.at(Step::Clean)),
        }
    }

    /// Where a sidecar is, and what it lacks for the rotation to go on, in words.
    pub(super) fn standing(&self, it: &Sidecar, proofs: &Proofs, now: Duration) -> Standing {
        let (step, report) = (self.step, &it.report);
        let (id, instance) = (it.id.clone(), report.instance.clone());
        let trusts = self.bundle.sequence <= report.bundle;
        // Up to `trust` it is the old issuer that signs.
        let renewed = step != Step::Trust && report.certificate.issuer == self.signs.fingerprint;
        let proof = proofs.get(&(id.clone(), instance.clone()));
        // It goes on when all are proved, and only the replica that saw the handshakes has them.
        let passed = !matches!(step, Step::Renew | Step::Prove);
        let proved = renewed && (passed || proof == Some(&Ok(())));
        let what = match (step, proof) {
            (Step::Trust, _) if !trusts => "does not say that it trusts the new root",
            (Step::Retire, _) if !trusts => "does not say that it trusts the old root no longer",
            (Step::Renew | Step::Prove, _) if !renewed => "has no certificate of the new issuer",
            (Step::Prove, Some(Err(reason))) => reason,
            (Step::Prove, None) => "no handshake yet",
            _ => "",
        };
        let error = report.last_error.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
        let left = Duration::from_secs(it.not_after).saturating_sub(now);
        let is_left_out = |it: &String| *it == instance || *it == format!("{id}/{instance}");
        let lacks = if what.is_empty() || left.is_zero() {
            String::new()
        } else if it.connected {
            format!("{what}{error}")
        } else if self.without.iter().any(is_left_out) {
            LEFT_OUT.to_owned()
        } else {
            format!("not connected, certificate ends in {}: {what}{error}", span(left))
        };
        Standing { id, instance, trusts, renewed, proved, lacks }
    }

    fn rested(&self) -> Self {
        Self { other: None, without: Vec::new(), ..self.at(Step::Rest) }
    }

    fn at(&self, step: Step) -> Self {
        Self { step, ..self.clone() }
    }

    /// Trusts what signs now, and `other` roots beside it.
    fn trusting(mut self, other: &str) -> Self {
        let roots = pem::certificates([&self.signs.root, other]);
        if self.bundle.roots != roots {
            self.bundle = Bundle { sequence: self.bundle.sequence + 1, roots };
        }
        self
    }
}

#[cfg(test)]
mod tests;
