//! Keys: what may stand in a scenario.

use std::time::Duration;

use super::{
    super::{
        decode::{Decoder, Fields, Shape},
        report::{quoted, suggestion},
        yaml::{Node, Value},
    },
    Arrivals, Fault, HOPS_MAX, Hop, INSTANCES_MAX, Phase, Scenario, Spread, Trouble, Work,
};
use crate::policy::ServicePolicy;

/// Phases or faults of one scenario.
const LIST_MAX: usize = 100;

/// Nothing that a laptop simulates in minutes.
const RATE_MAX: u32 = 100_000;

const SCENARIO: Shape = Shape {
    name: "a scenario",
    known: &[
        "seed",
        "arrivals",
        "callers",
        "idempotentPercent",
        "network",
        "phases",
        "hops",
        "faults",
    ],
    required: &[
        ("phases", "[{name: healthy, length: 20s, rate: 100}]"),
        ("hops", "[{name: orders, instances: 3, workers: 8, work: 5ms}]"),
    ],
    later: &[],
};

const PHASE: Shape = Shape {
    name: "a phase",
    known: &["name", "length", "rate"],
    required: &[("name", "healthy"), ("length", "20s"), ("rate", "100")],
    later: &[],
};

const HOP: Shape = Shape {
    name: "a hop",
    known: &["name", "instances", "workers", "queue", "work", "timeout", "tryTimeout"],
    required: &[("name", "orders"), ("instances", "3"), ("workers", "8"), ("work", "5ms")],
    later: &[],
};

const WORK: Shape =
    Shape { name: "work", known: &["mean", "spread"], required: &[("mean", "5ms")], later: &[] };

const FAULT: Shape = Shape {
    name: "a fault",
    known: &[
        "hop",
        "instances",
        "during",
        "from",
        "for",
        "mode",
        "factor",
        "status",
        "after",
        "percent",
        "period",
        "warmUp",
    ],
    required: &[("hop", "orders"), ("mode", "error")],
    later: &[],
};

/// A kind of trouble, before its details are read.
#[derive(Clone, Copy)]
enum Mode {
    Slow,
    Error,
    Hang,
    Refuse,
    Flap,
    Restart,
    Crash,
}

/// Each mode, and the keys that only it has.
const MODES: [(&str, Mode, &[&str]); 7] = [
    ("slow", Mode::Slow, &["factor"]),
    ("error", Mode::Error, &["status", "after", "percent"]),
    ("hang", Mode::Hang, &[]),
    ("refuse", Mode::Refuse, &[]),
    ("flap", Mode::Flap, &["period"]),
    ("restart", Mode::Restart, &["warmUp"]),
    ("crash", Mode::Crash, &["warmUp"]),
];

/// Reads what it can of a scenario.
pub(super) fn scenario(decoder: &mut Decoder<'_>, node: &Node) -> Scenario {
    let mut scenario = Scenario::default();
    let Some(fields) = decoder.fields(node, &SCENARIO) else { return scenario };
    let seed = number(decoder, fields, "seed", (0..=u32::MAX, 1));
    scenario.seed = u64::from(seed);
    if let Some(node) = fields.get("arrivals") {
        let words = [("poisson", Arrivals::Poisson), ("constant", Arrivals::Constant)];
        scenario.arrivals = decoder.choice(node, &words).unwrap_or(scenario.arrivals);
    }
    scenario.callers = number(decoder, fields, "callers", (1..=INSTANCES_MAX, 1));
    scenario.idempotent_percent = number(decoder, fields, "idempotentPercent", (0..=100, 100));
    scenario.network = duration(decoder, fields, "network", scenario.network);
    let phases = list(decoder, fields, "phases", LIST_MAX);
    scenario.phases = phases.iter().filter_map(|it| phase(decoder, it)).collect();
    let hops = list(decoder, fields, "hops", HOPS_MAX);
    scenario.hops = hops.iter().filter_map(|it| hop(decoder, it)).collect();
    let faults = list(decoder, fields, "faults", LIST_MAX);
    scenario.faults = faults.iter().filter_map(|it| fault(decoder, it, &scenario)).collect();
    scenario
}

fn phase(decoder: &mut Decoder<'_>, node: &Node) -> Option<Phase> {
    let fields = decoder.fields(node, &PHASE)?;
    let name = decoder.label(fields.get("name")?, "a name")?;
    let length = decoder.duration(fields.get("length")?)?;
    let rate = decoder.number(fields.get("rate")?, 1..=RATE_MAX)?;
    Some(Phase { name: name.into(), length, rate })
}

fn hop(decoder: &mut Decoder<'_>, node: &Node) -> Option<Hop> {
    let fields = decoder.fields(node, &HOP)?;
    let mut policy = ServicePolicy::default();
    policy.timeouts.request = duration(decoder, fields, "timeout", policy.timeouts.request);
    policy.retries.try_timeout = fields.get("tryTimeout").and_then(|it| decoder.duration(it));
    let queue = number(decoder, fields, "queue", (0..=1_000_000, 100));
    Some(Hop {
        name: decoder.label(fields.get("name")?, "a name")?.into(),
        instances: decoder.number(fields.get("instances")?, 1..=INSTANCES_MAX)?,
        workers: decoder.number(fields.get("workers")?, 1..=10_000)?,
        queue,
        work: work(decoder, fields.get("work")?)?,
        policy,
    })
}

