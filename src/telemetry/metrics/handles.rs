//! Handles: the counters of one route, service or connection, resolved.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::{
    Direction, Ledger, Metrics, OTHER,
    families::{ByService, Decisions, HISTOGRAM_LINES},
};
use crate::resilience::service::State;

/// The values of `code`, by the first digit of a status; what a client left has none.
const CODES: [&str; 6] = ["cancelled", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The requests of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    codes: [IntCounter; CODES.len()],
    duration: Histogram,
}

impl RouteMetrics {
    pub(super) const LINES: usize = CODES.len() + HISTOGRAM_LINES;

    pub(super) fn new(
        families: &ByService,
        direction: Direction,
        service: &str,
        route: &str,
    ) -> Self {
        let direction = direction.as_str();
        let code = |it| families.requests.with_label_values(&[direction, service, route, it]);
        let duration = families.duration.with_label_values(&[direction, service, route]);
        Self { codes: CODES.map(code), duration }
    }

    /// Counts a request that got a response. A status outside `100..=599` counts as 5xx.
    #[inline]
    pub fn finished(&self, status: u16, elapsed: Duration) {
        let class = usize::from(status / 100);
        let code = if (1..=5).contains(&class) { &self.codes[class] } else { &self.codes[5] };
        code.inc();
        self.duration.observe(elapsed.as_secs_f64());
    }

    /// Counts a request whose client left before its response was complete. It has no
    /// duration: how long a client waits says nothing of the service.
    pub fn cancelled(&self) {
        self.codes[0].inc();
    }
}

/// How one try at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// With a response that is no failure.
    Success,
    /// With a response or a stream that failed.
    Failure,
    /// Without a connection.
    ConnectFailed,
    /// With no response in time.
    Timeout,
    /// The client left.
    Cancelled,
}

/// What was decided about one more try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryVerdict {
    /// It is sent.
    Sent,
    /// The request may have reached the application, and a second one may do harm.
    Unsafe,
    /// The request has had its tries.
    Limit,
    /// The budget of the service is spent.
    Exhausted,
    /// The deadline leaves no time for it.
    Deadline,
    /// It is sent, and costs nothing: nothing of the request had been sent.
    Free,
    /// The request was a retry already, of somebody nearer to the client.
    Chain,
    /// The answer said not to.
    Forbidden,
}

/// What became of a second try before the first had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// It is sent.
    Sent,
    /// It answered first.
    Won,
    /// The budget of the service is spent.
    Exhausted,
}

