//! Lifecycle: from the first start to the last request, and to the next version.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use http::Version;
use nix::sys::signal::Signal;
use remora::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    host::Host,
    http as web,
    load::Load,
    pods::{
        ADMIN, APP, Mesh, ORDERS, Pair, SERVICE, Setup, Sidecar, eventually, inbound, outbound,
        readable_dir,
    },
    process::remora,
    runner::Case,
    tcp,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("lifecycle_health_says_what_is", health),
    ("lifecycle_sigterm_lets_what_is_in_flight_end", drained),
    ("lifecycle_sigterm_ends_what_does_not_end_before_the_grace", endless),
    ("lifecycle_a_silent_connection_holds_no_shutdown_up", silent),
    ("lifecycle_sigint_ends_at_once", interrupted),
    ("lifecycle_sigquit_hands_over_under_load", upgraded),
    ("lifecycle_an_identity_is_waited_for", no_identity_yet),
    ("lifecycle_all_that_is_missing_is_said_at_once", settings),
    ("lifecycle_a_port_in_use_is_said_clearly", port_in_use),
    ("lifecycle_running_out_of_descriptors_is_survived", descriptors),
    ("lifecycle_as_many_descriptors_are_used_as_there_may_be", limit),
];

fn health() {
    let pair = Pair::new();
    for (path, status) in [
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/health/startup", 200),
        ("/metrics", 200),
        ("/nothing", 404),
    ] {
        assert_eq!(pair.server.admin(path).status, status, "{path}");
    }
    let ready = pair.server.admin("/health/ready").json();
    assert_eq!(ready, serde_json::json!({"ready": true, "missing": [], "notes": []}));
}

fn drained() {
    let mut pair = Pair::with(|it| it, |it| it.with("--lame-duck", "1s"));
    let to = inbound(pair.orders.v4());
    // In flight over both versions, and through the other sidecar.
    let slow = |to: SocketAddr, version| {
        pair.web.start(move || async move {
            let mut client = web::Client::connect(version, to).await.unwrap();
            let answer = client.send(web::get(version, ORDERS, "/slow?ms=2500")).await.unwrap();
            let again = client.send(web::get(version, ORDERS, "/who")).await.is_ok();
            (answer.status, answer.header("connection").to_owned(), again)
        })
    };
    let in_flight =
        [slow(to, Version::HTTP_11), slow(to, Version::HTTP_2), slow(outbound(), Version::HTTP_11)];
    // An idle one is told that it is over by its end.
    let idle = pair.web.start(move || async move {
        let mut stream = tcp::connect(to).await.unwrap();
        stream.write_all(b"GET /who HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        String::from_utf8(all).unwrap()
    });
    assert!(eventually(|| pair.app.requests() == 4));
    let began = clock::now();
    pair.server.process.signal(Signal::SIGTERM);
    assert!(eventually(|| pair.server.admin("/health/ready").status == 503));
    let ready = pair.server.admin("/health/ready").json();
    assert_eq!(ready["missing"][0]["condition"], "draining", "{ready}");
    assert_eq!(pair.server.admin("/health/live").status, 200);
    // Callers that have not heard yet are still welcome.
    let late = pair.web.run(move || async move {
        web::fetch(Version::HTTP_11, to, ORDERS, "/who").await.unwrap().status
    });
    assert_eq!(late, 200);
    assert!(clock::now() - began < Duration::from_secs(1), "too slow to tell");
    let [one, two, through] = in_flight.map(crate::host::Running::join);
    assert_eq!(one, (200, "close".into(), false));
    // GOAWAY: the connection takes no more.
    assert_eq!(two, (200, String::new(), false));
    assert_eq!(through.0, 200);
    assert!(idle.join().starts_with("HTTP/1.1 200"));
    assert!(pair.server.process.wait().success());
    assert!(clock::now() - began < Duration::from_secs(15));
    pair.server.log(&["leaving", "\"drained\":true"]);
    assert_eq!(pair.server.logged(&["\"status\":200", "/slow"]), 3);
}

fn endless() {
    let mut pair = Pair::with(|it| it, |it| it.with("--grace", "6s"));
    let to = inbound(pair.orders.v4());
    let upgraded = pair.web.start(move || async move {
        let mut stream = web::upgrade_to_echo(to, ORDERS).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut all = Vec::new();
        // However it ends, it ends.
        let _ended = stream.read_to_end(&mut all).await.is_ok();
        all
    });
    let never = pair.web.start(move || async move {
        web::fetch(Version::HTTP_11, to, ORDERS, "/never").await.is_err()
    });
    assert!(eventually(|| pair.app.requests() == 2));
    let began = clock::now();
    pair.server.process.signal(Signal::SIGTERM);
    assert!(pair.server.process.wait().success());
    let took = clock::now() - began;
    assert!(took < Duration::from_secs(6), "it took {took:?}");
    pair.server.log(&["leaving", "\"drained\":false", "\"in_flight\":2"]);
    assert_eq!(upgraded.join(), b"hello");
    assert!(never.join());
}

fn silent() {
    let mut pair = Pair::new();
    let to = inbound(pair.orders.v4());
    let held = pair.web.run(move || async move { tcp::connect(to).await.unwrap().into_std() });
    // The sidecar has dialled the application, which might speak first.
    assert!(eventually(|| pair.app.connections() == 1));
    let began = clock::now();
    pair.server.process.signal(Signal::SIGTERM);
    assert!(pair.server.process.wait().success());
    let took = clock::now() - began;
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    drop(held);
}

fn interrupted() {
    let mut pair = Pair::new();
    let to = inbound(pair.orders.v4());
    let never = pair.web.start(move || async move {
        web::fetch(Version::HTTP_11, to, ORDERS, "/never").await.is_err()
    });
    assert!(eventually(|| pair.app.requests() == 1));
    let began = clock::now();
    pair.server.process.signal(Signal::SIGINT);
    assert!(pair.server.process.wait().success());
    let took = clock::now() - began;
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    assert!(never.join());
}

fn upgraded() {
    let folder = readable_dir();
    let sock = folder.path().join("upgrade.sock");
    let quiet = |it: Setup| {
        it.with("--access-log", "failures")
            .with("--upgrade-sock", &sock.display())
            .with("--grace", "3s")
    };
    let mut pair = Pair::with(quiet, |it| it.with("--access-log", "failures"));
    let load =
        Load::start(&pair.web, outbound(), 8, |_| web::get(Version::HTTP_11, ORDERS, "/who"));
    load.go_on_for(100);
    // Pingora's server accepts for five more seconds; what is in hand then has the grace.
    let slow = pair.web.start(|| async {
        web::fetch(Version::HTTP_11, outbound(), ORDERS, "/slow?ms=6000").await.unwrap().status
    });
    let setup = Setup::new(&pair.mesh.folder("web")).with("--dns", &pair.web.v4());
    let next = quiet(setup).flag("--upgrade").begin(&pair.web);
    assert!(eventually(|| sock.exists()), "nobody waits to take over");
    pair.client.process.signal(Signal::SIGQUIT);
    next.process.wait_for("ready to serve");
    load.go_on_for(300);
    assert_eq!(slow.join(), 200);
    assert!(pair.client.process.wait().success());
    load.go_on_for(300);
    load.stop_without_failure();
    assert!(300 <= next.count("remora_requests_total", &[("code", "2xx")]));
    assert_eq!(next.admin("/health/ready").status, 200);
}

fn no_identity_yet() {
    let [web, orders] = Topology::of(["web", "orders"]);
    let (mesh, _app) = (Mesh::new(), orders.http_app(APP));
    let folder = mesh.folder("orders");
    fs::create_dir(&folder).unwrap();
    let sidecar = Setup::new(&folder).begin(&orders);
    sidecar.log(&["waiting for the identity", "tls.crt"]);
    assert_eq!(sidecar.admin("/health/live").status, 200);
    let ready = sidecar.admin("/health/ready");
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["missing"][0]["condition"], "identity", "{}", ready.text());
    assert_eq!(sidecar.admin("/health/startup").status, 503);
    // Who comes early is served late.
    let to = inbound(orders.v4());
    let early = web.start(move || async move {
        web::fetch(Version::HTTP_11, to, ORDERS, "/who").await.unwrap().status
    });
    mesh.issue("orders");
    sidecar.process.wait_for("ready to serve");
    assert_eq!(early.join(), 200);
    assert_eq!(sidecar.admin("/health/ready").status, 200);
    assert_eq!(sidecar.logged(&["waiting for the identity"]), 1);
}

