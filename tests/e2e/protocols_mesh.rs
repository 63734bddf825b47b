//! Between the pods: what the sidecars add, what they strip, and where they send it.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, Version};
use remora::clock;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, time};

use crate::{
    dns::Dns,
    host::{Host, PATIENCE, wait_until},
    http::{App, Client, fetch, get, post},
    mesh::{
        BEHIND, LOOK_AGAIN, Mesh, Mode, OUTBOUND, Pair, Route, SERVICE, Sidecar, both_modes, each,
    },
    runner::Case,
    tcp::connect,
    topology::Topology,
    wire::{OK, Reader, answer, header, talk},
};

pub(crate) const CASES: &[Case] = &[
    ("requests_share_one_connection_under_mesh_tls", multiplexed),
    ("a_request_leaves_one_line_on_each_side", logged),
    ("an_upload_is_counted_as_it_is_read_on_each_side", uploaded),
    ("what_a_peer_answers_itself_is_logged_with_its_reason", reasons),
    ("hop_by_hop_headers_end_at_each_hop", hop_by_hop),
    ("names_of_a_request_are_made_once_and_kept", names),
    ("the_peer_is_told_and_never_believed_from_outside", peer),
    ("a_client_that_is_silent_at_first_is_still_one_of_http", silent),
    ("a_host_name_is_balanced_over_its_pods", balanced),
    ("a_change_of_dns_is_picked_up", dns_change),
];

fn multiplexed() {
    both_modes(|pair| {
        let app = pair.server.http_app(pair.app_port());
        let [Route { to, authority, .. }, _] = pair.routes();
        pair.client.run(move || async move {
            let mut kept = Vec::new();
            for version in [Version::HTTP_11, Version::HTTP_2] {
                for _ in 0..5 {
                    kept.push(Client::connect(version, to).await.unwrap());
                    let client = kept.last_mut().unwrap();
                    for _ in 0..4 {
                        let answer = client.send(get(version, &authority, "/status/200")).await;
                        assert_eq!(answer.unwrap().status, 200);
                    }
                }
            }
        });
        assert_eq!(app.requests(), 40);
        let (near, far) = (pair.near.metrics(), pair.far.metrics());
        let ok = |side| [("side", side), ("result", "ok")];
        assert_eq!(near.sum("remora_handshakes_total", &ok("client")), 1, "{near}");
        assert_eq!(far.sum("remora_handshakes_total", &ok("server")), 1, "{far}");
        let inbound = |tls| [("direction", "inbound"), ("protocol", "http2"), ("tls", tls)];
        assert_eq!(far.sum("remora_connections", &inbound("true")), 1, "{far}");
        assert_eq!(far.sum("remora_connections", &[("direction", "inbound")]), 1, "{far}");
        for (page, direction) in [(&near, "outbound"), (&far, "inbound")] {
            let labels = [("direction", direction), ("code", "2xx")];
            assert_eq!(page.sum("remora_requests_total", &labels), 40, "{page}");
        }
        assert_eq!(near.sum("remora_plaintext_fallbacks_total", &[]), 0, "{near}");
    });
}

fn logged() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            let asked = authority;
            pair.client.run(move || async move {
                let mut client = Client::connect(Version::HTTP_11, to).await.unwrap();
                assert_eq!(
                    client
                        .send(get(Version::HTTP_11, &asked, "/status/418?x=y"))
                        .await
                        .unwrap()
                        .status,
                    418
                );
            });
        });
        let lines = |sidecar| lines(sidecar, "/status/418", 2);
        for (near, far) in lines(&pair.near).iter().zip(&lines(&pair.far)) {
            let of = |it: &Value, name: &str| it[name].as_str().unwrap_or_default().to_owned();
            assert_eq!(
                (of(near, "direction"), of(far, "direction")),
                ("outbound".into(), "inbound".into())
            );
            assert_eq!(of(near, "request_id"), of(far, "request_id"));
            assert_eq!(of(far, "peer"), Mesh::id("web"));
            for line in [near, far] {
                assert_eq!((&line["status"], &line["tls"]), (&418.into(), &true.into()), "{line}");
                assert_eq!(of(line, "protocol"), "HTTP/1.1", "{line}");
                assert_eq!(line["attempts"], 1, "{line}");
                assert_eq!(line["bytes_out"], "status 418\n".len(), "{line}");
            }
        }
    });
}

