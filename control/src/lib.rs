//! Remora's control: identities for workloads, policy for their sidecars.
//!
//! [`cli::run`] is the whole program, so that tests and examples can call it without a
//! process. To read it, begin where it ends:
//!
//! * `store`: what must not be lost, behind compare-and-swap, in a folder or in Kubernetes;
//! * `issuing`: the authority, roots and own certificate of this moment, which `rotation`
//!   moves from step to step;
//! * `publish`: numbered generations of policy, and what each workload gets of one;
//! * `fleet`: the sidecars that live by our certificates, and what they say of themselves;
//! * `serve`: the API over them, and its limits; `token` and `kubernetes` prove who calls;
//! * `cli`: the operator's side.

pub mod cli;
mod fleet;
mod issuing;
mod kubernetes;
mod publish;
mod rotation;
mod serve;
mod store;
mod token;

use remora_certs::duration;
