//! What guards a workload: rates and concurrency.

use std::{path::Path, time::Duration};

use expect_test::expect;
use remora::{
    config::{self, Context},
    policy::{
        PathMatch, WorkloadPolicy,
        workload::{RateKey, RateLimit},
    },
    resilience::{Mode, limiter, rate::Rate},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_rate_limit_is_enforced_with_a_burst_of_its_requests_unless_it_says_otherwise() {
    let workload = workload(
        "rateLimits:
  - {name: per-caller, by: identity, requests: 100, per: 1s, burst: 20}
  - {by: header, header: X-API-Key, path: /v1, requests: 9, per: 1m, mode: observe}
",
    );
    let [per_caller, per_key] = &workload.rate_limits[..] else { panic!("{workload:?}") };
    let expected = RateLimit {
        name: "per-caller".into(),
        mode: Mode::Enforce,
        by: RateKey::Identity,
        path: None,
        rate: Rate { requests: 100, per: SECOND, burst: 20 },
    };
    assert_eq!(*per_caller, expected);
    let expected = RateLimit {
        name: "1".into(),
        mode: Mode::Observe,
        by: RateKey::Header("x-api-key".into()),
        path: Some(PathMatch::Prefix("/v1".to_owned())),
        rate: Rate { requests: 9, per: 60 * SECOND, burst: 9 },
    };
    assert_eq!(*per_key, expected);
}

#[test]
fn concurrency_is_observed_until_a_document_speaks_of_it() {
    assert_eq!(workload("mtls: {}").concurrency.mode, Mode::Observe);
    assert_eq!(workload("concurrency: {}").concurrency.mode, Mode::Enforce);
    let stated =
        workload("concurrency: {mode: off, initial: 20, min: 2, max: 50, latencyFloor: 100ms}");
    let expected = limiter::Config {
        mode: Mode::Off,
        initial: 20,
        min: 2,
        max: 50,
        latency_floor: Duration::from_millis(100),
    };
    assert_eq!(stated.concurrency, expected);
}

#[test]
fn a_bound_that_is_left_out_gives_way_to_one_that_is_stated() {
    let bounds = |text: &str| {
        let limiter::Config { initial, min, max, .. } = workload(text).concurrency;
        (min, initial, max)
    };
    assert_eq!(bounds("concurrency: {max: 2}"), (2, 2, 2));
    assert_eq!(bounds("concurrency: {max: 50}"), (4, 50, 50));
    assert_eq!(bounds("concurrency: {min: 200}"), (200, 200, 1000));
    assert_eq!(bounds("concurrency: {min: 2000}"), (2000, 2000, 2000));
}

#[test]
fn a_guard_that_means_nothing_is_refused() {
    let errors = config::load(Path::new("tests/config/guards.yaml"), &context()).unwrap_err();
    expect![[r#"
        tests/config/guards.yaml:6:39: `0` is not in the range
        hint: write a whole number from 1 to 1000000
        tests/config/guards.yaml:6:47: duration `0s` is zero
        hint: leave it out to get the default; zero does not mean off
        tests/config/guards.yaml:6:58: `100001` is not in the range
        hint: write a whole number from 1 to 100000
        tests/config/guards.yaml:7:5: a rate limit `by: header` has no `header`
        hint: add `header: x-api-key`, the field whose values are told apart
        tests/config/guards.yaml:8:12: `A` is not the name of a rate limit
        hint: use lower-case letters, digits, `-` and `.`
        tests/config/guards.yaml:8:19: unknown value `caller`
        hint: one of: identity, header, all
        tests/config/guards.yaml:8:56: `v1` is not a path
        hint: begin with `/`; no `//`, `/./`, `/../`, `%2f`, `?`, `#` or spaces
        tests/config/guards.yaml:9:23: the header `x-api-key` is not looked at
        hint: write `by: header`, or remove `header`
        tests/config/guards.yaml:9:63: unknown value `on`
        hint: one of: enforce, observe, off
        tests/config/guards.yaml:10:26: `x api key` is not the name of a header
        hint: write a name such as `x-api-key`
        tests/config/guards.yaml:11:5: a rate limit has no `by`
        hint: add `by: identity`
        tests/config/guards.yaml:11:5: a rate limit has no `per`
        hint: add `per: 1s`
        tests/config/guards.yaml:11:16: `1.5` is not in the range
        hint: write a whole number from 1 to 1000000
        tests/config/guards.yaml:12:26: the header `x-remora-peer` is nobody's to set
        hint: write `by: identity` to tell callers apart
        tests/config/guards.yaml:13:23: unknown value `observed`
        hint: did you mean `observe`?
        tests/config/guards.yaml:13:59: `max` 5 is below `min` 10
        hint: the limit moves between the two: make `max` the larger one
        tests/config/guards.yaml:13:76: `50` is not a duration
        hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
        tests/config/guards.yaml:20:15: the list is empty
        hint: add an item, or remove the key
        tests/config/guards.yaml:21:26: `initial` 2000 is not between `min` and `max`
        hint: choose it from 4 to 1000"#]]
    .assert_eq(&errors.to_string());
}

#[test]
fn a_workload_has_sixteen_rate_limits_at_the_most() {
    let limits = "  - {by: all, requests: 1, per: 1s}\n".repeat(17);
    let errors = load(&format!("rateLimits:\n{limits}")).unwrap_err().to_string();
    assert!(errors.contains("a list of 17 items\nhint: the most is 16"), "{errors}");
}

fn workload(spec: &str) -> WorkloadPolicy {
    load(spec).unwrap().snapshot.workload.as_ref().clone()
}

fn load(spec: &str) -> Result<config::Loaded, config::Errors> {
    let text = format!(
        "apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {{name: all}}
spec:
  {spec}"
    );
    config::load_bytes(text.as_bytes(), &context())
}

fn context() -> Context {
    Context { namespace: "shop".to_owned(), service_account: None, zone: None }
}
