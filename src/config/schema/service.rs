//! `ServicePolicy`: how callers reach a service.
//!
//! A section that is there and has no `mode` is in force.

mod breaker;
mod discovery;
mod load_balancer;
mod retries;

use std::sync::Arc;

use super::super::{
    decode::{Decoder, Fields, Shape},
    report::{Place, quoted},
    units,
    words::TLS_MODES,
    yaml::Node,
};
use crate::policy::{ServiceName, ServicePolicy, TlsMode, TlsPolicy, service::Timeouts};
pub(in super::super) use retries::too_long;
pub(super) use retries::{BACKOFF, attempts, codes};

/// Services one document may be for; the Gateway API's limit of targets.
const TARGETS_MAX: usize = 16;

/// Identities that may answer for one service: a few accounts, during a move between them.
const IDENTITIES_MAX: usize = 64;

const SPEC: Shape = Shape {
    name: "spec",
    known: &[
        "targetRefs",
        "tls",
        "loadBalancer",
        "timeouts",
        "retries",
        "retryBudget",
        "hedge",
        "breaker",
        "outlier",
        "admission",
        "connections",
        "discovery",
    ],
    required: &[("targetRefs", "[{kind: Service, name: orders}]")],
    later: &["healthCheck"],
};

const TARGET: Shape = Shape {
    name: "a target",
    known: &["group", "kind", "name"],
    required: &[("kind", "Service"), ("name", "orders")],
    later: &["sectionName", "namespace"],
};

const TLS: Shape = Shape { name: "tls", known: &["mode", "identities"], required: &[], later: &[] };

const TIMEOUTS: Shape =
    Shape { name: "timeouts", known: &["request", "connect", "idle"], required: &[], later: &[] };

/// How callers reach each of some services.
#[derive(Clone, Debug)]
pub(in super::super) struct ServiceDocument {
    pub(in super::super) targets: Vec<(Place, ServiceName)>,
    pub(in super::super) policy: Arc<ServicePolicy>,
}

/// Reads the `spec`; `None` where it has no target that can be used.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    spec: &Node,
    namespace: &str,
) -> Option<ServiceDocument> {
    let fields = decoder.fields(spec, &SPEC)?;
    let policy = Arc::new(policy(decoder, fields));
    let targets = decoder.items(fields.get("targetRefs")?, TARGETS_MAX)?;
    let targets = targets.iter().filter_map(|it| {
        let name = target(decoder, it, namespace)?;
        Some((decoder.place(it.at), name))
    });
    Some(ServiceDocument { targets: targets.collect(), policy })
}

fn policy(decoder: &mut Decoder<'_>, fields: Fields<'_>) -> ServicePolicy {
    let mut policy = ServicePolicy::default();
    let ServicePolicy { tls: to_tls, resilience, hash_key, retries, timeouts, discovery } =
        &mut policy;
    fields.read("tls", to_tls, |it| Some(tls(decoder, it)));
    fields.read("timeouts", timeouts, |it| Some(self::timeouts(decoder, it)));
    fields.read("discovery", discovery, |it| discovery::decode(decoder, it));
    if let Some(node) = fields.get("loadBalancer") {
        *hash_key = load_balancer::decode(decoder, node, &mut resilience.balancer);
    }
    let request = timeouts.request;
    fields.read("retries", retries, |it| Some(retries::retries(decoder, it, request)));
    fields.read("retryBudget", &mut resilience.budget, |it| Some(retries::budget(decoder, it)));
    fields.read("hedge", &mut resilience.hedge, |it| retries::hedge(decoder, it));
    fields.read("breaker", &mut resilience.breaker, |it| Some(breaker::breaker(decoder, it)));
    fields.read("outlier", &mut resilience.outlier, |it| Some(breaker::outlier(decoder, it)));
    fields.read("admission", &mut resilience.admission, |it| Some(breaker::admission(decoder, it)));
    fields.read("connections", &mut resilience.limits, |it| {
        Some(breaker::limits(decoder, it, request))
    });
    policy
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
    if let Some(node) = fields.get("mode") {
        tls.mode = decoder.choice(node, &TLS_MODES).unwrap_or_default();
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
