//! A server on real sockets, by real TLS; each promise of it on its own.

mod refusals;
mod streams;
mod world;

use std::time::Duration;

use hyper::StatusCode;
use remora::{
    clock,
    sync::{server, wire},
};
use remora_certs::{authority::Key, csr, x509::Facts};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use self::world::{DAY, Odd, SOON, World, until};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn a_workload_joins_by_a_token_and_renews_by_its_certificate() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    assert_eq!(member.id.as_str(), WEB);
    let left = member.svid.not_after().saturating_sub(clock::wall());
    assert!(DAY < left + Duration::from_mins(1) && left <= DAY, "{left:?}");
    let request = csr::Request::new(&member.id, Key::P256).unwrap();
    let body = json!({"csr": request.pem(), "instance": "web-1"});
    let renewed = world.client(&member).await.sign(None, &body).await.member(&request);
    let serial = |it: &world::Member| Facts::of(&it.svid.chain()[0]).unwrap().serial;
    assert_ne!(serial(&renewed), serial(&member));
    // What was renewed is good for a call.
    assert_eq!(world.client(&renewed).await.get(wire::SIDECARS).await.reason().1, "not_operator");
    let lines = world.audit();
    let proofs: Vec<_> = lines.iter().map(|it| it["proof"].as_str().unwrap()).collect();
    assert_eq!(proofs, ["join_token", "certificate"]);
    for (line, member) in lines.iter().zip([&member, &renewed]) {
        assert_eq!((&line["event"], &line["id"]), (&json!("issued"), &json!(WEB)));
        assert_eq!((&line["instance"], &line["caller"]), (&json!("web-1"), &json!("127.0.0.1")));
        assert_eq!(line["serial"], json!(serial(member)));
        assert_eq!(line["not_after"], json!(member.svid.not_after().as_secs()));
    }
}

#[tokio::test]
async fn anybody_may_read_the_bundle_in_both_forms() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    let bundle = stranger.get(wire::BUNDLE).await.body;
    let roots = bundle["roots"].as_str().unwrap().to_owned();
    let file = std::fs::read_to_string(world.path().join("root.crt")).unwrap();
    assert_eq!((roots.trim(), &bundle["sequence"]), (file.trim(), &json!(1)));
    let spiffe = stranger.get(&format!("{}?format=spiffe", wire::BUNDLE)).await.body;
    assert_eq!(spiffe["spiffe_sequence"], json!(1));
    assert_eq!(spiffe["keys"][0]["use"], json!("x509-svid"));
}

#[tokio::test]
async fn an_operator_sees_what_sidecars_report() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let report = wire::Report {
        instance: "web-1".to_owned(),
        version: "9".to_owned(),
        bundle: 1,
        last_error: Some("so so".to_owned()),
        ..wire::Report::default()
    };
    let body = serde_json::to_string(&report).unwrap();
    let mut client = world.client(&member).await;
    let answer = client.call(hyper::Method::POST, wire::REPORT, &body).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let mut operator = world.client(&world.operator()).await;
    let all: wire::Sidecars =
        serde_json::from_value(operator.get(wire::SIDECARS).await.body).unwrap();
    assert_eq!((all.bundle, all.issuer.len()), (1, 64));
    let [sidecar] = &all.sidecars[..] else { panic!("{all:?}") };
    assert_eq!((sidecar.id.as_str(), sidecar.connected), (WEB, false));
    assert_eq!(sidecar.not_after, member.svid.not_after().as_secs());
    assert_eq!(sidecar.report, report);
    let status = operator.get(wire::ROTATION).await;
    assert_eq!((status.status, &status.body["step"]), (StatusCode::OK, &json!(null)));
    assert_eq!(operator.get(wire::POLICY).await.body["generation"], json!(0));
    let change = operator.call(hyper::Method::POST, wire::POLICY, "{\"rollback\":7}").await;
    assert_eq!(change.reason(), (409, "bad_change"));
}

#[tokio::test]
async fn health_and_metrics_are_on_a_port_of_their_own() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut lines = world.client(&member).await.watch("web-1").await;
    lines.bundle().await;
    assert_eq!(world.page("/health/live").await.0, StatusCode::OK);
    assert_eq!(world.page("/health/ready").await.0, StatusCode::OK);
    assert_eq!(world.page("/other").await.0, StatusCode::NOT_FOUND);
    let page = world.page("/metrics").await.1;
    for line in [
        "remora_control_certificates_total{proof=\"join_token\"} 1",
        "remora_control_requests_total{call=\"certificates\",code=\"200\"} 1",
        "remora_control_messages_total{type=\"bundle\"} 1",
        "remora_control_sidecars{state=\"connected\"} 1",
        "remora_control_sidecars{state=\"away\"} 0",
        "remora_control_bundle_sequence 1",
        "remora_control_leader 1",
        "remora_control_store_failures_total 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0x16, 3, 1, 0xff, 0xff], b"\n"] {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        // Half a record is waited for; the end of it is not.
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The kernel may reset what was not read.
        let _end = timeout(SOON, tcp.read_to_end(&mut answer)).await.unwrap().is_ok();
        assert!(!answer.starts_with(b"HTTP"));
    }
    // A client of another HTTP than it said.
    let mut tls = world.tls(member.config()).await.unwrap();
    tls.write_all(&vec![b'x'; 32 * 1024]).await.unwrap();
    let _end = timeout(SOON, tls.read_to_end(&mut Vec::new())).await.unwrap().is_ok();
    assert_eq!(client.get(wire::BUNDLE).await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let short = Duration::from_millis(100);
    let peers = server::Pace { handshake: short, patience: short };
    let pace = super::Pace { peers, ..super::Pace::DEFAULT };
    let world = World::odd(Odd { pace, ..Odd::default() }).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(timeout(SOON, tcp.read(&mut [0])).await.unwrap().unwrap(), 0);
    let mut tls = Box::pin(world.tls(world.operator().config())).await.unwrap();
    // It may end without a farewell.
    let end = timeout(SOON, tls.read(&mut [0; 100])).await.unwrap();
    assert!(end.map_or(true, |read| read == 0));
    let page = world.page("/metrics").await.1;
    assert!(page.contains("handshakes_total{result=\"timeout\"} 1"), "{page}");
}

#[tokio::test]
async fn nobody_is_forgotten_by_a_crash() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    // Nothing is written on the way out.
    world.run.abort();
    let again = World::on(world.dir, Odd::default()).await;
    let [sidecar] = &again.control.fleet.all(clock::wall())[..] else { panic!() };
    assert_eq!((sidecar.id.as_str(), sidecar.report.instance.as_str()), (WEB, "web-1"));
    assert_eq!(sidecar.not_after, member.svid.not_after().as_secs());
    // And it goes on as if nothing had been.
    again.client(&member).await.watch("web-1").await.bundle().await;
}

#[tokio::test]
async fn leaving_ends_streams_and_says_so() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    world.control.drain.begin();
    assert!(lines.news().await.is_none());
    until("the connection ends", async || client.is_closed()).await;
    timeout(SOON, world.run).await.unwrap().unwrap();
    assert!(TcpStream::connect(world.address).await.is_err());
}
