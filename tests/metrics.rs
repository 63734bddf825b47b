//! The metrics page, pinned: names, help, labels and buckets are an interface, and a change
//! of one is a breaking change for somebody's dashboard.

use std::time::Duration;

use expect_test::expect_file;
use remora::{
    resilience::service::State,
    telemetry::{
        Direction, Metrics,
        metrics::{Attempt, Flow, Hedge, RetryVerdict},
    },
};

#[test]
fn the_page_is_what_operators_were_promised() {
    let metrics = Metrics::new();
    let route = metrics.route(Direction::Outbound, "shop/orders", "orders/0");
    route.finished(200, Duration::from_millis(3));
    route.finished(503, Duration::from_mins(1));
    route.cancelled();
    let service = metrics.service("shop/orders");
    service.attempt(Attempt::Success);
    service.attempt(Attempt::ConnectFailed);
    service.retry(RetryVerdict::Sent);
    service.plaintext_fallback();
    service.endpoints(2, 1, 1);
    service.retry(RetryVerdict::Free);
    service.retry_budget(9);
    service.hedge(Hedge::Won);
    service.breaker(State::Open);
    service.breaker(State::WouldOpen);
    service.would_retry();
    service.breaker(State::WouldExhaust);
    service.breaker(State::WouldHedge);
    service.panic_pick();
    metrics.would_reject(Direction::Inbound, "shop/orders", "rate_limited");
    metrics.concurrency("shop/web").set(100, 7);
    metrics.local_reply(Direction::Outbound, "shop/orders", "no_endpoints");
    metrics.handshake("client", "ok");
    let _open = metrics.connection(Direction::Inbound, "h2", true);
    metrics.tcp(Direction::Outbound, "shop/redis").bytes(Flow::Sent, 17);
    metrics.certificate_not_after(Duration::from_secs(1_770_091_506));
    metrics.control_connected(true);
    metrics.control_generation(12);
    metrics.certificate_renewal(true);
    metrics.certificate_renewal(false);
    metrics.policy_generation(4);
    metrics.policy_reload(true);
    metrics.policy_reload(false);
    metrics.dns_lookup("answered");
    let age = metrics.dns_age("orders:8080").unwrap();
    age.set(Duration::from_millis(1_500));
    metrics.access_log_dropped();
    metrics.panic();

    let mut page = Vec::new();
    metrics.render(&mut page);
    let page = String::from_utf8(page).unwrap();
    let page: String = page.lines().map(|it| without_chance(it) + "\n").collect();
    expect_file!["metrics.txt"].assert_eq(&page);
}

/// The line without what differs from one process, or one release, to the next.
fn without_chance(line: &str) -> String {
    match line.split_once(' ') {
        Some((name, _)) if name.starts_with("process_") => format!("{name} …"),
        _ => line.replace(env!("CARGO_PKG_VERSION"), "…"),
    }
}
