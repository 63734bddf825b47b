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
//! Gauges show a state, which is read when the page is: who has one is [`Observed`].
//!
//! What most services never see (hedges, what a rule that observes would have done) has no
//! line until it first happens, and is charged for then: a page has room for more services,
//! at the price that a rate over such a line misses its first increase.
//!
//! # Sources
//!
//! - Prometheus, "Metric and label naming" and "Instrumentation": base units, `_total`,
//!   children that exist from the start so that a first increase is not lost.
//!   <https://prometheus.io/docs/practices/naming/>

mod families;
mod handles;
mod page;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use families::{ByService, Families, RESERVED};
pub use handles::{
    Attempt, ConcurrencyMetrics, ConnectionGuard, DnsAge, Flow, Hedge, RetryVerdict, RouteMetrics,
    ServiceMetrics, TcpMetrics,
};
pub use page::Page;

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
    page: Page,
    ledger: Arc<Ledger>,
    handles: Mutex<HashMap<Box<str>, Handles>>,
    observed: Mutex<Vec<Weak<dyn Observed>>>,
}

/// A state that gauges show.
pub trait Observed: std::fmt::Debug + Send + Sync {
    /// Sets the gauges to what it is now.
    fn observe(&self);
}

/// The families, and how many lines may still be added to them.
#[derive(Debug)]
struct Ledger {
    families: Families,
    left: AtomicUsize,
}

impl Ledger {
    /// The service under which `lines` more may appear for `service`; charges them.
    fn charge<'a>(&self, service: &'a str, lines: usize) -> &'a str {
        // The lines of `other` are in the reserve.
        let paid = |left: usize| left.checked_sub(lines);
        match service {
            OTHER => OTHER,
            _ if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid).is_ok() => {
                service
            }
            _ => OTHER,
        }
    }
}

/// What was resolved for one service.
#[derive(Debug, Default)]
struct Handles {
    service: Option<Arc<ServiceMetrics>>,
    concurrency: Option<Arc<ConcurrencyMetrics>>,
    routes: Vec<(Direction, Box<str>, Arc<RouteMetrics>)>,
    tcp: Vec<(Direction, Arc<TcpMetrics>)>,
    replies: Vec<(Reply, IntCounter)>,
}

/// Who refused what and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reply {
    /// Whether the rule acts, rather than observes.
    enforced: bool,
    direction: Direction,
    reason: &'static str,
}

impl Metrics {
    /// Metrics that have counted nothing yet.
    #[expect(clippy::new_without_default, reason = "a process has one, made on purpose")]
    pub fn new() -> Self {
        let page = Page::new("");
        let left = AtomicUsize::new(SERIES_MAX - RESERVED);
        let ledger = Arc::new(Ledger { families: Families::new(&page), left });
        Self {
            inner: Arc::new(Inner {
                page,
                ledger,
                handles: Mutex::default(),
                observed: Mutex::default(),
            }),
        }
    }

    /// The requests of one route. Resolve once; not for the request path.
    pub fn route(&self, direction: Direction, service: &str, route: &str) -> Arc<RouteMetrics> {
        let mut handles = self.inner.handles.lock();
        if let Some(found) = handles.get(service).and_then(|it| it.route(direction, route)) {
            return found;
        }
        let service = self.inner.ledger.charge(service, RouteMetrics::LINES);
        // Every route of `other` is one.
        let route = if service == OTHER { OTHER } else { route };
        let of_service = handles.entry(service.into()).or_default();
        of_service.route(direction, route).unwrap_or_else(|| {
            let made = RouteMetrics::new(self.by_service(), direction, service, route);
            let made = Arc::new(made);
            of_service.routes.push((direction, route.into(), Arc::clone(&made)));
            made
        })
    }

