//! The command line: what it prints, and the code it ends with.

use std::process::{Command, Output};

use expect_test::{Expect, expect};

#[test]
fn a_folder_with_three_mistakes_prints_three_positions() {
    check(
        &["check", "tests/config/three"],
        1,
        &expect![[r#"
        tests/config/three/a.yaml:6:15: unknown value `strikt`
        hint: did you mean `strict`?
        tests/config/three/b.yaml:5:3: unknown key `opaquePort` in spec
        hint: did you mean `opaquePorts`?
        tests/config/three/b.yaml:9:18: ServicePolicy `shop/orders` comes twice
        hint: rename or remove one; the first is at tests/config/three/a.yaml:3:18
        3 errors in 2 files
    "#]],
        &expect![[""]],
    );
}

#[test]
fn good_documents_are_counted() {
    check(
        &["check", "examples/policies"],
        0,
        &expect![[r#"
        ok: 13 documents in 7 files
    "#]],
        &expect![[""]],
    );
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    check(
        &["check", "tests/config/absent"],
        1,
        &expect![[r#"
        tests/config/absent: cannot be read: No such file or directory (os error 2)
        hint: name a folder or file that is there
        1 error in 1 file
    "#]],
        &expect![[""]],
    );
}

#[test]
fn the_defaults_have_their_reasons() {
    check(
        &["defaults"],
        0,
        &expect![[r#"
            ServicePolicy: how callers reach a service
              tls.mode                    auto               mutual TLS with every peer that speaks it; the others are counted
              tls.identities              the namespace      any workload of the service's namespace may answer
              timeouts.request            1m                 to the response's head only: a limit on the whole would cut exports and long polls
              timeouts.connect            1s                 inside a cluster a SYN that took longer was lost
              timeouts.idle               5m                 between two frames of a body: longer than any keep-alive in use
              loadBalancer.algorithm      PeakEwma           of two drawn, the one that costs less in latency and pending requests; per request
              loadBalancer.slowStart      10s                an endpoint that is new, or came back, has caches and connections to fill first
              loadBalancer.hash           none               no client is tied to an endpoint: the one that dies would take its clients along
              retries.mode                enforce            most failures are short; what was never sent is sent again in any mode
              retries.attempts            2                  a third failure in a row, at another endpoint, is the service's
              retries.codes               429, 502, 503, 504 too many now, a gateway, a restart, a timeout: each may pass in a moment
              retries.grpcCodes           UNAVAILABLE        the one gRPC says may be cured by a retry
              retries.methods             GET, HEAD, OPTIONS what nobody puts an effect into; `PUT` and `DELETE` only if you say so
              retries.idempotencyKey      false              the header is a promise of the client's; whether it is kept, the service knows
              retries.backoff.base        25ms               the bound of a random wait, doubled each time: callers do not come back in step
              retries.backoff.max         250ms              who waits longer had better fail
              retries.perTryTimeout       a share            of what is left of the request, where it may be tried again; 250 ms at least
              retryBudget.mode            enforce            retries of all routes together, so that an outage is not made worse by its cure
              retryBudget.ratio           20%                of the requests: a service that is down gets about 1.2 times its load, and no storm
              retryBudget.burst           10                 a caller of one request a minute may retry too
              hedge                       off                a second request is load that only you can allow
              breaker.mode                enforce            who keeps failing is left alone
              breaker.scope               Endpoint           the others can answer; a service is never refused for one of its pods
              breaker.consecutiveFailures 7                  by chance once in ten million requests at a failure rate of 10 %
              breaker.failureRatio        50%                more failures than answers, which no streak has to show
              breaker.minRequests         20                 a share of fewer says nothing
              breaker.window              10s                what is older is over
              breaker.openFor             5s                 a process restarts in about as long
              breaker.maxOpenFor          30s                twice as long each time, but a probe a minute costs nothing
              breaker.probes              1                  at once, and to succeed for each step of the return
              breaker.probeTimeout        10s                a probe that is lost does not keep an endpoint out
              outlier.mode                enforce            fewer than half may fail and still be far worse than the others
              outlier.factor              5                  times the median of the others: half of a pool may be bad and it still tells
              outlier.margin              10%                on top, so that one failure among none is no outlier
              outlier.minRequests         20                 a share of fewer says nothing
              outlier.maxEjected          50%                the rest could not carry more; one of two may be left out, one of one never
              admission.mode              enforce            when the service fails as a whole, about what it can answer is let through
              connections.maxRequests     10000              more than a pod has descriptors for: a bound on memory, not on traffic
              connections.maxPerEndpoint  10000              a Service of Kubernetes looks like one endpoint, whatever stands behind it
              connections.maxPending      1024               requests that wait for room; each holds a connection of a client
              connections.pendingTimeout  1s                 a queue that is longer is an outage told late
              discovery                   the host           the addresses of the name the application asked for

            WorkloadPolicy: what guards a workload
              mtls.mode                   permissive         callers outside the mesh still get in, and are counted
              mtls.ports                  none               every port is like the others
              opaquePorts                 none               the protocol is detected on every port
              timeouts.request            1m                 as for callers: to the response's head
              timeouts.idle               5m                 as for callers: between two frames of a body
              rateLimits                  none               only you know what is too often
              concurrency.mode            observe            counts what it would refuse, until you have seen that it is right
              concurrency.initial         100                where the search begins
              concurrency.min             4                  a workload always gets some work
              concurrency.max             1000               beyond, memory is the limit
              concurrency.latencyFloor    50ms               an answer that is faster is never taken for overload
        "#]],
        &expect![[""]],
    );
}

#[test]
fn settings_that_are_missing_end_with_78() {
    check(
        &["--mode", "explicit"],
        78,
        &expect![[""]],
        &expect![[r#"
            `--identity` (REMORA_IDENTITY): it is missing
            hint: name the folder of tls.crt, tls.key and ca.crt, or `control` to be given them, or `none` to run without mutual TLS
            `--app` (REMORA_APP) is missing, and explicit mode needs it
            hint: name the application: `--app 127.0.0.1:8080`, or set `--inbound off`
            `remora --help` explains every setting
        "#]],
    );
}

#[test]
fn a_variable_is_as_good_as_a_flag_and_the_flag_wins() {
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .env_clear()
        .env("REMORA_GRACE", "soon")
        .env("REMORA_THREADS", "none")
        .env("REMORA_TCP", "1=a:1,2=b")
        .args(["--threads", "65"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    expect![[r#"
        `--identity` (REMORA_IDENTITY): it is missing
        hint: name the folder of tls.crt, tls.key and ca.crt, or `control` to be given them, or `none` to run without mutual TLS
        `--grace` (REMORA_GRACE): `soon` is not a duration
        hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
        `--tcp` (REMORA_TCP): `2=b` is not LOCAL=HOST:PORT
        hint: write `5432=postgres.shop:5432` or `127.0.0.1:5432=10.0.0.7:5432`
        `--threads` (REMORA_THREADS): `65` is not in the range
        hint: write a whole number from 1 to 64
        `--app` (REMORA_APP) is missing, and explicit mode needs it
        hint: name the application: `--app 127.0.0.1:8080`, or set `--inbound off`
        `remora --help` explains every setting
    "#]]
    .assert_eq(&text(&output.stderr));
}

#[test]
fn a_command_that_does_not_exist_ends_with_2() {
    let output = remora(&["chekc"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn help_is_no_error_and_names_every_variable() {
    let output = remora(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    let flags = help.lines().filter(|it| it.trim_start().starts_with("--"));
    // Each setting, but neither --help nor --version, which come with a short flag.
    assert_eq!(flags.count(), help.matches("[env: REMORA_").count());
}

fn check(args: &[&str], code: i32, out: &Expect, err: &Expect) {
    let output = remora(args);
    out.assert_eq(&text(&output.stdout));
    err.assert_eq(&text(&output.stderr));
    assert_eq!(output.status.code(), Some(code));
}

fn remora(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remora")).env_clear().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
