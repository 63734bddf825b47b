//! Audit: what must hold after every step of a simulation, whatever goes wrong in it.
//!
//! Of each caller that keeps our rules, at any moment:
//!
//! ```text
//! retries + hedges <= requests × percent + burst + floor × elapsed
//! tries its service takes for pending = tries that are not settled
//! endpoints left out <= the cap, and never all of them
//! ```
//!
//! and no try goes to an endpoint that is left out, but for probes and when there is no
//! other one.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::time::{At, nanos};
use crate::resilience::{
    Mode,
    balancer::Stats,
    budget, outlier,
    service::{Change, State},
};

/// Retries a second that are granted however little traffic there is, in tenths.
const FLOOR_TENTHS: u64 = 1;

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// A promise that was broken, and how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What did not hold.
    pub what: String,
    /// Whose service.
    pub caller: String,
    /// When, since the beginning.
    pub at: Duration,
    /// With which seed.
    pub seed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, caller, at, seed } = self;
        write!(f, "{caller} at {:.6} s, seed {seed}: {what}", at.as_secs_f64())
    }
}

impl std::error::Error for Violation {}

/// What one caller did, counted beside what its service counts.
#[derive(Debug)]
pub(super) struct Ledger {
    budget: budget::Config,
    outlier: outlier::Config,
    endpoints: usize,
    /// First tries.
    originals: u64,
    /// Retries and hedges that were charged.
    granted: u64,
    unsettled: u64,
    /// Endpoints that are left out, with whether probes are let through.
    left_out: BTreeMap<u32, State>,
    /// How often one was.
    pub(super) ejections: u64,
}

impl Ledger {
    /// An empty one for so many endpoints.
    pub(super) fn new(budget: budget::Config, outlier: outlier::Config, endpoints: u32) -> Self {
        Self {
            budget,
            outlier,
            endpoints: endpoints as usize,
            originals: 0,
            granted: 0,
            unsettled: 0,
            left_out: BTreeMap::new(),
            ejections: 0,
        }
    }

    /// A first try was asked for.
    pub(super) fn asked(&mut self) {
        self.originals += 1;
    }

    /// A retry or hedge was granted.
    pub(super) fn granted(&mut self, now: At) -> Result<(), Broken> {
        self.granted += 1;
        let budget::Config { mode, percent, burst } = self.budget;
        // In thousandths, so that nothing is rounded.
        let earned = self.originals * u64::from(percent) * 10;
        let floor = now / nanos(Duration::from_millis(10)) * FLOOR_TENTHS + 1;
        if mode == Mode::Enforce && earned + u64::from(burst) * 1_000 + floor < self.granted * 1_000
        {
            let (granted, originals) = (self.granted, self.originals);
            return Err(Broken(format!("{granted} retries granted for {originals} requests")));
        }
        Ok(())
    }

    /// What was granted is given back.
    pub(super) fn abandoned(&mut self) {
        self.granted -= 1;
    }

    /// A try goes to `endpoint`; `excused` where it is a probe, or there was no other.
    pub(super) fn sent(&mut self, endpoint: u32, excused: bool) -> Result<(), Broken> {
        self.unsettled += 1;
        if self.left_out.get(&endpoint) == Some(&State::Open) && !excused {
            return Err(Broken(format!("a try to endpoint {endpoint}, which is left out")));
        }
        Ok(())
    }

    /// A try was settled.
    pub(super) fn settled(&mut self) {
        self.unsettled -= 1;
    }

    /// What the service itself counts.
    pub(super) fn agrees(&self, stats: Stats) -> Result<(), Broken> {
        let Stats { pending, ejected, set_aside, .. } = stats;
        let (unsettled, out) = (self.unsettled, self.left_out.len());
        let open = self.left_out.values().filter(|it| **it == State::Open).count();
        if pending != unsettled {
            return Err(Broken(format!("{pending} tries pending, and {unsettled} not settled")));
        }
        // One that comes back by degrees is out for the cap, and gets traffic; one that can't
        // be reached may be open, too.
        if ejected < open.saturating_sub(set_aside) || out < ejected {
            return Err(Broken(format!("{ejected} endpoints ejected, and {out} said to be")));
        }
        Ok(())
    }

    /// Nothing is under way any more.
    pub(super) fn over(&self) -> Result<(), Broken> {
        match self.unsettled {
            0 => Ok(()),
            left => Err(Broken(format!("{left} tries were never settled"))),
        }
    }

    /// The breaker of `endpoint` changed.
    pub(super) fn changed(&mut self, endpoint: u32, change: Change) -> Result<(), Broken> {
        match change.to {
            State::Open => {
                self.ejections += 1;
                self.left_out.insert(endpoint, State::Open);
            }
            State::HalfOpen => drop(self.left_out.insert(endpoint, State::HalfOpen)),
            State::Closed => drop(self.left_out.remove(&endpoint)),
            State::WouldOpen | State::WouldRefuse | State::WouldExhaust | State::WouldHedge => (),
        }
        let out = self.left_out.len();
        let cap = outlier::max_ejected(&self.outlier, self.endpoints);
        if cap < out || (out != 0 && out == self.endpoints) {
            let endpoints = self.endpoints;
            return Err(Broken(format!("{out} of {endpoints} endpoints are left out")));
        }
        Ok(())
    }
}
