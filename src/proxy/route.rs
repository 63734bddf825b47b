//! Route (step 4): which service a request is for, and which of its backends gets it.
//!
//! What a name leads to is worked out once and kept until the policy changes: a request
//! finds it by its authority. Everything below it survives a change of policy that does not
//! concern it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use http::uri::Authority;
use parking_lot::Mutex;
use tower::{Layer, ServiceBuilder};

use super::{
    context::Shared,
    deadline::{Deadline, DeadlineLayer},
    failure::Failure,
    forward::Forward,
    guard::Guard,
    plan::{DEFAULT, Plan},
    retry::{Retry, RetryLayer},
    service::{Service, ServiceKey},
    upstream::Upstream,
};
use crate::{
    clock,
    identity::{Identity, SpiffeId},
    policy::{self, RouteTable, ServiceName, ServicePolicy, retry, service::Timeouts},
    resilience::{Mode, service as resilience},
    telemetry::metrics::Direction,
};

/// Names whose way is kept; beyond it all are worked out again.
const PARENTS_MAX: usize = 1024;

/// The layers a call goes through.
pub type Stack = Deadline<Retry<Forward>>;

/// The routes of one worker.
#[derive(Debug, Default)]
pub struct Routes {
    parents: Mutex<HashMap<ParentKey, Arc<Parent>>>,
    destinations: Mutex<HashMap<ServiceKey, Weak<Destination>>>,
}

/// What a name leads to depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ParentKey {
    authority: Box<str>,
    original: Option<SocketAddr>,
}

/// A service and the stack that calls it.
#[derive(Debug)]
pub struct Destination {
    /// The service as this worker reaches it.
    pub upstream: Arc<Upstream>,
    /// What calls it.
    pub stack: Stack,
}

/// What a name leads to.
#[derive(Debug)]
pub struct Parent {
    generation: u64,
    /// The name as it is sent on, with its port.
    pub authority: Option<Authority>,
    /// The label of the service in metrics and logs.
    pub label: Arc<str>,
    own: Arc<Destination>,
    /// The very address the application dialled.
    original: Option<(SocketAddr, Arc<Destination>)>,
    port: u16,
    table: Option<Arc<RouteTable>>,
    /// As many as the table has rules, and in its order.
    rules: Vec<RuleTargets>,
    /// For what no rule is for.
    plan: Arc<Plan>,
    /// What guards it, where it is the application behind this sidecar.
    pub guard: Option<Arc<Guard>>,
    /// Since the last sweep.
    used: AtomicBool,
}

#[derive(Debug)]
struct RuleTargets {
    /// As many as the rule has.
    backends: Vec<Choice>,
    /// For the service itself, where the rule has no backends.
    plan: Arc<Plan>,
}

/// Where one request goes, and how.
#[derive(Clone, Debug)]
pub struct Choice {
    /// To whom.
    pub destination: Arc<Destination>,
    /// How it is treated.
    pub plan: Arc<Plan>,
}

