use std::{net::Ipv4Addr, str::FromStr};

use hickory_proto::{
    op::{Metadata, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::{clock, drain};

#[tokio::test]
async fn a_change_is_seen_when_the_ttl_ends() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    let watch = world.host("orders");
    let first = world.first(&watch).await;
    assert_eq!((addresses(&first), &first.state), (vec!["10.0.0.1:80".into()], &State::Fresh));
    world.zone.set(&[("orders.", "10.0.0.2"), ("orders.", "10.0.0.3")]);
    let second = watch.changed(first.version).await;
    assert_eq!(addresses(&second), ["10.0.0.2:80", "10.0.0.3:80"]);
    assert!(first.version < second.version && watch.version() == second.version);
}

#[tokio::test]
async fn addresses_of_both_families_are_merged() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("orders.", "10.0.0.1"), ("orders.", "fd00::1")]);
    let resolved = world.first(&world.host("orders")).await;
    assert_eq!(addresses(&resolved), ["10.0.0.1:80", "[fd00::1]:80"]);
}

#[tokio::test]
async fn an_srv_record_gives_ports_weights_and_priorities() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("a.", "10.0.0.1"), ("b.", "10.0.0.2"), ("b.", "fd00::2")]);
    world.zone.srv("_http._tcp.orders.", SRV::new(1, 5, 8080, name("a.")));
    world.zone.srv("_http._tcp.orders.", SRV::new(2, 0, 8081, name("b.")));
    world.zone.srv("_http._tcp.orders.", SRV::new(0, 1, 1, Name::root()));
    let watch = world.discovery.watch(Target::Srv { name: "_http._tcp.orders".into() });
    let resolved = world.first(&watch).await;
    let endpoint = |address: &str, weight, priority| Endpoint {
        weight,
        priority,
        ..Endpoint::new(address.parse().unwrap())
    };
    assert_eq!(
        resolved.endpoints.endpoints(),
        [
            endpoint("10.0.0.1:8080", 5, 1),
            endpoint("10.0.0.2:8081", 1, 2),
            endpoint("[fd00::2]:8081", 1, 2)
        ]
    );
}

#[tokio::test]
async fn an_srv_target_that_fails_keeps_its_endpoints() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("a.", "10.0.0.1"), ("b.", "10.0.0.2")]);
    world.zone.srv("_http._tcp.orders.", SRV::new(1, 5, 80, name("a.")));
    world.zone.srv("_http._tcp.orders.", SRV::new(1, 5, 80, name("b.")));
    let watch = world.discovery.watch(Target::Srv { name: "_http._tcp.orders".into() });
    let first = world.first(&watch).await;
    world.zone.fail(Some("b."), None, Fault::ServFail);
    let second = watch.changed(first.version).await;
    assert!(matches!(second.state, State::Stale { .. }), "{second:?}");
    assert_eq!(second.endpoints, first.endpoints);
}

#[tokio::test]
async fn endpoints_outlive_the_dns_server_and_recover_with_it() {
    let mut world = World::new(QUICK).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    let watch = world.host("orders");
    let good = world.first(&watch).await;
    world.stop().await;
    let stale = watch.changed(good.version).await;
    assert!(matches!(&stale.state, State::Stale { .. }), "{stale:?}");
    assert_eq!(stale.endpoints, good.endpoints);
    world.zone.set(&[("orders.", "10.0.0.9")]);
    world.start().await;
    let again = changed_to(&watch, &State::Fresh).await;
    assert_eq!(addresses(&again), ["10.0.0.9:80"]);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_found_when_it_does() {
    let world = World::new(QUICK).await;
    let watch = world.host("late");
    let nothing = world.first(&watch).await;
    assert_eq!((nothing.endpoints.len(), &nothing.state), (0, &State::NotFound));
    world.zone.set(&[("late.", "10.0.0.1")]);
    assert_eq!(addresses(&*changed_to(&watch, &State::Fresh).await), ["10.0.0.1:80"]);
}

#[tokio::test]
async fn a_name_that_is_gone_loses_its_endpoints_after_the_grace() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    let watch = world.host("orders");
    let good = world.first(&watch).await;
    world.zone.set(&[]);
    let stale = watch.changed(good.version).await;
    assert!(matches!(stale.state, State::Stale { .. }) && stale.endpoints == good.endpoints);
    let gone = watch.changed(stale.version).await;
    assert_eq!((gone.endpoints.len(), &gone.state), (0, &State::NotFound));
}

