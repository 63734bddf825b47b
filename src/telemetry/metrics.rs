//! Metrics: every name Remora exports, each a counter of settled facts or a gauge of state.
//!
//! This is the one place that names a metric, and the one that names `prometheus`. A page
//! never holds more than [`SERIES_MAX`] lines of samples, whatever names callers bring:
//!
//! ```text
//! series <= fixed families + families of the service `other` + lines left in the budget
//! ```
//!
//! A (service, route) is charged for all its lines before its first one appears; what the
//! budget does not cover is counted under `other`. The budget is one for all families, not
//! one for each, so that a pod with many services and one with many routes both use it up.
//!
//! The request path holds handles ([`RouteMetrics`], [`ServiceMetrics`], [`TcpMetrics`]),
//! resolved once: counting is an atomic addition, without a lock, a map or an allocation.
//!
//! # Sources
//!
//! - Prometheus, "Metric and label naming" and "Instrumentation": base units, `_total`,
//!   children that exist from the start so that a first increase is not lost.
//!   <https://prometheus.io/docs/practices/naming/>

mod families;
mod handles;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};

use families::{Families, RESERVED};
pub use handles::{
    Attempt, ConnectionGuard, DnsAge, Flow, RetryVerdict, RouteMetrics, ServiceMetrics, TcpMetrics,
};

/// Sample lines a page may have: what a Prometheus of a large cluster can take from each pod.
pub const SERIES_MAX: usize = 2_000;

/// The service and route of whatever the budget does not cover.
pub const OTHER: &str = "other";

/// Which way a request goes through the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the application behind this sidecar.
    Inbound,
    /// From the application in front of this sidecar.
    Outbound,
}

impl Direction {
    /// The value of the label `direction`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// All metrics of the process. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    families: Families,
    handles: Mutex<Handles>,
}

/// The handles given out, and what is left of the budget.
#[derive(Debug)]
struct Handles {
    left: usize,
    services: HashMap<Box<str>, Handle>,
}

/// What was resolved for one service.
#[derive(Debug, Default)]
struct Handle {
    service: Option<Arc<ServiceMetrics>>,
    routes: Vec<(Direction, Box<str>, Arc<RouteMetrics>)>,
    tcp: Vec<(Direction, Arc<TcpMetrics>)>,
    replies: Vec<(Direction, &'static str, prometheus::IntCounter)>,
}

impl Handles {
    /// Whether `lines` more may appear for `service`; charges them.
    fn charge(&mut self, service: &str, lines: usize) -> bool {
        // The lines of `other` are in the reserve.
        if service == OTHER {
            return true;
        }
        let rest = self.left.checked_sub(lines);
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }

    fn service(&mut self, service: &str) -> &mut Handle {
        self.services.entry(service.into()).or_default()
    }
}

impl Metrics {
    /// Metrics that have counted nothing yet.
    #[expect(clippy::new_without_default, reason = "a process has one, made on purpose")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families::new(&registry);
        let handles = Handles { left: SERIES_MAX - RESERVED, services: HashMap::new() };
        Self { inner: Arc::new(Inner { registry, families, handles: Mutex::new(handles) }) }
    }

    /// The requests of one route. Resolve once; not for the request path.
    pub fn route(&self, direction: Direction, service: &str, route: &str) -> Arc<RouteMetrics> {
        let mut handles = self.inner.handles.lock();
        let known = handles.services.get(service).and_then(|it| it.find_route(direction, route));
        if let Some(found) = known {
            return found;
        }
        let (service, route) = match handles.charge(service, RouteMetrics::LINES) {
            // Every route of `other` is one.
            true if service == OTHER => (OTHER, OTHER),
            true => (service, route),
            false => (OTHER, OTHER),
        };
        let handle = handles.service(service);
        handle.find_route(direction, route).unwrap_or_else(|| {
            let made =
                RouteMetrics::new(&self.inner.families.by_service, direction, service, route);
            let made = Arc::new(made);
            handle.routes.push((direction, route.into(), Arc::clone(&made)));
            made
        })
    }

    /// What is counted of calls to one service. Resolve once; not for the request path.
    pub fn service(&self, service: &str) -> Arc<ServiceMetrics> {
        let mut handles = self.inner.handles.lock();
        let known = handles.services.get(service).and_then(|it| it.service.clone());
        if let Some(found) = known {
            return found;
        }
        let paid = handles.charge(service, ServiceMetrics::LINES);
        let service = if paid { service } else { OTHER };
        let made = || Arc::new(ServiceMetrics::new(&self.inner.families.by_service, service));
        Arc::clone(handles.service(service).service.get_or_insert_with(made))
    }

