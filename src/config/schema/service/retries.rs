//! `retries`, `retryBudget` and `hedge` of a `ServicePolicy`: what is sent again, and at
//! what cost.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use super::super::super::{
    decode::{Decoder, Shape},
    report::quoted,
    units,
    words::{GRPC_CODES, METHODS},
    yaml::{Node, Value},
};
use crate::{
    policy::retry::{Methods, Policy},
    resilience::{Mode, backoff, budget, hedge},
};

/// Tries after the first; what five more do not cure, a sixth makes worse.
const ATTEMPTS: RangeInclusive<u32> = 0..=5;

/// Statuses that are a failure of somebody's.
const CODES: RangeInclusive<u32> = 400..=599;

/// More than this is "all of them", which nobody means.
const CODES_MAX: usize = 32;

/// A wait that is longer outlasts the client.
pub(in super::super) const BACKOFF: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_mins(1);

/// Saved up by a service that is idle, and sent at once when it fails.
const BURST: RangeInclusive<u32> = 0..=1_000;

/// Each percent of extra load is a cut of a tail; beyond these it is a load test.
const EXTRA: RangeInclusive<u32> = 1..=20;

const RETRIES: Shape = Shape {
    name: "retries",
    known: &[
        "mode",
        "attempts",
        "codes",
        "grpcCodes",
        "methods",
        "idempotencyKey",
        "backoff",
        "perTryTimeout",
    ],
    required: &[],
    later: &[],
};

const BACKOFF_KEYS: Shape =
    Shape { name: "backoff", known: &["base", "max"], required: &[], later: &[] };

const BUDGET: Shape =
    Shape { name: "retryBudget", known: &["mode", "ratio", "burst"], required: &[], later: &[] };

const HEDGE: Shape = Shape { name: "hedge", known: &["mode", "extra"], required: &[], later: &[] };

/// Reads `retries` of a service whose requests may take `request`.
pub(super) fn retries(decoder: &mut Decoder<'_>, node: &Node, request: Duration) -> Policy {
    let mut policy = Policy::default();
    let Some(fields) = decoder.fields(node, &RETRIES) else { return policy };
    policy.mode = decoder.mode(fields);
    fields.read("attempts", &mut policy.attempts, |it| attempts(decoder, it));
    fields.read("codes", &mut policy.codes, |it| codes(decoder, it));
    fields.read("grpcCodes", &mut policy.grpc_codes, |it| grpc_codes(decoder, it));
    fields.read("methods", &mut policy.methods, |it| methods(decoder, it));
    fields.read("idempotencyKey", &mut policy.idempotency_key, |it| decoder.flag(it));
    fields.read("backoff", &mut policy.backoff, |it| backoff(decoder, it));
    if let Some(node) = fields.get("attempts")
        && policy.attempts == 0
        && policy.mode != Mode::Off
    {
        decoder.warning(node.at, "nothing is sent again", "write `mode: off`, which says so");
    }
    let Some(node) = fields.get("perTryTimeout") else { return policy };
    policy.try_timeout = decoder.duration(node);
    let Some(per_try) = policy.try_timeout else { return policy };
    if request <= per_try {
        let message = format!(
            "`perTryTimeout` never fires: the request may take {}",
            units::written(request)
        );
        let hint = "choose it well below `timeouts.request`, or leave it out";
        decoder.error(node.at, message, hint);
    } else if let Some(message) = too_long(policy.attempts, per_try, request) {
        let hint = "choose fewer `attempts` or a shorter `perTryTimeout`";
        decoder.warning(node.at, message, hint);
    }
    policy
}

/// What is wrong when the tries of a request may take longer than it may.
pub(in super::super::super) fn too_long(
    attempts: u8,
    per_try: Duration,
    request: Duration,
) -> Option<String> {
    let tries = u32::from(attempts) + 1;
    (request < per_try * tries).then(|| {
        let [per_try, request] = [per_try, request].map(units::written);
        format!("{tries} tries of {per_try} do not fit into the {request} of the request")
    })
}

