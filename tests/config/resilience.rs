//! What documents say of resilience, and what each mistake about it says.

use std::time::Duration;

use expect_test::expect;
use remora::{
    config::{self, Context},
    endpoint::Zone,
    policy::{
        Algorithm, Discovery, HashKey, ServiceName, ServicePolicy,
        retry::{self, Methods},
        route::RouteRetry,
    },
    resilience::{Mode, admission, backoff, balancer, breaker, budget, hedge, outlier, service},
};

use super::documents::{check, context};

#[test]
fn the_resilience_of_a_service_is_what_its_policy_says() {
    let policy = service_policy(
        "
  retries:
    attempts: 3
    codes: [503, 429]
    grpcCodes: [UNAVAILABLE, ABORTED]
    methods: [GET, PUT]
    idempotencyKey: true
    backoff: {base: 10ms, max: 1s}
    perTryTimeout: 500ms
  retryBudget: {mode: observe, ratio: 5%, burst: 0}
  hedge: auto
  breaker:
    scope: Route
    consecutiveFailures: off
    failureRatio: 25%
    minRequests: 50
    window: 30s
    openFor: 2m
    probes: 3
    probeTimeout: 1s
  outlier: {mode: off, factor: 3, margin: 0%, minRequests: 9, maxEjected: 10%}
  admission: {mode: observe}
  connections: {maxRequests: 100, maxPerEndpoint: 10, maxPending: 0, pendingTimeout: 50ms}
  loadBalancer: {algorithm: ConsistentHash, slowStart: off, hash: {header: X-User}}
",
        None,
    );
    let retries = retry::Policy {
        mode: Mode::Enforce,
        attempts: 3,
        codes: [429, 503].into(),
        grpc_codes: 1 << 14 | 1 << 10,
        methods: Methods::GET.and(Methods::PUT),
        idempotency_key: true,
        backoff: backoff::Config { base: ms(10), max: ms(1_000) },
        try_timeout: Some(ms(500)),
    };
    assert_eq!(policy.retries, retries);
    assert_eq!(policy.hash_key, Some(HashKey::Header("x-user".into())));
    let balancer::Config { algorithm, slow_start, .. } = policy.resilience.balancer;
    assert_eq!((algorithm, slow_start), (Algorithm::ConsistentHash, Duration::ZERO));
    let breaker = breaker::Config {
        mode: Mode::Enforce,
        scope: breaker::Scope::Route,
        consecutive_failures: None,
        failure_percent: Some(25),
        min_requests: 50,
        window: ms(30_000),
        open_for: ms(120_000),
        // Not less than the first time, though the default is.
        open_for_max: ms(120_000),
        probes: 3,
        probe_timeout: ms(1_000),
    };
    let resilience = service::Config {
        balancer: policy.resilience.balancer,
        breaker,
        outlier: outlier::Config {
            mode: Mode::Off,
            factor: 3,
            margin_percent: 0,
            min_requests: 9,
            max_ejected_percent: 10,
        },
        admission: admission::Config { mode: Mode::Observe },
        budget: budget::Config { mode: Mode::Observe, percent: 5, burst: 0 },
        hedge: hedge::Config { mode: Mode::Enforce, percent: 2 },
        limits: service::Limits { requests: 100, per_endpoint: 10, pending: 0, patience: ms(50) },
    };
    assert_eq!(policy.resilience, resilience);
}

#[test]
fn a_section_without_a_mode_is_in_force_and_what_is_left_out_has_its_default() {
    let policy = service_policy(
        "
  retries: {}
  retryBudget: {}
  hedge: {extra: 5%}
  breaker: {}
  outlier: {}
  connections: {}
  loadBalancer: {}
",
        None,
    );
    let default = ServicePolicy::default();
    let hedge = hedge::Config { mode: Mode::Enforce, percent: 5 };
    let resilience = service::Config { hedge, ..default.resilience.clone() };
    assert_eq!(policy, ServicePolicy { resilience, ..default });
    assert_eq!(service_policy("\n  hedge: off\n", None), ServicePolicy::default());
    let backoff = service_policy("\n  retries: {backoff: {base: 1s}}\n", None).retries.backoff;
    // Not less than the first wait, though the default is.
    assert_eq!(backoff, backoff::Config { base: ms(1_000), max: ms(1_000) });
}

