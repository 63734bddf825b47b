//! Schema: the kinds of documents, key by key.
//!
//! A key that is unknown, of the wrong type or not supported yet is an error and never
//! passed over: a document does all it says or nothing. Kubernetes' own bookkeeping
//! (`metadata.uid`, `status`, …) is the exception, so that `kubectl get -o yaml` can be
//! checked as it comes.
//!
//! Defaults are those of [`crate::policy`]; a document states only what differs.

mod grpc_route;
mod route;
mod service;
mod workload;

pub(super) use route::{Parent, RouteDocument, RouteRule};
pub(super) use service::{ServiceDocument, too_long};
pub(super) use workload::WorkloadDocument;

use super::{
    decode::{Decoder, Fields, Shape},
    report::{Place, quoted, suggestion},
    units,
    yaml::{Mark, Node, Value},
};

const REMORA: &str = "remora.dev/v1alpha1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

/// Each kind there is, its API version, and whether this version reads it.
const KINDS: [(&str, &str, Option<Kind>); 5] = [
    ("HTTPRoute", GATEWAY, Some(Kind::HttpRoute)),
    ("ServicePolicy", REMORA, Some(Kind::ServicePolicy)),
    ("WorkloadPolicy", REMORA, Some(Kind::WorkloadPolicy)),
    ("GRPCRoute", GATEWAY, Some(Kind::GrpcRoute)),
    ("AuthorizationPolicy", REMORA, None),
];

const METADATA: Shape = Shape {
    name: "metadata",
    known: &[
        "name",
        "namespace",
        "labels",
        "annotations",
        // Written by the API server; they say nothing to a proxy.
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ],
    required: &[("name", "orders")],
    later: &["generateName"],
};

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    GrpcRoute,
    HttpRoute,
    ServicePolicy,
    WorkloadPolicy,
}

/// One document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) kind: Kind,
    /// Where it begins.
    pub(super) at: Mark,
    pub(super) namespace: String,
    /// Whether the document says so itself.
    pub(super) names_namespace: bool,
    pub(super) name: String,
    /// Where its name is.
    pub(super) place: Place,
    /// `None` where something in it is wrong.
    pub(super) spec: Option<Spec>,
}

/// What a document asks for.
#[derive(Clone, Debug)]
pub(super) enum Spec {
    Route(RouteDocument),
    Service(ServiceDocument),
    Workload(WorkloadDocument),
}

impl Kind {
    /// As documents write it.
    pub(super) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, _, kind)| *kind == Some(self)).map_or("", |(name, _, _)| name)
    }
}

/// Reads one document; `None` where not even its name is known.
pub(super) fn document(decoder: &mut Decoder<'_>, node: &Node) -> Option<Document> {
    // The kind decides what the other keys mean, so it is found before they are checked.
    let Value::Map(entries) = &node.value else {
        decoder.error(
            node.at,
            "a document is a map",
            "begin with `apiVersion:`, `kind:`, `metadata:` and `spec:`",
        );
        return None;
    };
    let find = |key: &str| entries.iter().find(|it| it.key == key).map(|it| &it.value);
    let kind = kind(decoder, find("kind"), find("apiVersion"), node)?;
    let shape = Shape {
        name: kind.name(),
        known: &["apiVersion", "kind", "metadata", "spec", "status"],
        required: &[("metadata", "{name: orders}"), ("spec", "{}")],
        later: &[],
    };
    let fields = decoder.fields(node, &shape)?;
    let metadata = metadata(decoder, fields);
    // Documents without a usable name are still read to the end.
    let namespace =
        metadata.as_ref().map_or_else(|| decoder.namespace.to_owned(), |it| it.namespace.clone());
    let spec = fields.get("spec").and_then(|spec| match kind {
        Kind::GrpcRoute => grpc_route::decode(decoder, spec, &namespace).map(Spec::Route),
        Kind::HttpRoute => route::decode(decoder, spec, &namespace).map(Spec::Route),
        Kind::ServicePolicy => service::decode(decoder, spec, &namespace).map(Spec::Service),
        Kind::WorkloadPolicy => workload::decode(decoder, spec).map(Spec::Workload),
    });
    let Metadata { name, at, names_namespace, .. } = metadata?;
    let place = decoder.place(at);
    Some(Document { kind, at: node.at, namespace, names_namespace, name, place, spec })
}

fn kind(
    decoder: &mut Decoder<'_>,
    kind: Option<&Node>,
    version: Option<&Node>,
    document: &Node,
) -> Option<Kind> {
    let Some(node) = kind else {
        let hint = format!("add `kind: ServicePolicy`; the kinds are {}", readable().join(", "));
        decoder.error(document.at, "the document has no `kind`", hint);
        return None;
    };
    let text = decoder.text(node)?;
    let Some((name, expected, kind)) = KINDS.iter().find(|(name, _, _)| *name == text) else {
        let hint = suggestion(text, &readable());
        decoder.error(node.at, format!("unknown kind {}", quoted(text)), hint);
        return None;
    };
    let hint = format!("write `apiVersion: {expected}`");
    match version {
        None => decoder.error(document.at, format!("{name} has no `apiVersion`"), hint),
        Some(node) => {
            if let Some(text) = decoder.text(node)
                && text != *expected
            {
                let message = format!("unknown apiVersion {} of {name}", quoted(text));
                decoder.error(node.at, message, hint);
            }
        }
    }
    if kind.is_none() {
        decoder.not_yet(node.at, name);
    }
    *kind
}

/// The kinds this version reads.
fn readable() -> Vec<&'static str> {
    KINDS.iter().filter(|(_, _, kind)| kind.is_some()).map(|(name, _, _)| *name).collect()
}

struct Metadata {
    name: String,
    at: Mark,
    namespace: String,
    names_namespace: bool,
}

fn metadata(decoder: &mut Decoder<'_>, document: Fields<'_>) -> Option<Metadata> {
    let fields = decoder.fields(document.get("metadata")?, &METADATA)?;
    for key in ["labels", "annotations"] {
        for entry in fields.get(key).and_then(|it| decoder.entries(it, key)).unwrap_or_default() {
            decoder.any_text(&entry.value);
        }
    }
    let stated = fields.get("namespace");
    let namespace = match stated {
        Some(node) => decoder.label(node, "a namespace").map(str::to_owned),
        None => Some(decoder.namespace.to_owned()),
    };
    let form = ("the name of an object", "use lower-case letters, digits, `-` and `.`");
    let node = fields.get("name")?;
    let name = decoder.formed(node, units::is_subdomain, form)?.to_owned();
    let names_namespace = stated.is_some();
    Some(Metadata { name, at: node.at, namespace: namespace?, names_namespace })
}