/// A duration, which is constant, or its mean and spread.
fn work(decoder: &mut Decoder<'_>, node: &Node) -> Option<Work> {
    if !matches!(node.value, Value::Map(_)) {
        return Some(Work { mean: decoder.duration(node)?, spread: Spread::Constant });
    }
    let fields = decoder.fields(node, &WORK)?;
    let words = [
        ("constant", Spread::Constant),
        ("exponential", Spread::Exponential),
        ("lognormal", Spread::Lognormal),
    ];
    let spread = fields.get("spread").and_then(|it| decoder.choice(it, &words));
    let mean = decoder.duration(fields.get("mean")?)?;
    Some(Work { mean, spread: spread.unwrap_or(Spread::Exponential) })
}

fn fault(decoder: &mut Decoder<'_>, node: &Node, scenario: &Scenario) -> Option<Fault> {
    let fields = decoder.fields(node, &FAULT)?;
    let name = fields.get("hop")?;
    let hops: Vec<_> = (0..).zip(&scenario.hops).map(|(at, it)| (&*it.name, at)).collect();
    let hop: usize = decoder.choice(name, &hops)?;
    let copies = scenario.hops.get(hop).map_or(1, |it| it.instances);
    let most = usize::try_from(INSTANCES_MAX).unwrap_or(usize::MAX);
    let instances = fields.get("instances").and_then(|it| decoder.items(it, most));
    let instances = instances.unwrap_or_default().iter();
    let instances = instances.filter_map(|it| decoder.number(it, 0..=copies - 1)).collect();
    let (from, until) = time(decoder, node, fields, scenario)?;
    let trouble = trouble(decoder, node, fields)?;
    Some(Fault { hop, instances, from, until, trouble })
}

/// When a fault begins and ends: with a phase, or at times of its own.
fn time(
    decoder: &mut Decoder<'_>,
    node: &Node,
    fields: Fields<'_>,
    scenario: &Scenario,
) -> Option<(Duration, Duration)> {
    let length = scenario.length();
    let (from, until) = match (fields.get("during"), fields.get("from")) {
        (Some(during), None) => {
            let name = decoder.text(during)?;
            let Some(at) = scenario.phases.iter().position(|it| &*it.name == name) else {
                let known: Vec<_> = scenario.phases.iter().map(|it| &*it.name).collect();
                let message = format!("unknown phase {}", quoted(name));
                decoder.error(during.at, message, suggestion(name, &known));
                return None;
            };
            let before: Duration = scenario.phases.iter().take(at).map(|it| it.length).sum();
            (before, before + scenario.phases.get(at)?.length)
        }
        (None, Some(from)) => {
            let from = decoder.duration(from)?;
            let lasts = fields.get("for").map(|it| decoder.duration(it));
            (from, lasts.flatten().map_or(length, |it| from + it))
        }
        (Some(_), Some(_)) | (None, None) => {
            let hint = "write one of `during: PHASE` and `from: 20s`";
            decoder.error(node.at, "it is not clear when the fault begins", hint);
            return None;
        }
    };
    if length <= from {
        let message = "the fault begins after the last phase";
        decoder.error(node.at, message, "begin it earlier, or add a phase");
    }
    Some((from, until))
}

fn trouble(decoder: &mut Decoder<'_>, node: &Node, fields: Fields<'_>) -> Option<Trouble> {
    let names: Vec<_> = MODES.iter().map(|(name, mode, keys)| (*name, (*mode, *keys))).collect();
    let (mode, keys) = decoder.choice(fields.get("mode")?, &names)?;
    for key in MODES.iter().flat_map(|(.., keys)| *keys) {
        if let Some(stray) = fields.get(key)
            && !keys.contains(key)
        {
            let message = format!("`{key}` means nothing in this mode");
            decoder.error(stray.at, message, "remove it, or choose the mode that has it");
        }
    }
    let second = Duration::from_secs(1);
    Some(match mode {
        Mode::Slow => Trouble::Slow { factor: number(decoder, fields, "factor", (1..=1_000, 10)) },
        Mode::Error => Trouble::Error {
            status: number(decoder, fields, "status", (400..=599, 503)).try_into().ok()?,
            after: duration(decoder, fields, "after", Duration::from_millis(1)),
            percent: number(decoder, fields, "percent", (1..=100, 100)),
        },
        Mode::Hang => Trouble::Hang,
        Mode::Refuse => Trouble::Refuse,
        Mode::Flap => {
            if fields.get("period").is_none() {
                decoder.error(node.at, "flap has no `period`", "add `period: 2s`");
            }
            Trouble::Flap { period: duration(decoder, fields, "period", second) }
        }
        Mode::Restart => Trouble::Restart { warm_up: duration(decoder, fields, "warmUp", second) },
        Mode::Crash => Trouble::Crash { warm_up: duration(decoder, fields, "warmUp", second) },
    })
}

fn list<'n>(decoder: &mut Decoder<'_>, fields: Fields<'n>, key: &str, most: usize) -> &'n [Node] {
    fields.get(key).and_then(|it| decoder.items(it, most)).unwrap_or_default()
}

fn number(
    decoder: &mut Decoder<'_>,
    fields: Fields<'_>,
    key: &str,
    (range, default): (std::ops::RangeInclusive<u32>, u32),
) -> u32 {
    fields.get(key).and_then(|it| decoder.number(it, range)).unwrap_or(default)
}

fn duration(
    decoder: &mut Decoder<'_>,
    fields: Fields<'_>,
    key: &str,
    default: Duration,
) -> Duration {
    fields.get(key).and_then(|it| decoder.duration(it)).unwrap_or(default)
}