    /// The bytes of a service's opaque connections. Resolve once a connection.
    pub fn tcp(&self, direction: Direction, service: &str) -> Arc<TcpMetrics> {
        let mut handles = self.inner.handles.lock();
        let known = handles.services.get(service).and_then(|it| it.find_tcp(direction));
        if let Some(found) = known {
            return found;
        }
        let paid = handles.charge(service, TcpMetrics::LINES);
        let service = if paid { service } else { OTHER };
        let handle = handles.service(service);
        handle.find_tcp(direction).unwrap_or_else(|| {
            let made =
                Arc::new(TcpMetrics::new(&self.inner.families.by_service, direction, service));
            handle.tcp.push((direction, Arc::clone(&made)));
            made
        })
    }

    /// Counts a response Remora made itself. `reason` is a label of the failure table.
    pub fn local_reply(&self, direction: Direction, service: &str, reason: &'static str) {
        let mut handles = self.inner.handles.lock();
        let known = handles.services.get(service).and_then(|it| it.find_reply(direction, reason));
        if let Some(found) = known {
            return found.inc();
        }
        let service = if handles.charge(service, 1) { service } else { OTHER };
        let labels = [direction.as_str(), service, reason];
        let handle = handles.service(service);
        let counter = handle.find_reply(direction, reason).unwrap_or_else(|| {
            let made = self.inner.families.by_service.local_replies.with_label_values(&labels);
            handle.replies.push((direction, reason, made.clone()));
            made
        });
        counter.inc();
    }

    /// Counts a TLS handshake. `side` is `client` or `server`, `result` a closed set.
    pub fn handshake(&self, side: &'static str, result: &'static str) {
        self.inner.families.handshakes.with_label_values(&[side, result]).inc();
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(
        &self,
        direction: Direction,
        protocol: &'static str,
        tls: bool,
    ) -> ConnectionGuard {
        let labels = [direction.as_str(), protocol, if tls { "true" } else { "false" }];
        ConnectionGuard::new(self.inner.families.connections.with_label_values(&labels))
    }

    /// Counts a panic that was caught at a connection's edge.
    pub fn panic(&self) {
        self.inner.families.panics.inc();
    }

    /// Sets when the certificate in use ends, since the Unix epoch.
    pub fn certificate_not_after(&self, not_after: Duration) {
        set(&self.inner.families.certificate_not_after, not_after.as_secs());
    }

    /// Sets the generation of policy in force.
    pub fn policy_generation(&self, generation: u64) {
        set(&self.inner.families.policy_generation, generation);
    }

    /// Counts a load of the policy folder: accepted, or rejected with the old one kept.
    pub fn policy_reload(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "rejected" };
        self.inner.families.policy_reloads.with_label_values(&[result]).inc();
    }

    /// Counts a DNS lookup. `result` is `answered`, `negative` or `failed`.
    pub fn dns_lookup(&self, result: &'static str) {
        self.inner.families.dns_lookups.with_label_values(&[result]).inc();
    }

    /// The age of a name's last good answer, shown until the handle is dropped; `None`
    /// where the budget does not cover it, since ages of many names have no sum.
    pub fn dns_age(&self, name: &str) -> Option<DnsAge> {
        if !self.inner.handles.lock().charge(name, DnsAge::LINES) || name == OTHER {
            return None;
        }
        Some(DnsAge::new(self.clone(), name))
    }

    /// Counts an access log line that was dropped because the reader is too slow.
    pub fn access_log_dropped(&self) {
        self.inner.families.access_log_dropped.inc();
    }

    /// Appends the page, in Prometheus' text format 0.0.4.
    pub fn render(&self, out: &mut Vec<u8>) {
        let encoded = TextEncoder::new().encode(&self.inner.registry.gather(), out);
        if let Err(error) = encoded {
            tracing::warn!(%error, "metrics page is incomplete");
        }
    }

    /// Takes a name's age off the page and its line back into the budget.
    fn forget_dns_age(&self, name: &str) {
        let mut handles = self.inner.handles.lock();
        // An error means the line was not there, and none is owed.
        if self.inner.families.by_service.dns_age.remove_label_values(&[name]).is_ok() {
            handles.left += DnsAge::LINES;
        }
    }
}

impl Handle {
    fn find_route(&self, direction: Direction, route: &str) -> Option<Arc<RouteMetrics>> {
        let mut routes = self.routes.iter();
        let found = routes.find(|(way, name, _)| *way == direction && **name == *route);
        found.map(|(_, _, it)| Arc::clone(it))
    }

    fn find_tcp(&self, direction: Direction) -> Option<Arc<TcpMetrics>> {
        let found = self.tcp.iter().find(|(way, _)| *way == direction);
        found.map(|(_, it)| Arc::clone(it))
    }

    fn find_reply(&self, direction: Direction, reason: &str) -> Option<prometheus::IntCounter> {
        let found = self.replies.iter().find(|(way, why, _)| *way == direction && *why == reason);
        found.map(|(_, _, it)| it.clone())
    }
}

/// Sets a gauge; a value beyond `i64` shows as the largest there is.
fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests;
