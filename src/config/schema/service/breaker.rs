//! `breaker`, `outlier`, `admission` and `connections` of a `ServicePolicy`: what is left
//! alone, and how much is under way.

use std::{ops::RangeInclusive, time::Duration};

use super::super::super::{
    decode::{Decoder, Shape},
    units,
    words::SCOPES,
    yaml::Node,
};
use crate::resilience::{
    Mode, admission,
    breaker::{self, Scope},
    outlier,
    service::Limits,
};

/// More in a row is no sign any more that something just broke.
const CONSECUTIVE: RangeInclusive<u32> = 1..=1_000;

/// It takes more than this share, and there is no more than all.
const FAILURES: RangeInclusive<u32> = 1..=99;

/// Above, a window would have to be longer than any that is allowed.
const MIN_REQUESTS: RangeInclusive<u32> = 1..=10_000;

/// Shorter holds too few requests, longer remembers what is over.
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);

/// Shorter is a retry, longer is an outage of its own.
const OPEN_FOR: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(10);
const OPEN_FOR_MAX: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Each step of the return takes as many; more is a second outage.
const PROBES: RangeInclusive<u32> = 1..=100;
const PROBE_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(10);

/// What one process can have open.
const REQUESTS: RangeInclusive<u32> = 1..=1_000_000;

/// Nobody may wait, or so many: each holds a connection of a client.
const PENDING: RangeInclusive<u32> = 0..=1_000_000;
const PATIENCE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);

const BREAKER: Shape = Shape {
    name: "breaker",
    known: &[
        "mode",
        "scope",
        "consecutiveFailures",
        "failureRatio",
        "minRequests",
        "window",
        "openFor",
        "maxOpenFor",
        "probes",
        "probeTimeout",
    ],
    required: &[],
    later: &[],
};

const OUTLIER: Shape = Shape {
    name: "outlier",
    known: &["mode", "factor", "margin", "minRequests", "maxEjected"],
    required: &[],
    later: &[],
};

const ADMISSION: Shape =
    Shape { name: "admission", known: &["mode"], required: &[("mode", "enforce")], later: &[] };

const CONNECTIONS: Shape = Shape {
    name: "connections",
    known: &["maxRequests", "maxPerEndpoint", "maxPending", "pendingTimeout"],
    required: &[],
    later: &[],
};

/// Reads `breaker`.
pub(super) fn breaker(decoder: &mut Decoder<'_>, node: &Node) -> breaker::Config {
    let mut config = breaker::Config::default();
    let Some(fields) = decoder.fields(node, &BREAKER) else { return config };
    config.mode = decoder.mode(fields);
    fields.read("scope", &mut config.scope, |it| decoder.choice(it, &SCOPES));
    fields.read("consecutiveFailures", &mut config.consecutive_failures, |it| {
        decoder.or_off(it, None, |decoder, it| decoder.number(it, CONSECUTIVE).map(Some))
    });
    fields.read("failureRatio", &mut config.failure_percent, |it| {
        decoder.or_off(it, None, |decoder, it| decoder.percent(it, FAILURES).map(Some))
    });
    fields.read("minRequests", &mut config.min_requests, |it| decoder.number(it, MIN_REQUESTS));
    fields.read("window", &mut config.window, |it| decoder.duration_in(it, WINDOW));
    fields.read("openFor", &mut config.open_for, |it| decoder.duration_in(it, OPEN_FOR));
    fields.read("probes", &mut config.probes, |it| decoder.number(it, PROBES));
    fields.read("probeTimeout", &mut config.probe_timeout, |it| {
        decoder.duration_in(it, PROBE_TIMEOUT)
    });
    // Whoever asks for a long first time has not asked for a shorter second one.
    config.open_for_max = config.open_for_max.max(config.open_for);
    let limit = fields.get("maxOpenFor");
    if let Some((node, limit)) =
        limit.and_then(|it| Some((it, decoder.duration_in(it, OPEN_FOR_MAX)?)))
    {
        if limit < config.open_for {
            let hint = format!("write at least `{}`", units::written(config.open_for));
            decoder.error(node.at, "`maxOpenFor` is shorter than `openFor`", hint);
        }
        config.open_for_max = limit;
    }
    let never = config.consecutive_failures.is_none() && config.failure_percent.is_none();
    if never && config.scope != Scope::Endpoint && config.mode != Mode::Off {
        let hint = "leave out one of `consecutiveFailures: off` and `failureRatio: off`";
        decoder.warning(node.at, "nothing opens this breaker", hint);
    }
    config
}

/// Reads `outlier`.
pub(super) fn outlier(decoder: &mut Decoder<'_>, node: &Node) -> outlier::Config {
    let mut config = outlier::Config::default();
    let Some(fields) = decoder.fields(node, &OUTLIER) else { return config };
    config.mode = decoder.mode(fields);
    let outlier::Config { factor, margin_percent, min_requests, max_ejected_percent, .. } =
        &mut config;
    fields.read("factor", factor, |it| decoder.number(it, 1..=100));
    fields.read("margin", margin_percent, |it| decoder.percent(it, 0..=100));
    fields.read("minRequests", min_requests, |it| decoder.number(it, MIN_REQUESTS));
    fields.read("maxEjected", max_ejected_percent, |it| decoder.percent(it, 1..=100));
    if let Some(node) = fields.get("maxEjected")
        && *max_ejected_percent == 100
    {
        let message = "all endpoints but one may be left out, and that one gets all requests";
        decoder.warning(node.at, message, "it would not stand for long: choose `50%`");
    }
    config
}

/// Reads `admission`.
pub(super) fn admission(decoder: &mut Decoder<'_>, node: &Node) -> admission::Config {
    let fields = decoder.fields(node, &ADMISSION);
    fields
        .map_or_else(admission::Config::default, |it| admission::Config { mode: decoder.mode(it) })
}

/// Reads `connections` of a service whose requests may take `request`.
pub(super) fn limits(decoder: &mut Decoder<'_>, node: &Node, request: Duration) -> Limits {
    let mut limits = Limits::default();
    let Some(fields) = decoder.fields(node, &CONNECTIONS) else { return limits };
    let Limits { requests, per_endpoint, pending, patience } = &mut limits;
    fields.read("maxRequests", requests, |it| decoder.number(it, REQUESTS));
    fields.read("maxPerEndpoint", per_endpoint, |it| decoder.number(it, REQUESTS));
    fields.read("maxPending", pending, |it| decoder.number(it, PENDING));
    fields.read("pendingTimeout", patience, |it| decoder.duration_in(it, PATIENCE));
    if let Some(node) = fields.get("pendingTimeout")
        && request <= *patience
    {
        let request = units::written(request);
        let message = format!("`pendingTimeout` never fires: the request may take {request}");
        decoder.warning(node.at, message, "choose it well below `timeouts.request`");
    }
    limits
}