impl Routes {
    /// What `authority` leads to for a connection that was going to `original`.
    ///
    /// # Errors
    ///
    /// [`Failure::BadRequest`] where it is no authority.
    pub fn parent(
        &self,
        shared: &Arc<Shared>,
        authority: &str,
        original: Option<SocketAddr>,
    ) -> Result<Arc<Parent>, Failure> {
        let key = ParentKey { authority: authority.into(), original };
        if let Some(found) = self.parents.lock().get(&key).filter(|it| it.is_current(shared)) {
            found.used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(self.outbound(shared, authority, original)?);
        self.keep(key, &made);
        Ok(made)
    }

    /// The application at `address`.
    pub fn local(&self, shared: &Arc<Shared>, address: SocketAddr) -> Arc<Parent> {
        let key = ParentKey { authority: Box::default(), original: Some(address) };
        if let Some(found) = self.parents.lock().get(&key).filter(|it| it.is_current(shared)) {
            found.used.store(true, Ordering::Relaxed);
            return Arc::clone(found);
        }
        let made = Arc::new(self.inbound(shared, address));
        self.keep(key, &made);
        made
    }

    /// Closes what is no longer wanted, and forgets the names nobody used since `forget`
    /// was last set.
    pub fn sweep(&self, generation: u64, now: Instant, forget: bool) {
        let live: Vec<_> = {
            let mut destinations = self.destinations.lock();
            destinations.retain(|_, it| it.strong_count() > 0);
            destinations.values().filter_map(Weak::upgrade).collect()
        };
        for destination in live {
            destination.upstream.pool.sweep(generation, now);
        }
        if forget {
            self.parents.lock().retain(|_, it| {
                it.used.swap(false, Ordering::Relaxed) || Arc::strong_count(it) > 1
            });
        }
    }

    fn keep(&self, key: ParentKey, made: &Arc<Parent>) {
        let mut parents = self.parents.lock();
        if parents.len() >= PARENTS_MAX {
            parents.clear();
        }
        parents.insert(key, Arc::clone(made));
    }

    fn outbound(
        &self,
        shared: &Arc<Shared>,
        authority: &str,
        original: Option<SocketAddr>,
    ) -> Result<Parent, Failure> {
        let parsed: Authority = authority.parse().map_err(|_| Failure::BadRequest)?;
        if parsed.as_str().contains('@') {
            return Err(Failure::BadRequest);
        }
        let port = original.map_or_else(|| parsed.port_u16().unwrap_or(80), |it| it.port());
        let snapshot = shared.policies.current();
        let name = ServiceName::from_host(parsed.host(), &shared.namespace);
        let policy = service_policy(&snapshot, &name);
        let target = Service::target(&policy, parsed.host(), port);
        let own = self.destination(shared, (name.clone(), target), &policy);
        let chosen = original.filter(|_| policy.discovery == policy::Discovery::Host);
        let original = chosen.map(|address| {
            let target = Service::only(address);
            (address, self.destination(shared, (name.clone(), target), &policy))
        });
        let label: Arc<str> = name.to_string().into();
        let table = snapshot.routes.get(&name).cloned();
        let rules = table.iter().flat_map(|it| it.rules()).map(|rule| {
            let metrics = shared.metrics.route(Direction::Outbound, &label, &rule.name);
            let plan = |destination: &Arc<Destination>, policy: &ServicePolicy| {
                let id = destination.upstream.service.route(&rule.name);
                Arc::new(Plan::of_rule(rule, id, policy, Arc::clone(&metrics)))
            };
            let backend = |it: &policy::Backend| {
                let host = it.service.host_beside(parsed.host(), &name);
                let policy = service_policy(&snapshot, &it.service);
                let target = Service::target(&policy, &host, it.port);
                let destination = self.destination(shared, (it.service.clone(), target), &policy);
                Choice { plan: plan(&destination, &policy), destination }
            };
            RuleTargets {
                backends: rule.backends.iter().map(backend).collect(),
                plan: plan(&own, &policy),
            }
        });
        let metrics = shared.metrics.route(Direction::Outbound, &label, DEFAULT);
        Ok(Parent {
            generation: snapshot.generation,
            rules: rules.collect(),
            plan: Arc::new(Plan::new(&policy, metrics)),
            authority: Some(parsed),
            guard: None,
            used: AtomicBool::new(true),
            label,
            own,
            original,
            port,
            table,
        })
    }

    fn inbound(&self, shared: &Arc<Shared>, address: SocketAddr) -> Parent {
        let snapshot = shared.policies.current();
        let workload = &snapshot.workload;
        let policy = Arc::new(ServicePolicy {
            timeouts: Timeouts {
                request: workload.request_timeout,
                idle: workload.idle_timeout,
                ..Timeouts::default()
            },
            resilience: of_the_application(),
            // Whoever called sends again what may be sent again.
            retries: retry::Policy { mode: Mode::Off, ..retry::Policy::default() },
            ..ServicePolicy::default()
        });
        let id = shared.identity.as_ref().map(Identity::id);
        let account = id.as_ref().and_then(SpiffeId::service_account).unwrap_or("app");
        let name = ServiceName::new(&shared.namespace, account);
        let key = ServiceKey { name: name.clone(), target: Service::only(address), local: true };
        let label: Arc<str> = name.to_string().into();
        Parent {
            generation: snapshot.generation,
            authority: None,
            plan: Arc::new(Plan::new(
                &policy,
                shared.metrics.route(Direction::Inbound, &label, DEFAULT),
            )),
            own: self.made(shared, key, &policy),
            original: None,
            port: address.port(),
            table: None,
            rules: Vec::new(),
            guard: shared.guards.of(
                (workload, snapshot.generation),
                (&label, &shared.metrics),
                clock::now(),
            ),
            used: AtomicBool::new(true),
            label,
        }
    }

    fn destination(
        &self,
        shared: &Arc<Shared>,
        (name, target): (ServiceName, crate::discovery::Target),
        policy: &Arc<ServicePolicy>,
    ) -> Arc<Destination> {
        self.made(shared, ServiceKey { name, target, local: false }, policy)
    }

    fn made(
        &self,
        shared: &Arc<Shared>,
        key: ServiceKey,
        policy: &Arc<ServicePolicy>,
    ) -> Arc<Destination> {
        let service = Service::get(shared, key.clone(), policy);
        let mut destinations = self.destinations.lock();
        if let Some(found) = destinations.get(&key).and_then(Weak::upgrade)
            && Arc::ptr_eq(&found.upstream.service, &service)
        {
            return found;
        }
        let core = Arc::clone(&service.core);
        let upstream = Arc::new(Upstream::new(service, Arc::clone(shared)));
        let (draw, traces) = (Arc::clone(&upstream.draw), Arc::clone(&shared.traces));
        let retry = RetryLayer { core, draw, traces };
        let layers = ServiceBuilder::new().layer(DeadlineLayer).layer(retry);
        let stack = layers.into_inner().layer(Forward::new(Arc::clone(&upstream)));
        let made = Arc::new(Destination { upstream, stack });
        destinations.insert(key, Arc::downgrade(&made));
        made
    }
}

impl Parent {
    /// Whether it was worked out from the policy in force.
    pub fn is_current(&self, shared: &Shared) -> bool {
        self.generation == shared.policies.generation()
    }

