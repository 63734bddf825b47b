//! Rotation: a new issuer, or a new root, takes over while nobody is left behind.
//!
//! Two things hold at every moment, whoever joins, leaves, crashes or is cut off. A leaf of an
//! issuer is handed out only when every sidecar with a valid certificate trusts its root. A
//! root is retired only when no valid certificate of a sidecar is below it. What proves them
//! is what sidecars report, and at last a live handshake with each. One that is gone without a
//! farewell is waited for until its certificate ends, unless an operator leaves it out.
//!
//! ```text
//! rest -> trust -> renew -> prove -> retire -> clean -> rest
//! ```

mod drive;
mod record;

pub(crate) use self::{
    drive::Rotation,
    record::{Issuer, Proofs, Record, Step},
};