#[test]
fn an_endpoint_is_near_in_the_zone_of_the_workload_and_far_in_another() {
    let zones = |here: Option<&str>| {
        let endpoints = "
  discovery:
    endpoints:
    - {address: '10.0.0.1:80', zone: eu-1a}
    - {address: '10.0.0.2:80', zone: eu-1b}
    - {address: '10.0.0.3:80'}
";
        let Discovery::Static(set) = service_policy(endpoints, here).discovery else {
            panic!("endpoints are listed");
        };
        set.endpoints().iter().map(|it| it.zone).collect::<Vec<_>>()
    };
    assert_eq!(zones(Some("eu-1a")), [Zone::Near, Zone::Far, Zone::Unknown]);
    assert_eq!(zones(None), [Zone::Unknown; 3]);
}

#[test]
fn a_rule_says_what_is_different_about_its_retries() {
    let text = b"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules:
  - matches: [{path: {value: /v1}}]
    retry: {codes: [503, 500], attempts: 0, backoff: 50ms}
  - retry: {}
  - matches: [{path: {value: /v2}}]
";
    let loaded = config::load_bytes(text, &context("shop", None)).unwrap();
    let routes = &loaded.snapshot.routes[&ServiceName::new("shop", "orders")];
    let retry = |path| routes.find(path, 80).unwrap().retry.clone();
    let codes = Some([500, 503].into());
    let said = RouteRetry { codes, attempts: Some(0), backoff: Some(ms(50)) };
    assert_eq!(retry("/v1"), Some(said));
    assert_eq!(retry("/v2"), None);
    assert_eq!(retry("/"), Some(RouteRetry::default()));
}

