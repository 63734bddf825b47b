//! `ServicePolicy`: how callers reach a service.

use std::sync::Arc;

use super::super::{
    decode::{Decoder, Shape},
    report::{Place, quoted},
    units,
    yaml::{Mark, Node},
};
use crate::{
    endpoint::{Endpoint, EndpointSet},
    policy::{
        Algorithm, Discovery, ServiceName, ServicePolicy, TlsMode, TlsPolicy, service::Timeouts,
    },
};

/// Services one document may be for; the Gateway API's limit of targets.
const TARGETS_MAX: usize = 16;

/// Identities that may answer for one service: a few accounts, during a move between them.
const IDENTITIES_MAX: usize = 64;

/// Endpoints one document may list; a larger pool belongs into DNS.
const ENDPOINTS_MAX: usize = 1_000;

const SPEC: Shape = Shape {
    name: "spec",
    known: &["targetRefs", "tls", "loadBalancer", "timeouts", "discovery"],
    required: &[("targetRefs", "[{kind: Service, name: orders}]")],
    later: &["breaker", "connections", "healthCheck", "hedge", "outlier", "retries", "retryBudget"],
};

const TARGET: Shape = Shape {
    name: "a target",
    known: &["group", "kind", "name"],
    required: &[("kind", "Service"), ("name", "orders")],
    later: &["sectionName", "namespace"],
};

const TLS: Shape = Shape { name: "tls", known: &["mode", "identities"], required: &[], later: &[] };

const LOAD_BALANCER: Shape = Shape {
    name: "loadBalancer",
    known: &["algorithm"],
    required: &[("algorithm", "LeastRequest")],
    later: &["slowStart"],
};

const TIMEOUTS: Shape =
    Shape { name: "timeouts", known: &["request", "connect", "idle"], required: &[], later: &[] };

const DISCOVERY: Shape =
    Shape { name: "discovery", known: &["dns", "srv", "endpoints"], required: &[], later: &[] };

const DNS: Shape = Shape {
    name: "dns",
    known: &["name", "port"],
    required: &[("name", "orders.shop.svc.cluster.local")],
    later: &[],
};

const SRV: Shape = Shape {
    name: "srv",
    known: &["name"],
    required: &[("name", "_http._tcp.orders.shop.svc.cluster.local")],
    later: &[],
};

const ENDPOINT: Shape = Shape {
    name: "an endpoint",
    known: &["address", "weight"],
    required: &[("address", "10.0.0.7:8080")],
    later: &[],
};

/// How callers reach each of some services.
#[derive(Debug)]
pub(in super::super) struct ServiceDocument {
    pub(in super::super) targets: Vec<(Place, ServiceName)>,
    pub(in super::super) policy: ServicePolicy,
}

/// Reads the `spec`; `None` where it has no target that can be used.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    spec: &Node,
    namespace: &str,
) -> Option<ServiceDocument> {
    let fields = decoder.fields(spec, &SPEC)?;
    let mut policy = ServicePolicy::default();
    if let Some(node) = fields.get("tls") {
        policy.tls = tls(decoder, node);
    }
    if let Some(node) = fields.get("loadBalancer") {
        policy.algorithm = algorithm(decoder, node).unwrap_or_default();
    }
    if let Some(node) = fields.get("timeouts") {
        policy.timeouts = timeouts(decoder, node);
    }
    if let Some(node) = fields.get("discovery") {
        policy.discovery = discovery(decoder, node).unwrap_or_default();
    }
    let targets = decoder.items(fields.get("targetRefs")?, TARGETS_MAX)?;
    let targets = targets.iter().filter_map(|it| {
        let name = target(decoder, it, namespace)?;
        Some((decoder.place(it.at), name))
    });
    Some(ServiceDocument { targets: targets.collect(), policy })
}

fn target(decoder: &mut Decoder<'_>, node: &Node, namespace: &str) -> Option<ServiceName> {
    let fields = decoder.fields(node, &TARGET)?;
    core_group(decoder, fields.get("group"));
    if let Some(kind) = fields.get("kind") {
        decoder.choice(kind, &[("Service", ())]);
    }
    let node = fields.get("name")?;
    let form = ("the name of a service or host", "write `orders`, or a host such as `api.example`");
    let name = decoder.formed(node, units::is_subdomain, form)?;
    let service = ServiceName::from_host(name, namespace);
    if !service.namespace.is_empty() && &*service.namespace != namespace {
        let message = format!("{} is a service of another namespace", quoted(name));
        let there = &service.namespace;
        decoder.error(node.at, message, format!("move the document to namespace `{there}`"));
        return None;
    }
    Some(service)
}

/// Checks that a reference without a kind of its own means a core kind.
pub(super) fn core_group(decoder: &mut Decoder<'_>, group: Option<&Node>) {
    let Some(node) = group else { return };
    if let Some(text) = decoder.any_text(node)
        && !matches!(text, "" | "core")
    {
        let message = format!("unknown group {}", quoted(text));
        decoder.error(node.at, message, "write `group: \"\"`, the group of Service");
    }
}

