//! Failover: what an application sees of endpoints that die, vanish, move and come back.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, Response, Version};
use http_body_util::{BodyExt, Collected, Full};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use remora::{clock, drain};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::Notify,
    time,
};
use tonic::{Code, Request as Call};

use crate::{
    dns::Mood,
    grpc::{self, ping},
    host::{Host, Service},
    http as web,
    load::Load,
    pods::{
        APP, Mesh, ORDERS, ORDERS_LABEL, Pair, SERVICE, Setup, call, eventually, outbound, policy,
    },
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("failover_a_killed_pod_costs_no_idempotent_request", killed),
    ("failover_a_post_is_never_sent_twice", posts),
    ("failover_half_a_response_is_no_response", half),
    ("failover_half_a_response_is_none_through_the_mesh", half_behind_a_sidecar),
    ("failover_a_vanished_host_is_avoided", vanished),
    ("failover_a_refused_connection_is_made_elsewhere", refused),
    ("failover_follows_dns_and_outlives_it", names),
    ("failover_connections_closed_while_idle_cost_no_request", keep_alive),
    ("failover_grpc_callers_get_a_grpc_status", grpc_status),
];

const ATTEMPTS: &str = "remora_attempts_total";
const RETRIES: &str = "remora_retries_total";

fn get(path: &'static str) -> impl Fn(u64) -> Request<web::AnyBody> {
    move |_| web::get(Version::HTTP_11, ORDERS, path)
}

/// A sidecar without an identity on `web`, which asks the name server there.
fn plain(web: &Host) -> Setup {
    Setup::nobody().with("--dns", &web.v4()).with("--access-log", "failures")
}

fn killed() {
    let [web, a, b] = Topology::of(["web", "a", "b"]);
    let (mesh, dns) = (Mesh::new(), web.dns());
    dns.set("orders.shop", &[a.v4(), b.v4()], 1);
    let (at_a, at_b) = (a.http_app(APP), b.http_app(APP));
    let orders = Setup::new(&mesh.issue("orders")).with("--access-log", "failures");
    let (mut first, second) = (orders.start(&a), orders.start(&b));
    let client = Setup::new(&mesh.issue("web"))
        .with("--dns", &web.v4())
        .with("--access-log", "failures")
        .start(&web);
    let load = Load::start(&web, outbound(), 8, get("/slow?ms=2"));
    load.go_on_for(200);
    assert!(0 < at_a.requests() && 0 < at_b.requests());
    first.process.signal(Signal::SIGKILL);
    first.process.wait();
    let before = at_b.requests();
    load.go_on_for(400);
    // Those that were on their way, and one a set-aside.
    let again = |verdict| client.count(RETRIES, &[("verdict", verdict)]);
    assert!(0 < again("sent") + again("free"));
    assert!(at_b.requests() - before <= 500);
    let _again = orders.start(&a);
    // Whatever it cost before, it answers when it is needed.
    second.process.signal(Signal::SIGKILL);
    let before = at_a.requests();
    assert!(eventually(|| 50 < at_a.requests() - before), "nothing goes to a pod that came back");
    load.stop_without_failure();
    assert_eq!(client.count("remora_plaintext_fallbacks_total", &[]), 0);
}

/// How often each request has come, by its id.
type Seen = Arc<Mutex<HashMap<String, u32>>>;

/// Answers after a moment, and remembers who asked.
fn counting_app(host: &Host, port: u16, seen: &Seen) -> Service {
    let seen = Arc::clone(seen);
    host.tcp_server(port, move |stream| {
        let seen = Arc::clone(&seen);
        let answer = service_fn(move |request: Request<Incoming>| {
            let id = request.headers().get("x-id").and_then(|it| it.to_str().ok()).unwrap_or("?");
            *seen.lock().unwrap().entry(id.to_owned()).or_default() += 1;
            async {
                time::interval(Duration::from_millis(5)).tick().await;
                Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from("done")))
            }
        });
        async move {
            // A client that goes away is its own affair.
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            let _ended = served.await.is_ok();
        }
    })
}

fn posts() {
    let [web, a, b] = Topology::of(["web", "a", "b"]);
    let dns = web.dns();
    dns.set("orders.shop", &[a.v4(), b.v4()], 1);
    let seen = Seen::default();
    let mut apps: Vec<_> =
        [&a, &b].map(|it| Some(counting_app(it, SERVICE, &seen))).into_iter().collect();
    let client = plain(&web).start(&web);
    let load = Load::start(&web, outbound(), 8, |number| {
        let mut request = web::post(Version::HTTP_11, ORDERS, "/pay", "one coin");
        request.headers_mut().insert("x-id", HeaderValue::from(number));
        request
    });
    for round in 0..6 {
        load.go_on_for(60);
        // It dies with requests in hand, and comes back.
        let (which, host) = if round % 2 == 0 { (0, &a) } else { (1, &b) };
        drop(apps[which].take());
        load.go_on_for(60);
        apps[which] = Some(counting_app(host, SERVICE, &seen));
    }
    let (sent, failed) = load.stop();
    let seen = seen.lock().unwrap();
    let twice: Vec<_> = seen.iter().filter(|(_, times)| 1 < **times).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Whatever was not answered was in hand when its server died.
    assert!(failed.iter().all(|it| it == "502 reset"), "{failed:?}");
    assert!(failed.len() <= 6 * 8, "{failed:?}");
    assert!(sent - failed.len() as u64 <= seen.len() as u64);
    let given_up = client.count(RETRIES, &[("verdict", "unsafe")]);
    assert_eq!(given_up, failed.len() as u64);
}

