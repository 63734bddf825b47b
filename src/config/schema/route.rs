//! `HTTPRoute`: which backends a request's path leads to, for callers of a service.
//!
//! The standard's fields that change what happens to a request and are not done yet are
//! refused, so that a route never does half of what it says.
//!
//! # Sources
//!
//! - Gateway API, `HTTPRoute`: fields, limits, and GAMMA's attachment to a Service.
//!   <https://gateway-api.sigs.k8s.io/reference/spec/#httproute>
//! - GEP-1731, retries: `codes`, `attempts` after the first try, and the least `backoff`.
//!   <https://gateway-api.sigs.k8s.io/geps/gep-1731/>

use std::{sync::Arc, time::Duration};

use super::{
    super::{
        decode::{Decoder, Fields, Shape},
        report::{Place, quoted},
        units,
        yaml::Node,
    },
    service::{self, core_group},
};
use crate::policy::{Backend, PathMatch, ServiceName, route::RouteRetry};

/// The standard's limits: what is over them could not be applied to a cluster.
const PARENTS_MAX: usize = 32;
const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
const BACKENDS_MAX: usize = 16;
const WEIGHT_MAX: u32 = 1_000_000;
const PATH_LEN_MAX: usize = 1_024;

const SPEC: Shape = Shape {
    name: "spec",
    known: &["parentRefs", "rules"],
    required: &[
        ("parentRefs", "[{group: \"\", kind: Service, name: orders}]"),
        ("rules", "[{backendRefs: [{name: orders, port: 8080}]}]"),
    ],
    later: &["hostnames", "useDefaultGateways"],
};

const PARENT: Shape = Shape {
    name: "a parent",
    known: &["group", "kind", "name", "namespace", "port"],
    required: &[("group", "\"\""), ("kind", "Service"), ("name", "orders")],
    later: &["sectionName"],
};

const RULE: Shape = Shape {
    name: "a rule",
    known: &["name", "matches", "backendRefs", "timeouts", "retry"],
    required: &[],
    later: &["filters", "sessionPersistence"],
};

const MATCH: Shape = Shape {
    name: "a match",
    known: &["path"],
    required: &[],
    later: &["headers", "method", "queryParams"],
};

const PATH: Shape = Shape { name: "path", known: &["type", "value"], required: &[], later: &[] };

const BACKEND: Shape = Shape {
    name: "a backend",
    known: &["group", "kind", "name", "namespace", "port", "weight"],
    required: &[("name", "orders"), ("port", "8080")],
    later: &["filters"],
};

const TIMEOUTS: Shape =
    Shape { name: "timeouts", known: &["request", "backendRequest"], required: &[], later: &[] };

/// What a path is, and how it is written.
pub(super) const A_PATH: (&str, &str) =
    ("a path", "begin with `/`; no `//`, `/./`, `/../`, `%2f`, `?`, `#` or spaces");

const RETRY: Shape =
    Shape { name: "retry", known: &["codes", "attempts", "backoff"], required: &[], later: &[] };

/// The rules of some services.
#[derive(Clone, Debug)]
pub(in super::super) struct RouteDocument {
    pub(in super::super) parents: Vec<Parent>,
    pub(in super::super) rules: Vec<RouteRule>,
}

/// A service the rules are for.
#[derive(Clone, Debug)]
pub(in super::super) struct Parent {
    pub(in super::super) service: ServiceName,
    /// Every port where `None`.
    pub(in super::super) port: Option<u16>,
}

/// One rule.
#[derive(Clone, Debug)]
pub(in super::super) struct RouteRule {
    /// Its name, or its index.
    pub(in super::super) name: String,
    /// Any of these; never empty.
    pub(in super::super) matches: Vec<(Place, PathMatch)>,
    pub(in super::super) backends: Arc<[Backend]>,
    pub(in super::super) request_timeout: Option<Duration>,
    pub(in super::super) try_timeout: Option<(Place, Duration)>,
    pub(in super::super) retry: Option<(Place, RouteRetry)>,
}

