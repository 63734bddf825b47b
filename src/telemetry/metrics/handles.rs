//! Handles: the counters of one route, service or connection, resolved.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::{
    Direction, Metrics, OTHER,
    families::{ByService, HISTOGRAM_LINES},
};

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
}

/// What is counted of calls to one service.
#[derive(Debug)]
pub struct ServiceMetrics {
    attempts: [IntCounter; 5],
    retries: [IntCounter; 5],
    fallbacks: IntCounter,
    /// `available` and `set_aside`; none for `other`, since counts of many services that
    /// overwrite one another say nothing.
    endpoints: Option<[IntGauge; 2]>,
}

impl ServiceMetrics {
    pub(super) const LINES: usize = 13;

    pub(super) fn new(families: &ByService, service: &str) -> Self {
        let outcomes = ["success", "failure", "connect_failed", "timeout", "cancelled"];
        let verdicts = ["sent", "unsafe", "limit", "exhausted", "deadline"];
        let states = ["available", "set_aside"];
        let state = |it| families.endpoints.with_label_values(&[service, it]);
        Self {
            attempts: outcomes.map(|it| families.attempts.with_label_values(&[service, it])),
            retries: verdicts.map(|it| families.retries.with_label_values(&[service, it])),
            fallbacks: families.plaintext_fallbacks.with_label_values(&[service]),
            endpoints: (service != OTHER).then(|| states.map(state)),
        }
    }

    /// Counts one try.
    #[inline]
    pub fn attempt(&self, outcome: Attempt) {
        self.attempts[outcome as usize].inc();
    }

    /// Counts what was decided about one more try.
    #[inline]
    pub fn retry(&self, verdict: RetryVerdict) {
        self.retries[verdict as usize].inc();
    }

    /// Counts a connection in plaintext to a peer that does not speak mesh TLS.
    pub fn plaintext_fallback(&self) {
        self.fallbacks.inc();
    }

    /// Sets how many endpoints there are; the two add up to all of them.
    pub fn endpoints(&self, available: usize, set_aside: usize) {
        let Some(states) = &self.endpoints else { return };
        for (gauge, count) in states.iter().zip([available, set_aside]) {
            super::set(gauge, count as u64);
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
        let age = metrics.inner.families.by_service.dns_age.with_label_values(&[name]);
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