/// Waits for this many lines in the access log about `path`.
fn lines(sidecar: &Sidecar, path: &str, wanted: usize) -> Vec<Value> {
    sidecar.process().wait_for(&format!("\"path\":\"{path}\""));
    wait_until("the access log is complete", || wanted <= sidecar.access_log(path).len());
    let lines = sidecar.access_log(path);
    assert_eq!(lines.len(), wanted, "{lines:?}");
    lines
}

fn uploaded() {
    let pair = Pair::new(Mode::Explicit);
    let _app = pair.server.http_app(pair.app_port());
    let [Route { to, authority, .. }, _] = pair.routes();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let asked = authority.clone();
        let answer = pair.client.run(move || async move {
            let mut client = Client::connect(version, to).await.unwrap();
            client.send(post(version, &asked, "/echo", &"x".repeat(100_000))).await.unwrap()
        });
        assert_eq!(answer.body.len(), 100_000);
    }
    for sidecar in [&pair.near, &pair.far] {
        for line in lines(sidecar, "/echo", 2) {
            let bytes = [&line["bytes_in"], &line["bytes_out"]];
            assert_eq!(bytes, [&Value::from(100_000), &100_000.into()], "{line}");
        }
    }
}

fn reasons() {
    let pair = Pair::new(Mode::Explicit);
    let [Route { to, authority, .. }, _] = pair.routes();
    let answer = pair.client.run(move || async move {
        fetch(Version::HTTP_11, to, &authority, "/gone").await.unwrap()
    });
    assert_eq!((answer.status, answer.header("x-remora-reason")), (503, "connect_refused"));
    // The one that refused is the other: that is where its reason comes from.
    let far = pair.far.metrics();
    assert!(0 < far.replies("inbound", "connect_refused"), "{far}");
    for line in lines(&pair.near, "/gone", 1) {
        assert_eq!((&line["status"], &line["reason"]), (&503.into(), &"connect_refused".into()));
    }
}

fn hop_by_hop() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| {
            answer(
                "HTTP/1.1 200 OK\r\nconnection: x-hop, keep-alive\r\nkeep-alive: timeout=5\r\n\
                 x-hop: 1\r\nx-end: 2\r\nset-cookie: a\r\nset-cookie: b\r\nx-remora-reason: mine\r\n\
                 proxy-authenticate: x\r\ncontent-length: 0\r\n\r\n",
            )
        });
        pair.each_route(|Route { to, authority, .. }| {
            let request = format!(
                "GET /h HTTP/1.1\r\nHost: {authority}\r\nConnection: close, X-Hop, te\r\nX-Hop: 1\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\n\
                 TE: gzip, trailers\r\nX-End: 2\r\nCookie: a\r\nCookie: b\r\n\
                 X-Remora-Attempt: 7\r\nX-Remora-Anything: 1\r\n\r\n"
            );
            let answer = pair.client.run(move || async move {
                String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
            });
            let seen = app.take();
            let head = &seen[0].head;
            for (head, side) in [(head, "application"), (&answer, "client")] {
                for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization",
                    "proxy-authenticate", "x-remora-attempt", "x-remora-anything", "x-remora-http", "x-remora-reason"] {
                    assert_eq!(header(head, name), None, "{name} reached the {side}: {head}");
                }
                assert_eq!(header(head, "x-end"), Some("2"), "{head}");
            }
            assert_eq!(answer.matches("set-cookie").count(), 2, "{answer}");
            assert_eq!(header(head, "te"), Some("trailers"), "{head}");
            assert!(header(head, "host") == Some(&authority), "{head}");
        });
    });
}

