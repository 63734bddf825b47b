//! Told: what a caller learns of its rates, and of why it was not let in.
//!
//! An enforced limit that concerns a request adds a line of `RateLimit-Policy` and one of
//! `RateLimit` to its answer, whoever makes that. `t` is when all of the burst can be had, and
//! of a refusal when one request can: the very time `Retry-After` says.
//!
//! # Sources
//!
//! - RFC 6585, section 4: 429. RFC 9110, section 10.2.3: `Retry-After`, in whole seconds.
//! - draft-ietf-httpapi-ratelimit-headers-10: `RateLimit` and `RateLimit-Policy`.
//!   <https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>
//! - gRFC A6: `grpc-retry-pushback-ms`.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::super::{failure::Failure, headers};
use crate::{policy::workload::RateLimit, resilience::rate::Decision};

/// What is left of a caller's quota.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What a caller's quota is.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What shed a request.
const SHED: HeaderName = HeaderName::from_static("x-shed");

/// Why a request was not let in, and what its caller is told.
#[derive(Debug)]
pub struct Denied {
    /// Why.
    pub failure: Failure,
    pub(super) retry_after: Duration,
    pub(super) told: Vec<Told>,
}

/// A limit, as callers know it.
#[derive(Debug)]
pub(super) struct Quota {
    name: Arc<str>,
    policy: HeaderValue,
}

/// What one caller is told of one limit.
#[derive(Debug)]
pub(super) struct Told {
    policy: HeaderValue,
    state: HeaderValue,
}

impl Quota {
    pub(super) fn new(rule: &RateLimit) -> Self {
        let (name, rate) = (Arc::clone(&rule.name), rule.rate);
        let quota = format!("\"{name}\";q={}", rate.requests);
        let window = rate.per.as_secs();
        // Windows are whole seconds there; one that is not goes unsaid.
        let is_whole = rate.per.subsec_nanos() == 0;
        let policy = value(if is_whole { format!("{quota};w={window}") } else { quota });
        Self { name, policy }
    }

    pub(super) fn told(&self, decision: Decision) -> Told {
        let Decision { allowed, remaining, reset, retry_after } = decision;
        let until = seconds(if allowed { reset } else { retry_after });
        let state = value(format!("\"{}\";r={remaining};t={until}", self.name));
        Told { policy: self.policy.clone(), state }
    }
}

impl Denied {
    /// Tells the caller why, and when to come back.
    pub fn tell(mut self, headers: &mut HeaderMap, grpc: bool) {
        if grpc {
            let wait = self.retry_after.as_nanos().div_ceil(1_000_000);
            headers.insert(headers::GRPC_PUSHBACK, value(wait.to_string()));
        } else {
            headers.insert(header::RETRY_AFTER, seconds(self.retry_after).into());
        }
        if self.failure == Failure::Overloaded {
            headers.insert(SHED, HeaderValue::from_static("concurrency"));
            headers::forbid_retry(headers);
        }
        tell(&mut self.told, headers);
    }
}

pub(super) fn tell(told: &mut Vec<Told>, headers: &mut HeaderMap) {
    for Told { policy, state } in told.drain(..) {
        headers.append(RATE_LIMIT_POLICY, policy);
        headers.append(RATE_LIMIT, state);
    }
}

/// Rounded up: a caller that comes back then does not come too early.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(0 < duration.subsec_nanos())
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
