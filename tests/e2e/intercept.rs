//! Interception: the rules on a real kernel, both families, with a stand-in for the
//! sidecar that answers which of its listeners was reached and what for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command as Program,
};

use remora::intercept::{
    Command, Config, Error, FROM_PROXY_V4, FROM_PROXY_V6, nftables::Difference, original_dst,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    cable,
    host::{Host, Service, config},
    process::Process,
    runner::{self, Case},
    tcp::{ask, connect_from, exchange},
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("inbound_connections_reach_the_sidecar_and_say_where_they_were_going", inbound),
    ("outbound_connections_reach_the_sidecar_and_say_where_they_were_going", outbound),
    ("what_is_left_out_inbound_reaches_the_application", left_out_inbound),
    ("what_is_left_out_outbound_reaches_its_destination", left_out_outbound),
    ("the_sidecars_own_connections_are_not_intercepted", own_connections),
    ("the_sidecar_reaches_an_application_bound_to_the_pod_address", to_the_application),
    ("the_sidecar_choosing_its_own_pod_comes_in_by_the_inbound_listener", hairpin),
    ("the_application_talks_to_itself_undisturbed", application_to_itself),
    ("a_direct_hit_has_no_original_destination", direct_hit),
    ("a_direct_hit_of_any_address_of_the_pod_is_one", direct_hit_elsewhere),
    ("another_hosts_port_of_the_same_number_is_no_direct_hit", outbound_to_our_port_elsewhere),
    ("applying_twice_is_applying_once", twice),
    ("changed_rules_do_not_verify", changed),
    ("removal_leaves_nothing", removal),
    ("without_ipv6_the_rest_is_intercepted", without_ipv6),
    ("the_printed_rules_are_those_installed", printed),
];

const APPLICATION: u16 = 8080;

fn inbound() {
    let [client, pod] = Topology::of(["client", "pod"]);
    let _running = (application(&pod), sidecar(&pod));
    apply(&pod, &config());
    for address in pod.addresses() {
        let to = SocketAddr::new(address, APPLICATION);
        assert_eq!(answer(&client, to), format!("inbound for {to}"));
        // Nothing need listen where the client goes: this is for the sidecar to find out.
        let to = SocketAddr::new(address, 1);
        assert_eq!(answer(&client, to), format!("inbound for {to}"));
    }
}

fn outbound() {
    let [server, pod] = Topology::of(["server", "pod"]);
    let _running = (application(&server), sidecar(&pod));
    apply(&pod, &config());
    for address in server.addresses() {
        let to = SocketAddr::new(address, APPLICATION);
        assert_eq!(answer(&pod, to), format!("outbound for {to}"));
    }
}

fn left_out_inbound() {
    let [friend, client, pod] = Topology::of(["friend", "client", "pod"]);
    let _running = (application(&pod), sidecar(&pod), answering(&pod, 9999, "probe"));
    let skip_inbound_cidrs = friend.sources().into_iter().map(Into::into).collect();
    let skip_inbound_ports = vec![9990..=9999];
    apply(&pod, &Config { skip_inbound_cidrs, skip_inbound_ports, ..config() });
    for address in pod.addresses() {
        let (to, probe) = (SocketAddr::new(address, APPLICATION), SocketAddr::new(address, 9999));
        assert_eq!(answer(&friend, to), "application");
        assert_eq!(answer(&client, to), format!("inbound for {to}"));
        assert_eq!(answer(&client, probe), "probe");
    }
}

fn left_out_outbound() {
    let [friend, server, pod] = Topology::of(["friend", "server", "pod"]);
    let _running = (application(&friend), application(&server), sidecar(&pod));
    let _dns = answering(&server, 53, "dns");
    let skip_outbound_cidrs = friend.addresses().map(Into::into).into();
    apply(&pod, &Config { skip_outbound_cidrs, ..config() });
    for (friend, server) in friend.addresses().into_iter().zip(server.addresses()) {
        assert_eq!(answer(&pod, (friend, APPLICATION).into()), "application");
        let to = SocketAddr::new(server, APPLICATION);
        assert_eq!(answer(&pod, to), format!("outbound for {to}"));
        assert_eq!(answer(&pod, (server, 53).into()), "dns");
    }
}

fn own_connections() {
    let [server, pod] = Topology::of(["server", "pod"]);
    let _running = (application(&server), sidecar(&pod));
    apply(&pod, &config());
    for address in server.addresses() {
        assert_eq!(answer(&pod.as_proxy(), (address, APPLICATION).into()), "application");
    }
}