#[tokio::test]
async fn a_family_that_fails_keeps_its_addresses_while_the_other_changes() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("orders.", "10.0.0.1"), ("orders.", "fd00::1")]);
    let watch = world.host("orders");
    world.first(&watch).await;
    world.zone.set(&[("orders.", "10.0.0.2"), ("orders.", "fd00::2")]);
    world.zone.fail(None, Some(RecordType::AAAA), Fault::ServFail);
    let mut resolved = watch.current();
    while addresses(&resolved) != ["10.0.0.2:80", "[fd00::1]:80"] {
        resolved = watch.changed(resolved.version).await;
    }
    assert!(matches!(resolved.state, State::Stale { .. }));
}

#[tokio::test]
async fn a_server_that_never_answers_aaaa_does_not_delay_what_a_gives() {
    let timing = Timing { deadline: Duration::from_secs(4), ..QUICK };
    let world = World::new(timing).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    world.zone.fail(None, Some(RecordType::AAAA), Fault::Silence);
    let resolved = world.first(&world.host("orders")).await;
    assert_eq!(
        (addresses(&resolved), &resolved.state),
        (vec!["10.0.0.1:80".into()], &State::Fresh)
    );
}

#[tokio::test]
async fn an_answer_too_large_for_udp_comes_over_tcp() {
    let world = World::new(QUICK).await;
    let pods: Vec<_> = (1..=200).map(|n| format!("10.0.0.{n}")).collect();
    world.zone.set(&pods.iter().map(|it| ("many.", it.as_str())).collect::<Vec<_>>());
    assert_eq!(world.first(&world.host("many")).await.endpoints.len(), 200);
}

#[tokio::test]
async fn a_refresh_asks_again_before_the_ttl_ends() {
    let day = Duration::from_hours(24);
    let timing = Timing { ttl: (day, day), ..QUICK };
    let world = World::new(timing).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    let watch = world.host("orders");
    let first = world.first(&watch).await;
    world.zone.set(&[("orders.", "10.0.0.2")]);
    watch.refresh();
    assert_eq!(addresses(&*watch.changed(first.version).await), ["10.0.0.2:80"]);
}