    /// What is counted of calls to one service. Resolve once; not for the request path.
    pub fn service(&self, service: &str) -> Arc<ServiceMetrics> {
        let mut handles = self.inner.handles.lock();
        if let Some(found) = handles.get(service).and_then(|it| it.service.clone()) {
            return found;
        }
        let ledger = &self.inner.ledger;
        let service = ledger.charge(service, ServiceMetrics::LINES);
        let of_service = handles.entry(service.into()).or_default();
        let made = || Arc::new(ServiceMetrics::new(Arc::clone(ledger), service));
        Arc::clone(of_service.service.get_or_insert_with(made))
    }

    /// How many requests to one service are taken on at once. Resolve once.
    pub fn concurrency(&self, service: &str) -> Arc<ConcurrencyMetrics> {
        let mut handles = self.inner.handles.lock();
        if let Some(found) = handles.get(service).and_then(|it| it.concurrency.clone()) {
            return found;
        }
        let service = self.inner.ledger.charge(service, ConcurrencyMetrics::LINES);
        let of_service = handles.entry(service.into()).or_default();
        let made = || Arc::new(ConcurrencyMetrics::new(self.by_service(), service));
        Arc::clone(of_service.concurrency.get_or_insert_with(made))
    }

    /// The bytes of a service's opaque connections. Resolve once a connection.
    pub fn tcp(&self, direction: Direction, service: &str) -> Arc<TcpMetrics> {
        let mut handles = self.inner.handles.lock();
        if let Some(found) = handles.get(service).and_then(|it| it.tcp(direction)) {
            return found;
        }
        let service = self.inner.ledger.charge(service, TcpMetrics::LINES);
        let of_service = handles.entry(service.into()).or_default();
        of_service.tcp(direction).unwrap_or_else(|| {
            let made = Arc::new(TcpMetrics::new(self.by_service(), direction, service));
            of_service.tcp.push((direction, Arc::clone(&made)));
            made
        })
    }

    /// Counts a response Remora made itself. `reason` is a label of the failure table.
    pub fn local_reply(&self, direction: Direction, service: &str, reason: &'static str) {
        self.reply(service, Reply { enforced: true, direction, reason });
    }

    /// Counts a request that a rule would have refused, were its mode not `observe`.
    /// `reason` is a label of the failure table.
    pub fn would_reject(&self, direction: Direction, service: &str, reason: &'static str) {
        self.reply(service, Reply { enforced: false, direction, reason });
    }

    fn reply(&self, service: &str, reply: Reply) {
        let mut handles = self.inner.handles.lock();
        if let Some(found) = handles.get(service).and_then(|it| it.reply(reply)) {
            return found.inc();
        }
        let service = self.inner.ledger.charge(service, 1);
        let of_service = handles.entry(service.into()).or_default();
        if of_service.reply(reply).is_none() {
            let Reply { enforced, direction, reason } = reply;
            let ByService { local_replies, decisions, .. } = self.by_service();
            let family = if enforced { local_replies } else { &decisions.would_reject };
            let made = family.with_label_values(&[direction.as_str(), service, reason]);
            of_service.replies.push((reply, made));
        }
        if let Some(counter) = of_service.reply(reply) {
            counter.inc();
        }
    }

