//! Resilience: the decisions that keep a caller served, as pure state.
//!
//! Nothing here does IO, reads a clock, takes a lock or logs. `now` and `rng` are
//! arguments; decisions are returned values.

pub mod balancer;
