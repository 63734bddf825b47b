//! Remora's control: the authority that gives workloads their identities.
//!
//! [`cli::run`] is the whole program, so that tests and examples can call it without a
//! process. Commands write files and talk to nobody: what a sidecar watches is a folder,
//! and this fills it.

pub mod cli;
mod duration;
mod inspect;