fn tls(decoder: &mut Decoder<'_>, node: &Node) -> TlsPolicy {
    let mut tls = TlsPolicy::default();
    let Some(fields) = decoder.fields(node, &TLS) else { return tls };
    let modes = [("auto", TlsMode::Auto), ("strict", TlsMode::Strict), ("off", TlsMode::Off)];
    if let Some(node) = fields.get("mode") {
        tls.mode = decoder.choice(node, &modes).unwrap_or_default();
    }
    let Some(identities) = fields.get("identities") else { return tls };
    let form = ("a SPIFFE ID", "write `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`");
    for node in decoder.items(identities, IDENTITIES_MAX).unwrap_or_default() {
        let id = decoder.formed(node, units::is_spiffe_id, form);
        tls.identities.extend(id.map(Arc::from));
    }
    if tls.mode == TlsMode::Off {
        let hint = "remove `identities`, or choose `auto` or `strict`";
        decoder.warning(identities.at, "nobody is checked: `tls.mode` is `off`", hint);
    }
    tls
}

fn algorithm(decoder: &mut Decoder<'_>, node: &Node) -> Option<Algorithm> {
    let words = [
        ("LeastRequest", Algorithm::LeastRequest),
        ("PeakEwma", Algorithm::PeakEwma),
        ("RoundRobin", Algorithm::RoundRobin),
        ("Random", Algorithm::Random),
    ];
    let fields = decoder.fields(node, &LOAD_BALANCER)?;
    decoder.choice(fields.get("algorithm")?, &words)
}

fn timeouts(decoder: &mut Decoder<'_>, node: &Node) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(fields) = decoder.fields(node, &TIMEOUTS) else { return timeouts };
    let Timeouts { request, connect, idle } = &mut timeouts;
    for (key, value) in [("request", request), ("connect", connect), ("idle", idle)] {
        *value = fields.get(key).and_then(|it| decoder.duration(it)).unwrap_or(*value);
    }
    if let Some(node) = fields.get("connect")
        && timeouts.request <= timeouts.connect
    {
        let message = "the connect timeout never fires: the request's is not longer";
        decoder.warning(node.at, message, "choose a `connect` well below `request`");
    }
    timeouts
}

fn discovery(decoder: &mut Decoder<'_>, node: &Node) -> Option<Discovery> {
    type Source = fn(&mut Decoder<'_>, &Node) -> Option<Discovery>;
    let fields = decoder.fields(node, &DISCOVERY)?;
    let sources: [(&str, Source); 3] = [("dns", dns), ("srv", srv), ("endpoints", endpoints)];
    let (mut keys, mut result) = (Vec::new(), None);
    for (key, decode) in sources {
        if let Some(node) = fields.get(key) {
            keys.push(format!("`{key}`"));
            result = decode(decoder, node);
        }
    }
    if keys.len() == 1 {
        return result;
    }
    let said = if keys.is_empty() { "nothing".to_owned() } else { keys.join(" and ") };
    let hint = "write exactly one of `dns`, `srv`, `endpoints`";
    decoder.error(node.at, format!("discovery says {said}"), hint);
    None
}

fn dns(decoder: &mut Decoder<'_>, node: &Node) -> Option<Discovery> {
    let fields = decoder.fields(node, &DNS)?;
    let port = fields.get("port").and_then(|it| decoder.port(it));
    let name = dns_name(decoder, fields.get("name")?)?;
    Some(Discovery::Dns { name, port })
}

fn srv(decoder: &mut Decoder<'_>, node: &Node) -> Option<Discovery> {
    let fields = decoder.fields(node, &SRV)?;
    Some(Discovery::Srv { name: dns_name(decoder, fields.get("name")?)? })
}

fn dns_name(decoder: &mut Decoder<'_>, node: &Node) -> Option<Arc<str>> {
    let form = ("a DNS name", "write a name such as `orders.shop.svc.cluster.local`");
    decoder.formed(node, units::is_dns_name, form).map(Arc::from)
}

fn endpoints(decoder: &mut Decoder<'_>, node: &Node) -> Option<Discovery> {
    let mut endpoints: Vec<(Mark, Endpoint)> = Vec::new();
    for node in decoder.items(node, ENDPOINTS_MAX)? {
        let Some(fields) = decoder.fields(node, &ENDPOINT) else { continue };
        let weight = fields.get("weight").map(|it| decoder.number(it, 1..=65_535));
        let Some(at) = fields.get("address") else { continue };
        let Some(address) = decoder.address(at) else { continue };
        if let Some((first, _)) = endpoints.iter().find(|(_, it)| it.address == address) {
            let message = format!("endpoint `{address}` comes twice");
            let hint = format!("remove one; the first is at line {}", first.line);
            decoder.error(at.at, message, hint);
            continue;
        }
        let weight = weight.flatten().and_then(|it| u16::try_from(it).ok()).unwrap_or(1);
        endpoints.push((at.at, Endpoint { weight, ..Endpoint::new(address) }));
    }
    let set: EndpointSet = endpoints.into_iter().map(|(_, it)| it).collect();
    Some(Discovery::Static(set))
}
