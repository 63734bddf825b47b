use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use proptest::prelude::*;

use super::*;

#[test]
fn a_line_has_these_fields_and_this_form() {
    let mut line = Vec::new();
    json::write(&entry(), &mut line);
    expect_test::expect![[r#"
        {"time":"2026-02-03T04:05:06.007Z","direction":"outbound","method":"GET","authority":"orders:8080","path":"/v1","protocol":"HTTP/1.1","status":503,"reason":"no_endpoints","service":"shop/orders","route":"default","upstream":"[fd00::1]:8080","attempts":2,"duration_ms":1.234,"peer":"spiffe://cluster.local/ns/shop/sa/web","request_id":"r-1","bytes_in":1,"bytes_out":2,"tls":true}
    "#]]
    .assert_eq(&String::from_utf8(line).unwrap());
}

#[test]
fn each_policy_wants_what_it_says() {
    let log = |policy| AccessLog { policy, queue: None };
    let wanted = |policy| {
        let log = log(policy);
        [
            log.wants(200, None, 0),
            log.wants(200, None, u32::MAX),
            log.wants(503, None, u32::MAX),
            log.wants(429, Some("rate_limited"), u32::MAX),
        ]
    };
    assert_eq!(wanted(Policy::Off), [false, false, false, false]);
    assert_eq!(wanted(Policy::Failures), [false, false, true, true]);
    assert_eq!(wanted(Policy::All), [true, true, true, true]);
    assert_eq!(wanted(Policy::Ratio(1)), [true, false, true, true]);
    assert_eq!(wanted(Policy::Ratio(1_000_000)), [true, true, true, true]);
    assert_eq!(wanted(Policy::Ratio(0)), [false, false, true, true]);
}

#[test]
fn a_policy_is_a_word_or_a_percentage() {
    let parsed = |text: &str| text.parse::<Policy>();
    assert_eq!(parsed("failures"), Ok(Policy::Failures));
    assert_eq!(parsed("5%"), Ok(Policy::Ratio(50_000)));
    assert_eq!(parsed("0.01%"), Ok(Policy::Ratio(100)));
    assert_eq!(parsed("100%"), Ok(Policy::Ratio(1_000_000)));
    for wrong in ["", "5", "%", "101%", "-1%", "1.%", ".5%", "1.00001%", "+1%", "99999999999%"] {
        assert_eq!(parsed(wrong), Err(PolicyError(wrong.into())));
    }
}

#[test]
fn a_reader_that_is_too_slow_costs_lines_and_not_time() {
    let metrics = Metrics::new();
    let (out, gate) = Gate::new();
    let log = AccessLog::new(Policy::All, out, metrics.clone()).unwrap();
    let lines = 5_000;
    for _ in 0..lines {
        log.log(&entry());
    }
    let dropped = dropped(&metrics);
    assert!(0 < dropped && dropped < lines, "{dropped}");
    let reading = thread::spawn(move || gate.iter().flatten().collect::<Vec<u8>>());
    drop(log);
    let written = reading.join().unwrap();
    let written = String::from_utf8(written).unwrap();
    assert_eq!(written.lines().count() as u64, lines - dropped);
}

#[test]
fn a_flush_waits_for_what_was_logged() {
    let (out, gate) = sync_channel(100);
    let log = AccessLog::new(Policy::All, Gate { out }, Metrics::new()).unwrap();
    log.log(&entry());
    log.flush(Duration::from_secs(5));
    assert_eq!(gate.try_recv().unwrap().last(), Some(&b'\n'));
}

#[test]
fn a_flush_gives_up_in_time() {
    let (out, _gate) = Gate::new();
    let log = AccessLog::new(Policy::All, out, Metrics::new()).unwrap();
    log.log(&entry());
    log.flush(Duration::from_millis(1));
}

proptest! {
    /// Whatever the bytes of a request are, its line is one JSON object that says the same.
    #[test]
    fn any_line_parses_to_what_was_logged(
        texts in proptest::array::uniform8(".{0,40}|[\\x00-\\x7f]{0,40}"),
        reason in proptest::option::of(".{0,20}"),
        peer in proptest::option::of(".{0,20}"),
        (status, attempts, bytes_in, bytes_out) in any::<(u16, u32, u64, u64)>(),
        upstream in any::<Option<SocketAddr>>(),
        (micros, seconds) in any::<(u32, u64)>(),
        tls: bool,
    ) {
        let [method, authority, path, protocol, route, service, request_id, _] = &texts;
        let entry = Entry {
            method,
            authority,
            path,
            protocol,
            route,
            service,
            request_id,
            reason: reason.as_deref(),
            peer: peer.as_deref(),
            upstream,
            status,
            attempts,
            bytes_in,
            bytes_out,
            tls,
            duration: Duration::from_micros(micros.into()),
            time: Duration::from_secs(seconds),
            direction: Direction::Inbound,
        };
        let mut line = Vec::new();
        json::write(&entry, &mut line);
        prop_assert_eq!(line.iter().position(|it| *it == b'\n'), Some(line.len() - 1));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let is = |key: &str, text: &str| value[key].as_str() == Some(text);
        prop_assert!(is("method", method) && is("authority", authority) && is("path", path));
        prop_assert!(is("protocol", protocol) && is("route", route) && is("service", service));
        prop_assert!(is("request_id", request_id) && is("direction", "inbound"));
        prop_assert_eq!(value["reason"].as_str(), entry.reason);
        prop_assert_eq!(value["peer"].as_str(), entry.peer);
        let address = upstream.map(|it| it.to_string());
        prop_assert_eq!(value["upstream"].as_str(), address.as_deref());
        prop_assert_eq!(value["status"].as_u64(), Some(u64::from(status)));
        prop_assert_eq!(value["attempts"].as_u64(), Some(u64::from(attempts)));
        prop_assert_eq!(value["bytes_in"].as_u64(), Some(bytes_in));
        prop_assert_eq!(value["bytes_out"].as_u64(), Some(bytes_out));
        prop_assert_eq!(value["tls"].as_bool(), Some(tls));
        let millis = value["duration_ms"].as_f64().unwrap();
        prop_assert!((millis * 1_000.0 - f64::from(micros)).abs() < 0.5);
    }

    /// A string is cut at a character, and a line so has a bound.
    #[test]
    fn long_strings_are_cut(text in ".{0,3000}") {
        let mut line = Vec::new();
        json::write(&Entry { path: &text, ..entry() }, &mut line);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let path = value["path"].as_str().unwrap();
        prop_assert!(text.starts_with(path) && path.len() <= 2_048);
        prop_assert!(path.len() == text.len() || 2_044 < path.len());
    }
}

fn entry() -> Entry<'static> {
    Entry {
        time: Duration::from_millis(1_770_091_506_007),
        direction: Direction::Outbound,
        method: "GET",
        authority: "orders:8080",
        path: "/v1",
        protocol: "HTTP/1.1",
        status: 503,
        reason: Some("no_endpoints"),
        route: "default",
        service: "shop/orders",
        upstream: Some("[fd00::1]:8080".parse().unwrap()),
        attempts: 2,
        duration: Duration::from_micros(1_234),
        peer: Some("spiffe://cluster.local/ns/shop/sa/web"),
        request_id: "r-1",
        bytes_in: 1,
        bytes_out: 2,
        tls: true,
    }
}

/// An output that takes nothing until somebody receives it.
struct Gate {
    out: SyncSender<Vec<u8>>,
}

impl Gate {
    fn new() -> (Self, Receiver<Vec<u8>>) {
        let (out, gate) = sync_channel(0);
        (Self { out }, gate)
    }
}

impl io::Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dropped(metrics: &Metrics) -> u64 {
    let mut page = Vec::new();
    metrics.render(&mut page);
    let page = String::from_utf8(page).unwrap();
    let line = page.lines().find_map(|it| it.strip_prefix("remora_access_log_dropped_total "));
    line.unwrap().parse().unwrap()
}
