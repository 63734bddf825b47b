//! Guard (step 5): what the workload takes on, by how often callers come and by how busy it is.
//!
//! One for the process, whatever ports the application has and whatever worker a request
//! comes to; a worker holds it by pointer, so that a request looks nothing up. A reload keeps
//! each bucket whose own rate did not change, and all that the limiter has learnt.
//!
//! Rates come first: a caller over its own is told so (429) however busy the workload is. All
//! limits that concern a request are asked; where one refuses, what the others charged is
//! given back, and `Retry-After` is what the last of them would say.
//!
//! A request counts as in flight until the head of its answer. Not until the body's end: how
//! long a body takes is up to its reader, and readers in no hurry would use up the limit of a
//! workload that has nothing to do. So streams and upgrades, too, count until they begin. A
//! gRPC call without a deadline may be a stream whose head never comes, and is not counted.
//!
//! # Sources
//!
//! - gRPC health checking protocol: the method a health check calls.
//!   <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>

mod told;

use std::{
    cell::LazyCell,
    hash::RandomState,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request, header};
use parking_lot::Mutex;

pub use told::Denied;
use told::{Quota, Told};

use super::{context::Facts, failure::Failure};
use crate::{
    clock,
    policy::{
        PathMatch, WorkloadPolicy, path,
        workload::{RateKey, RateLimit},
    },
    resilience::{
        Mode,
        limiter::{Class, Decision, Limiter, Outcome, Stats, Ticket},
        rate::{self, Buckets, KEYS_MAX},
    },
    telemetry::metrics::{ConcurrencyMetrics, Direction, Metrics},
};

/// The call a gRPC health check is.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// How often it is logged that requests are shed.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// The guard in force, and what outlives it.
#[derive(Debug, Default)]
pub struct Guards {
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    generation: u64,
    guard: Arc<Guard>,
}

/// What guards the workload.
#[derive(Debug)]
pub struct Guard {
    label: Arc<str>,
    metrics: Metrics,
    limits: Vec<Limit>,
    busy: Option<Arc<Busy>>,
}

#[derive(Debug)]
struct Limit {
    rule: RateLimit,
    buckets: Arc<Mutex<Buckets>>,
    policy: Quota,
}

/// How busy the workload is.
#[derive(Debug)]
struct Busy {
    state: Mutex<State>,
    gauges: Arc<ConcurrencyMetrics>,
}

#[derive(Debug)]
struct State {
    limiter: Limiter,
    /// When it was last logged that requests are shed.
    logged: Option<Instant>,
}

/// A request that was let in.
#[derive(Debug, Default)]
pub struct Pass {
    held: Option<Held>,
    /// What its caller is told of its rates.
    told: Vec<Told>,
}

/// A request in flight; one that is dropped did not end with an answer.
#[derive(Debug)]
struct Held {
    busy: Arc<Busy>,
    ticket: Option<Ticket>,
}

impl Guards {
    /// The guard of `policy`, which is of `generation`; `None` where there is nothing to guard.
    pub fn of(
        &self,
        (policy, generation): (&WorkloadPolicy, u64),
        (label, metrics): (&Arc<str>, &Metrics),
        now: Instant,
    ) -> Option<Arc<Guard>> {
        let mut current = self.current.lock();
        // Another worker has been here already, or is ahead.
        if current.as_ref().is_none_or(|it| it.generation < generation) {
            let before = current.as_ref().map(|it| &*it.guard);
            let guard = Guard::new((policy, before), (label, metrics), now);
            *current = Some(Current { generation, guard: Arc::new(guard) });
        }
        let guard = current.as_ref().map(|it| Arc::clone(&it.guard));
        guard.filter(|it| !it.limits.is_empty() || it.busy.is_some())
    }
}

