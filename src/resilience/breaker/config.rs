//! Settings of a breaker, and why they are what they are.

use std::time::Duration;

use crate::resilience::Mode;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does.
    pub mode: Mode,
    /// What one breaker is for.
    pub scope: Scope,
    /// It opens on this many failures in a row; never for that reason where `None`.
    pub consecutive_failures: Option<u32>,
    /// It opens when more than this share of the requests of a window failed, `1..=100`;
    /// never for that reason where `None`.
    pub failure_percent: Option<u32>,
    /// A share of fewer requests than this says nothing.
    pub min_requests: u32,
    /// The window over which shares are taken.
    pub window: Duration,
    /// How long it stays open the first time; twice as long each time it opens again.
    pub open_for: Duration,
    /// How long it stays open at most.
    pub open_for_max: Duration,
    /// Probes at once, and how many of them have to succeed for each step of the return.
    pub probes: u32,
    /// How long a probe may take until another one is sent.
    pub probe_timeout: Duration,
}

/// What one breaker is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Each endpoint: one that fails is left out, up to the cap of [`outlier`](super::super::outlier).
    #[default]
    Endpoint,
    /// The service: its requests are refused while it fails.
    Service,
    /// Each route of the service.
    Route,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            scope: Scope::Endpoint,
            // By chance once in ten million requests at a failure rate of 10 %.
            consecutive_failures: Some(7),
            failure_percent: Some(50),
            min_requests: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            // One that is well again does not wait longer than a person would.
            open_for_max: Duration::from_secs(30),
            probes: 1,
            probe_timeout: Duration::from_secs(10),
        }
    }
}
