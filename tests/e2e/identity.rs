//! Identity: who is let in and who is answered to, by certificates and by nothing else.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{HeaderValue, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    host::{Host, Service},
    http as web,
    identity_peers::{self as peers, Certificate},
    pods::{
        APP, Mesh, ORDERS, ORDERS_LABEL, Pair, SERVICE, Setup, call, inbound, outbound, policy,
    },
    runner::Case,
    tcp,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("identity_both_sides_prove_who_they_are", both_sides),
    ("identity_is_not_believed_from_plaintext", not_believed),
    ("identity_a_server_with_a_mistake_is_refused_with_its_reason", bad_server),
    ("identity_a_client_with_a_mistake_is_refused_with_its_reason", bad_client),
    ("identity_a_client_that_its_server_refuses_is_told_so", refused_by_the_server),
    ("identity_auto_speaks_plaintext_to_who_speaks_no_mesh_tls", auto_plaintext),
    ("identity_auto_does_not_wait_twice_for_a_silent_server", auto_silent),
    ("identity_strict_refuses_a_server_without_mesh_tls", strict_outbound),
    ("identity_off_speaks_plaintext_to_a_mesh_peer", off),
    ("identity_permissive_lets_plaintext_in_and_strict_does_not", strict_inbound),
    ("identity_strict_holds_for_its_port_alone", strict_port),
];

const HANDSHAKES: &str = "remora_handshakes_total";
const FALLBACKS: &str = "remora_plaintext_fallbacks_total";
const ORDERS_ID: &str = "spiffe://mesh.test/ns/shop/sa/orders";
const WEB_ID: &str = "spiffe://mesh.test/ns/shop/sa/web";

fn both_sides() {
    let pair = Pair::new();
    for _ in 0..3 {
        let seen = pair.get("/who").json();
        assert_eq!(seen["headers"]["x-remora-peer"][0], WEB_ID, "{seen}");
        assert_eq!(seen["headers"]["host"][0], ORDERS);
    }
    for (sidecar, side) in [(&pair.client, "client"), (&pair.server, "server")] {
        // One connection for all of them.
        assert_eq!(sidecar.count(HANDSHAKES, &[("side", side), ("result", "ok")]), 1);
        assert_eq!(sidecar.count(HANDSHAKES, &[]), 1);
    }
    assert_eq!(pair.client.count(FALLBACKS, &[]), 0);
    pair.server.log(&["\"direction\":\"inbound\"", WEB_ID, "\"tls\":true", "\"status\":200"]);
}

fn not_believed() {
    let pair = Pair::new();
    let to = inbound(pair.orders.v4());
    let seen = pair.web.run(move || async move {
        let mut request = web::get(Version::HTTP_11, ORDERS, "/who");
        for name in ["x-remora-peer", "x-remora-attempt", "x-remora-deadline-ms"] {
            request.headers_mut().insert(name, HeaderValue::from_static("spiffe://mesh.test/x"));
        }
        let mut client = web::Client::connect(Version::HTTP_11, to).await.unwrap();
        client.send(request).await.unwrap().json()
    });
    let headers = seen["headers"].as_object().unwrap();
    let ours: Vec<_> = headers.keys().filter(|it| it.starts_with("x-remora-")).collect();
    assert!(ours.is_empty(), "{seen}");
}

/// What is wrong with a peer, its certificate, and the reason both sides of a sidecar give.
fn mistakes(mesh: &Mesh) -> Vec<(&'static str, Certificate, &'static str)> {
    let elsewhere = "spiffe://elsewhere.test/ns/shop/sa/orders";
    let malformed = "spiffe://mesh.test/ns//sa/orders";
    let fine = |_: &mut rcgen::CertificateParams| ();
    vec![
        (
            "of another authority",
            Certificate::of(&Mesh::new(), &[ORDERS_ID], fine),
            "unknown_issuer",
        ),
        (
            "of another trust domain",
            Certificate::of(mesh, &[elsewhere], fine),
            "wrong_trust_domain",
        ),
        ("expired", Certificate::of(mesh, &[ORDERS_ID], peers::ended), "expired"),
        ("self-signed", Certificate::self_signed(&[ORDERS_ID]), "unknown_issuer"),
        ("two URIs", Certificate::of(mesh, &[ORDERS_ID, WEB_ID], fine), "bad_spiffe_id"),
        ("malformed", Certificate::of(mesh, &[malformed], fine), "bad_spiffe_id"),
        ("no SPIFFE ID", Certificate::of(mesh, &["https://orders.shop"], fine), "bad_spiffe_id"),
        ("no URI", Certificate::of(mesh, &[], fine), "bad_spiffe_id"),
    ]
}