    /// Where a request for `path` goes; `draw` is uniform over `u32`.
    ///
    /// # Errors
    ///
    /// [`Failure::NoEndpoints`] where the rule gives no backend any weight.
    pub fn choose(&self, path: &str, draw: u32) -> Result<Choice, Failure> {
        let found = self.table.as_ref().and_then(|table| {
            let index = table.position(path, self.port)?;
            Some((&table.rules()[index], self.rules.get(index)?))
        });
        let Some((rule, targets)) = found else { return Ok(self.by_default(&self.plan)) };
        if targets.backends.is_empty() {
            return Ok(self.by_default(&targets.plan));
        }
        let backend = rule.backend(draw).and_then(|it| targets.backends.get(it));
        backend.cloned().ok_or(Failure::NoEndpoints)
    }

    /// The service itself, for what is not HTTP.
    pub fn default_destination(&self) -> &Arc<Destination> {
        match &self.original {
            // The application chose an address; it is balanced away from it only where
            // discovery says that the address is the service's.
            Some((address, original)) if !self.own.upstream.service.has(*address) => original,
            _ => &self.own,
        }
    }

    fn by_default(&self, plan: &Arc<Plan>) -> Choice {
        Choice { destination: Arc::clone(self.default_destination()), plan: Arc::clone(plan) }
    }
}

/// The application is one endpoint and nobody else will answer for it: nothing is gained by
/// leaving it alone, and what it takes on is decided on the way in.
fn of_the_application() -> resilience::Config {
    let mut config = resilience::Config::default();
    config.breaker.mode = Mode::Off;
    config.outlier.mode = Mode::Off;
    config.admission.mode = Mode::Off;
    config
}

fn service_policy(snapshot: &policy::Snapshot, name: &ServiceName) -> Arc<ServicePolicy> {
    static NONE: std::sync::LazyLock<Arc<ServicePolicy>> = std::sync::LazyLock::new(Arc::default);
    Arc::clone(snapshot.services.get(name).unwrap_or(&NONE))
}