#[tokio::test]
async fn refreshes_are_limited() {
    let second = Duration::from_secs(1);
    let timing = Timing { ttl: (second, second), refresh: second, ..QUICK };
    let world = World::new(timing).await;
    world.zone.set(&[("orders.", "10.0.0.1")]);
    let watch = world.host("orders");
    let first = world.first(&watch).await;
    let asked = world.zone.asked();
    world.zone.set(&[("orders.", "10.0.0.2")]);
    let waiting = async { watch.changed(first.version).await };
    let refreshing = async {
        loop {
            watch.refresh();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { _ = waiting => (), () = refreshing => () }
    assert_eq!(world.zone.asked() - asked, 2, "one A and one AAAA");
}

#[tokio::test]
async fn an_address_needs_no_dns() {
    let (discovery, _driver) = Discovery::new(&config(&[]), Metrics::new()).unwrap();
    for (name, wanted) in [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80")] {
        let watch = discovery.watch(Target::Host { name: name.into(), port: 80 });
        let resolved = watch.first(clock::now()).await;
        assert_eq!((addresses(&resolved), &resolved.state), (vec![wanted.into()], &State::Fresh));
    }
    let set: EndpointSet = [Endpoint::new(([10, 0, 0, 9], 1).into())].into_iter().collect();
    let watch = discovery.watch(Target::Static(set.clone()));
    assert_eq!((&watch.current().endpoints, discovery.names()), (&set, 0));
}

#[tokio::test]
async fn the_first_answer_is_not_waited_for_beyond_the_deadline() {
    let (discovery, _driver) = Discovery::new(&config(&[]), Metrics::new()).unwrap();
    let watch = discovery.watch(Target::Host { name: "orders".into(), port: 80 });
    assert_eq!(watch.first(clock::now()).await.state, State::Pending);
}

#[tokio::test]
async fn watchers_of_one_target_share_it() {
    let world = World::new(QUICK).await;
    let watches = [world.host("orders"), world.host("orders"), world.host("orders").clone()];
    assert_eq!(world.discovery.names(), 1);
    assert!(watches.iter().all(|it| Arc::ptr_eq(&it.entry, &watches[0].entry)));
}

#[tokio::test]
async fn a_name_that_nobody_watches_is_forgotten() {
    let world = World::new(QUICK).await;
    let watch = world.host("orders");
    world.first(&watch).await;
    assert!(world.page().contains(r#"remora_dns_age_seconds{service="orders:80"}"#));
    drop(watch);
    while world.discovery.names() != 0 || world.page().contains("orders") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn names_in_use_are_bounded_and_unused_ones_make_room() {
    let world = World::new(Timing::default()).await;
    let watch = |port| world.discovery.watch(Target::Host { name: "a".into(), port });
    let names = u16::try_from(NAMES_MAX).unwrap();
    let mut watches: Vec<_> = (0..names).map(watch).collect();
    assert!(matches!(watch(names).current().state, State::Failed { .. }));
    watches.clear();
    // Until the driver has taken up what was begun, nothing more can be.
    while matches!(watch(names).current().state, State::Failed { .. }) {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.discovery.names(), 1);
}

#[tokio::test]
async fn lookups_are_counted_by_result() {
    let world = World::new(QUICK).await;
    world.zone.set(&[("a.", "10.0.0.1"), ("b.", "10.0.0.1")]);
    world.zone.fail(Some("b."), None, Fault::ServFail);
    for name in ["a", "b", "c"] {
        world.first(&world.host(name)).await;
    }
    for result in ["answered", "failed", "negative"] {
        let line = format!("remora_dns_lookups_total{{result=\"{result}\"}}");
        assert!(world.page().contains(&line), "{line}");
    }
}

/// Quick enough for a test, and with the proportions of the defaults.
const QUICK: Timing = Timing {
    ttl: (Duration::from_millis(5), Duration::from_millis(20)),
    retry: (Duration::from_millis(5), Duration::from_millis(10)),
    refresh: Duration::from_millis(5),
    deadline: Duration::from_secs(1),
    grace: Duration::from_millis(30),
    idle: Duration::from_millis(10),
};

/// A DNS server, and discovery that asks it.
struct World {
    zone: Zone,
    address: SocketAddr,
    server: Server<Zone>,
    discovery: Discovery,
    metrics: Metrics,
}

impl World {
    async fn new(timing: Timing) -> Self {
        let (zone, metrics) = (Zone::default(), Metrics::new());
        let (server, address) = serve(&zone, ([127, 0, 0, 1], 0).into()).await;
        let config = Config { timing, ..config(&[address]) };
        let (discovery, driver) = Discovery::new(&config, metrics.clone()).unwrap();
        drain::spawn("driver", driver.run());
        Self { zone, address, server, discovery, metrics }
    }

    async fn stop(&mut self) {
        self.server.shutdown_gracefully().await.unwrap();
    }

    async fn start(&mut self) {
        (self.server, _) = serve(&self.zone, self.address).await;
    }

    fn host(&self, name: &str) -> Watch {
        self.discovery.watch(Target::Host { name: name.into(), port: 80 })
    }

    async fn first(&self, watch: &Watch) -> Arc<Resolved> {
        watch.first(clock::now() + Duration::from_secs(5)).await
    }

    fn page(&self) -> String {
        let mut page = Vec::new();
        self.metrics.render(&mut page);
        String::from_utf8(page).unwrap()
    }
}

/// Both sockets on one port; another port where the one the kernel chose is taken for TCP.
async fn serve(zone: &Zone, address: SocketAddr) -> (Server<Zone>, SocketAddr) {
    loop {
        let udp = UdpSocket::bind(address).await.unwrap();
        let bound = udp.local_addr().unwrap();
        let Ok(tcp) = TcpListener::bind(bound).await else { continue };
        let mut server = Server::new(zone.clone());
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 16);
        return (server, bound);
    }
}

/// What a server answers instead of the truth.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    ServFail,
    Silence,
}

/// Records that a test changes while they are served.
#[derive(Clone, Default)]
struct Zone {
    state: Arc<Mutex<ZoneState>>,
}

#[derive(Default)]
struct ZoneState {
    records: Vec<Record>,
    fault: Option<(Option<Name>, Option<RecordType>, Fault)>,
    asked: usize,
}

impl Zone {
    /// Makes these all the addresses there are.
    fn set(&self, records: &[(&str, &str)]) {
        let record = |(owner, address): &(&str, &str)| {
            let data = match address.parse().unwrap() {
                IpAddr::V4(it) => RData::A(it.into()),
                IpAddr::V6(it) => RData::AAAA(it.into()),
            };
            Record::from_rdata(name(owner), 1, data)
        };
        self.state.lock().records = records.iter().map(record).collect();
    }

    fn srv(&self, owner: &str, srv: SRV) {
        let record = Record::from_rdata(name(owner), 1, RData::SRV(srv));
        self.state.lock().records.push(record);
    }

    /// Fails the questions for this name and type; for all where `None`.
    fn fail(&self, owner: Option<&str>, kind: Option<RecordType>, fault: Fault) {
        self.state.lock().fault = Some((owner.map(name), kind, fault));
    }

    fn asked(&self) -> usize {
        self.state.lock().asked
    }

    fn answer(&self, asked: &Name, kind: RecordType) -> (Vec<Record>, ResponseCode, bool) {
        let mut state = self.state.lock();
        state.asked += 1;
        let fault = state.fault.as_ref().filter(|(owner, of_kind, _)| {
            owner.as_ref().is_none_or(|it| it == asked) && of_kind.is_none_or(|it| it == kind)
        });
        if let Some((_, _, fault)) = fault {
            return (Vec::new(), ResponseCode::ServFail, *fault == Fault::Silence);
        }
        let of_name: Vec<_> = state.records.iter().filter(|it| it.name == *asked).collect();
        let code = if of_name.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
        let of_kind = of_name.into_iter().filter(|it| it.record_type() == kind);
        (of_kind.cloned().collect(), code, false)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let query = request.request_info().unwrap().query;
        let (records, code, silent) = self.answer(&query.name().into(), query.query_type());
        if silent {
            return std::future::pending().await;
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, &records, &[], &[], &[]);
        response.send_response(message).await.unwrap()
    }
}

async fn changed_to(watch: &Watch, state: &State) -> Arc<Resolved> {
    let mut resolved = watch.current();
    while resolved.state != *state {
        resolved = watch.changed(resolved.version).await;
    }
    resolved
}

fn config(servers: &[SocketAddr]) -> Config {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let servers = if servers.is_empty() { vec![nowhere] } else { servers.to_vec() };
    Config { nameservers: Some(servers), ..Config::default() }
}

fn addresses(resolved: &Resolved) -> Vec<String> {
    resolved.endpoints.endpoints().iter().map(|it| it.address.to_string()).collect()
}

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}