fn bad_server() {
    let [web, orders] = Topology::of(["web", "orders"]);
    let (mesh, dns) = (Mesh::new(), web.dns());
    dns.set("orders.shop", &[orders.v4()], 1);
    let client = Setup::new(&mesh.issue("web")).with("--dns", &web.v4()).start(&web);
    let elsewhere = "spiffe://mesh.test/ns/payments/sa/orders";
    let other = Certificate::of(&mesh, &[elsewhere], |_| ());
    let other = ("of another namespace", other, "wrong_identity");
    for (port, (mistake, certificate, reason)) in
        (SERVICE..).zip(mistakes(&mesh).into_iter().chain([other]))
    {
        let received = Arc::new(Mutex::new(Vec::new()));
        let _server = mesh_server(&orders, port, certificate, &received);
        let labels = [("side", "client"), ("result", reason)];
        let before = client.count(HANDSHAKES, &labels);
        let answer = call(&web, &format!("orders.shop:{port}"), "/who");
        assert_eq!(answer.status, 502, "{mistake}");
        assert_eq!(answer.header("x-remora-reason"), "tls_identity", "{mistake}");
        assert!(before < client.count(HANDSHAKES, &labels), "{mistake} is not `{reason}`");
        let received = received.lock().unwrap();
        assert!(received.is_empty(), "{mistake}: the server received {received:?}");
    }
    assert_eq!(client.count(HANDSHAKES, &[("result", "ok")]), 0);
    assert_eq!(client.count(FALLBACKS, &[]), 0);
    client.log(&["\"reason\":\"tls_identity\"", "\"status\":502", "\"attempts\":3"]);
}

/// A mesh server with `certificate` that keeps what gets through to it, in plaintext or not.
fn mesh_server(
    host: &Host,
    port: u16,
    certificate: Certificate,
    received: &Arc<Mutex<Vec<u8>>>,
) -> Service {
    let received = Arc::clone(received);
    host.tcp_server(port, move |stream| {
        let (certificate, received) = (certificate.clone(), Arc::clone(&received));
        async move {
            let mut first = [0];
            // A connection that says nothing has told nobody anything.
            let is_tls = stream.peek(&mut first).await.map_or(true, |it| it == 0 || first == [22]);
            if !is_tls {
                received.lock().unwrap().extend(b"plaintext");
            } else if let Ok(bytes) = peers::accept(stream, certificate).await {
                received.lock().unwrap().extend(bytes);
            }
        }
    })
}

fn bad_client() {
    let pair = Pair::new();
    let to = inbound(pair.orders.v4());
    let mistakes = mistakes(&pair.mesh).into_iter();
    let mistakes = mistakes.map(|(mistake, it, reason)| (mistake, Some(it), reason));
    let nothing = ("without a certificate", None, "no_certificate");
    for (mistake, certificate, reason) in mistakes.chain([nothing]) {
        for protocol in ["remora-h2", "remora-http/1.1", "remora-tcp"] {
            let labels = [("side", "server"), ("result", reason)];
            let before = pair.server.count(HANDSHAKES, &labels);
            let certificate = certificate.clone();
            let asked = pair.web.run(move || peers::ask(to, protocol, certificate));
            assert!(asked.is_err(), "{mistake}: {asked:?}");
            pair.server.until(HANDSHAKES, &labels, |it| it == before + 1);
        }
    }
    assert_eq!(pair.app.requests(), 0);
    // The same client with nothing wrong is let in.
    let fine = Certificate::of(&pair.mesh, &[WEB_ID], |_| ());
    let seen = pair.web.run(move || peers::ask(to, "remora-http/1.1", Some(fine))).unwrap();
    assert!(seen.contains(WEB_ID), "{seen}");
}

