//! Config: how endpoints are picked.

use std::time::Duration;

/// How endpoints are picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// By what.
    pub algorithm: Algorithm,
    /// How long an endpoint that was added, or came back, gets less than its share.
    pub slow_start: Duration,
    /// Sets this process apart from others with the same endpoints, for subsets.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        let slow_start = Duration::from_secs(10);
        Self { algorithm: Algorithm::default(), slow_start, seed: 0 }
    }
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Power of two choices over latency and pending requests.
    #[default]
    PeakEwma,
    /// Power of two choices over least pending requests.
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Any of them.
    Random,
    /// The one a key of the request hashes to, or its successors where that is overloaded.
    ConsistentHash,
}