fn settings() {
    let [web] = Topology::of(["web"]);
    let mut command = remora();
    command.env_clear().args(["--mode", "explicit", "--grace", "soon", "--tcp", "7000=nowhere"]);
    let mut process = web.spawn(command);
    assert_eq!(process.wait().code(), Some(78));
    let said = process.output();
    for word in ["--identity", "--app", "soon", "7000=nowhere", "hint: "] {
        assert!(said.contains(word), "`{word}` is not said:\n{said}");
    }
}

fn port_in_use() {
    let [web] = Topology::of(["web"]);
    let _other = web.tcp_echo(OTHER);
    let setup = Setup::nobody().with("--inbound", &format!("0.0.0.0:{OTHER}"));
    let mut process = web.spawn(setup.command());
    assert_eq!(process.wait().code(), Some(1));
    let said = process.output();
    let expected = format!("cannot listen on `0.0.0.0:{OTHER}` for inbound");
    assert!(said.contains(&expected) && said.contains("hint: "), "{said}");
}

/// A port somebody else has.
const OTHER: u16 = 8500;

/// A sidecar begun with these limits of a shell.
fn limited(host: &Host, limits: &str) -> Sidecar {
    let mut command = Command::new("/bin/sh");
    let script = format!("{limits} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_remora")]).args(Setup::nobody().arguments());
    let sidecar = Sidecar::new(host, host.spawn(command));
    sidecar.process.wait_for("ready to serve");
    sidecar
}

fn limit() {
    let [web] = Topology::of(["web"]);
    let sidecar = limited(&web, "ulimit -S -n 256 && ulimit -H -n 512");
    assert_eq!(sidecar.count("process_max_fds", &[]), 512);
}

fn descriptors() {
    let [web, orders] = Topology::of(["web", "orders"]);
    let _app = orders.http_app(APP);
    let sidecar = limited(&orders, "ulimit -n 64");
    let to = inbound(orders.v4());
    let full = "cannot accept connections for a moment";
    let held = web.run(move || async move {
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut stream = tcp::connect(to).await.unwrap();
            stream.write_all(b"GET /who HTTP/1.1\r\n").await.unwrap();
            held.push(stream.into_std().unwrap());
        }
        held
    });
    sidecar.log(&[full]);
    drop(held);
    let answer = web.run(move || async move {
        web::fetch(Version::HTTP_11, to, ORDERS, "/who").await.unwrap().status
    });
    assert_eq!(answer, 200);
    assert_eq!(sidecar.admin("/health/ready").status, 200);
    assert_eq!(sidecar.count("remora_panics_total", &[]), 0);
    assert_eq!((SERVICE, ADMIN), (8080, 15_020));
    // A word every 50 ms at most, and not one a connection.
    assert!(sidecar.logged(&[full]) < 200);
}
