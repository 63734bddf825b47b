//! `WorkloadPolicy`: what guards the workload behind a sidecar.

mod guards;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        decode::{Decoder, Shape},
        report::{Place, quoted},
        units,
        words::MTLS_MODES,
        yaml::{Entry, Node},
    },
    service::core_group,
};
use crate::policy::WorkloadPolicy;

/// Accounts one document may be for; the Gateway API's limit of targets.
const TARGETS_MAX: usize = 16;

/// Ports one document may name; a pod with more has another problem.
const PORTS_MAX: usize = 256;

const SPEC: Shape = Shape {
    name: "spec",
    known: &["targetRefs", "mtls", "opaquePorts", "timeouts", "rateLimits", "concurrency"],
    required: &[],
    later: &[],
};

const TARGET: Shape = Shape {
    name: "a target",
    known: &["group", "kind", "name"],
    required: &[("kind", "ServiceAccount"), ("name", "orders")],
    later: &["namespace"],
};

const MTLS: Shape = Shape { name: "mtls", known: &["mode", "ports"], required: &[], later: &[] };

const TIMEOUTS: Shape =
    Shape { name: "timeouts", known: &["request", "idle"], required: &[], later: &[] };

/// What guards the workloads of some service accounts.
#[derive(Clone, Debug)]
pub(in super::super) struct WorkloadDocument {
    /// Every account of the document's namespace where `None`.
    pub(in super::super) accounts: Option<Vec<(Place, String)>>,
    pub(in super::super) policy: WorkloadPolicy,
}

/// Reads the `spec`.
pub(super) fn decode(decoder: &mut Decoder<'_>, spec: &Node) -> Option<WorkloadDocument> {
    let fields = decoder.fields(spec, &SPEC)?;
    let mut policy = WorkloadPolicy::default();
    if let Some(node) = fields.get("mtls") {
        mtls(decoder, node, &mut policy);
    }
    if let Some(node) = fields.get("opaquePorts") {
        policy.opaque_ports = ports(decoder, node);
    }
    if let Some(fields) = fields.get("timeouts").and_then(|it| decoder.fields(it, &TIMEOUTS)) {
        let WorkloadPolicy { request_timeout, idle_timeout, .. } = &mut policy;
        for (key, value) in [("request", request_timeout), ("idle", idle_timeout)] {
            *value = fields.get(key).and_then(|it| decoder.duration(it)).unwrap_or(*value);
        }
    }
    if let Some(node) = fields.get("rateLimits") {
        policy.rate_limits = guards::rate_limits(decoder, node);
    }
    if let Some(node) = fields.get("concurrency") {
        policy.concurrency = guards::concurrency(decoder, node).unwrap_or_default();
    }
    let accounts = match fields.get("targetRefs") {
        None => None,
        Some(node) => {
            let targets = decoder.items(node, TARGETS_MAX)?;
            Some(targets.iter().filter_map(|it| target(decoder, it)).collect())
        }
    };
    Some(WorkloadDocument { accounts, policy })
}

fn target(decoder: &mut Decoder<'_>, node: &Node) -> Option<(Place, String)> {
    let fields = decoder.fields(node, &TARGET)?;
    core_group(decoder, fields.get("group"));
    if let Some(kind) = fields.get("kind") {
        decoder.choice(kind, &[("ServiceAccount", ())]);
    }
    let form = ("the name of a ServiceAccount", "use lower-case letters, digits, `-` and `.`");
    let name = decoder.formed(fields.get("name")?, units::is_subdomain, form)?;
    Some((decoder.place(node.at), name.to_owned()))
}

fn mtls(decoder: &mut Decoder<'_>, node: &Node, policy: &mut WorkloadPolicy) {
    let Some(fields) = decoder.fields(node, &MTLS) else { return };
    if let Some(node) = fields.get("mode") {
        policy.mtls = decoder.choice(node, &MTLS_MODES).unwrap_or_default();
    }
    let Some(ports) = fields.get("ports") else { return };
    let mut by_port = BTreeMap::new();
    for Entry { at, key, value } in decoder.entries(ports, "ports").unwrap_or_default() {
        let mode = decoder.choice(value, &MTLS_MODES);
        match key.parse::<u16>() {
            Ok(port) if port != 0 => by_port.extend(mode.map(|mode| (port, mode))),
            _ => {
                let hint = "write a port from 1 to 65535 and its mode: `\"8080\": strict`";
                decoder.error(*at, format!("{} is not a port", quoted(key)), hint);
            }
        }
    }
    policy.port_mtls = by_port;
}

fn ports(decoder: &mut Decoder<'_>, node: &Node) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for node in decoder.items(node, PORTS_MAX).unwrap_or_default() {
        let Some(port) = decoder.port(node) else { continue };
        if !ports.insert(port) {
            decoder.error(node.at, format!("port `{port}` comes twice"), "remove one");
        }
    }
    ports
}