/// Answers with `text`, and ends when it is told to.
fn half_an_answer(host: &Host, port: u16, text: &'static str, end: &Arc<Notify>) -> Service {
    let end = Arc::clone(end);
    host.tcp_server(port, move |stream| {
        let end = Arc::clone(&end);
        async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|it| 2 < it) {}
            // A sidecar that waits for who speaks first may have dialled for nothing.
            let asked = line.ends_with("\r\n\r\n");
            if asked && stream.write_all(text.as_bytes()).await.is_ok() {
                end.notified().await;
            }
        }
    })
}

fn half() {
    let [web, orders] = Topology::of(["web", "orders"]);
    let (dns, end) = (web.dns(), Arc::new(Notify::new()));
    dns.set("orders.shop", &[orders.v4()], 1);
    let client = Setup::nobody().with("--dns", &web.v4()).start(&web);
    for (port, text) in (SERVICE..).zip([CHUNKED, COUNTED]) {
        let _server = half_an_answer(&orders, port, text, &end);
        cut_off(&web, port, &end);
    }
    assert!(eventually(|| client.logged(&["\"reason\":\"reset\"", "\"status\":200"]) == 2));
    let failures = [ORDERS_LABEL, ("outcome", "failure")];
    assert_eq!(client.count(ATTEMPTS, &failures), 2);
}

/// Five bytes, of how many more only the end would tell.
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";

/// Five bytes of six.
const COUNTED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello";

/// Makes sure that half a body is not taken for a whole one.
fn cut_off(web: &Host, port: u16, end: &Arc<Notify>) {
    let end = Arc::clone(end);
    let (status, body) = web.run(move || async move {
        let mut client = web::Client::connect(Version::HTTP_11, outbound()).await.unwrap();
        let request = web::get(Version::HTTP_11, &format!("orders.shop:{port}"), "/half");
        let answer = client.begin(request).await.unwrap();
        // Only now, when half of it is here for sure.
        end.notify_one();
        (answer.status(), answer.into_body().collect().await.map(Collected::to_bytes))
    });
    assert_eq!(status, 200);
    assert!(body.is_err(), "{body:?} was taken for a whole body");
}

fn half_behind_a_sidecar() {
    let [web, orders] = Topology::of(["web", "orders"]);
    let (mesh, dns, end) = (Mesh::new(), web.dns(), Arc::new(Notify::new()));
    dns.set("orders.shop", &[orders.v4()], 1);
    let server = Setup::new(&mesh.issue("orders")).start(&orders);
    let client = Setup::new(&mesh.issue("web")).with("--dns", &web.v4()).start(&web);
    for text in [CHUNKED, COUNTED] {
        let _app = half_an_answer(&orders, APP, text, &end);
        cut_off(&web, SERVICE, &end);
    }
    for sidecar in [&client, &server] {
        let words = ["\"reason\":\"reset\"", "\"status\":200", "/half"];
        assert!(eventually(|| sidecar.logged(&words) == 2));
    }
    // The connection that others use is none the worse.
    assert_eq!(client.count("remora_handshakes_total", &[("result", "ok")]), 1);
}

fn vanished() {
    let [web, a, b] = Topology::of(["web", "a", "b"]);
    let (dns, _app) = (web.dns(), a.http_app(SERVICE));
    dns.set("orders.shop", &[a.v4(), b.v4()], 1);
    dns.set("gone.shop", &[b.v4()], 1);
    let policy = policy(&[(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}, {kind: Service, name: gone}]
  timeouts: {connect: 150ms}
",
    )]);
    b.unplug();
    let client = plain(&web).with("--policy", &policy.path().display()).start(&web);
    let load = Load::start(&web, outbound(), 1, get("/who"));
    client.until(ATTEMPTS, &[ORDERS_LABEL, ("outcome", "connect_failed")], |it| 1 <= it);
    load.go_on_for(200);
    let sent = load.stop_without_failure();
    let failed = client.count(ATTEMPTS, &[ORDERS_LABEL, ("outcome", "connect_failed")]);
    assert!(failed * 20 < sent, "{failed} of {sent} waited for a host that is gone");
    let began = clock::now();
    let answer = call(&web, "gone.shop:8080", "/who");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (504, "connect_timeout"));
    assert!(Duration::from_millis(150) <= clock::now() - began);
    client.log(&["\"reason\":\"connect_timeout\"", "\"attempts\":3"]);
}

