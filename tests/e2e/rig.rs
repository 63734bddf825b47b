//! The rig itself: what the scenarios lean on does what they take for granted.

use std::{net::SocketAddr, process::Command, time::Duration};

use http::Version;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time,
};
use tonic::{Code, Request};

use crate::{
    dns::Mood,
    grpc::{self, ping},
    host::{Host, PATIENCE},
    http as web,
    process::{folder, remora},
    runner::Case,
    tcp,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("rig_echo_ends_after_the_client_has", echo),
    ("rig_banner_comes_before_a_word_is_said", banner),
    ("rig_unplugged_host_is_a_black_hole", unplugged),
    ("rig_program_is_seen_listening_heard_and_stopped", program),
    ("rig_binary_under_test_starts", binary),
    ("rig_folder_can_be_read_by_the_sidecar", files),
    ("rig_host_has_its_own_name_server", resolver),
    ("rig_http_does_what_the_path_says", http),
    ("rig_http_upgrade_echoes", upgrade),
    ("rig_grpc_has_all_kinds_of_calls", calls),
    ("rig_dns_changes_as_it_serves", names),
];

/// How long to watch that something does not happen: a slow machine makes it no failure.
const SHORTLY: Duration = Duration::from_millis(100);

fn echo() {
    let [client, server] = Topology::of(["client", "server"]);
    let _echo = server.tcp_echo(7000);
    for address in server.addresses() {
        let to = SocketAddr::new(address, 7000);
        assert_eq!(
            client.run(move || async move { tcp::ask(to, b"hello").await.unwrap() }),
            "hello"
        );
    }
}

fn banner() {
    let [client, server] = Topology::of(["client", "server"]);
    let _banner = server.tcp_banner(7000, "220 ready\n");
    let to = SocketAddr::new(server.v6(), 7000);
    let greeting = client.run(move || async move {
        let mut stream = tcp::connect(to).await.unwrap();
        let mut greeting = [0; 10];
        stream.read_exact(&mut greeting).await.unwrap();
        greeting
    });
    assert_eq!(&greeting, b"220 ready\n");
}

fn unplugged() {
    let [client, server] = Topology::of(["client", "server"]);
    let _echo = server.tcp_echo(7000);
    let to = SocketAddr::new(server.v4(), 7000);
    let is_answered_within = |patience| {
        client.run(move || async move {
            time::timeout(patience, tcp::ask(to, b"x")).await.is_ok_and(|it| it.is_ok())
        })
    };
    assert!(is_answered_within(PATIENCE / 2));
    server.unplug();
    assert!(!is_answered_within(SHORTLY));
    server.plug();
    assert!(is_answered_within(PATIENCE / 2));
}

fn program() {
    let [host] = Topology::of(["host"]);
    // A shell, for a program that is sure to be there and does as it is told.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "echo user $(id -u); echo complaint >&2; exec cat /dev/zero > /dev/null"]);
    let mut process = host.as_proxy().spawn(shell);
    process.wait_for(&format!("user {}\n", crate::world::proxy_uid()));
    process.wait_for("complaint\n");
    assert!(std::path::Path::new(&format!("/proc/{}", process.id())).exists());
    process.signal(Signal::SIGTERM);
    assert!(!process.wait().success());

    let _echo = host.tcp_echo(7000);
    host.listening(7000);
}

fn binary() {
    let [host] = Topology::of(["host"]);
    let mut command = remora();
    command.arg("--version");
    let mut process = host.as_proxy().spawn(command);
    assert!(process.wait().success(), "{}", process.output());
}

fn files() {
    let [host] = Topology::of(["host"]);
    let folder = folder();
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, "kind: Test\n").unwrap();
    let mut command = Command::new("/bin/cat");
    command.arg(&file);
    let mut process = host.as_proxy().spawn(command);
    assert!(process.wait().success(), "{}", process.output());
    assert_eq!(process.output(), "kind: Test\n");
}

fn resolver() {
    let [host, other] = Topology::of(["host", "other"]);
    host.resolve_by(other.v6());
    let read = |host: &Host| {
        let mut command = Command::new("/bin/cat");
        command.arg("/etc/resolv.conf");
        let mut process = host.as_proxy().spawn(command);
        process.wait();
        process.output()
    };
    let line = format!("nameserver {}\n", other.v6());
    assert!(read(&host).starts_with(&line));
    assert!(!read(&other).contains(&line));
}

