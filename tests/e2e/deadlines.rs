//! Deadlines: how long a caller waits, as those see it who work for it two hops away.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, Response, Version};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use remora::{clock, drain, policy::deadline};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    dns::Dns,
    host::{Host, Service},
    http::{self as web, Answer, AnyBody, App},
    identity_peers::{Certificate, dial},
    pods::{
        APP, Mesh, ORDERS, ORDERS_LABEL, Pair, Policy, SERVICE, Setup, Sidecar, call, eventually,
        inbound, outbound, policy,
    },
    runner::Case,
    tcp::connect,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("deadlines_grpc_timeouts_shrink_on_their_way", grpc),
    ("deadlines_expired_work_never_reaches_the_application", expired),
    ("deadlines_only_mesh_peers_are_believed", unbelieved),
    ("deadlines_reach_the_calls_that_an_application_makes", chain),
    ("deadlines_refuse_calls_that_nobody_waits_for", refused),
    ("deadlines_an_upload_that_stands_still_is_its_clients_fault", stalled),
    ("deadlines_carry_that_a_request_is_a_retry", retried),
    ("deadlines_carry_back_that_there_must_be_no_retry", forbidden),
];

/// The other service of the chain.
const STOCK: &str = "stock.shop:8080";

const REPLIES: &str = "remora_local_replies_total";

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn grpc() {
    let pair = Pair::new();
    let ask = |timeout: &'static str| {
        pair.web.run(move || async move {
            let mut client = web::Client::connect(Version::HTTP_2, outbound()).await.unwrap();
            let mut request = web::post(Version::HTTP_2, ORDERS, "/who", "");
            let kind = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert("content-type", kind);
            request.headers_mut().insert("grpc-timeout", HeaderValue::from_static(timeout));
            client.send(request).await.unwrap()
        })
    };
    let headers = ask("10S").json()["headers"].clone();
    let told = headers["grpc-timeout"][0].as_str().unwrap();
    let told = deadline::from_grpc(told.as_bytes()).unwrap();
    assert!(told < Duration::from_secs(10), "{told:?}");
    assert!(Duration::from_secs(1) < told, "{told:?}");
    assert!(headers.get("x-remora-deadline-ms").is_none(), "{headers}");
    // One that has no time left is answered where it stands.
    let answer = ask("0n");
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "4"));
    assert_eq!(answer.header("x-remora-reason"), "deadline_expired");
    assert_eq!(pair.app.requests(), 1);
}

fn expired() {
    let pair = Pair::new();
    let answer = ask_as_peer(&pair.mesh, &pair.web, &pair.orders, "x-remora-deadline-ms: 0\r\n");
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("x-remora-reason: deadline_expired\r\n"), "{answer}");
    assert_eq!(pair.app.requests(), 0);
    let counted = [("direction", "inbound"), ("reason", "deadline_expired")];
    assert_eq!(pair.server.count(REPLIES, &counted), 1);
    pair.server.log(&["\"reason\":\"deadline_expired\"", "\"status\":504"]);
    // With time left it is an ordinary request, and the application is not bothered with it.
    let answer = ask_as_peer(&pair.mesh, &pair.web, &pair.orders, "x-remora-deadline-ms: 9000\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!answer.contains("x-remora-deadline-ms"), "{answer}");
    assert_eq!(pair.app.requests(), 1);
}

fn unbelieved() {
    let pair = Pair::new();
    let (stranger, app) = (inbound(pair.orders.v4()), outbound());
    for (to, who) in [(stranger, "a stranger"), (app, "an application")] {
        let answer = pair.web.run(move || async move {
            let mut client = web::Client::connect(Version::HTTP_11, to).await.unwrap();
            let mut request = web::get(Version::HTTP_11, ORDERS, "/who");
            let fields = request.headers_mut();
            fields.insert("x-remora-deadline-ms", HeaderValue::from_static("0"));
            fields.insert("x-remora-attempt", HeaderValue::from_static("7"));
            client.send(request).await.unwrap()
        });
        assert_eq!(answer.status, 200, "{who}");
        let seen = answer.text();
        assert!(!seen.contains("x-remora-deadline-ms"), "{who}: {seen}");
        assert!(!seen.contains("x-remora-attempt"), "{who}: {seen}");
    }
}

