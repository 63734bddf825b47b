//! Peers: the rules of other meshes and libraries, to compare ours with.
//!
//! Each does what its source code does, with the defaults of its project and what an
//! operator has to switch on switched on: Linkerd's retries and failure accrual, Istio's
//! outlier detection. Where a project leaves something to its user, the usual is taken:
//! around gobreaker, a loop of three tries.

pub(super) mod gobreaker;
pub(super) mod istio;
pub(super) mod linkerd;
pub(super) mod plain;