#[test]
fn retries_out_of_their_range_are_refused() {
    check(
        "ranges",
        &expect![[r#"
        tests/config/ranges.yaml:8:11: unknown value `observed`
        hint: did you mean `observe`?
        tests/config/ranges.yaml:9:15: `6` is not in the range
        hint: write a whole number from 0 to 5
        tests/config/ranges.yaml:10:18: `200` is not in the range
        hint: write a whole number from 400 to 599
        tests/config/ranges.yaml:10:23: status `503` comes twice
        hint: remove one
        tests/config/ranges.yaml:11:17: unknown value `UNAVAILABEL`
        hint: did you mean `UNAVAILABLE`?
        tests/config/ranges.yaml:11:30: unknown value `OK`
        hint: one of: CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED
        tests/config/ranges.yaml:12:15: unknown value `get`
        hint: did you mean `GET`?
        tests/config/ranges.yaml:12:20: unknown value `CONNECT`
        hint: one of: GET, HEAD, OPTIONS, PUT, DELETE, POST, PATCH
        tests/config/ranges.yaml:13:21: expected `true` or `false`, found `yes`
        hint: write one of the two
        tests/config/ranges.yaml:14:33: `max` is shorter than `base`
        hint: write at least `100ms`
        tests/config/ranges.yaml:15:20: `perTryTimeout` never fires: the request may take 2s
        hint: choose it well below `timeouts.request`, or leave it out
        tests/config/ranges.yaml:16:24: `120%` is not in the range
        hint: write a percentage from `0%` to `100%`
        tests/config/ranges.yaml:16:37: `1001` is not in the range
        hint: write a whole number from 0 to 1000
        tests/config/ranges.yaml:17:18: `21%` is not in the range
        hint: write a percentage from `1%` to `20%`
        tests/config/ranges.yaml:25:21: `600` is not in the range
        hint: write a whole number from 400 to 599
        tests/config/ranges.yaml:25:37: `10` is not in the range
        hint: write a whole number from 0 to 5
        tests/config/ranges.yaml:25:50: duration `2m` is not in the range
        hint: write one from `1ms` to `1m`
        tests/config/ranges.yaml:25:54: unknown key `codez` in retry
        hint: did you mean `codes`?"#]],
    );
}

#[test]
fn limits_out_of_their_range_are_refused() {
    check(
        "limits",
        &expect![[r#"
            tests/config/limits.yaml:7:26: `0` does not mean off
            hint: write `off`
            tests/config/limits.yaml:8:19: `50` is not a whole percentage
            hint: write a percentage from `1%` to `99%`
            tests/config/limits.yaml:9:18: expected a whole number, found `never`
            hint: write a whole number from 1 to 10000
            tests/config/limits.yaml:10:13: duration `500ms` is not in the range
            hint: write one from `1s` to `10m`
            tests/config/limits.yaml:12:17: `maxOpenFor` is shorter than `openFor`
            hint: write at least `10s`
            tests/config/limits.yaml:13:13: `0` is not in the range
            hint: write a whole number from 1 to 100
            tests/config/limits.yaml:14:19: duration `11m` is not in the range
            hint: write one from `100ms` to `10m`
            tests/config/limits.yaml:15:12: unknown value `Host`
            hint: one of: Endpoint, Service, Route
            tests/config/limits.yaml:16:21: `0` is not in the range
            hint: write a whole number from 1 to 100
            tests/config/limits.yaml:16:32: `2.5%` is not a whole percentage
            hint: write a percentage from `0%` to `100%`
            tests/config/limits.yaml:16:51: `0` is not in the range
            hint: write a whole number from 1 to 10000
            tests/config/limits.yaml:16:66: `0%` is not in the range
            hint: write a percentage from `1%` to `100%`
            tests/config/limits.yaml:17:14: admission has no `mode`
            hint: add `mode: enforce`
            tests/config/limits.yaml:18:30: `0` is not in the range
            hint: write a whole number from 1 to 1000000
            tests/config/limits.yaml:18:49: `-1` is not in the range
            hint: write a whole number from 1 to 1000000
            tests/config/limits.yaml:18:65: expected a whole number, found `many`
            hint: write a whole number from 0 to 1000000
            tests/config/limits.yaml:18:87: duration `0s` is zero
            hint: leave it out to get the default; zero does not mean off
            tests/config/limits.yaml:19:29: `0s` does not mean off
            hint: write `off`
            tests/config/limits.yaml:19:39: nothing is hashed: the algorithm is not `ConsistentHash`
            hint: write `algorithm: ConsistentHash`, or remove `hash`"#]],
    );
}

#[test]
fn a_word_that_means_nothing_in_resilience_is_refused() {
    check(
        "words",
        &expect![[r#"
        tests/config/words.yaml:6:3: unknown key `retires` in spec
        hint: did you mean `retries`?
        tests/config/words.yaml:7:13: unknown key `atempts` in retries
        hint: did you mean `attempts`?
        tests/config/words.yaml:7:25: unknown key `grpcCode` in retries
        hint: did you mean `grpcCodes`?
        tests/config/words.yaml:8:3: unknown key `retrybudget` in spec
        hint: did you mean `retryBudget`?
        tests/config/words.yaml:9:10: unknown value `automatic`
        hint: one of: auto, off
        tests/config/words.yaml:10:13: unknown key `consecutivefailures` in breaker
        hint: did you mean `consecutiveFailures`?
        tests/config/words.yaml:10:37: unknown key `openfor` in breaker
        hint: did you mean `openFor`?
        tests/config/words.yaml:10:50: unknown key `halfOpen` in breaker
        hint: one of: mode, scope, consecutiveFailures, failureRatio, minRequests, window, openFor, maxOpenFor, probes, probeTimeout
        tests/config/words.yaml:11:13: unknown key `maxEjection` in outlier
        hint: did you mean `maxEjected`?
        tests/config/words.yaml:12:17: unknown key `maxRequest` in connections
        hint: did you mean `maxRequests`?
        tests/config/words.yaml:13:17: `ConsistentHash` has nothing to hash
        hint: add `hash: {header: x-user}`, `{cookie: session}` or `{source: true}`
        tests/config/words.yaml:14:58: `eu 1` is not a zone
        hint: write the zone's name, such as `eu-1a`
        tests/config/words.yaml:21:51: hash says more than one thing
        hint: write exactly one of `header`, `cookie`, `source`
        tests/config/words.yaml:28:60: `source: false` hashes nothing
        hint: write `source: true`"#]],
    );
}

/// The policy of a service with these sections, for a workload of this zone.
fn service_policy(sections: &str, zone: Option<&str>) -> ServicePolicy {
    let head = "apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]";
    let context = Context { zone: zone.map(str::to_owned), ..context("shop", None) };
    let loaded = config::load_bytes(format!("{head}{sections}").as_bytes(), &context).unwrap();
    let services = &loaded.snapshot.services;
    services[&ServiceName::new("shop", "orders")].as_ref().clone()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