fn chain() {
    let hurried = policy(&[(
        "orders.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders}]
  rules: [{timeouts: {request: 500ms}}]
",
    )]);
    let chain = Chain::new("/never", Some(&hurried), None);
    let began = clock::now();
    let answer = call(&chain.web, ORDERS, "/");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (504, "request_timeout"));
    let calls = chain.calls();
    // Its own time is a minute, and nothing but `traceparent` was copied.
    assert!(clock::now() - began < Duration::from_secs(10));
    assert_eq!(calls, [(504, "deadline_expired".to_owned())]);
    chain.middle.log(&["\"direction\":\"outbound\"", "\"reason\":\"deadline_expired\""]);
    // What is not for the request is not bounded by it.
    assert_eq!(call(&chain.orders, STOCK, "/who").status, 200);
}

fn refused() {
    let chain = Chain::new("/who", None, None);
    let fields = format!("x-remora-deadline-ms: 400\r\ntraceparent: {PARENT}\r\n");
    let answer = ask_as_peer(&chain.mesh, &chain.web, &chain.orders, &fields);
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let calls = chain.calls();
    let (last, before) = calls.split_last().unwrap();
    assert_eq!(*last, (504, "deadline_expired".to_owned()));
    assert!(before.iter().all(|(status, _)| *status == 200), "{before:?}");
    assert!(chain.app.requests() <= calls.len() as u64);
}

fn stalled() {
    let short = policy(&[(
        "orders.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {idle: 150ms}
",
    )]);
    let pair = Pair::with(|it| it.with("--policy", &short.path().display()), |it| it);
    // By the sidecar there, and past it.
    for (number, port) in [(1, SERVICE), (2, APP)] {
        let answer = pair.web.run(move || async move {
            let mut stream = connect(outbound()).await?;
            let head = format!("POST /never HTTP/1.1\r\nhost: orders.shop:{port}\r\n");
            let rest = "content-length: 9\r\n\r\nhalf";
            stream.write_all(format!("{head}{rest}").as_bytes()).await?;
            let mut answer = vec![0; 4096];
            let read = stream.read(&mut answer).await?;
            answer.truncate(read);
            io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
        });
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "port {port}: {answer}");
        assert!(answer.contains("x-remora-reason: upload_idle\r\n"), "port {port}: {answer}");
        let cancelled = [ORDERS_LABEL, ("outcome", "cancelled")];
        pair.client.until("remora_attempts_total", &cancelled, |it| it == number);
    }
}

fn retried() {
    let chain = Chain::new("/status/503", None, None);
    let ask = |fields: &str| {
        let before = chain.app.requests();
        let fields = format!("traceparent: {PARENT}\r\n{fields}");
        let answer = ask_as_peer(&chain.mesh, &chain.web, &chain.orders, &fields);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        chain.app.requests() - before
    };
    assert!(1 < ask("x-remora-attempt: 1\r\n"), "a first try is followed by others");
    assert_eq!(ask("x-remora-attempt: 2\r\n"), 1, "a retry is not retried again");
    chain.middle.until("remora_retries_total", &[("verdict", "chain")], |it| it == 1);
}

fn forbidden() {
    let poor = policy(&[(
        "stock.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: stock}
spec:
  targetRefs: [{kind: Service, name: stock}]
  retryBudget: {ratio: 0%, burst: 1}
",
    )]);
    let chain = Chain::new("/status/503", None, Some(&poor));
    let fields = format!("traceparent: {PARENT}\r\n");
    let ask = || ask_as_peer(&chain.mesh, &chain.web, &chain.orders, &fields);
    // The first may spend what there is.
    let spent = ask();
    assert!(spent.starts_with("HTTP/1.1 503 "), "{spent}");
    let refused = ask();
    assert!(refused.contains("x-remora-retry: no\r\n"), "{refused}");
    // The sidecar of a caller obeys, and does not pass it on.
    let before = chain.app.requests();
    let answer = call(&chain.web, ORDERS, "/");
    assert_eq!((answer.status, answer.header("x-remora-retry")), (503, ""));
    assert_eq!(chain.app.requests() - before, 1);
}