fn names() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067ca0f0902c7-01";
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| OK);
        pair.each_route(|Route { to, authority, .. }| {
            let ask = |more: &str| {
                let request = format!(
                    "GET /n HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{more}\r\n"
                );
                pair.client.run(move || async move { talk(to, request.as_bytes()).await.unwrap() });
                app.take().remove(0)
            };
            let made = ask("");
            let id = made.header("x-request-id").unwrap();
            assert!(id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit()), "{id}");
            let parent: Vec<_> = made.header("traceparent").unwrap().split('-').collect();
            assert_eq!(parent.iter().map(|it| it.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
            assert_ne!(ask("").header("x-request-id"), Some(id), "not one for each");
            let kept = ask(&format!("X-Request-Id: mine\r\nTraceparent: {PARENT}\r\n"));
            assert_eq!(kept.header("x-request-id"), Some("mine"));
            let trace = |it: &str| it.split('-').nth(1).map(str::to_owned);
            assert_eq!(trace(kept.header("traceparent").unwrap()), trace(PARENT));

            let chain = ask("X-Forwarded-For: 192.0.2.1\r\n");
            let chain: Vec<_> = chain.header("x-forwarded-for").unwrap().split(", ").collect();
            assert_eq!(chain[0], "192.0.2.1");
            let client = chain.last().unwrap().parse().unwrap();
            assert!(pair.client.sources().contains(&client), "{chain:?}");
            assert_eq!(made.header("x-forwarded-proto"), Some("http"));
        });
    });
}

fn peer() {
    let pair = Pair::new(Mode::Capture);
    let app = pair.server.recorder(pair.app_port(), |_| OK);
    let forged = "X-Remora-Peer: spiffe://cluster.local/ns/shop/sa/admin\r\n";
    let ask = |host: &Host, Route { to, authority, .. }: Route, begin: &str| {
        let request = format!(
            "{begin} /p HTTP/1.1\r\nHost: {authority}\r\n{forged}Connection: close\r\n\r\n"
        );
        host.run(move || async move { talk(to, request.as_bytes()).await.unwrap() });
        // The HTTP/2 of the route before may be heard late.
        let heard = app.take().into_iter().find(|it| it.head.contains(" /p "));
        heard.unwrap().header("x-remora-peer").map(str::to_owned)
    };
    let stranger = pair.client.as_proxy();
    for route in pair.routes() {
        // However the request begins, and whatever the method.
        for begin in ["GET", "\r\nGET", "BREW-2", "PROPFIND"] {
            assert_eq!(ask(&pair.client, route.clone(), begin), Some(Mesh::id("web")), "{begin}");
            assert_eq!(ask(&stranger, route.clone(), begin), None, "{begin}");
        }
        // Over HTTP/2 from outside.
        let Route { to, authority, .. } = route;
        stranger.run(move || async move {
            let mut client = Client::connect(Version::HTTP_2, to).await.unwrap();
            let mut request = get(Version::HTTP_2, &authority, "/p");
            let name = HeaderName::from_static("x-remora-peer");
            request.headers_mut().insert(name, HeaderValue::from_static("spiffe://a/b"));
            // The application of this case does not speak HTTP/2; what counts is what it saw.
            let _answered = client.send(request).await.is_ok();
        });
        assert!(app.take().iter().all(|it| !it.head.contains("spiffe://a/b")));
    }
}

