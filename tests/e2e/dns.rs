//! DNS: a name server whose zone changes while it serves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Header, HeaderCounts, Message, Metadata, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA, SRV},
    },
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    time,
};

use crate::host::{Host, Ready, Service};

/// A running name server.
#[derive(Debug)]
pub(crate) struct Dns {
    zone: Arc<Mutex<Zone>>,
    _service: Service,
}

#[derive(Debug, Default)]
struct Zone {
    records: BTreeMap<(Name, RecordType), Vec<Record>>,
    mood: Mood,
    queries: u64,
}

/// How the server behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It answers.
    #[default]
    Well,
    /// It answers that it cannot (`SERVFAIL`).
    Failing,
    /// It answers nothing.
    Silent,
}

impl Dns {
    /// Sets the addresses of `name`: of both families, all others are forgotten.
    pub(crate) fn set(&self, name: &str, addresses: &[IpAddr], ttl_secs: u32) {
        let data = |it: &IpAddr| match it {
            IpAddr::V4(it) => RData::A(A(*it)),
            IpAddr::V6(it) => RData::AAAA(AAAA(*it)),
        };
        self.replace(
            name,
            &[RecordType::A, RecordType::AAAA],
            addresses.iter().map(data),
            ttl_secs,
        );
    }

    /// Sets the services of `name`: priority, weight, port and host of each.
    pub(crate) fn set_services(
        &self,
        name: &str,
        services: &[(u16, u16, u16, &str)],
        ttl_secs: u32,
    ) {
        let data = services.iter().map(|(priority, weight, port, host)| {
            RData::SRV(SRV::new(*priority, *weight, *port, parse(host)))
        });
        self.replace(name, &[RecordType::SRV], data, ttl_secs);
    }

    /// Forgets `name`: it does not exist any more.
    pub(crate) fn forget(&self, name: &str) {
        let name = parse(name);
        self.zone().records.retain(|(it, _), _| *it != name);
    }

    /// Changes how the server behaves.
    pub(crate) fn be(&self, mood: Mood) {
        self.zone().mood = mood;
    }

    /// How many queries have come.
    pub(crate) fn queries(&self) -> u64 {
        self.zone().queries
    }

    fn replace(
        &self,
        name: &str,
        kinds: &[RecordType],
        data: impl Iterator<Item = RData>,
        ttl_secs: u32,
    ) {
        let (name, mut zone) = (parse(name), self.zone());
        for kind in kinds {
            zone.records.remove(&(name.clone(), *kind));
        }
        for it in data {
            let key = (name.clone(), it.record_type());
            zone.records.entry(key).or_default().push(Record::from_rdata(
                name.clone(),
                ttl_secs,
                it,
            ));
        }
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().expect("nothing panics with the zone")
    }
}

impl Host {
    /// Starts a name server on port 53, UDP and TCP, of both families.
    pub(crate) fn dns(&self) -> Dns {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let handler = Handler { zone: Arc::clone(&zone) };
        let (service, ()) = self.serve(async move |ready: Ready<()>| {
            let at = (Ipv6Addr::UNSPECIFIED, 53);
            let udp = UdpSocket::bind(at).await.expect("port 53 is free");
            let tcp = TcpListener::bind(at).await.expect("port 53 is free");
            let mut server = Server::new(handler);
            server.register_socket(udp);
            server.register_listener(tcp, Duration::from_secs(5), 16);
            ready.tell(());
            // It serves until it is dropped; an error of a client is no end.
            let _ended = server.block_until_done().await.is_ok();
        });
        Dns { zone, _service: service }
    }
}

struct Handler {
    zone: Arc<Mutex<Zone>>,
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let Some((records, soa)) = self.answer(request, &mut metadata) else {
            // A silent server is one whose answers are lost.
            return unsent(metadata);
        };
        let builder = MessageResponseBuilder::from_message_request(request);
        let answer = builder.build(metadata, &records, [], soa.as_ref(), []);
        let sent = handle.send_response(answer).await;
        sent.unwrap_or_else(|_| unsent(metadata))
    }
}

impl Handler {
    /// The records asked for, and the one that says how long their absence lasts.
    fn answer(
        &self,
        request: &Request,
        metadata: &mut Metadata,
    ) -> Option<(Vec<Record>, Option<Record>)> {
        let mut zone = self.zone.lock().expect("nothing panics with the zone");
        zone.queries += 1;
        metadata.authoritative = true;
        match (zone.mood, request.request_info()) {
            (Mood::Silent, _) => None,
            (Mood::Failing, _) | (Mood::Well, Err(_)) => {
                metadata.response_code = ResponseCode::ServFail;
                Some((Vec::new(), None))
            }
            (Mood::Well, Ok(info)) => {
                let (name, kind) = (Name::from(info.query.name()), info.query.query_type());
                let records = zone.records.get(&(name.clone(), kind)).cloned().unwrap_or_default();
                if !zone.records.keys().any(|(it, _)| *it == name) {
                    metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = records.is_empty().then(|| {
                    let (server, mail) = (parse("ns.test"), parse("root.test"));
                    let soa = SOA::new(server, mail, 1, 60, 60, 60, 1);
                    Record::from_rdata(Name::root(), 1, RData::SOA(soa))
                });
                Some((records, soa))
            }
        }
    }
}

/// What the server is told of an answer that was not sent.
fn unsent(metadata: Metadata) -> ResponseInfo {
    Header { metadata, counts: HeaderCounts::default() }.into()
}

/// A name, always absolute.
fn parse(name: &str) -> Name {
    let mut name = Name::from_ascii(name).expect("a name").to_lowercase();
    name.set_fqdn(true);
    name
}

/// Asks the server at `at` for the IPv4 addresses of `name`, once, over UDP.
pub(crate) async fn look_up(
    at: SocketAddr,
    name: &'static str,
    patience: Duration,
) -> Result<Vec<String>, String> {
    let mut query = Message::query();
    query.add_query(Query::query(parse(name), RecordType::A));
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("any port");
    let at = match at.ip() {
        IpAddr::V4(it) => SocketAddr::new(it.to_ipv6_mapped().into(), at.port()),
        IpAddr::V6(_) => at,
    };
    socket.send_to(&query.to_vec().expect("a query"), at).await.expect("it is sent");
    let mut answer = [0; 4096];
    let received = time::timeout(patience, socket.recv(&mut answer)).await;
    let length = received.map_err(|_| "silence".to_owned())?.expect("it is received");
    let answer = Message::from_vec(&answer[..length]).expect("an answer");
    if answer.metadata.response_code != ResponseCode::NoError {
        return Err(format!("{:?}", answer.metadata.response_code));
    }
    Ok(answer.answers.iter().map(|it| format!("{} for {} s", it.data, it.ttl)).collect())
}