impl Guard {
    fn new(
        (policy, before): (&WorkloadPolicy, Option<&Self>),
        (label, metrics): (&Arc<str>, &Metrics),
        now: Instant,
    ) -> Self {
        let limits = policy.rate_limits.iter().filter(|it| it.mode != Mode::Off).map(|rule| {
            let mut known = before.iter().flat_map(|it| &it.limits);
            let same = known.find(|it| it.has_buckets_of(rule)).map(|it| Arc::clone(&it.buckets));
            let made = || Buckets::new(rule.rate, KEYS_MAX, RandomState::new(), now);
            Limit {
                rule: rule.clone(),
                buckets: same.unwrap_or_else(|| Arc::new(Mutex::new(made()))),
                policy: Quota::new(rule),
            }
        });
        let busy = (policy.concurrency.mode != Mode::Off).then(|| {
            let (config, timeout) = (policy.concurrency, policy.request_timeout);
            if let Some(busy) = before.and_then(|it| it.busy.as_ref()) {
                let mut state = busy.state.lock();
                state.limiter.configure(config, timeout);
                busy.show(&state);
                return Arc::clone(busy);
            }
            let state = State { limiter: Limiter::new(config, timeout, now), logged: None };
            let gauges = metrics.concurrency(label);
            let busy = Busy { state: Mutex::new(state), gauges };
            busy.show(&busy.state.lock());
            Arc::new(busy)
        });
        Self { limits: limits.collect(), busy, label: Arc::clone(label), metrics: metrics.clone() }
    }

    /// Decides about a request of `peer`.
    ///
    /// # Errors
    ///
    /// Why it is not let in.
    pub fn admit<B>(
        &self,
        peer: Option<&str>,
        request: &Request<B>,
        facts: &Facts,
    ) -> Result<Pass, Denied> {
        let told = if self.limits.is_empty() {
            Vec::new()
        } else {
            self.rates(peer, request, facts.started)?
        };
        let held = match &self.busy {
            Some(busy) if may_end(facts) => {
                self.take_on(busy, class(peer, request, facts), facts.started)
            }
            _ => return Ok(Pass { held: None, told }),
        };
        if held.is_some() {
            return Ok(Pass { held, told });
        }
        let retry_after = Duration::from_secs(1);
        Err(Denied { failure: Failure::Overloaded, retry_after, told })
    }

    /// Asks each rate that concerns a request.
    fn rates<B>(
        &self,
        peer: Option<&str>,
        request: &Request<B>,
        now: Instant,
    ) -> Result<Vec<Told>, Denied> {
        let mut taken: Vec<(&Limit, &[u8], rate::Decision)> = Vec::with_capacity(self.limits.len());
        let path = request.uri().path();
        let plain = LazyCell::new(|| path::plain(path));
        for limit in &self.limits {
            let concerns = |it: &PathMatch| {
                it.matches(path) || plain.as_ref().is_some_and(|plain| it.matches(plain))
            };
            if !limit.rule.path.as_ref().is_none_or(concerns) {
                continue;
            }
            let name = name(&limit.rule.by, peer, request.headers());
            let decision = limit.buckets.lock().take(name, now);
            taken.push((limit, name, decision));
        }
        let is_refused = |(limit, _, decision): &&(&Limit, &[u8], rate::Decision)| {
            !decision.allowed && limit.rule.mode == Mode::Enforce
        };
        let retry_after = taken.iter().filter(is_refused).map(|it| it.2.retry_after).max();
        for (limit, name, decision) in &taken {
            if decision.allowed && retry_after.is_some() {
                limit.buckets.lock().give_back(name);
            } else if !decision.allowed && limit.rule.mode == Mode::Observe {
                self.would_reject(Failure::RateLimited);
            }
        }
        let enforced = taken.iter().filter(|it| it.0.rule.mode == Mode::Enforce);
        let told = enforced.map(|(limit, _, decision)| limit.policy.told(*decision)).collect();
        match retry_after {
            Some(retry_after) => Err(Denied { failure: Failure::RateLimited, retry_after, told }),
            None => Ok(told),
        }
    }

    /// Asks the limiter; `None` where the request is shed.
    fn take_on(&self, busy: &Arc<Busy>, class: Class, now: Instant) -> Option<Held> {
        let (decision, stats, is_news) = {
            let mut state = busy.state.lock();
            let decision = state.limiter.admit(class, now);
            let stats = busy.show(&state);
            let is_news = !matches!(decision, Decision::Admit(_))
                && state.logged.is_none_or(|it| LOG_EVERY <= now.saturating_duration_since(it));
            if is_news {
                state.logged = Some(now);
            }
            (decision, stats, is_news)
        };
        if is_news {
            self.log(stats, matches!(decision, Decision::Shed));
        }
        let ticket = match decision {
            Decision::Admit(ticket) => ticket,
            Decision::WouldShed(ticket) => {
                self.would_reject(Failure::Overloaded);
                ticket
            }
            Decision::Shed => return None,
        };
        Some(Held { busy: Arc::clone(busy), ticket: Some(ticket) })
    }