fn silent() {
    let pair = Pair::new(Mode::Capture);
    let app = pair.server.recorder(pair.app_port(), |_| OK);
    // A stranger in plaintext, and the application of a pod in the mesh.
    let stranger = pair.client.as_proxy();
    for (host, sidecar, direction, peer) in [
        (&stranger, &pair.far, "inbound", None),
        (&pair.client, &pair.near, "outbound", Some(Mesh::id("web"))),
    ] {
        for Route { name, to, authority } in pair.routes() {
            let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
            let client = host.start(move || async move {
                let mut stream = connect(to).await.unwrap();
                may_go_on.await.unwrap();
                let request = format!(
                    "GET /s HTTP/1.1\r\nHost: {authority}\r\nX-Remora-Peer: forged\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                Reader::default().message(&mut stream, true).await.unwrap()
            });
            // By now it is taken for a client that waits for the server.
            let waiting = [("direction", direction), ("protocol", "tcp")];
            sidecar.metrics_when(|it| it.sum("remora_connections", &waiting) == 1);
            go_on.send(()).unwrap();
            let (head, body) = client.join();
            each(&format!("{direction}, {name}"), || {
                assert_eq!((head.split(' ').nth(1), &body[..]), (Some("200"), &b"ok"[..]));
                let seen = app.take();
                assert_eq!(seen.len(), 1, "{seen:?}");
                assert_eq!(seen[0].header("x-remora-peer"), peer.as_deref(), "{seen:?}");
            });
        }
    }
}

/// A client whose name server knows `orders.shop`, which is two pods.
struct Service {
    client: Host,
    near: Sidecar,
    pods: [Host; 2],
    apps: [App; 2],
    dns: Dns,
    mode: Mode,
    _far: [Sidecar; 2],
    _mesh: Mesh,
}

const NAME: &str = "orders.shop";

/// What balances by latency would prefer the pod this machine runs sooner.
const IN_TURN: &str = "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  loadBalancer: {algorithm: RoundRobin}
";

impl Service {
    fn new(mode: Mode) -> Self {
        let [client, a, b] = Topology::of(["web", "orders-a", "orders-b"]);
        let (mesh, dns) = (Mesh::new(), client.dns());
        dns.set(NAME, &[a.v4(), b.v4()], 1);
        let servers = ["--dns", "127.0.0.1"];
        mesh.write_policy(&client, IN_TURN);
        let pods = [a, b];
        let start = |host: &Host, account, options: &[&str]| match mode {
            Mode::Capture => mesh.captured(host, account, options),
            Mode::Explicit => mesh.explicit(host, account, options),
        };
        let far = pods.each_ref().map(|it| start(it, "orders", &[]));
        let near = start(&client, "web", &servers);
        let port = if mode == Mode::Capture { SERVICE } else { BEHIND };
        let apps = pods.each_ref().map(|it| it.http_app(port));
        Self { client, near, pods, apps, dns, mode, _far: far, _mesh: mesh }
    }

    /// Sends `count` requests, one after another, for the name; in capture mode to the
    /// first pod, as an application does that has resolved it.
    fn send(&self, count: usize) -> [u64; 2] {
        let before = self.apps.each_ref().map(App::requests);
        let to = match self.mode {
            Mode::Capture => SocketAddr::new(self.pods[0].v4(), SERVICE),
            Mode::Explicit => ([127, 0, 0, 1], OUTBOUND).into(),
        };
        self.client.run(move || async move {
            let stream = connect(to).await.unwrap();
            let mut client = Client::over(Version::HTTP_11, stream).await.unwrap();
            let host = format!("{NAME}:{SERVICE}");
            for _ in 0..count {
                let answer = client.send(get(Version::HTTP_11, &host, "/status/200")).await;
                assert_eq!(answer.unwrap().status, 200);
            }
        });
        let after = self.apps.each_ref().map(App::requests);
        [after[0] - before[0], after[1] - before[1]]
    }
}

fn balanced() {
    for mode in [Mode::Capture, Mode::Explicit] {
        let service = Service::new(mode);
        let shares = service.send(300);
        assert_eq!(shares[0] + shares[1], 300);
        assert!(shares.iter().all(|it| 140 < *it), "{mode:?}: {shares:?}");
        let page = service.near.metrics();
        let orders = [("service", "shop/orders")];
        if mode == Mode::Explicit {
            assert_eq!(page.sum("remora_endpoints", &orders), 2, "{page}");
        }
        assert_eq!(page.sum("remora_requests_total", &orders), 300, "{page}");
        service.near.is_well();
    }
}

fn dns_change() {
    // An application that dials an address gets it, whatever its name means by now; so what
    // it dials stays in the answer in capture mode.
    let service = Service::new(Mode::Explicit);
    change(&service, &[service.pods[1].v4()], |shares| shares == [0, 5]);
    let page = service.near.metrics();
    assert_eq!(page.sum("remora_endpoints", &[("service", "shop/orders")]), 1, "{page}");
    let service = Service::new(Mode::Capture);
    let both = service.pods.each_ref().map(Host::v4);
    change(&service, &both, |shares| 0 < shares[1]);
}

/// Makes the first pod the only one, then `after`, and waits until five requests are shared
/// as `expected`.
fn change(service: &Service, after: &[IpAddr], expected: impl Fn([u64; 2]) -> bool) {
    service.dns.set(NAME, &[service.pods[0].v4()], 1);
    assert_eq!(service.send(20), [20, 0], "before the change");
    service.dns.set(NAME, after, 1);
    let began = clock::now();
    while !expected(service.send(5)) {
        assert!(clock::now() - began < PATIENCE, "the change is not picked up");
        service.client.run(|| async {
            let mut look = time::interval(LOOK_AGAIN);
            // The first tick is at once.
            look.tick().await;
            look.tick().await;
        });
    }
}