fn http() {
    let [client, server] = Topology::of(["client", "server"]);
    let app = server.http_app(8080);
    let to = SocketAddr::new(server.v4(), 8080);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        client.run(move || async move {
            let mut it = web::Client::connect(version, to).await.unwrap();
            let get = |path: &str| web::get(version, "orders", path);
            assert_eq!(it.send(get("/status/418")).await.unwrap().status, 418);
            let echo = it.send(web::post(version, "orders", "/echo", "hello")).await.unwrap();
            assert_eq!((echo.text(), echo.header("x-app")), ("hello", "echo"));
            let who = it.send(get("/who?x=1")).await.unwrap().json();
            assert_eq!(who["host"], "server");
            assert_eq!(who["version"], format!("{version:?}"));
            assert_eq!(it.send(get("/slow?ms=1")).await.unwrap().status, 200);
            assert_eq!(it.send(get("/bytes/100000")).await.unwrap().body.len(), 100_000);
            let trailers = it.send(get("/trailers")).await.unwrap();
            assert_eq!(trailers.body.len(), 9);
            if version == Version::HTTP_2 {
                assert_eq!(trailers.trailers["x-checksum"], "nine zeros");
            }
            let never = it.send(get("/never"));
            assert!(time::timeout(SHORTLY, never).await.is_err());
            let mut it = web::Client::connect(version, to).await.unwrap();
            assert!(it.send(get("/cut/100")).await.is_err());
        });
    }
    let (requests, connections) = (app.requests(), app.connections());
    app.fail_next(2, 503);
    let statuses = client.run(move || async move {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let answer = web::fetch(Version::HTTP_11, to, "orders", "/status/200").await;
            statuses.push(answer.unwrap().status);
        }
        statuses
    });
    assert_eq!(statuses, [503, 503, 200]);
    assert_eq!((app.requests() - requests, app.connections() - connections), (3, 3));
}

fn upgrade() {
    let [client, server] = Topology::of(["client", "server"]);
    let _app = server.http_app(8080);
    let to = SocketAddr::new(server.v6(), 8080);
    let echoed = client.run(move || async move {
        let mut stream = web::upgrade_to_echo(to, "orders").await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.unwrap();
        echoed
    });
    assert_eq!(&echoed, b"hello");
}

fn calls() {
    let [client, server] = Topology::of(["client", "server"]);
    let _app = server.grpc_app(9000);
    let to = SocketAddr::new(server.v4(), 9000);
    client.run(move || async move {
        let mut it = grpc::Client::connect(to, "echo:9000").await.unwrap();
        let answer = it.unary(Request::new(ping("a", 0))).await.unwrap();
        assert_eq!(answer.into_inner(), ping("a", 0));
        let failed = it.unary(Request::new(ping("fail 14", 0))).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
        let many = it.server_stream(ping("a", 3)).await.unwrap();
        assert_eq!(many, [ping("a", 0), ping("a", 1), ping("a", 2)]);
        let one = it.client_stream(vec![ping("a", 0), ping("b", 0)]).await.unwrap();
        assert_eq!(one, ping("ab", 2));
        let both = it.bidi(vec![ping("a", 7), ping("b", 8)]).await.unwrap();
        assert_eq!(both, [ping("a", 7), ping("b", 8)]);
    });
}

fn names() {
    let [client, server] = Topology::of(["client", "server"]);
    let dns = server.dns();
    let at = SocketAddr::new(server.v4(), 53);
    let look_up_within =
        |patience, name: &'static str| client.run(move || crate::dns::look_up(at, name, patience));
    let look_up = |name| look_up_within(PATIENCE / 2, name);
    assert_eq!(look_up("orders.test"), Err("NXDomain".into()));
    dns.set("orders.test", &[client.v4()], 5);
    assert_eq!(look_up("orders.test"), Ok(vec![format!("{} for 5 s", client.v4())]));
    dns.set("orders.test", &[server.v4(), server.v6()], 1);
    assert_eq!(look_up("orders.test"), Ok(vec![format!("{} for 1 s", server.v4())]));
    dns.set_services("_http._tcp.orders.test", &[(1, 2, 80, "a.test")], 1);
    assert_eq!(look_up("_http._tcp.orders.test"), Ok(vec![]));
    dns.be(Mood::Failing);
    assert_eq!(look_up("orders.test"), Err("ServFail".into()));
    dns.be(Mood::Silent);
    assert_eq!(look_up_within(SHORTLY, "orders.test"), Err("silence".into()));
    dns.be(Mood::Well);
    dns.forget("orders.test");
    assert_eq!(look_up("orders.test"), Err("NXDomain".into()));
    assert_eq!(dns.queries(), 7);
}
