//! `loadBalancer` of a `ServicePolicy`: how an endpoint is picked.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use super::super::super::{
    decode::{Decoder, Fields, Shape},
    units,
    words::ALGORITHMS,
    yaml::Node,
};
use crate::{
    policy::{Algorithm, HashKey},
    resilience::balancer::Config,
};

/// A ramp that takes longer outlasts most rollouts.
const SLOW_START: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(10);

const LOAD_BALANCER: Shape = Shape {
    name: "loadBalancer",
    known: &["algorithm", "slowStart", "hash"],
    required: &[],
    later: &[],
};

const HASH: Shape =
    Shape { name: "hash", known: &["header", "cookie", "source"], required: &[], later: &[] };

/// Reads the section into `config`; answers with what of a request is hashed.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    node: &Node,
    config: &mut Config,
) -> Option<HashKey> {
    let fields = decoder.fields(node, &LOAD_BALANCER)?;
    let Config { algorithm, slow_start, .. } = config;
    fields.read("algorithm", algorithm, |it| decoder.choice(it, &ALGORITHMS));
    fields.read("slowStart", slow_start, |it| {
        decoder.or_off(it, Duration::ZERO, |decoder, it| decoder.duration_in(it, SLOW_START))
    });
    match (fields.get("hash"), *algorithm) {
        (Some(node), Algorithm::ConsistentHash) => hash(decoder, node),
        (Some(node), _) => {
            let message = "nothing is hashed: the algorithm is not `ConsistentHash`";
            decoder.error(node.at, message, "write `algorithm: ConsistentHash`, or remove `hash`");
            None
        }
        (None, Algorithm::ConsistentHash) => {
            let hint = "add `hash: {header: x-user}`, `{cookie: session}` or `{source: true}`";
            decoder.error(node.at, "`ConsistentHash` has nothing to hash", hint);
            None
        }
        (None, _) => None,
    }
}

fn hash(decoder: &mut Decoder<'_>, node: &Node) -> Option<HashKey> {
    let fields = decoder.fields(node, &HASH)?;
    let keys: Vec<_> = HASH.known.iter().filter(|it| fields.get(it).is_some()).collect();
    if keys.len() != 1 {
        let said = if keys.is_empty() { "nothing" } else { "more than one thing" };
        let hint = "write exactly one of `header`, `cookie`, `source`";
        decoder.error(node.at, format!("hash says {said}"), hint);
        return None;
    }
    header(decoder, fields).or_else(|| cookie(decoder, fields)).or_else(|| source(decoder, fields))
}

fn header(decoder: &mut Decoder<'_>, fields: Fields<'_>) -> Option<HashKey> {
    let form = ("the name of a header", "write a name such as `x-user`");
    let name = decoder.formed(fields.get("header")?, units::is_token, form)?;
    Some(HashKey::Header(name.to_ascii_lowercase().into()))
}

fn cookie(decoder: &mut Decoder<'_>, fields: Fields<'_>) -> Option<HashKey> {
    let form = ("the name of a cookie", "write a name such as `session`");
    let name = decoder.formed(fields.get("cookie")?, units::is_token, form)?;
    Some(HashKey::Cookie(Arc::from(name)))
}

fn source(decoder: &mut Decoder<'_>, fields: Fields<'_>) -> Option<HashKey> {
    let node = fields.get("source")?;
    if !decoder.flag(node)? {
        decoder.error(node.at, "`source: false` hashes nothing", "write `source: true`");
        return None;
    }
    Some(HashKey::Source)
}