fn refused_by_the_server() {
    let pair = Pair::new();
    let new = Mesh::new();
    // The caller knows both authorities, and is of the old one; who answers knows the new one.
    let both = format!("{}{}", pair.mesh.root(), new.root());
    pair.mesh.write("web", &pair.mesh.leaf("web"), &both);
    pair.mesh.write("orders", &new.leaf("orders"), &new.root());
    for sidecar in [&pair.client, &pair.server] {
        sidecar.log(&["identity rotated", "\"generation\":2"]);
    }
    let answer = pair.get("/who");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (502, "tls_identity"));
    let labels = [("side", "server"), ("result", "unknown_issuer")];
    assert!(0 < pair.server.count(HANDSHAKES, &labels));
    let labels = [("side", "client"), ("result", "unknown_issuer")];
    assert!(0 < pair.client.count(HANDSHAKES, &labels));
    assert_eq!((pair.app.requests(), pair.client.count(FALLBACKS, &[])), (0, 0));
    // Opaque connections and upgrades are refused no less.
    let upgraded = pair.web.run(|| async {
        web::upgrade_to_echo(outbound(), ORDERS).await.map(drop).map_err(|it| it.to_string())
    });
    assert_eq!(upgraded, Err("no upgrade: 502 Bad Gateway".into()));
    pair.client.log(&["\"reason\":\"tls_identity\"", "\"attempts\":3"]);
    // It comes right by itself when the server knows the old one, too.
    pair.mesh.write("orders", &new.leaf("orders"), &both);
    pair.server.log(&["identity rotated", "\"generation\":3"]);
    assert_eq!(pair.get("/who").json()["headers"]["x-remora-peer"][0], WEB_ID);
}

fn auto_plaintext() {
    let pair = Pair::with(|it| it.with("--tcp", "7000=orders.shop:8201"), |it| it);
    let app = pair.orders.http_app(8200);
    let _banner = pair.orders.tcp_banner(8201, "220 ready\n");
    for round in 0..3 {
        let seen = call(&pair.web, "orders.shop:8200", "/who").json();
        assert!(seen["headers"]["x-remora-peer"].is_null(), "{seen}");
        assert_eq!(pair.client.count(FALLBACKS, &[ORDERS_LABEL]), 1);
        // Nothing is tried again, or on the side.
        assert_eq!(pair.client.count(HANDSHAKES, &[("side", "client")]), 1, "round {round}");
    }
    assert_eq!(app.requests(), 3);
    for _ in 0..2 {
        let told = pair.web.run(|| async {
            let to = SocketAddr::from(([127, 0, 0, 1], 7000));
            tcp::ask(to, b"QUIT").await.unwrap()
        });
        assert_eq!(told, "220 ready\nQUIT");
        assert_eq!(pair.client.count(FALLBACKS, &[ORDERS_LABEL]), 2);
    }
    // The endpoint that does speak it is still spoken to in mesh TLS.
    assert_eq!(pair.get("/who").json()["headers"]["x-remora-peer"][0], WEB_ID);
    assert_eq!(pair.client.count(HANDSHAKES, &[("result", "ok")]), 1);
}

fn auto_silent() {
    let policy = policy(&[(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {connect: 300ms}
",
    )]);
    let pair = Pair::with(|it| it.with("--policy", &policy.path().display()), |it| it);
    // It waits for a line, whatever comes, and a client hello is none.
    let _silent = pair.orders.tcp_server(8200, |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let _sent =
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_ok();
    });
    for _ in 0..3 {
        assert_eq!(call(&pair.web, "orders.shop:8200", "/").text(), "ok");
    }
    assert_eq!(pair.client.count(HANDSHAKES, &[("side", "client")]), 1);
    assert_eq!(pair.client.count(HANDSHAKES, &[("result", "timeout")]), 1);
    assert_eq!(pair.client.count(FALLBACKS, &[ORDERS_LABEL]), 1);
}