/// What tells one kind of route from another.
pub(super) struct Kind {
    /// The keys of a rule.
    pub(super) rule: &'static Shape,
    /// The keys of a match.
    pub(super) matched: &'static Shape,
    /// The one of them that says for which path it is.
    pub(super) key: &'static str,
    /// How that is read.
    pub(super) read: fn(&mut Decoder<'_>, &Node) -> Option<PathMatch>,
}

/// Reads the `spec`.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    spec: &Node,
    namespace: &str,
) -> Option<RouteDocument> {
    let kind = Kind { rule: &RULE, matched: &MATCH, key: "path", read: path };
    document(decoder, spec, namespace, &kind)
}

/// Reads the `spec` of a route whose rules have the keys of `rule`.
pub(super) fn document(
    decoder: &mut Decoder<'_>,
    spec: &Node,
    namespace: &str,
    kind: &Kind,
) -> Option<RouteDocument> {
    let fields = decoder.fields(spec, &SPEC)?;
    let parents = fields.get("parentRefs").and_then(|it| decoder.items(it, PARENTS_MAX));
    let parents = parents.unwrap_or_default().iter();
    let parents: Vec<_> = parents.filter_map(|it| parent(decoder, it, namespace)).collect();
    let items = fields.get("rules").and_then(|it| decoder.items(it, RULES_MAX));
    let mut rules: Vec<RouteRule> = Vec::new();
    for (index, node) in items.unwrap_or_default().iter().enumerate() {
        let Some(fields) = decoder.fields(node, kind.rule) else { continue };
        let name = rule_name(decoder, fields, &rules);
        let matches = matches(decoder, node, fields, kind);
        let (request_timeout, try_timeout) = timeouts(decoder, fields);
        let retry = fields.get("retry").and_then(|it| retry(decoder, it));
        let backends = backends(decoder, fields, namespace);
        let name = name.map_or_else(|| index.to_string(), str::to_owned);
        rules.push(RouteRule { name, matches, backends, request_timeout, try_timeout, retry });
    }
    Some(RouteDocument { parents, rules })
}

fn parent(decoder: &mut Decoder<'_>, node: &Node, namespace: &str) -> Option<Parent> {
    let fields = decoder.fields(node, &PARENT)?;
    let kind = fields.get("kind");
    if kind.and_then(|it| decoder.text(it)) == Some("Gateway") {
        decoder.not_yet(node.at, "a parent of kind Gateway");
        return None;
    }
    core_group(decoder, fields.get("group"));
    if let Some(kind) = kind {
        decoder.choice(kind, &[("Service", ())]);
    }
    let port = fields.get("port").and_then(|it| decoder.port(it));
    let service = service_name(decoder, fields, namespace)?;
    Some(Parent { service, port })
}

/// The service a reference names, in its own namespace or the document's.
fn service_name(
    decoder: &mut Decoder<'_>,
    fields: Fields<'_>,
    namespace: &str,
) -> Option<ServiceName> {
    let namespace = match fields.get("namespace") {
        Some(node) => decoder.label(node, "a namespace"),
        None => Some(namespace),
    };
    let name = decoder.label(fields.get("name")?, "the name of a Service");
    Some(ServiceName::new(namespace?, name?))
}

fn rule_name<'n>(
    decoder: &mut Decoder<'_>,
    fields: Fields<'n>,
    before: &[RouteRule],
) -> Option<&'n str> {
    let node = fields.get("name")?;
    let form = ("the name of a rule", "use lower-case letters, digits, `-` and `.`");
    let name = decoder.formed(node, units::is_subdomain, form)?;
    if before.iter().any(|it| it.name == name) {
        let hint = "give each rule of a route its own name";
        decoder.error(node.at, format!("rule `{name}` comes twice"), hint);
    }
    Some(name)
}

fn matches(
    decoder: &mut Decoder<'_>,
    rule: &Node,
    fields: Fields<'_>,
    kind: &Kind,
) -> Vec<(Place, PathMatch)> {
    let Kind { matched, key, read, .. } = kind;
    let any = || PathMatch::Prefix("/".to_owned());
    let Some(node) = fields.get("matches") else {
        return vec![(decoder.place(rule.at), any())];
    };
    let mut matches = Vec::new();
    for node in decoder.items(node, MATCHES_MAX).unwrap_or_default() {
        let Some(fields) = decoder.fields(node, matched) else { continue };
        let path = match fields.get(key) {
            None => Some(any()),
            Some(node) => read(decoder, node),
        };
        matches.extend(path.map(|path| (decoder.place(node.at), path)));
    }
    matches
}

