//! `GRPCRoute`: which backends a call leads to, for callers of a service.
//!
//! A call of `Method` of `pkg.Service` is a request for `/pkg.Service/Method`, so that a rule
//! here is one for a path: the whole of it, or all that begin with the service's.
//!
//! # Sources
//!
//! - Gateway API, `GRPCRoute`: fields, limits, and what a method match may leave out.
//!   <https://gateway-api.sigs.k8s.io/reference/spec/#grpcroute>
//! - gRPC over HTTP/2: "Path → "/" Service-Name "/" {method name}".
//!   <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use super::{
    super::{
        decode::{Decoder, Shape},
        yaml::Node,
    },
    route::{self, Kind, RouteDocument},
};
use crate::policy::PathMatch;

const RULE: Shape = Shape {
    name: "a rule",
    known: &["name", "matches", "backendRefs"],
    required: &[],
    later: &["filters", "sessionPersistence"],
};

const MATCH: Shape =
    Shape { name: "a match", known: &["method"], required: &[], later: &["headers"] };

const METHOD: Shape =
    Shape { name: "method", known: &["type", "service", "method"], required: &[], later: &[] };

/// Reads the `spec`.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    spec: &Node,
    namespace: &str,
) -> Option<RouteDocument> {
    let kind = Kind { rule: &RULE, matched: &MATCH, key: "method", read: method };
    route::document(decoder, spec, namespace, &kind)
}

fn method(decoder: &mut Decoder<'_>, node: &Node) -> Option<PathMatch> {
    let fields = decoder.fields(node, &METHOD)?;
    if let Some(node) = fields.get("type") {
        if decoder.any_text(node) == Some("RegularExpression") {
            decoder.not_yet(node.at, "a method of type RegularExpression");
            return None;
        }
        decoder.choice(node, &[("Exact", ())]);
    }
    let form = ("the name of a gRPC service", "write it with its package: `shop.v1.Orders`");
    let service = fields.get("service").map(|it| decoder.formed(it, is_service, form));
    let form = ("the name of a gRPC method", "use letters, digits and `_`: `GetOrder`");
    let method = fields.get("method").map(|it| decoder.formed(it, is_name, form));
    match (service, method) {
        (Some(service), Some(method)) => {
            Some(PathMatch::Exact(format!("/{}/{}", service?, method?)))
        }
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{}", service?))),
        (None, Some(_)) => {
            decoder.not_yet(node.at, "a method of any service");
            None
        }
        (None, None) => {
            let hint = "write `method: {service: shop.v1.Orders}`, or remove `method`";
            decoder.error(node.at, "a method match names neither service nor method", hint);
            None
        }
    }
}

/// Names with dots between; the standard allows one more in front.
fn is_service(text: &str) -> bool {
    text.len() <= 1_024 && text.strip_prefix('.').unwrap_or(text).split('.').all(is_name)
}

fn is_name(text: &str) -> bool {
    text.len() <= 1_024
        && text.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_')
        && text.starts_with(|it: char| it.is_ascii_alphabetic() || it == '_')
}
