//! Change: what has happened to a breaker, for those who count and log it.

use std::net::SocketAddr;

/// Something that happened to an endpoint, a route or the service, to be counted and logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The endpoint; none where a breaker is for more than one.
    pub address: Option<SocketAddr>,
    /// What became of its breaker.
    pub to: State,
    /// Why.
    pub why: Why,
}

/// The states of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Everything is let through.
    Closed,
    /// Nothing is.
    Open,
    /// Probes are.
    HalfOpen,
    /// It would have opened: its mode is `observe`, or the cap forbids it.
    WouldOpen,
    /// A request would have been refused, were the mode of admission `enforce`.
    WouldRefuse,
    /// The budget would have refused a retry or hedge, were its mode `enforce`.
    WouldExhaust,
    /// A hedge would have been sent, were their mode `enforce`.
    WouldHedge,
}

/// Why a breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Failures in a row.
    Consecutive,
    /// Too large a share of failures.
    Ratio,
    /// A much larger one than its peers'.
    Relative,
    /// A probe failed.
    Probe,
    /// It was open for long enough.
    Elapsed,
    /// Its probes succeeded.
    Recovered,
    /// So many endpoints fail that they can't be left out.
    Failing,
    /// What more tries may cost was spent.
    Spent,
    /// An answer took longer than nearly all others.
    Late,
}

impl State {
    /// Its label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::WouldOpen => "would_open",
            Self::WouldRefuse => "would_refuse",
            Self::WouldExhaust => "would_exhaust",
            Self::WouldHedge => "would_hedge",
        }
    }
}

impl Why {
    /// Its label in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::Ratio => "failure_ratio",
            Self::Relative => "worse_than_its_peers",
            Self::Probe => "probe_failed",
            Self::Elapsed => "time_elapsed",
            Self::Recovered => "probes_succeeded",
            Self::Failing => "service_fails",
            Self::Spent => "budget_spent",
            Self::Late => "answer_late",
        }
    }
}
