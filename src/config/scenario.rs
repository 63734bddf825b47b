//! Scenario: a chain of services, the load on it and what goes wrong, for the simulator.
//!
//! The same YAML as the policy documents: no key is passed over, all errors come at once
//! and each has its place. A scenario is cut into phases, which say how much load there is
//! and, by their names, when something is wrong:
//!
//! ```yaml
//! phases:
//! - {name: healthy, length: 20s, rate: 60}
//! - {name: outage, length: 20s, rate: 60}
//! hops:
//! - {name: orders, instances: 3, workers: 16, work: 5ms}
//! - {name: stock, instances: 3, workers: 16, work: {mean: 5ms, spread: lognormal}}
//! faults:
//! - {hop: stock, during: outage, mode: error, status: 503}
//! ```

mod keys;

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    decode::Decoder,
    report::{Complaint, Errors, Report},
    yaml,
};
use crate::policy::ServicePolicy;

/// The longest chain of services.
pub const HOPS_MAX: usize = 16;

/// The most copies of one service, or callers of the first.
pub const INSTANCES_MAX: u32 = 1_000;

/// What is simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What all chance comes from.
    pub seed: u64,
    /// How requests follow each other.
    pub arrivals: Arrivals,
    /// Pods that call the first hop, each with a sidecar.
    pub callers: u32,
    /// How many requests of a hundred may be sent twice.
    pub idempotent_percent: u32,
    /// How long a message is on its way.
    pub network: Duration,
    /// What follows what.
    pub phases: Vec<Phase>,
    /// The services: each calls the next one.
    pub hops: Vec<Hop>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// How requests follow each other. Nobody waits for an answer before the next request is
/// sent: an outage does not lower the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// As independent users come.
    Poisson,
    /// At equal distances.
    Constant,
}

/// A part of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What tables call it.
    pub name: Arc<str>,
    /// How long it lasts.
    pub length: Duration,
    /// Requests a second, of all callers together.
    pub rate: u32,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its name.
    pub name: Arc<str>,
    /// Its copies.
    pub instances: u32,
    /// Requests that one copy works on at once; one is held while the next hop is called.
    pub workers: u32,
    /// Requests that wait in one copy; one more is answered with 503.
    pub queue: u32,
    /// How long the work on one request takes, besides the call of the next hop.
    pub work: Work,
    /// How it is called: what Remora does, and the timeouts of any rules.
    pub policy: ServicePolicy,
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// On average.
    pub mean: Duration,
    /// How much it varies.
    pub spread: Spread,
}

/// A distribution around its mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Always the mean.
    Constant,
    /// As often short as long waits for independent events are.
    Exponential,
    /// Few short ones and a long tail, as services have: the logarithm deviates by 0.5.
    Lognormal,
}

/// Something that is wrong for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: an index into [`Scenario::hops`].
    pub hop: usize,
    /// With which of its copies; all where empty.
    pub instances: Vec<u32>,
    /// When it begins.
    pub from: Duration,
    /// When it ends.
    pub until: Duration,
    /// What.
    pub trouble: Trouble,
}

/// What can be wrong with a copy of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Work takes this many times as long.
    Slow {
        /// At least 1.
        factor: u32,
    },
    /// Requests are answered with an error instead of being worked on.
    Error {
        /// The error.
        status: u16,
        /// How long the answer takes.
        after: Duration,
        /// How many requests of a hundred.
        percent: u32,
    },
    /// Requests are taken and never answered.
    Hang,
    /// Nobody listens.
    Refuse,
    /// Nobody listens in every other part of this length.
    Flap {
        /// The length of a part.
        period: Duration,
    },
    /// It ends what it works on and takes on nothing else; when it is back its caches are
    /// cold.
    Restart {
        /// How long work takes longer afterwards: three times at first, and less and less.
        warm_up: Duration,
    },
    /// As a restart, and what it worked on is lost.
    Crash {
        /// As for a restart.
        warm_up: Duration,
    },
}

impl Scenario {
    /// How long all of it lasts.
    pub fn length(&self) -> Duration {
        self.phases.iter().map(|it| it.length).sum()
    }
}

impl Fault {
    /// Whether it is one of copy `instance` of `hop`.
    pub fn concerns(&self, hop: usize, instance: u32) -> bool {
        self.hop == hop && (self.instances.is_empty() || self.instances.contains(&instance))
    }
}

/// Reads the scenario in `bytes`; `file` is what problems name.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read(bytes: &[u8], file: &Path) -> Result<Scenario, Errors> {
    let mut report = Report::default();
    let (nodes, wrong) = yaml::parse(bytes);
    let mut decoder =
        Decoder { file: file.into(), report: &mut report, namespace: "default", zone: None };
    for (at, Complaint { message, hint }) in wrong {
        decoder.error(at, message, hint);
    }
    match nodes.as_slice() {
        [] => decoder.error(yaml::Mark::default(), "no scenario", "write `phases` and `hops`"),
        [_] => (),
        [_, second, ..] => {
            decoder.error(second.at, "a second document", "write one scenario in a file");
        }
    }
    let scenario = nodes.first().map(|it| keys::scenario(&mut decoder, it));
    report.settle().map(|_| scenario.unwrap_or_default())
}

/// Nothing at all.
impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 0,
            arrivals: Arrivals::Poisson,
            callers: 1,
            idempotent_percent: 100,
            network: Duration::from_micros(500),
            phases: Vec::new(),
            hops: Vec::new(),
            faults: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
