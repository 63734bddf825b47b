//! The defaults of resilience: what is tried again, left alone and let through.

use super::{Default, row};
use crate::{
    config::{
        units::written,
        words::{ALGORITHMS, GRPC_CODES, METHODS, MODES, SCOPES, word},
    },
    policy::{HashKey, retry},
    resilience::{
        Mode, admission, balancer, breaker, budget, hedge, limiter, outlier, service::Limits,
    },
};

pub(super) fn load_balancer(config: &balancer::Config, hash: Option<&HashKey>) -> Vec<Default> {
    let balancer::Config { algorithm, slow_start, .. } = config;
    vec![
        row(
            "loadBalancer.algorithm",
            word(&ALGORITHMS, algorithm),
            "of two drawn, the one that costs less in latency and pending requests; per request",
        ),
        row(
            "loadBalancer.slowStart",
            written(*slow_start),
            "an endpoint that is new, or came back, has caches and connections to fill first",
        ),
        row(
            "loadBalancer.hash",
            if hash.is_none() { "none" } else { "set" },
            "no client is tied to an endpoint: the one that dies would take its clients along",
        ),
    ]
}

pub(super) fn retries(policy: &retry::Policy) -> Vec<Default> {
    let codes: Vec<_> = policy.codes.iter().map(u16::to_string).collect();
    let grpc = GRPC_CODES.iter().filter(|(_, bit)| policy.grpc_codes & bit != 0);
    let grpc: Vec<_> = grpc.map(|(name, _)| *name).collect();
    let methods = METHODS.iter().filter(|(_, it)| policy.methods.has(*it));
    let methods: Vec<_> = methods.map(|(name, _)| *name).collect();
    vec![
        row(
            "retries.mode",
            mode(policy.mode),
            "most failures are short; what was never sent is sent again in any mode",
        ),
        row(
            "retries.attempts",
            policy.attempts.to_string(),
            "a third failure in a row, at another endpoint, is the service's",
        ),
        row(
            "retries.codes",
            codes.join(", "),
            "too many now, a gateway, a restart, a timeout: each may pass in a moment",
        ),
        row("retries.grpcCodes", grpc.join(", "), "the one gRPC says may be cured by a retry"),
        row(
            "retries.methods",
            methods.join(", "),
            "what nobody puts an effect into; `PUT` and `DELETE` only if you say so",
        ),
        row(
            "retries.idempotencyKey",
            policy.idempotency_key.to_string(),
            "the header is a promise of the client's; whether it is kept, the service knows",
        ),
        row(
            "retries.backoff.base",
            written(policy.backoff.base),
            "the bound of a random wait, doubled each time: callers do not come back in step",
        ),
        row("retries.backoff.max", written(policy.backoff.max), "who waits longer had better fail"),
        row(
            "retries.perTryTimeout",
            policy.try_timeout.map_or_else(|| "a share".to_owned(), written),
            "of what is left of the request, where it may be tried again; 250 ms at least",
        ),
    ]
}

pub(super) fn extra_load(budget: &budget::Config, hedge: hedge::Config) -> Vec<Default> {
    vec![
        row(
            "retryBudget.mode",
            mode(budget.mode),
            "retries of all routes together, so that an outage is not made worse by its cure",
        ),
        row(
            "retryBudget.ratio",
            percent(budget.percent),
            "of the requests: a service that is down gets about 1.2 times its load, and no storm",
        ),
        row(
            "retryBudget.burst",
            budget.burst.to_string(),
            "a caller of one request a minute may retry too",
        ),
        row("hedge", mode(hedge.mode), "a second request is load that only you can allow"),
    ]
}

pub(super) fn breaker(config: &breaker::Config) -> Vec<Default> {
    let breaker::Config { consecutive_failures, failure_percent, .. } = config;
    vec![
        row("breaker.mode", mode(config.mode), "who keeps failing is left alone"),
        row(
            "breaker.scope",
            word(&SCOPES, &config.scope),
            "the others can answer; a service is never refused for one of its pods",
        ),
        row(
            "breaker.consecutiveFailures",
            consecutive_failures.map_or_else(off, |it| it.to_string()),
            "by chance once in ten million requests at a failure rate of 10 %",
        ),
        row(
            "breaker.failureRatio",
            failure_percent.map_or_else(off, percent),
            "more failures than answers, which no streak has to show",
        ),
        row(
            "breaker.minRequests",
            config.min_requests.to_string(),
            "a share of fewer says nothing",
        ),
        row("breaker.window", written(config.window), "what is older is over"),
        row("breaker.openFor", written(config.open_for), "a process restarts in about as long"),
        row(
            "breaker.maxOpenFor",
            written(config.open_for_max),
            "twice as long each time, but a probe a minute costs nothing",
        ),
        row(
            "breaker.probes",
            config.probes.to_string(),
            "at once, and to succeed for each step of the return",
        ),
        row(
            "breaker.probeTimeout",
            written(config.probe_timeout),
            "a probe that is lost does not keep an endpoint out",
        ),
    ]
}

pub(super) fn outlier(config: &outlier::Config, admission: admission::Config) -> Vec<Default> {
    vec![
        row(
            "outlier.mode",
            mode(config.mode),
            "fewer than half may fail and still be far worse than the others",
        ),
        row(
            "outlier.factor",
            config.factor.to_string(),
            "times the median of the others: half of a pool may be bad and it still tells",
        ),
        row(
            "outlier.margin",
            percent(config.margin_percent),
            "on top, so that one failure among none is no outlier",
        ),
        row(
            "outlier.minRequests",
            config.min_requests.to_string(),
            "a share of fewer says nothing",
        ),
        row(
            "outlier.maxEjected",
            percent(config.max_ejected_percent),
            "the rest could not carry more; one of two may be left out, one of one never",
        ),
        row(
            "admission.mode",
            mode(admission.mode),
            "when the service fails as a whole, about what it can answer is let through",
        ),
    ]
}

pub(super) fn limits(limits: &Limits) -> Vec<Default> {
    vec![
        row(
            "connections.maxRequests",
            limits.requests.to_string(),
            "more than a pod has descriptors for: a bound on memory, not on traffic",
        ),
        row(
            "connections.maxPerEndpoint",
            limits.per_endpoint.to_string(),
            "a Service of Kubernetes looks like one endpoint, whatever stands behind it",
        ),
        row(
            "connections.maxPending",
            limits.pending.to_string(),
            "requests that wait for room; each holds a connection of a client",
        ),
        row(
            "connections.pendingTimeout",
            written(limits.patience),
            "a queue that is longer is an outage told late",
        ),
    ]
}

pub(super) fn concurrency(config: &limiter::Config) -> Vec<Default> {
    vec![
        row(
            "concurrency.mode",
            mode(config.mode),
            "counts what it would refuse, until you have seen that it is right",
        ),
        row("concurrency.initial", config.initial.to_string(), "where the search begins"),
        row("concurrency.min", config.min.to_string(), "a workload always gets some work"),
        row("concurrency.max", config.max.to_string(), "beyond, memory is the limit"),
        row(
            "concurrency.latencyFloor",
            written(config.latency_floor),
            "an answer that is faster is never taken for overload",
        ),
    ]
}

fn mode(mode: Mode) -> &'static str {
    word(&MODES, &mode)
}

fn percent(percent: u32) -> String {
    format!("{percent}%")
}

fn off() -> String {
    "off".to_owned()
}