fn path(decoder: &mut Decoder<'_>, node: &Node) -> Option<PathMatch> {
    type Make = fn(String) -> PathMatch;
    let fields = decoder.fields(node, &PATH)?;
    let kinds: [(&str, Make); 2] = [("Exact", PathMatch::Exact), ("PathPrefix", PathMatch::Prefix)];
    let make: Make = match fields.get("type") {
        None => PathMatch::Prefix,
        Some(node) if decoder.any_text(node) == Some("RegularExpression") => {
            decoder.not_yet(node.at, "a path of type RegularExpression");
            return None;
        }
        Some(node) => decoder.choice(node, &kinds)?,
    };
    let Some(node) = fields.get("value") else { return Some(make("/".to_owned())) };
    decoder.formed(node, is_path, A_PATH).map(|it| make(it.to_owned()))
}

/// Whether a request's path could be `text`, read by every hop as the same path.
pub(super) fn is_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let ambiguous = ["//", "/./", "/../", "%2f", "?", "#"].iter().any(|it| lower.contains(it));
    text.starts_with('/')
        && text.len() <= PATH_LEN_MAX
        && !ambiguous
        && !text.ends_with("/.")
        && !text.ends_with("/..")
        && text.bytes().all(|it| it.is_ascii_graphic())
}

fn timeouts(
    decoder: &mut Decoder<'_>,
    fields: Fields<'_>,
) -> (Option<Duration>, Option<(Place, Duration)>) {
    let Some(fields) = fields.get("timeouts").and_then(|it| decoder.fields(it, &TIMEOUTS)) else {
        return (None, None);
    };
    let request = fields.get("request").and_then(|it| decoder.duration(it));
    let per_try = fields
        .get("backendRequest")
        .and_then(|it| Some((it.at, decoder.place(it.at), decoder.duration(it)?)));
    let Some((at, place, per_try)) = per_try else { return (request, None) };
    if request.is_some_and(|request| request < per_try) {
        let message = "`backendRequest` is longer than `request`";
        decoder.error(at, message, "a try is part of its request: choose it shorter");
    }
    (request, Some((place, per_try)))
}

/// What a rule says of retries; a failed connection is one of them in any case.
fn retry(decoder: &mut Decoder<'_>, node: &Node) -> Option<(Place, RouteRetry)> {
    let fields = decoder.fields(node, &RETRY)?;
    let retry = RouteRetry {
        codes: fields.get("codes").and_then(|it| service::codes(decoder, it)),
        attempts: fields.get("attempts").and_then(|it| service::attempts(decoder, it)),
        backoff: fields.get("backoff").and_then(|it| decoder.duration_in(it, service::BACKOFF)),
    };
    Some((decoder.place(node.at), retry))
}

fn backends(decoder: &mut Decoder<'_>, fields: Fields<'_>, namespace: &str) -> Arc<[Backend]> {
    let Some(node) = fields.get("backendRefs") else { return Arc::default() };
    let items = decoder.items(node, BACKENDS_MAX).unwrap_or_default();
    let backends: Vec<_> = items.iter().filter_map(|it| backend(decoder, it, namespace)).collect();
    if !backends.is_empty() && backends.iter().all(|it| it.weight == 0) {
        let message = "no backend has a weight: every request of this rule is refused";
        decoder.warning(node.at, message, "give one of them a weight above 0");
    }
    backends.into()
}

fn backend(decoder: &mut Decoder<'_>, node: &Node, namespace: &str) -> Option<Backend> {
    let fields = decoder.fields(node, &BACKEND)?;
    core_group(decoder, fields.get("group"));
    if let Some(kind) = fields.get("kind")
        && let Some(text) = decoder.text(kind)
        && text != "Service"
    {
        let message = format!("unknown kind {} of a backend", quoted(text));
        decoder.error(kind.at, message, "write `kind: Service`, or leave it out");
    }
    let weight = match fields.get("weight") {
        None => Some(1),
        Some(node) => decoder.number(node, 0..=WEIGHT_MAX),
    };
    let port = fields.get("port").and_then(|it| decoder.port(it));
    let service = service_name(decoder, fields, namespace);
    Some(Backend { service: service?, port: port?, weight: weight? })
}
