use super::*;

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
        metrics.service(&service).endpoints(1, 1);
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
    let left = metrics.inner.handles.lock().left;
    let age = metrics.dns_age("orders").unwrap();
    age.set(Duration::from_secs(7));
    assert_eq!(values(&metrics, "remora_dns_age_seconds"), [7]);
    drop(age);
    assert!(values(&metrics, "remora_dns_age_seconds").is_empty());
    assert_eq!(metrics.inner.handles.lock().left, left);
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
