//! Rotation: a new issuer, or a new root, takes over while nobody is left behind.
//!
//! Two things hold at every moment, whoever joins, leaves, crashes or is cut off. A leaf of an
//! issuer is handed out only when every sidecar with a valid certificate trusts its root. A
//! root is retired only when no valid certificate of a sidecar is below it. What proves them
//! is what sidecars report, and at last a live handshake with each.
//!
//! ```text
//! rest -> prepare -> trust -> renew -> prove -> retire -> clean -> rest
//! ```

mod advance;
mod drive;
mod prove;
mod record;

use std::{collections::BTreeMap, time::Duration};

use remora::sync::wire;

use self::advance::standing;
pub(crate) use self::{
    advance::advance,
    drive::{Rotation, next_root_key},
    record::{Issuer, Record, Step},
};

/// What handshakes with sidecars showed, by id and instance: nothing wrong, or why not.
pub(crate) type Proofs = BTreeMap<(String, String), Result<(), String>>;

/// How far it is, and what each sidecar lacks.
pub(crate) fn status(
    record: &Record,
    sidecars: &[wire::Sidecar],
    proofs: &Proofs,
    now: Duration,
) -> wire::RotationStatus {
    wire::RotationStatus {
        step: (record.step != Step::Rest).then(|| record.step.as_str().to_owned()),
        finished: record.finished,
        error: None,
        sidecars: sidecars.iter().map(|it| standing(record, it, proofs, now)).collect(),
    }
}