    /// Counts a TLS handshake. `side` is `client` or `server`, `result` a closed set.
    pub fn handshake(&self, side: &'static str, result: &'static str) {
        self.inner.ledger.families.handshakes.with_label_values(&[side, result]).inc();
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(
        &self,
        direction: Direction,
        protocol: &'static str,
        tls: bool,
    ) -> ConnectionGuard {
        let labels = [direction.as_str(), protocol, if tls { "true" } else { "false" }];
        ConnectionGuard::new(self.inner.ledger.families.connections.with_label_values(&labels))
    }

    /// Counts a panic that was caught at a connection's edge.
    pub fn panic(&self) {
        self.inner.ledger.families.panics.inc();
    }

    /// Sets when the certificate in use ends, since the Unix epoch.
    pub fn certificate_not_after(&self, not_after: Duration) {
        set(&self.inner.ledger.families.certificate_not_after, not_after.as_secs());
    }

    /// Sets whether control can be heard.
    pub fn control_connected(&self, connected: bool) {
        let gauges = &self.inner.ledger.families.control_connected;
        gauges.with_label_values::<&str>(&[]).set(connected.into());
    }

    /// Sets the number of the newest policy that was accepted from control.
    pub fn control_generation(&self, number: u64) {
        let gauges = &self.inner.ledger.families.control_generation;
        set(&gauges.with_label_values::<&str>(&[]), number);
    }

    /// Counts a certificate that control was asked for.
    pub fn certificate_renewal(&self, obtained: bool) {
        let result = if obtained { "ok" } else { "failed" };
        self.inner.ledger.families.certificate_renewals.with_label_values(&[result]).inc();
    }

    /// Sets the generation of policy in force.
    pub fn policy_generation(&self, generation: u64) {
        set(&self.inner.ledger.families.policy_generation, generation);
    }

    /// Counts a load of the policy folder: accepted, or rejected with the old one kept.
    pub fn policy_reload(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "rejected" };
        self.inner.ledger.families.policy_reloads.with_label_values(&[result]).inc();
    }

    /// Counts a DNS lookup. `result` is `answered`, `negative` or `failed`.
    pub fn dns_lookup(&self, result: &'static str) {
        self.inner.ledger.families.dns_lookups.with_label_values(&[result]).inc();
    }

    /// The age of a name's last good answer, shown until the handle is dropped; `None`
    /// where the budget does not cover it, since ages of many names have no sum.
    pub fn dns_age(&self, name: &str) -> Option<DnsAge> {
        let name = self.inner.ledger.charge(name, DnsAge::LINES);
        (name != OTHER).then(|| DnsAge::new(self.clone(), name))
    }

    /// Counts an access log line that was dropped because the reader is too slow.
    pub fn access_log_dropped(&self) {
        self.inner.ledger.families.access_log_dropped.inc();
    }

    /// Has `state` observed whenever the page is read, for as long as it is there.
    pub fn watch<T: Observed + 'static>(&self, state: &Arc<T>) {
        let state = Arc::downgrade(state) as Weak<dyn Observed>;
        let mut observed = self.inner.observed.lock();
        observed.retain(|it| it.strong_count() != 0);
        observed.push(state);
    }

    /// Appends the page, in Prometheus' text format 0.0.4.
    pub fn render(&self, out: &mut Vec<u8>) {
        // None of them is called under the lock: what it does is its own affair.
        let observed: Vec<_> =
            self.inner.observed.lock().iter().filter_map(Weak::upgrade).collect();
        for state in observed {
            state.observe();
        }
        self.inner.page.render(out);
    }

    /// Takes a name's age off the page and its line back into the budget.
    fn forget_dns_age(&self, name: &str) {
        // An error means the line was not there, and none is owed.
        if self.by_service().dns_age.remove_label_values(&[name]).is_ok() {
            self.inner.ledger.left.fetch_add(DnsAge::LINES, Ordering::Relaxed);
        }
    }

    fn by_service(&self) -> &ByService {
        &self.inner.ledger.families.by_service
    }
}

impl Handles {
    fn route(&self, direction: Direction, route: &str) -> Option<Arc<RouteMetrics>> {
        let mut routes = self.routes.iter();
        let found = routes.find(|(way, name, _)| *way == direction && **name == *route);
        found.map(|(_, _, it)| Arc::clone(it))
    }

    fn tcp(&self, direction: Direction) -> Option<Arc<TcpMetrics>> {
        let found = self.tcp.iter().find(|(way, _)| *way == direction);
        found.map(|(_, it)| Arc::clone(it))
    }

    fn reply(&self, reply: Reply) -> Option<&IntCounter> {
        self.replies.iter().find(|(it, _)| *it == reply).map(|(_, counter)| counter)
    }
}

/// Sets a gauge; a value beyond `i64` shows as the largest there is.
fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests;
