use super::*;
use crate::resilience::service::State;

#[test]
fn a_page_never_exceeds_the_cap_whatever_names_come() {
    let metrics = Metrics::new();
    let reasons = ["denied", "reset", "internal", "protocol", "no_route"];
    let mut ages = Vec::new();
    for n in 0..500 {
        let (service, route) = (format!("shop/s{n}"), format!("r{n}"));
        for direction in [Direction::Inbound, Direction::Outbound] {
            metrics.route(direction, &service, &route).finished(200, Duration::ZERO);
            metrics.tcp(direction, &service).bytes(Flow::Sent, 1);
            for reason in reasons {
                metrics.local_reply(direction, &service, reason);
            }
        }
        let calls = metrics.service(&service);
        calls.endpoints(1, 1, 1);
        calls.panic_pick();
        calls.hedge(Hedge::Won);
        metrics.concurrency(&service).set(1, 1);
        metrics.would_reject(Direction::Inbound, &service, "overloaded");
        ages.push(metrics.dns_age(&service));
    }
    let lines = samples(&metrics).len();
    assert!((SERIES_MAX - RESERVED..=SERIES_MAX).contains(&lines), "{lines} lines");
}

#[test]
fn what_the_budget_does_not_cover_is_counted_under_other() {
    let metrics = Metrics::new();
    for n in 0..1_000 {
        let route = metrics.route(Direction::Outbound, &format!("s{n}"), "r");
        route.finished(200, Duration::ZERO);
    }
    let mut counted = 0;
    let mut other = 0;
    for line in samples(&metrics).iter().filter(|it| it.contains(r#"code="2xx""#)) {
        let value: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        counted += value;
        other += if line.contains(r#"service="other""#) { value } else { 0 };
    }
    assert_eq!(counted, 1_000);
    assert!((900..1_000).contains(&other), "{other}");
}

#[test]
fn the_same_names_share_one_handle() {
    let metrics = Metrics::new();
    let route = || metrics.route(Direction::Inbound, "a", "r");
    assert!(Arc::ptr_eq(&route(), &route()));
    assert!(Arc::ptr_eq(&metrics.service("a"), &metrics.clone().service("a")));
    let other = |route| metrics.route(Direction::Inbound, OTHER, route);
    assert!(Arc::ptr_eq(&other("x"), &other("y")));
}

#[test]
fn a_connection_is_open_until_its_guard_is_dropped() {
    let metrics = Metrics::new();
    let guards = [(); 2].map(|()| metrics.connection(Direction::Inbound, "h2", true));
    assert_eq!(values(&metrics, "remora_connections"), [2]);
    drop(guards);
    assert_eq!(values(&metrics, "remora_connections"), [0]);
}

#[test]
fn the_age_of_a_name_leaves_the_page_and_gives_its_line_back() {
    let metrics = Metrics::new();
    let before = left(&metrics);
    let age = metrics.dns_age("orders").unwrap();
    age.set(Duration::from_secs(7));
    assert_eq!(values(&metrics, "remora_dns_age_seconds"), [7]);
    drop(age);
    assert!(values(&metrics, "remora_dns_age_seconds").is_empty());
    assert_eq!(left(&metrics), before);
}

#[test]
fn a_state_is_read_when_the_page_is_until_it_is_gone() {
    #[derive(Debug)]
    struct Budget(Arc<ServiceMetrics>, AtomicUsize);
    impl Observed for Budget {
        fn observe(&self) {
            self.0.retry_budget(u32::try_from(self.1.fetch_add(1, Ordering::Relaxed)).unwrap());
        }
    }
    let metrics = Metrics::new();
    let budget = Arc::new(Budget(metrics.service("orders"), AtomicUsize::new(7)));
    metrics.watch(&budget);
    let shown = || values(&metrics, "remora_retry_budget_tokens");
    assert_eq!((shown(), shown()), (vec![7], vec![8]));
    drop(budget);
    assert_eq!(shown(), [8]);
}

#[test]
fn a_service_has_the_lines_it_is_charged_for() {
    let metrics = Metrics::new();
    let (before, lines) = (left(&metrics), samples(&metrics).len());
    let orders = metrics.service("orders");
    assert_eq!(samples(&metrics).len() - lines, ServiceMetrics::LINES);
    assert_eq!(before - left(&metrics), ServiceMetrics::LINES);
    drop(metrics.concurrency("orders"));
    assert_eq!(samples(&metrics).len() - lines, ServiceMetrics::LINES + ConcurrencyMetrics::LINES);
    drop(orders);
}

#[test]
fn what_is_rare_has_no_line_until_it_happens_and_is_charged_for_then() {
    let metrics = Metrics::new();
    let orders = metrics.service("orders");
    assert!(values(&metrics, "remora_hedges_total").is_empty());
    let (before, lines) = (left(&metrics), samples(&metrics).len());
    for _ in 0..2 {
        orders.hedge(Hedge::Sent);
        orders.hedge(Hedge::Won);
        orders.hedge(Hedge::Exhausted);
        orders.retry(RetryVerdict::Free);
        orders.retry(RetryVerdict::Chain);
        orders.retry(RetryVerdict::Forbidden);
        orders.breaker(State::WouldOpen);
        orders.would_retry();
        orders.breaker(State::WouldExhaust);
        orders.breaker(State::WouldHedge);
        orders.panic_pick();
        metrics.would_reject(Direction::Inbound, "orders", "rate_limited");
    }
    assert_eq!(values(&metrics, "remora_hedges_total"), [2, 2, 2]);
    assert_eq!(values(&metrics, "remora_would_reject_total"), [2]);
    assert_eq!(before - left(&metrics), 12);
    assert_eq!(samples(&metrics).len() - lines, 12);
}

#[test]
fn a_change_of_a_breaker_counts_under_its_new_state() {
    let metrics = Metrics::new();
    let orders = metrics.service("orders");
    for to in [State::Open, State::Open, State::Open, State::HalfOpen, State::HalfOpen] {
        orders.breaker(to);
    }
    orders.breaker(State::Closed);
    // In the order of the page: closed half_open open.
    assert_eq!(values(&metrics, "remora_breaker_transitions_total"), [1, 2, 3]);
}

#[test]
fn each_status_counts_in_its_class() {
    let metrics = Metrics::new();
    let route = metrics.route(Direction::Inbound, "a", "r");
    for status in [101, 200, 204, 301, 404, 503, 999, 0] {
        route.finished(status, Duration::ZERO);
    }
    route.cancelled();
    // In the order of the page: 1xx 2xx 3xx 4xx 5xx cancelled.
    assert_eq!(values(&metrics, "remora_requests_total"), [1, 2, 1, 1, 3, 1]);
    assert_eq!(values(&metrics, "remora_request_duration_seconds_count"), [8]);
}

fn left(metrics: &Metrics) -> usize {
    metrics.inner.ledger.left.load(Ordering::Relaxed)
}

fn samples(metrics: &Metrics) -> Vec<String> {
    let mut page = Vec::new();
    metrics.render(&mut page);
    let page = String::from_utf8(page).unwrap();
    page.lines().filter(|it| !it.starts_with('#')).map(str::to_owned).collect()
}

fn values(metrics: &Metrics, family: &str) -> Vec<u64> {
    let lines = samples(metrics);
    let of_family =
        lines.iter().filter(|it| it.strip_prefix(family).is_some_and(|it| it.starts_with('{')));
    of_family.map(|it| it.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}
