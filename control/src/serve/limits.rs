//! Limits: how often each caller may ask, exactly, by the sidecar's own rate limiter.
//!
//! Before anything is proved the caller is its address; then it is its SPIFFE id, which all
//! pods of a service account share: a whole Deployment may start at once.

use std::{
    hash::RandomState,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use remora::{
    clock,
    resilience::rate::{Buckets, KEYS_MAX, Key, Rate},
};

use super::Reason;

/// What each may ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// TLS connections from one address.
    pub(crate) connections: Rate,
    /// Calls without a client certificate from one address.
    pub(crate) strangers: Rate,
    /// Certificates for one id.
    pub(crate) certificates: Rate,
    /// Other calls of one id.
    pub(crate) calls: Rate,
}

/// What each has asked.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) connections: Limit,
    pub(crate) strangers: Limit,
    pub(crate) certificates: Limit,
    pub(crate) calls: Limit,
}

/// One rate, for each caller on its own.
#[derive(Debug)]
pub(crate) struct Limit {
    secret: RandomState,
    buckets: Mutex<Buckets>,
}

impl Rates {
    /// Enough for 1,000 pods of one service account that start at once, behind one address.
    pub(crate) const DEFAULT: Self = Self {
        connections: rate(500, 1_500),
        strangers: rate(50, 1_000),
        certificates: rate(50, 1_000),
        calls: rate(500, 5_000),
    };
}

const fn rate(requests: u32, burst: u32) -> Rate {
    Rate { requests, per: Duration::from_secs(1), burst }
}

impl Limits {
    pub(crate) fn new(rates: &Rates, now: Instant) -> Self {
        let limit = |rate| {
            let secret = RandomState::new();
            let buckets = Mutex::new(Buckets::new(rate, KEYS_MAX, secret.clone(), now));
            Limit { secret, buckets }
        };
        Self {
            connections: limit(rates.connections),
            strangers: limit(rates.strangers),
            certificates: limit(rates.certificates),
            calls: limit(rates.calls),
        }
    }
}

impl Limit {
    /// Charges `caller` for one more, or says how long to wait.
    pub(crate) fn take(&self, caller: &impl ToString) -> Result<(), Reason> {
        let key = Key::of(&self.secret, caller.to_string().as_bytes());
        let decision = self.buckets.lock().take(key, clock::now());
        if decision.allowed { Ok(()) } else { Err(Reason::RateLimited(decision.retry_after)) }
    }
}
