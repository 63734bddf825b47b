//! Service: what this process knows of one service, shared by its workers.
//!
//! Where it is, how it may be reached, which of its endpoints do well, which of them speak
//! mesh TLS. A service is in use as long as somebody holds it; a change of its policy makes
//! a new one, and requests in flight end with the one they began with.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::context::{Draw, Shared};
use crate::{
    clock,
    discovery::{State, Target, Watch},
    endpoint::Endpoint,
    identity::Expected,
    policy::{Discovery, ServiceName, ServicePolicy, TlsMode},
    resilience::balancer::{Balancer, Outcome, Token},
    telemetry::metrics::{Attempt, ServiceMetrics},
};

/// How long a peer that does not speak mesh TLS is taken to go on so.
const PLAINTEXT: Duration = Duration::from_mins(1);

/// Endpoints whose manner is remembered, of one service.
const MEMORY_MAX: usize = 1024;

/// What makes two uses of a service the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The name.
    pub name: ServiceName,
    /// Where it is looked for.
    pub target: Target,
    /// Whether it is the application behind this sidecar.
    pub local: bool,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// How it is reached.
    pub policy: Arc<ServicePolicy>,
    /// Whom a mesh connection has to reach.
    pub expected: Expected,
    /// Whether it is the application behind this sidecar.
    pub local: bool,
    /// What is counted of calls to it.
    pub metrics: Arc<ServiceMetrics>,
    watch: Watch,
    version: AtomicU64,
    /// Whether discovery has not had an answer yet.
    pending: AtomicBool,
    balancer: Mutex<Balancer>,
    manners: Mutex<HashMap<SocketAddr, Manner>>,
}

/// Whether an endpoint speaks mesh TLS, where policy leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not known yet.
    Unknown,
    /// It does.
    Mesh,
    /// It does not, and was asked a while ago: time to ask again, on the side.
    PlaintextOnceMore,
    /// It does not.
    Plaintext {
        /// Until when that is taken for granted.
        until: Instant,
    },
}

/// One request at one endpoint, counted until dropped.
#[derive(Debug)]
pub struct Permit {
    service: Arc<Service>,
    token: Option<Token>,
    outcome: Attempt,
    /// Where.
    pub address: SocketAddr,
    /// When who waits for the answer gives up: what is dropped from then on took too long,
    /// and before it was no longer wanted.
    pub deadline: Option<Instant>,
}

impl Service {
    /// The service of `key`, made if nobody uses it yet or its policy has changed.
    pub fn get(shared: &Shared, key: ServiceKey, policy: &Arc<ServicePolicy>) -> Arc<Self> {
        let mut services = shared.services.lock();
        if let Some(found) = services.get(&key).and_then(std::sync::Weak::upgrade)
            && found.policy == *policy
        {
            return found;
        }
        let made = Arc::new(Self::new(shared, &key, policy));
        services.retain(|_, it| it.strong_count() > 0);
        services.insert(key, Arc::downgrade(&made));
        made
    }

    fn new(shared: &Shared, key: &ServiceKey, policy: &Arc<ServicePolicy>) -> Self {
        let ids = &policy.tls.identities;
        let expected = match (ids.is_empty(), &*key.name.namespace) {
            (false, _) => Expected::Ids(ids.clone().into()),
            (true, "") => Expected::AnyInTrustDomain,
            (true, namespace) => Expected::Namespace(namespace.into()),
        };
        let watch = shared.discovery.watch(key.target.clone());
        let known = watch.current();
        let metrics = shared.metrics.service(&key.name.to_string());
        metrics.endpoints(known.endpoints.len(), 0);
        Self {
            name: key.name.clone(),
            policy: Arc::clone(policy),
            expected,
            local: key.local,
            metrics,
            watch,
            version: AtomicU64::new(known.version),
            pending: AtomicBool::new(known.state == State::Pending),
            balancer: Mutex::new(Balancer::new(policy.algorithm, &known.endpoints)),
            manners: Mutex::default(),
        }
    }

    /// Whether discovery has not had an answer yet, as far as was asked here.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Waits for the first answer of discovery, no longer than `patience`.
    ///
    /// # Cancel safety
    ///
    /// Safe: discovery goes on.
    pub async fn resolved(&self, patience: Duration) {
        if !self.is_pending() {
            return;
        }
        let first = self.watch.first(clock::now() + patience).await;
        self.pending.store(first.state == State::Pending, Ordering::Relaxed);
    }

