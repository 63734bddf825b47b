//! Guards: `rateLimits` and `concurrency` of a `WorkloadPolicy`.

use std::sync::Arc;

use super::super::{
    super::{
        decode::{Decoder, Fields, Shape},
        report::quoted,
        units,
        yaml::Node,
    },
    route,
};
use crate::{
    policy::{
        PathMatch,
        workload::{RateKey, RateLimit},
    },
    resilience::{limiter, rate::Rate},
};

/// Rate limits of one workload: each is asked about every request.
const RATE_LIMITS_MAX: usize = 16;

/// Requests in one `per`: a pod that takes more in a millisecond does not need a limit.
const REQUESTS_MAX: u32 = 1_000_000;

/// Requests at once. With it the largest of all bursts lasts less than the clock does.
const BURST_MAX: u32 = 100_000;

/// Requests in flight; a sidecar has not the descriptors for more.
const CONCURRENCY_MAX: u32 = 100_000;

const RATE_LIMIT: Shape = Shape {
    name: "a rate limit",
    known: &["name", "by", "header", "path", "requests", "per", "burst", "mode"],
    required: &[("by", "identity"), ("requests", "100"), ("per", "1s")],
    later: &["share"],
};

const CONCURRENCY: Shape = Shape {
    name: "concurrency",
    known: &["mode", "initial", "min", "max", "latencyFloor"],
    required: &[],
    later: &[],
};

/// What a bucket is for, before it is known of which header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    All,
    Identity,
    Header,
}

/// Reads `rateLimits`.
pub(super) fn rate_limits(decoder: &mut Decoder<'_>, node: &Node) -> Vec<RateLimit> {
    let mut limits: Vec<RateLimit> = Vec::new();
    let items = decoder.items(node, RATE_LIMITS_MAX).unwrap_or_default();
    for (index, node) in items.iter().enumerate() {
        let Some(fields) = decoder.fields(node, &RATE_LIMIT) else { continue };
        let name = name(decoder, fields, &limits);
        let name = name.map_or_else(|| index.to_string().into(), Arc::from);
        limits.extend(rate_limit(decoder, node, fields, name));
    }
    limits
}

fn name<'n>(
    decoder: &mut Decoder<'_>,
    fields: Fields<'n>,
    before: &[RateLimit],
) -> Option<&'n str> {
    let node = fields.get("name")?;
    let form = ("the name of a rate limit", "use lower-case letters, digits, `-` and `.`");
    let name = decoder.formed(node, units::is_subdomain, form)?;
    if before.iter().any(|it| *it.name == *name) {
        let hint = "give each rate limit of a workload its own name";
        decoder.error(node.at, format!("rate limit `{name}` comes twice"), hint);
    }
    Some(name)
}

fn rate_limit(
    decoder: &mut Decoder<'_>,
    node: &Node,
    fields: Fields<'_>,
    name: Arc<str>,
) -> Option<RateLimit> {
    let by = key(decoder, node, fields);
    let path = fields.get("path").and_then(|it| decoder.formed(it, route::is_path, route::A_PATH));
    let requests = fields.get("requests").and_then(|it| decoder.number(it, 1..=REQUESTS_MAX));
    let per = fields.get("per").and_then(|it| decoder.duration(it));
    let burst = fields.get("burst").and_then(|it| decoder.number(it, 1..=BURST_MAX));
    let mode = decoder.mode(fields);
    let (requests, per) = (requests?, per?);
    Some(RateLimit {
        name,
        mode,
        by: by?,
        path: path.map(|it| PathMatch::Prefix(it.to_owned())),
        rate: Rate { requests, per, burst: burst.unwrap_or(requests) },
    })
}

/// What `by` and `header` say together.
fn key(decoder: &mut Decoder<'_>, limit: &Node, fields: Fields<'_>) -> Option<RateKey> {
    let words = [("identity", By::Identity), ("header", By::Header), ("all", By::All)];
    let by = decoder.choice(fields.get("by")?, &words)?;
    let Some(node) = fields.get("header") else {
        if by == By::Header {
            let hint = "add `header: x-api-key`, the field whose values are told apart";
            decoder.error(limit.at, "a rate limit `by: header` has no `header`", hint);
        }
        return match by {
            By::All => Some(RateKey::All),
            By::Identity => Some(RateKey::Identity),
            By::Header => None,
        };
    };
    let form = ("the name of a header", "write a name such as `x-api-key`");
    let name = decoder.formed(node, units::is_token, form)?;
    let name = name.to_ascii_lowercase();
    if name.starts_with("x-remora-") {
        let message = format!("the header {} is nobody's to set", quoted(&name));
        decoder.error(node.at, message, "write `by: identity` to tell callers apart");
        return None;
    }
    if by == By::Header {
        return Some(RateKey::Header(name.into()));
    }
    let message = format!("the header {} is not looked at", quoted(&name));
    decoder.error(node.at, message, "write `by: header`, or remove `header`");
    None
}

/// Reads `concurrency`.
pub(super) fn concurrency(decoder: &mut Decoder<'_>, node: &Node) -> Option<limiter::Config> {
    let fields = decoder.fields(node, &CONCURRENCY)?;
    let mut config = limiter::Config { mode: decoder.mode(fields), ..limiter::Config::default() };
    let mut number = |key: &str, default: u32| {
        let node = fields.get(key)?;
        Some((node.at, decoder.number(node, 1..=CONCURRENCY_MAX).unwrap_or(default)))
    };
    let min = number("min", config.min);
    let max = number("max", config.max);
    let initial = number("initial", config.initial);
    // A bound that is left out gives way to one that is stated.
    if let Some((_, max)) = max {
        (config.max, config.min) = (max, config.min.min(max));
    }
    if let Some((_, min)) = min {
        (config.min, config.max) = (min, config.max.max(min));
    }
    config.initial = config.initial.clamp(config.min, config.max);
    if let (Some((_, min)), Some((at, max))) = (min, max)
        && max < min
    {
        let message = format!("`max` {max} is below `min` {min}");
        decoder.error(at, message, "the limit moves between the two: make `max` the larger one");
    } else if let Some((at, initial)) = initial {
        if !(config.min..=config.max).contains(&initial) {
            let message = format!("`initial` {initial} is not between `min` and `max`");
            let hint = format!("choose it from {} to {}", config.min, config.max);
            decoder.error(at, message, hint);
        }
        config.initial = initial;
    }
    if let Some(node) = fields.get("latencyFloor") {
        config.latency_floor = decoder.duration(node).unwrap_or(config.latency_floor);
    }
    Some(config)
}