/// The lines of a service that are not there until they count something.
const RARE: [Rare; 12] = [
    Rare::Retry("free"),
    Rare::Retry("chain"),
    Rare::Retry("forbidden"),
    Rare::Hedge("sent"),
    Rare::Hedge("won"),
    Rare::Hedge("exhausted"),
    Rare::WouldEject,
    Rare::WouldRefuse,
    Rare::WouldRetry,
    Rare::WouldExhaust,
    Rare::WouldHedge,
    Rare::PanicPick,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rare {
    Retry(&'static str),
    Hedge(&'static str),
    WouldEject,
    WouldRefuse,
    WouldRetry,
    WouldExhaust,
    WouldHedge,
    PanicPick,
}

impl Rare {
    fn resolve(self, families: &ByService, service: &str) -> IntCounter {
        match self {
            Self::Retry(verdict) => families.retries.with_label_values(&[service, verdict]),
            Self::Hedge(result) => families.decisions.hedges.with_label_values(&[service, result]),
            Self::WouldEject => families.decisions.would_eject.with_label_values(&[service]),
            Self::WouldRefuse => {
                let labels = [Direction::Outbound.as_str(), service, "breaker_open"];
                families.decisions.would_reject.with_label_values(&labels)
            }
            Self::WouldRetry => families.decisions.would_retry.with_label_values(&[service]),
            Self::WouldExhaust => families.decisions.would_exhaust.with_label_values(&[service]),
            Self::WouldHedge => families.decisions.would_hedge.with_label_values(&[service]),
            Self::PanicPick => families.decisions.panic_picks.with_label_values(&[service]),
        }
    }
}

/// What is counted of calls to one service.
#[derive(Debug)]
pub struct ServiceMetrics {
    attempts: [IntCounter; 5],
    retries: [IntCounter; 5],
    breaker: [IntCounter; 3],
    fallbacks: IntCounter,
    /// None for `other`, since numbers of many services that overwrite one another say
    /// nothing.
    gauges: Option<Gauges>,
    rare: [OnceLock<IntCounter>; RARE.len()],
    ledger: Arc<Ledger>,
    service: Box<str>,
}

#[derive(Debug)]
struct Gauges {
    /// `available`, `set_aside` and `ejected`.
    endpoints: [IntGauge; 3],
    retry_budget: IntGauge,
}

impl ServiceMetrics {
    pub(super) const LINES: usize = 18;

    pub(super) fn new(ledger: Arc<Ledger>, service: &str) -> Self {
        let families = &ledger.families.by_service;
        let outcomes = ["success", "failure", "connect_failed", "timeout", "cancelled"];
        let verdicts = ["sent", "unsafe", "limit", "exhausted", "deadline"];
        let to = |it| families.decisions.breaker.with_label_values(&[service, it]);
        let state = |it| families.endpoints.with_label_values(&[service, it]);
        let gauges = || Gauges {
            endpoints: ["available", "set_aside", "ejected"].map(state),
            retry_budget: families.decisions.retry_budget.with_label_values(&[service]),
        };
        Self {
            attempts: outcomes.map(|it| families.attempts.with_label_values(&[service, it])),
            retries: verdicts.map(|it| families.retries.with_label_values(&[service, it])),
            breaker: ["closed", "open", "half_open"].map(to),
            fallbacks: families.plaintext_fallbacks.with_label_values(&[service]),
            gauges: (service != OTHER).then(gauges),
            rare: [const { OnceLock::new() }; RARE.len()],
            service: service.into(),
            ledger,
        }
    }

    /// Counts one try.
    #[inline]
    pub fn attempt(&self, outcome: Attempt) {
        self.attempts[outcome as usize].inc();
    }

    /// Counts what was decided about one more try.
    pub fn retry(&self, verdict: RetryVerdict) {
        match verdict {
            RetryVerdict::Free => self.rare(Rare::Retry("free")),
            RetryVerdict::Chain => self.rare(Rare::Retry("chain")),
            RetryVerdict::Forbidden => self.rare(Rare::Retry("forbidden")),
            RetryVerdict::Sent
            | RetryVerdict::Unsafe
            | RetryVerdict::Limit
            | RetryVerdict::Exhausted
            | RetryVerdict::Deadline => self.retries[verdict as usize].inc(),
        }
    }

    /// Counts a retry that would have been sent, were its mode not `observe`.
    pub fn would_retry(&self) {
        self.rare(Rare::WouldRetry);
    }

    /// Counts what became of a hedge.
    pub fn hedge(&self, hedge: Hedge) {
        self.rare(Rare::Hedge(match hedge {
            Hedge::Sent => "sent",
            Hedge::Won => "won",
            Hedge::Exhausted => "exhausted",
        }));
    }

    /// Counts a change of a breaker, or one that would have been.
    pub fn breaker(&self, to: State) {
        let [closed, open, half_open] = &self.breaker;
        match to {
            State::Closed => closed.inc(),
            State::Open => open.inc(),
            State::HalfOpen => half_open.inc(),
            State::WouldOpen => self.rare(Rare::WouldEject),
            State::WouldRefuse => self.rare(Rare::WouldRefuse),
            State::WouldExhaust => self.rare(Rare::WouldExhaust),
            State::WouldHedge => self.rare(Rare::WouldHedge),
        }
    }

    /// Counts a try at an endpoint that was left out, because every one of them was.
    pub fn panic_pick(&self) {
        self.rare(Rare::PanicPick);
    }

    /// Counts a connection in plaintext to a peer that does not speak mesh TLS.
    pub fn plaintext_fallback(&self) {
        self.fallbacks.inc();
    }

    /// Sets how many endpoints there are; the three add up to all of them.
    pub fn endpoints(&self, available: usize, set_aside: usize, ejected: usize) {
        let Some(Gauges { endpoints, .. }) = &self.gauges else { return };
        for (gauge, count) in endpoints.iter().zip([available, set_aside, ejected]) {
            super::set(gauge, count as u64);
        }
    }

    /// Sets how many retries and hedges may be sent at once.
    pub fn retry_budget(&self, tokens: u32) {
        let Some(Gauges { retry_budget, .. }) = &self.gauges else { return };
        super::set(retry_budget, tokens.into());
    }

    /// Counts something that has a line only from now on.
    fn rare(&self, what: Rare) {
        let slots = RARE.iter().zip(&self.rare);
        for (_, slot) in slots.filter(|(it, _)| **it == what) {
            let resolve = || {
                let service = self.ledger.charge(&self.service, 1);
                what.resolve(&self.ledger.families.by_service, service)
            };
            slot.get_or_init(resolve).inc();
        }
    }
}

/// How many requests a workload works on at once.
#[derive(Debug)]
pub struct ConcurrencyMetrics {
    /// The limit and what is in flight; none for `other`.
    gauges: Option<[IntGauge; 2]>,
}

impl ConcurrencyMetrics {
    pub(super) const LINES: usize = 2;

    pub(super) fn new(families: &ByService, service: &str) -> Self {
        let Decisions { concurrency_limit, concurrency_in_flight, .. } = &families.decisions;
        let gauge = |it: &prometheus::IntGaugeVec| it.with_label_values(&[service]);
        let gauges = || [concurrency_limit, concurrency_in_flight].map(gauge);
        Self { gauges: (service != OTHER).then(gauges) }
    }

    /// Sets how many there may be, and how many there are.
    pub fn set(&self, limit: u32, in_flight: u32) {
        let Some(gauges) = &self.gauges else { return };
        for (gauge, value) in gauges.iter().zip([limit, in_flight]) {
            super::set(gauge, value.into());
        }
    }
}

/// Which way bytes of an opaque connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// From the client.
    Received,
    /// To the client.
    Sent,
}

/// The bytes of a service's opaque connections.
#[derive(Debug)]
pub struct TcpMetrics {
    flows: [IntCounter; 2],
}

impl TcpMetrics {
    pub(super) const LINES: usize = 2;

    pub(super) fn new(families: &ByService, direction: Direction, service: &str) -> Self {
        let flow = |it| families.tcp_bytes.with_label_values(&[direction.as_str(), service, it]);
        Self { flows: ["received", "sent"].map(flow) }
    }

    /// Counts bytes that were copied.
    #[inline]
    pub fn bytes(&self, flow: Flow, count: u64) {
        self.flows[flow as usize].inc_by(count);
    }
}

/// Counts one connection as open until it is dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    open: IntGauge,
}

impl ConnectionGuard {
    pub(super) fn new(open: IntGauge) -> Self {
        open.inc();
        Self { open }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// The age of one name's last good answer, on the page until it is dropped.
#[derive(Debug)]
pub struct DnsAge {
    metrics: Metrics,
    name: Box<str>,
    age: Gauge,
}

impl DnsAge {
    pub(super) const LINES: usize = 1;

    pub(super) fn new(metrics: Metrics, name: &str) -> Self {
        let age = metrics.by_service().dns_age.with_label_values(&[name]);
        Self { metrics, name: name.into(), age }
    }

    /// Sets the age; zero when the name was just answered.
    pub fn set(&self, age: Duration) {
        self.age.set(age.as_secs_f64());
    }
}

impl Drop for DnsAge {
    fn drop(&mut self) {
        self.metrics.forget_dns_age(&self.name);
    }
}