/// The pods `web`, `orders` and `stock`, which call each other in this order.
struct Chain {
    mesh: Mesh,
    web: Host,
    orders: Host,
    middle: Sidecar,
    app: App,
    calls: Arc<Mutex<Vec<(u16, String)>>>,
    _rest: (Dns, Service, Sidecar, Sidecar),
}

impl Chain {
    /// The application of `orders` asks for `path`, again and again, until that fails; it
    /// copies `traceparent` and nothing else, and does not care whether it is still needed.
    fn new(path: &'static str, first: Option<&Policy>, middle: Option<&Policy>) -> Self {
        let [web, orders, stock] = Topology::of(["web", "orders", "stock"]);
        let (mesh, dns) = (Mesh::new(), web.dns());
        dns.set("orders.shop", &[orders.v4()], 1);
        dns.set("stock.shop", &[stock.v4()], 1);
        let setup = |account: &str, policy: Option<&Policy>| {
            let setup = Setup::new(&mesh.issue(account)).with("--dns", &web.v4());
            match policy {
                Some(policy) => setup.with("--policy", &policy.path().display()),
                None => setup,
            }
        };
        let (calls, app) = (Arc::default(), stock.http_app(APP));
        let relay = relay(&orders, path, &calls);
        let last = setup("stock", None).start(&stock);
        let middle = setup("orders", middle).start(&orders);
        let first = setup("web", first).start(&web);
        Self { mesh, web, orders, middle, app, calls, _rest: (dns, relay, first, last) }
    }

    /// Status and reason of the calls that `orders` made, when it has stopped.
    fn calls(&self) -> Vec<(u16, String)> {
        let calls = || self.calls.lock().unwrap().clone();
        let stopped = || calls().last().is_some_and(|(status, _)| *status != 200);
        assert!(eventually(stopped), "it goes on: {:?}", calls());
        calls()
    }
}

/// The application of the chain's middle. What it is told it tells its caller, unless it is
/// that there is no more time.
fn relay(host: &Host, path: &'static str, calls: &Arc<Mutex<Vec<(u16, String)>>>) -> Service {
    let calls = Arc::clone(calls);
    host.tcp_server(APP, move |stream| {
        let calls = Arc::clone(&calls);
        let answer = service_fn(move |request: Request<Incoming>| {
            let calls = Arc::clone(&calls);
            let parent = request.headers()["traceparent"].clone();
            // Its own task: it goes on when the caller has left.
            let calling = drain::spawn("relay", async move {
                loop {
                    let answer = relayed(path, parent.clone()).await;
                    let reason = answer.header("x-remora-reason").to_owned();
                    calls.lock().unwrap().push((answer.status, reason));
                    if answer.status != 200 {
                        return answer.status;
                    }
                }
            });
            async move {
                let status = calling.await.unwrap_or(504);
                if status == 504 {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
            }
        });
        async move {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            let _ended = connection.await.is_ok();
        }
    })
}

async fn relayed(path: &str, parent: HeaderValue) -> Answer {
    let mut client = web::Client::connect(Version::HTTP_11, outbound()).await.unwrap();
    let mut request: Request<AnyBody> = web::get(Version::HTTP_11, STOCK, path);
    request.headers_mut().insert("traceparent", parent);
    client.send(request).await.unwrap()
}

/// Asks the sidecar of `to` for `/who` as a mesh peer that sends these fields of ours, and
/// returns all it answers.
fn ask_as_peer(mesh: &Mesh, from: &Host, to: &Host, fields: &str) -> String {
    let id = "spiffe://mesh.test/ns/shop/sa/web";
    let (certificate, to) = (Certificate::of(mesh, &[id], |_| ()), inbound(to.v4()));
    let head = format!("GET /who HTTP/1.1\r\nhost: orders\r\n{fields}connection: close\r\n\r\n");
    let answer = from.run(move || async move {
        let mut stream = dial(to, "remora-http/1.1", Some(certificate)).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    });
    answer.unwrap()
}
