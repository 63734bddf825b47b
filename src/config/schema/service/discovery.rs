//! `discovery` of a `ServicePolicy`: where the endpoints come from.

use std::sync::Arc;

use super::super::super::{
    decode::{Decoder, Shape},
    units,
    yaml::{Mark, Node},
};
use crate::{
    endpoint::{Endpoint, EndpointSet, Zone},
    policy::Discovery,
};

/// Endpoints one document may list; a larger pool belongs into DNS.
const ENDPOINTS_MAX: usize = 1_000;

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
    known: &["address", "weight", "zone"],
    required: &[("address", "10.0.0.7:8080")],
    later: &[],
};

/// Reads the section; `None` where it names no source, or more than one.
pub(super) fn decode(decoder: &mut Decoder<'_>, node: &Node) -> Option<Discovery> {
    type Source = fn(&mut Decoder<'_>, &Node) -> Option<Discovery>;
    let fields = decoder.fields(node, &DISCOVERY)?;
    let sources: [(&str, Source); 3] = [("dns", dns), ("srv", srv), ("endpoints", endpoints)];
    let (mut keys, mut result) = (Vec::new(), None);
    for (key, read) in sources {
        if let Some(node) = fields.get(key) {
            keys.push(format!("`{key}`"));
            result = read(decoder, node);
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
        let zone = fields.get("zone").and_then(|it| zone(decoder, it)).unwrap_or_default();
        let Some(at) = fields.get("address") else { continue };
        let Some(address) = decoder.address(at) else { continue };
        if let Some((first, _)) = endpoints.iter().find(|(_, it)| it.address == address) {
            let message = format!("endpoint `{address}` comes twice");
            let hint = format!("remove one; the first is at line {}", first.line);
            decoder.error(at.at, message, hint);
            continue;
        }
        let weight = weight.flatten().and_then(|it| u16::try_from(it).ok()).unwrap_or(1);
        endpoints.push((at.at, Endpoint { weight, zone, ..Endpoint::new(address) }));
    }
    let set: EndpointSet = endpoints.into_iter().map(|(_, it)| it).collect();
    Some(Discovery::Static(set))
}

/// Whether the zone an endpoint is in is this workload's.
fn zone(decoder: &mut Decoder<'_>, node: &Node) -> Option<Zone> {
    let form = ("a zone", "write the zone's name, such as `eu-1a`");
    let there = decoder.formed(node, units::is_zone, form)?;
    Some(match decoder.zone {
        None => Zone::Unknown,
        Some(here) if here == there => Zone::Near,
        Some(_) => Zone::Far,
    })
}