fn to_the_application() {
    let [pod] = Topology::of(["pod"]);
    let _sidecar = sidecar(&pod);
    apply(&pod, &config());
    for address in pod.addresses() {
        let to = SocketAddr::new(address, APPLICATION);
        let _application = pod.tcp_server_at(to, |it| say(it, "application".into()));
        let from = SocketAddr::new(from_proxy(address), 0);
        let answer = pod.as_proxy().run(move || async move {
            let stream = connect_from(Some(from), to).await.unwrap();
            exchange(stream, b"").await.unwrap()
        });
        assert_eq!(answer, b"application");
    }
}

fn hairpin() {
    let [pod] = Topology::of(["pod"]);
    let _running = (application(&pod), sidecar(&pod));
    apply(&pod, &config());
    for address in pod.addresses() {
        let to = SocketAddr::new(address, APPLICATION);
        assert_eq!(answer(&pod.as_proxy(), to), format!("inbound for {to}"));
    }
    for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        assert_eq!(answer(&pod.as_proxy(), (loopback, APPLICATION).into()), "application");
    }
}

fn application_to_itself() {
    let [pod] = Topology::of(["pod"]);
    let _running = (application(&pod), sidecar(&pod));
    apply(&pod, &config());
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    if crate::world::uids() == crate::world::Uids::Many {
        // Of one user, the application on the pod's address is the sidecar.
        addresses.extend(pod.addresses());
    }
    for address in addresses {
        assert_eq!(answer(&pod, (address, APPLICATION).into()), "application");
    }
}

fn direct_hit() {
    let [client, pod] = Topology::of(["client", "pod"]);
    let _sidecar = sidecar(&pod);
    for intercepted in [false, true] {
        if intercepted {
            apply(&pod, &config());
        }
        for address in pod.addresses() {
            assert_eq!(answer(&client, (address, 15_006).into()), "inbound for nobody");
        }
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            assert_eq!(answer(&pod, (loopback, 15_001).into()), "outbound for nobody");
            assert_eq!(answer(&pod, (loopback, 15_006).into()), "inbound for nobody");
        }
    }
}

fn direct_hit_elsewhere() {
    let [client, pod] = Topology::of(["client", "pod"]);
    let _sidecar = sidecar(&pod);
    let more = ["10.77.1.1", "10.77.1.2", "fd77::1:1", "fd77::1:2"]
        .map(|it| it.parse::<IpAddr>().unwrap());
    pod.within(|| {
        for it in more {
            cable::address("eth0", it, if it.is_ipv4() { 16 } else { 64 });
        }
    });
    apply(&pod, &config());
    for address in more.into_iter().chain(pod.addresses()) {
        assert_eq!(answer(&client, (address, 15_006).into()), "inbound for nobody");
        let to = SocketAddr::new(address, APPLICATION);
        assert_eq!(answer(&client, to), format!("inbound for {to}"));
    }
}

fn outbound_to_our_port_elsewhere() {
    let [server, pod] = Topology::of(["server", "pod"]);
    let _sidecar = sidecar(&pod);
    apply(&pod, &config());
    for address in server.addresses() {
        let to = SocketAddr::new(address, 15_001);
        assert_eq!(answer(&pod, to), format!("outbound for {to}"));
    }
}

fn twice() {
    let [pod] = Topology::of(["pod"]);
    let config = config();
    let first = apply(&pod, &config);
    assert_eq!(apply(&pod, &config), first);
    assert!(first.starts_with("installed 12 rules"), "{first}");
    let verified = pod.intercept(Command::Verify, &config).unwrap();
    assert!(verified.starts_with("12 rules in place"), "{verified}");
}

fn changed() {
    let [pod] = Topology::of(["pod"]);
    let other = Config { outbound_port: 15_002, ..config() };
    assert_eq!(difference(&pod, &other), Difference::NoTable("remora"));
    apply(&pod, &config());
    assert!(matches!(difference(&pod, &other), Difference::Generation(_)));
    apply(&pod, &other);
    assert!(pod.intercept(Command::Verify, &other).is_ok());
    assert!(matches!(difference(&pod, &config()), Difference::Generation(_)));
}

