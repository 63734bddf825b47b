//! Simulate: what a chain of services does under load and faults, and under whose rules.
//!
//! A simulation is a sequence of events without a clock, a thread or a socket: callers and
//! servers of a [`Scenario`] send each other requests, and each caller decides by some
//! [`Rules`]. Ours are those of the proxy itself: every caller drives a
//! [`resilience::Service`](crate::resilience::service::Service). Those of the peers are
//! written after their source code.
//!
//! The same seed gives the same events, to the last one: [`Outcome::trace`] is equal. After
//! each event it is checked that our rules keep what they promise ([`Violation`]).
//!
#![doc = include_str!("simulate/mechanisms.md")]

mod audit;
mod chance;
mod ours;
mod peers;
mod rules;
mod server;
mod slab;
mod table;
mod tally;
mod time;
mod trace;
mod world;

use std::time::Instant;

pub use audit::Violation;
pub use chance::Chance;
pub use rules::{Mechanism, Rules, Without};
pub use table::{amplification, table};
pub use tally::{Outcome, Phase};

pub use crate::config::scenario::Scenario;

/// Runs `scenario` under `rules`. All chance comes from `seed`; `origin` is the moment that
/// state machines take for its beginning, and changes nothing.
///
/// # Errors
///
/// What our rules promise and did not keep.
pub fn run(
    scenario: &Scenario,
    rules: Rules,
    seed: u64,
    origin: Instant,
) -> Result<Outcome, Violation> {
    world::World::new(scenario, rules, (origin, seed)).run(rules)
}