fn strict_outbound() {
    let policy = policy(&[(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  tls: {mode: strict}
",
    )]);
    let pair = Pair::with(|it| it.with("--policy", &policy.path().display()), |it| it);
    let app = pair.orders.http_app(8200);
    for _ in 0..2 {
        let answer = call(&pair.web, "orders.shop:8200", "/who");
        assert_eq!((answer.status, answer.header("x-remora-reason")), (502, "tls_handshake"));
    }
    assert_eq!((app.requests(), pair.client.count(FALLBACKS, &[])), (0, 0));
    assert!(0 < pair.client.count(HANDSHAKES, &[("side", "client"), ("result", "not_mesh")]));
    assert_eq!(pair.get("/who").status, 200);
    // Without an identity of its own, a strict caller calls nobody.
    let nobody = Setup::nobody()
        .with("--policy", &policy.path().display())
        .with("--dns", &pair.web.v4())
        .with("--outbound", "127.0.0.1:15011")
        .with("--inbound", "off")
        .with("--admin", "off")
        .with("--tcp", "7000=orders.shop:8200")
        .start(&pair.web);
    let to = SocketAddr::from(([127, 0, 0, 1], 15_011));
    let answer = pair.web.run(move || async move {
        web::fetch(Version::HTTP_11, to, "orders.shop:8200", "/who").await.unwrap()
    });
    assert_eq!((answer.status, answer.header("x-remora-reason")), (502, "tls_identity"));
    assert_eq!(app.requests(), 0);
    drop(nobody);
}

fn off() {
    let policy = policy(&[(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  tls: {mode: \"off\"}
",
    )]);
    let pair = Pair::with(|it| it.with("--policy", &policy.path().display()), |it| it);
    let seen = pair.get("/who").json();
    assert!(seen["headers"]["x-remora-peer"].is_null(), "{seen}");
    assert_eq!(pair.client.count(HANDSHAKES, &[]) + pair.server.count(HANDSHAKES, &[]), 0);
    // What was asked for is no fall-back.
    assert_eq!(pair.client.count(FALLBACKS, &[]), 0);
}

fn strict_inbound() {
    let policy = policy(&[(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: orders}
spec: {mtls: {mode: permissive}}
",
    )]);
    let pair = Pair::with(|it| it, |it| it.with("--policy", &policy.path().display()));
    let to = inbound(pair.orders.v4());
    let plainly = |version| {
        pair.web.run(move || async move {
            let answer = web::fetch(version, to, ORDERS, "/who").await.unwrap();
            (answer.status, answer.header("x-remora-reason").to_owned())
        })
    };
    for version in [Version::HTTP_11, Version::HTTP_2] {
        assert_eq!(plainly(version), (200, String::new()));
    }
    policy.write(
        "a.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: orders}
spec: {mtls: {mode: strict}}
",
    );
    pair.server.until("remora_policy_generation", &[], |it| it == 2);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        assert_eq!(plainly(version), (403, "denied".into()));
    }
    let denied = [("direction", "inbound"), ("reason", "denied")];
    assert_eq!(pair.server.count("remora_local_replies_total", &denied), 2);
    let before = pair.app.connections();
    let closed = pair.web.run(move || async move { tcp::ask(to, b"\x01\x02\x03").await });
    assert_eq!(closed.unwrap_or_default(), "");
    assert_eq!(pair.server.count("remora_local_replies_total", &denied), 3);
    assert_eq!(pair.app.connections(), before);
    assert_eq!(pair.get("/who").json()["headers"]["x-remora-peer"][0], WEB_ID);
}

fn strict_port() {
    for (port, status) in [(APP, 403), (APP + 1, 200)] {
        let text = format!(
            "apiVersion: remora.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {{name: orders}}\n\
             spec: {{mtls: {{ports: {{\"{port}\": strict}}}}}}\n"
        );
        let policy = policy(&[("a.yaml", &text)]);
        let pair = Pair::with(|it| it, |it| it.with("--policy", &policy.path().display()));
        let to = inbound(pair.orders.v4());
        let answer = pair.web.run(move || async move {
            web::fetch(Version::HTTP_11, to, ORDERS, "/who").await.unwrap()
        });
        assert_eq!(answer.status, status, "port {port}");
        assert_eq!(pair.get("/who").status, 200);
    }
}
