//! Service: what this process knows of one service, shared by its workers.
//!
//! Where it is, how it may be reached, which of its endpoints do well, which of them speak
//! mesh TLS. A service is in use as long as somebody holds it; a change of its policy makes
//! a new one, and requests in flight end with the one they began with.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    context::Shared,
    core::Core,
    manners::{Manner, Manners},
};
use crate::{
    clock,
    discovery::{State, Target, Watch},
    endpoint::Endpoint,
    identity::Expected,
    policy::{Discovery, ServiceName, ServicePolicy, TlsMode},
    resilience::service::RouteId,
};

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
    watch: Watch,
    version: AtomicU64,
    /// Whether discovery has not had an answer yet.
    pending: AtomicBool,
    /// What is known of it whatever its policy.
    pub core: Arc<Core>,
    manners: Mutex<Manners>,
}

impl Service {
    /// The service of `key`, made if nobody uses it yet or its policy has changed.
    pub fn get(shared: &Shared, key: ServiceKey, policy: &Arc<ServicePolicy>) -> Arc<Self> {
        let mut services = shared.services.lock();
        let found = services.get(&key).and_then(std::sync::Weak::upgrade);
        if let Some(found) = &found
            && found.policy == *policy
        {
            return Arc::clone(found);
        }
        let before = found.map(|it| Arc::clone(&it.core));
        if before.is_none() && !key.local {
            shared.called.notify_one();
        }
        let made = Arc::new(Self::new(shared, &key, policy, before));
        services.retain(|_, it| it.strong_count() > 0);
        services.insert(key, Arc::downgrade(&made));
        made
    }

    /// `before` is what the service has learnt under another policy.
    fn new(
        shared: &Shared,
        key: &ServiceKey,
        policy: &Arc<ServicePolicy>,
        before: Option<Arc<Core>>,
    ) -> Self {
        let ids = &policy.tls.identities;
        let expected = match (ids.is_empty(), &*key.name.namespace) {
            (false, _) => Expected::Ids(ids.clone().into()),
            (true, "") => Expected::AnyInTrustDomain,
            (true, namespace) => Expected::Namespace(namespace.into()),
        };
        let watch = shared.discovery.watch(key.target.clone());
        let known = watch.current();
        let mut config = policy.resilience.clone();
        config.balancer.seed = shared.seed;
        let core = if let Some(core) = before {
            core.configure(config);
            // It may not have been asked since they changed, and this one would not ask again.
            if known.state != State::Pending {
                core.update(&known.endpoints, clock::now());
            }
            core
        } else {
            let label: Arc<str> = key.name.to_string().into();
            let metrics = shared.metrics.service(&label);
            let core = Arc::new(Core::new(label, config, &known.endpoints, metrics));
            shared.metrics.watch(&core);
            core
        };
        Self {
            name: key.name.clone(),
            policy: Arc::clone(policy),
            expected,
            local: key.local,
            watch,
            version: AtomicU64::new(known.version),
            pending: AtomicBool::new(known.state == State::Pending),
            core,
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

    /// Brings the core up to date with discovery.
    pub fn refreshed(&self, now: Instant) -> &Arc<Core> {
        let version = self.watch.version();
        if version != self.version.load(Ordering::Relaxed) {
            self.core.update(&self.watch.current().endpoints, now);
            self.version.store(version, Ordering::Relaxed);
        }
        &self.core
    }

    /// The number of the route `name` among those of this service.
    pub fn route(&self, name: &Arc<str>) -> RouteId {
        self.core.route(name)
    }

    /// Asks discovery to look again: an endpoint was not there.
    pub fn refresh(&self) {
        self.watch.refresh();
    }

    /// Whether the endpoint at `address` speaks mesh TLS.
    pub fn manner(&self, address: SocketAddr, now: Instant) -> Manner {
        self.manners.lock().get(address, now)
    }

    /// Remembers whether the endpoint at `address` speaks mesh TLS.
    pub fn learn(&self, address: SocketAddr, mesh: bool, now: Instant) {
        if self.manners.lock().learn(address, mesh, now) {
            self.core.metrics.plaintext_fallback();
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
