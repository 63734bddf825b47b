//! Advance: whether everybody is where the next step needs them, and what that step is.
//!
//! Pure: the record, what is known of the sidecars, and the time go in; the next record, or
//! nothing while anybody is behind, comes out. A sidecar counts until the newest certificate
//! it was given ends, whether it is connected or not: it may come back, or still be talking
//! to its peers where control cannot see it.

use std::time::Duration;

use remora::sync::wire::{self, Sidecar, Standing};

use super::{
    Proofs, Record, Step,
    record::{Issuer, union},
};
use crate::duration::span;

/// The record of the next step; nothing while somebody is behind, or nothing is to be done.
pub(crate) fn advance(
    record: &Record,
    sidecars: &[Sidecar],
    proofs: &Proofs,
    now: Duration,
) -> Option<Record> {
    if sidecars.iter().any(|it| lacks(record, it, proofs, now).is_some()) {
        return None;
    }
    let mut next = record.clone();
    match record.step {
        Step::Rest | Step::Clean => return None,
        Step::Prepare => {
            next.trust(union(&record.bundle.roots, &record.other.as_ref()?.root));
            next.step = Step::Trust;
        }
        Step::Trust => {
            next.other = Some(std::mem::replace(&mut next.signs, next.other.take()?));
            next.step = Step::Renew;
        }
        Step::Renew => next.step = Step::Prove,
        Step::Prove => {
            next.trust(union(&record.signs.root, ""));
            next.step = Step::Retire;
        }
        Step::Retire => next.step = Step::Clean,
    }
    Some(next)
}

impl Record {
    /// The record of a rotation to `next`; nothing when one is under way.
    pub(crate) fn begun(&self, next: Issuer) -> Option<Self> {
        let begins = self.step == Step::Rest && next.fingerprint != self.signs.fingerprint;
        begins.then(|| Self { step: Step::Prepare, other: Some(next), ..self.clone() })
    }

    /// The record with the rotation given up; nothing once the new issuer signs, since then
    /// going on is the only way to leave nobody behind.
    pub(crate) fn aborted(&self) -> Option<Self> {
        let mut next = Self { step: Step::Rest, other: None, ..self.clone() };
        next.trust(union(&self.signs.root, ""));
        matches!(self.step, Step::Prepare | Step::Trust).then_some(next)
    }

    /// The record when the old issuer's key has been removed; nothing before.
    pub(crate) fn cleaned(&self) -> Option<Self> {
        let (step, finished) = (Step::Rest, self.finished + 1);
        let next = || Self { step, other: None, finished, ..self.clone() };
        (self.step == Step::Clean).then(next)
    }

    fn trust(&mut self, roots: String) {
        if self.bundle.roots != roots {
            self.bundle = wire::Bundle { sequence: self.bundle.sequence + 1, roots };
        }
    }
}

/// Where a sidecar is.
pub(super) fn standing(
    record: &Record,
    sidecar: &Sidecar,
    proofs: &Proofs,
    now: Duration,
) -> Standing {
    let it = sidecar;
    let renewed = it.report.certificate.issuer == record.signs.fingerprint;
    // Up to `trust` it is the old issuer that signs.
    let signs_new = !matches!(record.step, Step::Prepare | Step::Trust);
    // It goes on when all are proved, and only the replica that saw the handshakes has them.
    let passed = matches!(record.step, Step::Retire | Step::Clean | Step::Rest);
    let proved = passed || matches!(proof(proofs, it), Some(Ok(())));
    Standing {
        id: it.id.clone(),
        instance: it.report.instance.clone(),
        trusts: record.step != Step::Prepare && record.bundle.sequence <= it.report.bundle,
        renewed: signs_new && renewed,
        proved: signs_new && renewed && proved,
        lacks: lacks(record, it, proofs, now).unwrap_or_default(),
    }
}

/// What keeps the rotation from going on, in words.
fn lacks(record: &Record, it: &Sidecar, proofs: &Proofs, now: Duration) -> Option<String> {
    let left = Duration::from_secs(it.not_after).checked_sub(now).filter(|it| !it.is_zero())?;
    let (report, step) = (&it.report, record.step);
    let trusts = record.bundle.sequence <= report.bundle;
    let renewed = report.certificate.issuer == record.signs.fingerprint;
    let what = match step {
        Step::Rest | Step::Prepare | Step::Clean => return None,
        Step::Trust | Step::Retire if trusts => return None,
        Step::Trust => "does not say that it trusts the new root",
        Step::Retire => "does not say that it trusts the old root no longer",
        Step::Renew if renewed => return None,
        Step::Renew | Step::Prove if !renewed => "has no certificate of the new issuer",
        Step::Renew | Step::Prove => match proof(proofs, it) {
            Some(Ok(())) => return None,
            Some(Err(reason)) => reason,
            None => "no handshake yet",
        },
    };
    let error = report.last_error.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
    Some(if it.connected {
        format!("{what}{error}")
    } else {
        format!("not connected, certificate ends in {}: {what}{error}", span(left))
    })
}

fn proof<'a>(proofs: &'a Proofs, it: &Sidecar) -> Option<&'a Result<(), String>> {
    proofs.get(&(it.id.clone(), it.report.instance.clone()))
}

#[cfg(test)]
mod tests;