    /// Whether discovery says that `address` is one of the service's endpoints.
    pub fn has(&self, address: SocketAddr) -> bool {
        self.watch.current().endpoints.contains(address)
    }

    /// Picks an endpoint, not `avoid` if there is another; `None` where there is none.
    pub fn pick(
        self: &Arc<Self>,
        now: Instant,
        draw: &Draw,
        avoid: Option<SocketAddr>,
    ) -> Option<Permit> {
        let mut balancer = self.balancer.lock();
        let version = self.watch.version();
        if version != self.version.load(Ordering::Relaxed) {
            balancer.update(&self.watch.current().endpoints);
            self.version.store(version, Ordering::Relaxed);
            self.count(&balancer);
            let stats = balancer.stats();
            self.metrics.endpoints(stats.available, stats.set_aside);
        }
        let pick = balancer.pick(now, &mut || draw.next(), avoid)?;
        Some(Permit {
            service: Arc::clone(self),
            token: Some(pick.token),
            outcome: Attempt::Cancelled,
            address: pick.address,
            deadline: None,
        })
    }

    /// Shows how many endpoints there are.
    fn count(&self, balancer: &Balancer) {
        let stats = balancer.stats();
        self.metrics.endpoints(stats.available, stats.set_aside);
    }

    /// Asks discovery to look again: an endpoint was not there.
    pub fn refresh(&self) {
        self.watch.refresh();
    }

    /// Whether the endpoint at `address` speaks mesh TLS.
    pub fn manner(&self, address: SocketAddr, now: Instant) -> Manner {
        let mut manners = self.manners.lock();
        match manners.get_mut(&address) {
            None => Manner::Unknown,
            Some(Manner::Plaintext { until }) if *until <= now => {
                *until = now + PLAINTEXT;
                Manner::PlaintextOnceMore
            }
            Some(manner) => *manner,
        }
    }

    /// Remembers whether the endpoint at `address` speaks mesh TLS.
    pub fn learn(&self, address: SocketAddr, mesh: bool, now: Instant) {
        let manner = if mesh { Manner::Mesh } else { Manner::Plaintext { until: now + PLAINTEXT } };
        let mut manners = self.manners.lock();
        if manners.len() >= MEMORY_MAX && !manners.contains_key(&address) {
            manners.clear();
        }
        let before = manners.insert(address, manner);
        if !mesh && !matches!(before, Some(Manner::Plaintext { .. })) {
            self.metrics.plaintext_fallback();
        }
    }

    /// What to do about mesh TLS with no identity taken into account.
    pub fn tls_mode(&self) -> TlsMode {
        if self.local { TlsMode::Off } else { self.policy.tls.mode }
    }

    /// Where a policy says that the service of a host is to be looked for.
    pub fn target(policy: &ServicePolicy, host: &str, port: u16) -> Target {
        match &policy.discovery {
            Discovery::Host => Target::Host { name: bare(host).into(), port },
            Discovery::Dns { name, port: at } => {
                Target::Host { name: Arc::clone(name), port: at.unwrap_or(port) }
            }
            Discovery::Srv { name } => Target::Srv { name: Arc::clone(name) },
            Discovery::Static(endpoints) => Target::Static(endpoints.clone()),
        }
    }

    /// The target that is one address.
    pub fn only(address: SocketAddr) -> Target {
        Target::Static(std::iter::once(Endpoint::new(address)).collect())
    }
}

/// A host without the brackets that tell an IPv6 address from its port.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host)
}

impl Permit {
    /// Says how the try has gone so far; what was said last is what counts.
    pub fn outcome(&mut self, outcome: Attempt) {
        (self.outcome, self.deadline) = (outcome, None);
    }

    /// The service it is for.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(token) = self.token.take() else { return };
        let now = clock::now();
        if self.outcome == Attempt::Cancelled && self.deadline.is_some_and(|it| it <= now) {
            self.outcome = Attempt::Timeout;
        }
        let outcome = match self.outcome {
            Attempt::Success => Outcome::Success,
            Attempt::Failure | Attempt::Timeout => Outcome::Failure,
            Attempt::ConnectFailed => Outcome::ConnectFailed,
            Attempt::Cancelled => Outcome::Cancelled,
        };
        self.service.metrics.attempt(self.outcome);
        let mut balancer = self.service.balancer.lock();
        balancer.settle(token, outcome, now);
        if self.outcome == Attempt::ConnectFailed {
            self.service.count(&balancer);
        }
    }
}