fn refused() {
    let [web, a, b] = Topology::of(["web", "a", "b"]);
    let dns = web.dns();
    dns.set("orders.shop", &[a.v4(), b.v4()], 1);
    let client = plain(&web).start(&web);
    let answer = call(&web, ORDERS, "/who");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (503, "connect_refused"));
    assert_eq!(answer.header("retry-after"), "1");
    client.log(&["\"reason\":\"connect_refused\"", "\"attempts\":3"]);
    let app = a.http_app(SERVICE);
    // One of two refuses; who is sent there first is sent on, a POST too: nobody has seen it.
    let load = Load::start(&web, outbound(), 4, |number| match number % 2 {
        0 => web::get(Version::HTTP_11, ORDERS, "/who"),
        _ => web::post(Version::HTTP_11, ORDERS, "/echo", "hello"),
    });
    load.go_on_for(200);
    let sent = load.stop_without_failure();
    assert_eq!(app.requests(), sent);
}

fn names() {
    let [web, a, b] = Topology::of(["web", "a", "b"]);
    let (dns, at_a, at_b) = (web.dns(), a.http_app(SERVICE), b.http_app(SERVICE));
    dns.set("orders.shop", &[a.v4()], 1);
    let client = plain(&web).start(&web);
    let nobody = call(&web, "nobody.shop:8080", "/");
    assert_eq!((nobody.status, nobody.header("x-remora-reason")), (503, "no_endpoints"));
    assert_eq!(nobody.header("retry-after"), "1");
    client.log(&["name does not exist", "nobody.shop"]);
    let load = Load::start(&web, outbound(), 2, get("/who"));
    load.go_on_for(20);
    dns.set("orders.shop", &[b.v4()], 1);
    assert!(eventually(|| 20 < at_b.requests()), "a change of DNS is not followed");
    let before = at_a.requests();
    load.go_on_for(50);
    assert!(at_a.requests() <= before + 2, "requests go where DNS no longer points");
    dns.be(Mood::Failing);
    client.until("remora_dns_lookups_total", &[("result", "failed")], |it| 1 <= it);
    client.log(&["name cannot be resolved", "orders.shop"]);
    load.go_on_for(50);
    dns.be(Mood::Well);
    client.log(&["name resolves again", "orders.shop"]);
    load.stop_without_failure();
}

/// Answers, and closes a connection that has been idle for a tenth of a second.
fn impatient_app(host: &Host, port: u16) -> Service {
    host.tcp_server(port, |stream| async move {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        loop {
            line.clear();
            let read = time::timeout(Duration::from_millis(100), stream.read_line(&mut line));
            match read.await {
                Ok(Ok(2)) => {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
                Ok(Ok(read)) if 0 < read => (),
                _ => return,
            }
        }
    })
}

fn keep_alive() {
    let [web, a] = Topology::of(["web", "a"]);
    let (dns, _app) = (web.dns(), impatient_app(&a, SERVICE));
    dns.set("orders.shop", &[a.v4()], 1);
    let client = plain(&web).start(&web);
    let failed = web.run(|| async {
        let senders = (0..10_u64).map(|sender| {
            drain::spawn("paced", async move {
                let mut failed = Vec::new();
                // From before the server gives up to after it.
                let mut pace = time::interval(Duration::from_millis(94 + sender));
                for _ in 0..50 {
                    pace.tick().await;
                    match web::fetch(Version::HTTP_11, outbound(), ORDERS, "/").await {
                        Ok(answer) if answer.status == 200 => (),
                        other => failed.push(format!("{other:?}")),
                    }
                }
                failed
            })
        });
        let mut all = Vec::new();
        for sender in senders.collect::<Vec<_>>() {
            all.extend(sender.await.unwrap());
        }
        all
    });
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(client.count("remora_requests_total", &[("code", "2xx")]), 500);
}

fn grpc_status() {
    let pair = Pair::new();
    pair.dns.set("nobody.shop", &[Ipv4Addr::new(10, 77, 0, 250).into()], 1);
    let ask = |name: &'static str| {
        pair.web.run(move || async move {
            let mut client = grpc::Client::connect(outbound(), name).await.unwrap();
            client.unary(Call::new(ping("a", 0))).await.map(tonic::Response::into_inner)
        })
    };
    let status = ask("none.shop:8080").unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no_endpoints"));
    let reason = status.metadata().get("x-remora-reason").and_then(|it| it.to_str().ok());
    assert_eq!(reason, Some("no_endpoints"));
    let status = ask("orders.shop:8444").unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "connect_refused"));
    let _grpc = pair.orders.grpc_app(9100);
    assert_eq!(ask("orders.shop:9100").unwrap(), ping("a", 0));
}