    fn log(&self, stats: Stats, shed: bool) {
        let Stats { limit, in_flight, base } = stats;
        let (service, usual_ms) = (&*self.label, base.as_secs_f64() * 1e3);
        if shed {
            tracing::warn!(service, limit, in_flight, usual_ms, "workload is over its limit: shed");
        } else {
            // A limit that is still being found says little of the workload.
            tracing::info!(service, limit, in_flight, usual_ms, "workload is over its limit");
        }
    }

    fn would_reject(&self, failure: Failure) {
        self.metrics.would_reject(Direction::Inbound, &self.label, failure.label());
    }
}

impl Limit {
    /// Whether what its buckets hold is what those of `rule` would.
    fn has_buckets_of(&self, rule: &RateLimit) -> bool {
        let RateLimit { by, path, rate, name: _, mode: _ } = &self.rule;
        (by, path, rate) == (&rule.by, &rule.path, &rule.rate)
    }
}

impl Pass {
    /// Says that the head of an answer has come, and tells the caller of its rates.
    pub fn answered(&mut self, headers: &mut HeaderMap, started: Instant) {
        if let Some(held) = &mut self.held.take() {
            let now = clock::now();
            held.settle(Outcome::Done(now.saturating_duration_since(started)), now);
        }
        told::tell(&mut self.told, headers);
    }

    /// Says that there is no answer but ours, and tells the caller of its rates.
    pub fn failed(&mut self, failure: Failure, headers: &mut HeaderMap) {
        // How long its caller waits is no matter of the workload: one in a hurry would have
        // all others shed.
        let late = matches!(failure, Failure::RequestTimeout | Failure::TryTimeout);
        if let Some(held) = &mut self.held.take() {
            held.settle(if late { Outcome::Timeout } else { Outcome::Dropped }, clock::now());
        }
        told::tell(&mut self.told, headers);
    }
}

impl Busy {
    /// Shows in metrics what the limiter has found.
    fn show(&self, state: &State) -> Stats {
        let stats = state.limiter.stats();
        self.gauges.set(stats.limit, stats.in_flight);
        stats
    }
}

impl Held {
    fn settle(&mut self, outcome: Outcome, now: Instant) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut state = self.busy.state.lock();
        state.limiter.settle(ticket, outcome, now);
        self.busy.show(&state);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.settle(Outcome::Dropped, clock::now());
        }
    }
}

/// What a request's bucket is called. Whoever says more than one name has none.
fn name<'a>(by: &RateKey, peer: Option<&'a str>, headers: &'a HeaderMap) -> &'a [u8] {
    match by {
        RateKey::All => b"",
        RateKey::Identity => peer.unwrap_or("").as_bytes(),
        RateKey::Header(name) => {
            let mut values = headers.get_all(&**name).iter();
            match (values.next(), values.next()) {
                (Some(one), None) => one.as_bytes(),
                _ => b"",
            }
        }
    }
}

/// How important a request is. Probes come from the node, which is not in the mesh.
fn class<B>(peer: Option<&str>, request: &Request<B>, facts: &Facts) -> Class {
    let agent = || request.headers().get(header::USER_AGENT);
    let is_probe = peer.is_none()
        && *request.method() == Method::GET
        && agent().is_some_and(|it| it.as_bytes().starts_with(b"kube-probe/"));
    if is_probe || facts.grpc && request.uri().path() == HEALTH {
        Class::Critical
    } else if facts.retried {
        Class::Retried
    } else {
        Class::Default
    }
}

/// Whether a request is known to have an answer some day.
fn may_end(facts: &Facts) -> bool {
    !facts.grpc || facts.ends.is_some() || facts.deadline.is_some()
}

#[cfg(test)]
mod tests;