/// Reads how many tries there may be after the first.
pub(in super::super) fn attempts(decoder: &mut Decoder<'_>, node: &Node) -> Option<u8> {
    decoder.number(node, ATTEMPTS).and_then(|it| u8::try_from(it).ok())
}

/// Reads a list of statuses that may be followed by another try.
pub(in super::super) fn codes(decoder: &mut Decoder<'_>, node: &Node) -> Option<Arc<[u16]>> {
    let mut codes = Vec::new();
    for node in decoder.items(node, CODES_MAX)? {
        let Some(code) = decoder.number(node, CODES).and_then(|it| u16::try_from(it).ok()) else {
            continue;
        };
        if codes.contains(&code) {
            decoder.error(node.at, format!("status `{code}` comes twice"), "remove one");
        }
        codes.push(code);
    }
    codes.sort_unstable();
    Some(codes.into())
}

fn grpc_codes(decoder: &mut Decoder<'_>, node: &Node) -> Option<u32> {
    let items = decoder.items(node, GRPC_CODES.len())?;
    let bits = items.iter().filter_map(|it| decoder.choice(it, &GRPC_CODES));
    Some(bits.fold(0, |all, it| all | it))
}

fn methods(decoder: &mut Decoder<'_>, node: &Node) -> Option<Methods> {
    let mut methods = Methods(0);
    for node in decoder.items(node, METHODS.len())? {
        let Some(method) = decoder.choice(node, &METHODS) else { continue };
        if method == Methods::POST || method == Methods::PATCH {
            let name = decoder.text(node).map(quoted).unwrap_or_default();
            let message = format!("a {name} that was answered too late is sent twice");
            let hint = "be sure that two do what one does, or use `idempotencyKey: true`";
            decoder.warning(node.at, message, hint);
        }
        methods = methods.and(method);
    }
    Some(methods)
}

fn backoff(decoder: &mut Decoder<'_>, node: &Node) -> Option<backoff::Config> {
    let fields = decoder.fields(node, &BACKOFF_KEYS)?;
    let mut config = backoff::Config::default();
    fields.read("base", &mut config.base, |it| decoder.duration_in(it, BACKOFF));
    let limit = fields.get("max").and_then(|it| decoder.duration_in(it, BACKOFF));
    if let (Some(node), Some(limit)) = (fields.get("max"), limit)
        && limit < config.base
    {
        let hint = format!("write at least `{}`", units::written(config.base));
        decoder.error(node.at, "`max` is shorter than `base`", hint);
    }
    // Whoever asks for a long first wait has not asked for a shorter second one.
    config.max = limit.unwrap_or(config.max.max(config.base));
    Some(config)
}

/// Reads `retryBudget`.
pub(super) fn budget(decoder: &mut Decoder<'_>, node: &Node) -> budget::Config {
    let mut config = budget::Config::default();
    let Some(fields) = decoder.fields(node, &BUDGET) else { return config };
    config.mode = decoder.mode(fields);
    fields.read("ratio", &mut config.percent, |it| decoder.percent(it, 0..=100));
    fields.read("burst", &mut config.burst, |it| decoder.number(it, BURST));
    if let Some(node) = fields.get("ratio")
        && config.percent == 100
    {
        let message = "a service that fails gets twice its load";
        decoder.warning(node.at, message, "a ratio of `20%` cures what retries can cure");
    }
    config
}

/// Reads `hedge`: a word, or a map.
pub(super) fn hedge(decoder: &mut Decoder<'_>, node: &Node) -> Option<hedge::Config> {
    let config = hedge::Config::default();
    if let Value::Text(_) = &node.value {
        let words = [("auto", Mode::Enforce), ("off", Mode::Off)];
        return decoder.choice(node, &words).map(|mode| hedge::Config { mode, ..config });
    }
    let fields = decoder.fields(node, &HEDGE)?;
    let mut config = hedge::Config { mode: decoder.mode(fields), ..config };
    fields.read("extra", &mut config.percent, |it| decoder.percent(it, EXTRA));
    Some(config)
}
