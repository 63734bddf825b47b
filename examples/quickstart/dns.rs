//! DNS: the name server of the cluster, authoritative for one service.
//!
//! It answers as a headless service of Kubernetes would: an SRV record for each pod, and
//! the address of each. The TTL is a second, so pods come and go at that pace.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, SOA, SRV},
    },
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use remora::drain;
use tokio::net::UdpSocket;

use crate::{Result, apps::SERVICE};

/// The name callers look the pods up by.
pub(crate) fn srv_name() -> String {
    format!("_http._tcp.{SERVICE}")
}

const TTL_SECS: u32 = 1;

/// The pods that DNS knows of: the port of each. Cheap to clone, the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone(Arc<Mutex<BTreeMap<String, u16>>>);

impl Zone {
    /// Serves the zone on a free port of loopback, for as long as the runtime lives.
    pub(crate) async fn serve(&self) -> Result<SocketAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?;
        let mut server = Server::new(self.clone());
        server.register_socket(socket);
        drop(drain::spawn("dns", async move { server.block_until_done().await.is_ok() }));
        Ok(address)
    }

    /// Lets the pod `name` be found at `port`.
    pub(crate) fn add(&self, name: &str, port: u16) {
        self.pods().insert(name.to_owned(), port);
    }

    /// Lets nobody find it any more.
    pub(crate) fn remove(&self, name: &str) {
        self.pods().remove(name);
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of `name`, of all types.
    fn records(&self, name: &Name) -> Vec<RData> {
        let pods = self.pods();
        if *name == absolute(&srv_name()) {
            let host = |pod: &str| absolute(&format!("{pod}.{SERVICE}"));
            return pods
                .iter()
                .map(|(pod, port)| RData::SRV(SRV::new(0, 1, *port, host(pod))))
                .collect();
        }
        let is_pod = pods.keys().any(|it| absolute(&format!("{it}.{SERVICE}")) == *name);
        is_pod.then_some(RData::A(A(Ipv4Addr::LOCALHOST))).into_iter().collect()
    }
}

#[async_trait::async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let (mut answers, mut soa) = (Vec::new(), None);
        if let Ok(info) = request.request_info() {
            let (name, kind) = (Name::from(info.query.name()), info.query.query_type());
            let found = self.records(&name);
            if found.is_empty() {
                metadata.response_code = ResponseCode::NXDomain;
            }
            let record = |it| Record::from_rdata(name.clone(), TTL_SECS, it);
            answers = found.into_iter().filter(|it| it.record_type() == kind).map(record).collect();
            // Says how long a name that is not there stays away.
            soa = answers.is_empty().then(|| {
                let (server, mail) = (absolute("ns.cluster.local"), absolute("root.cluster.local"));
                let soa = SOA::new(server, mail, 1, 60, 60, 60, TTL_SECS);
                Record::from_rdata(absolute("cluster.local"), TTL_SECS, RData::SOA(soa))
            });
        } else {
            metadata.response_code = ResponseCode::FormErr;
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let answer = builder.build(metadata, &answers, [], soa.as_ref(), []);
        let unsent = || Header { metadata, counts: HeaderCounts::default() }.into();
        handle.send_response(answer).await.unwrap_or_else(|_| unsent())
    }
}

/// A name that is never completed by a search list.
fn absolute(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap_or_default().to_lowercase();
    name.set_fqdn(true);
    name
}
