//! Config: how a service is looked after.

use std::time::Duration;

use super::super::{admission, balancer, breaker, budget, hedge, outlier};

/// How a service is looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How an endpoint is picked.
    pub balancer: balancer::Config,
    /// When an endpoint, a route or the service is left alone.
    pub breaker: breaker::Config,
    /// What sets an endpoint apart from its peers, and how many may be left out.
    pub outlier: outlier::Config,
    /// What is let through while the service fails as a whole.
    pub admission: admission::Config,
    /// What retries and hedges may cost.
    pub budget: budget::Config,
    /// Whether there are hedges.
    pub hedge: hedge::Config,
    /// How much may be under way at once.
    pub limits: Limits,
}

/// How much may be under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tries at all endpoints together.
    pub requests: u32,
    /// Tries at one endpoint: connections, where a connection carries one request.
    pub per_endpoint: u32,
    /// Requests that wait until there is room.
    pub pending: u32,
    /// How long one waits at most.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // More than a pod can have open with the usual limit of descriptors.
            requests: 10_000,
            // A Service of Kubernetes looks like one endpoint, whatever stands behind it.
            per_endpoint: 10_000,
            pending: 1_024,
            // A queue that is longer than this is an outage told late.
            patience: Duration::from_secs(1),
        }
    }
}