fn removal() {
    let [client, pod] = Topology::of(["client", "pod"]);
    let _running = (application(&pod), sidecar(&pod));
    let config = config();
    apply(&pod, &config);
    // The second finds nothing to remove, which is what it was asked for.
    for _ in 0..2 {
        pod.intercept(Command::Remove, &config).unwrap();
        assert_eq!(difference(&pod, &config), Difference::NoTable("remora"));
        for address in pod.addresses() {
            assert_eq!(answer(&client, (address, APPLICATION).into()), "application");
        }
        let from = SocketAddr::from((FROM_PROXY_V6, 0));
        let bound = pod.within(|| std::net::TcpListener::bind(from).map(drop));
        assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}

fn without_ipv6() {
    let [client, pod] = Topology::of(["client", "pod"]);
    let off = pod.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
    if let Err(error) = off {
        return runner::say(&format!("(not compared: IPv6 cannot be switched off: {error}) "));
    }
    let sidecar = |stream| say_destination(stream, "inbound");
    let _sidecar = pod.tcp_server_at((Ipv4Addr::UNSPECIFIED, 15_006).into(), sidecar);
    let said = apply(&pod, &config());
    assert!(said.contains("only IPv4 can be intercepted"), "{said}");
    let to = SocketAddr::new(pod.v4(), APPLICATION);
    assert_eq!(answer(&client, to), format!("inbound for {to}"));
    pod.intercept(Command::Remove, &config()).unwrap();
}

fn printed() {
    let [by_us, by_nft] = Topology::of(["by-us", "by-nft"]);
    let plain = config();
    let everything = Config {
        skip_inbound_ports: vec![80..=80, 8000..=8010, 65_000..=65_535],
        skip_outbound_ports: vec![0..=0, 53..=53],
        skip_inbound_cidrs: ["10.0.0.0/8", "192.0.2.1", "fd00::/8", "::1", "255.0.0.0/8"]
            .map(|it| it.parse().unwrap())
            .into(),
        skip_outbound_cidrs: ["0.0.0.0/0", "198.51.100.7", "::/0"]
            .map(|it| it.parse().unwrap())
            .into(),
        ..config()
    };
    for config in [plain, everything] {
        // Loaded by `nft`, it verifies as ours, and lists as ours does.
        let script = tempfile::NamedTempFile::new().unwrap();
        let text = by_nft.intercept(Command::Print, &config).unwrap();
        std::fs::write(script.path(), text).unwrap();
        let path = script.path().to_str().unwrap();
        let Some(said) = nft(&by_nft, &["-f", path]) else {
            return runner::say("(not compared: `nft` is not installed) ");
        };
        assert_eq!(said, "", "`nft` complains");
        assert!(by_nft.intercept(Command::Verify, &config).is_ok());
        apply(&by_us, &config);
        let list = ["list", "table", "inet", "remora"];
        assert_eq!(nft(&by_us, &list), nft(&by_nft, &list));
    }
}

/// What `nft` says, if there is one.
fn nft(host: &Host, arguments: &[&str]) -> Option<String> {
    let found = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"]
        .into_iter()
        .find(|it| std::path::Path::new(it).exists())?;
    let mut command = Program::new(found);
    command.args(arguments);
    let mut process: Process = host.spawn(command);
    let status = process.wait();
    assert!(status.success(), "{}", process.output());
    Some(process.output())
}

fn apply(pod: &Host, config: &Config) -> String {
    pod.intercept(Command::Apply, config).unwrap_or_else(|it| panic!("{it}"))
}

fn difference(pod: &Host, config: &Config) -> Difference {
    match pod.intercept(Command::Verify, config) {
        Err(Error::NotInPlace(difference)) => difference,
        other => panic!("verified as {other:?}"),
    }
}

fn application(host: &Host) -> Service {
    answering(host, APPLICATION, "application")
}

fn answering(host: &Host, port: u16, answer: &'static str) -> Service {
    host.tcp_server(port, |stream| say(stream, answer.to_owned()))
}

/// What listens where the sidecar would. Inbound is one dual-stack socket, outbound two.
fn sidecar(pod: &Host) -> [Service; 3] {
    let outbound = |address: IpAddr| {
        let at = SocketAddr::new(address, 15_001);
        pod.tcp_server_at(at, |stream| say_destination(stream, "outbound"))
    };
    [
        pod.tcp_server(15_006, |stream| say_destination(stream, "inbound")),
        outbound(Ipv4Addr::LOCALHOST.into()),
        outbound(Ipv6Addr::LOCALHOST.into()),
    ]
}

async fn say_destination(stream: TcpStream, listener: &'static str) {
    let original = original_dst(&stream, stream.local_addr().unwrap()).unwrap();
    let original = original.map_or("nobody".to_owned(), |it| it.to_string());
    say(stream, format!("{listener} for {original}")).await;
}

async fn say(mut stream: TcpStream, text: String) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Who answers when `host` connects to `to`.
fn answer(host: &Host, to: SocketAddr) -> String {
    host.run(move || async move {
        ask(to, b"").await.unwrap_or_else(|it| panic!("cannot ask {to}: {it}"))
    })
}

fn from_proxy(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { FROM_PROXY_V4.into() } else { FROM_PROXY_V6.into() }
}
