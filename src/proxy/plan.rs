//! Plan: how the requests of one rule are treated at one of its backends.
//!
//! Worked out when the policy changes, so that a request finds all of it behind one pointer.

use std::sync::{Arc, LazyLock};

use crate::{
    policy::{
        Rule, ServicePolicy,
        retry::{self, TryTimeout},
        service::Timeouts,
    },
    resilience::{Mode, service::RouteId},
    telemetry::metrics::RouteMetrics,
};

/// The route of a request that no rule is for.
pub const DEFAULT: &str = "default";

/// How the requests of one rule are treated at one of its backends.
#[derive(Debug)]
pub struct Plan {
    /// The rule's name.
    pub route: Arc<str>,
    /// Which of its service's routes it is.
    pub id: RouteId,
    /// Where its requests are counted.
    pub metrics: Arc<RouteMetrics>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Whether the time for a request was set by a rule.
    pub explicit: bool,
    /// How long one try may take.
    pub try_timeout: TryTimeout,
    /// What may be sent again.
    pub retries: retry::Policy,
}

impl Plan {
    /// The plan for what no rule is for.
    pub fn new(policy: &ServicePolicy, metrics: Arc<RouteMetrics>) -> Self {
        let retries = policy.retries.clone();
        Self {
            route: default_route(),
            id: RouteId::default(),
            metrics,
            timeouts: policy.timeouts,
            explicit: false,
            try_timeout: retries.try_limit(),
            retries,
        }
    }

    /// The plan for `rule`, which its service knows as `id`.
    pub fn of_rule(
        rule: &Rule,
        id: RouteId,
        policy: &ServicePolicy,
        metrics: Arc<RouteMetrics>,
    ) -> Self {
        let mut plan = Self::new(policy, metrics);
        plan.route = Arc::clone(&rule.name);
        plan.id = id;
        plan.timeouts.request = rule.request_timeout.unwrap_or(plan.timeouts.request);
        plan.explicit = rule.request_timeout.is_some();
        if let Some(wanted) = &rule.retry {
            let retries = &mut plan.retries;
            retries.attempts = wanted.attempts.unwrap_or(retries.attempts);
            if let Some(codes) = &wanted.codes {
                retries.codes = Arc::clone(codes);
            }
            if let Some(base) = wanted.backoff {
                retries.backoff.base = base;
                retries.backoff.max = retries.backoff.max.max(base * 10);
            }
            if plan.try_timeout == TryTimeout::None && retries.mode != Mode::Off {
                plan.try_timeout = TryTimeout::Share;
            }
        }
        plan.try_timeout = rule.try_timeout.map_or(plan.try_timeout, TryTimeout::At);
        plan
    }
}

/// The name of the default route, shared.
fn default_route() -> Arc<str> {
    static NAME: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT.into());
    Arc::clone(&NAME)
}
