//! Discovery: the endpoints of a name, as fresh as DNS allows and never lost to its failures.
//!
//! A name is resolved from the moment somebody watches it until nobody has for a minute, so
//! memory follows what the pod calls and not the size of the cluster. Each has one task, all
//! on the runtime [`Driver::run`] runs on; workers read what it publishes without a lock.
//!
//! - An answer is asked for again when its TTL ends, clamped to [1 s, 30 s] and moved by up
//!   to 10 % so that sidecars do not ask in step, or at once when asked to
//!   ([`Watch::refresh`]), at most once a second.
//! - While DNS fails, the last good answer stays in use for as long as it takes; its age is
//!   exported. That holds for each record set on its own: where AAAA fails and A does not,
//!   the A records are new and the AAAA records are those of before.
//! - A name that does not exist (any more) keeps its endpoints for 30 s, since a deployment
//!   that replaces all its pods looks just so for a moment, and then has none.
//! - A and AAAA records are merged: an endpoint that cannot be dialled is the balancer's
//!   business. SRV ports, weights and priorities are kept.
//!
//! The search list of `resolv.conf` is walked here and not by the resolver, which takes any
//! failure for a reason to try the next domain, and the error of the last for that of all: a
//! cluster domain that times out would become `NXDOMAIN` of `example.com`. And the resolver's
//! cache is off, since it would answer a refresh with what is to be refreshed.
//!
//! # Sources
//!
//! - RFC 1034 and 1035; RFC 2308 for negative answers; RFC 2782 for SRV.
//! - resolv.conf(5): `search` and `ndots`; glibc's `res_search` for which failures end a search.

mod dns;
mod driver;
mod memory;

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    endpoint::{Endpoint, EndpointSet},
    telemetry::Metrics,
};
pub use driver::Driver;

/// Names that can be watched at a time. One costs about 2 KiB and a query or two in 30 s.
pub const NAMES_MAX: usize = 1_000;

/// Why discovery cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's resolver configuration cannot be used.
    #[error(
        "cannot use `/etc/resolv.conf`\nhint: repair it, or name the DNS servers in the settings"
    )]
    ResolvConf(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The list of DNS servers is empty.
    #[error("no DNS server is named\nhint: leave the setting out to use `/etc/resolv.conf`")]
    NoServers,
}

/// Where names are asked for, and how often.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// DNS servers; those, the search list and `ndots` of `/etc/resolv.conf` where `None`.
    pub nameservers: Option<Vec<SocketAddr>>,
    /// How often, and for how long.
    pub timing: Timing,
    /// Where jitter begins.
    pub seed: u64,
}

/// How often names are asked for, and for how long answers are kept.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Bounds of the time between two good answers: a TTL of 0 must not become a flood, and
    /// one of a day would send traffic to a pod that is long gone.
    pub ttl: (Duration, Duration),
    /// Bounds of the time to the next question when there was no good answer.
    pub retry: (Duration, Duration),
    /// Least time between two questions for a name, however often it is refreshed.
    pub refresh: Duration,
    /// How long one resolution may take.
    pub deadline: Duration,
    /// How long a name that does not exist any more keeps its endpoints.
    pub grace: Duration,
    /// How long a name that nobody watches is remembered.
    pub idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ttl: (Duration::from_secs(1), Duration::from_secs(30)),
            retry: (Duration::from_secs(1), Duration::from_secs(5)),
            refresh: Duration::from_secs(1),
            // Two tries of five seconds, which is resolv.conf's default.
            deadline: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            idle: Duration::from_mins(1),
        }
    }
}

/// What endpoints are wanted of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The addresses of a name; of itself where it is an IP literal.
    Host {
        /// The name or IP address, without brackets.
        name: Arc<str>,
        /// The port of each endpoint.
        port: u16,
    },
    /// The targets of an SRV record.
    Srv {
        /// The record's name.
        name: Arc<str>,
    },
    /// These, for good.
    Static(EndpointSet),
}

impl Hash for Target {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Host { name, port } => (name, port).hash(state),
            Self::Srv { name } => name.hash(state),
            Self::Static(set) => set.endpoints().hash(state),
        }
    }
}

impl Target {
    /// The endpoints, where no question is needed to know them.
    fn known(&self) -> Option<EndpointSet> {
        match self {
            Self::Host { name, port } => {
                let address: IpAddr = name.parse().ok()?;
                let endpoint = Endpoint::new(SocketAddr::new(address, *port));
                Some([endpoint].into_iter().collect())
            }
            Self::Srv { .. } => None,
            Self::Static(set) => Some(set.clone()),
        }
    }

    /// The value of the label `service`.
    fn label(&self) -> String {
        match self {
            Self::Host { name, port } => format!("{name}:{port}"),
            Self::Srv { name } => name.to_string(),
            Self::Static(_) => "static".into(),
        }
    }
}

/// What is known of a name at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The endpoints to use.
    pub endpoints: EndpointSet,
    /// Counts up whenever endpoints or state change.
    pub version: u64,
    /// How good they are.
    pub state: State,
}

/// How good the endpoints of a name are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing was answered yet.
    Pending,
    /// They are the latest answer.
    Fresh,
    /// They are an earlier answer, or part of them is.
    Stale {
        /// Why there is no newer one.
        error: Arc<str>,
    },
    /// There never was an answer.
    Failed {
        /// Why.
        error: Arc<str>,
    },
    /// The name does not exist, or has no such record.
    NotFound,
}

/// Resolves names. Cheap to clone; usable from any runtime.
#[derive(Clone, Debug)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    entries: Mutex<HashMap<Target, Arc<Entry>>>,
    /// To the driver. As long as the table of names, which each one sent is in.
    begin: mpsc::Sender<Arc<Entry>>,
}

/// One name, as its task and its watchers share it.
#[derive(Debug)]
struct Entry {
    target: Target,
    resolved: ArcSwap<Resolved>,
    version: watch::Sender<u64>,
    /// Tells the task that a newer answer is wanted.
    wake: Notify,
    /// Changed only under the lock of the table when it was zero.
    watchers: AtomicUsize,
}

impl Entry {
    fn new(target: Target, endpoints: EndpointSet, state: State) -> Arc<Self> {
        let resolved = ArcSwap::from_pointee(Resolved { endpoints, version: 0, state });
        let (version, wake) = (watch::Sender::new(0), Notify::new());
        Arc::new(Self { target, resolved, version, wake, watchers: AtomicUsize::new(0) })
    }

    fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Acquire) != 0
    }

    /// Shows `endpoints` and `state` to the watchers. For its task only.
    fn publish(&self, endpoints: EndpointSet, state: State) {
        let old = self.resolved.load();
        if old.endpoints == endpoints && old.state == state {
            return;
        }
        let version = old.version + 1;
        self.resolved.store(Arc::new(Resolved { endpoints, version, state }));
        self.version.send_replace(version);
    }
}

impl Discovery {
    /// Discovery, and what has to run for it to resolve anything.
    ///
    /// # Errors
    ///
    /// When the system's resolver configuration is wanted and cannot be used.
    pub fn new(config: &Config, metrics: Metrics) -> Result<(Self, Driver), Error> {
        let dns = dns::Dns::new(config.nameservers.as_deref())?;
        let (begin, begun) = mpsc::channel(NAMES_MAX);
        let shared = Arc::new(Shared { entries: Mutex::default(), begin });
        let driver = Driver::new(begun, Arc::downgrade(&shared), dns, config, metrics);
        Ok((Self { shared }, driver))
    }

    /// Begins to resolve `target`, or joins who already does. To be kept for as long as the
    /// endpoints are wanted, and not for one request.
    pub fn watch(&self, target: Target) -> Watch {
        if let Some(endpoints) = target.known() {
            return Watch::new(Entry::new(target, endpoints, State::Fresh));
        }
        let mut entries = self.shared.entries.lock();
        if let Some(entry) = entries.get(&target) {
            let was_watched = entry.is_watched();
            let watch = Watch::new(Arc::clone(entry));
            if !was_watched {
                entry.wake.notify_one();
            }
            return watch;
        }
        if NAMES_MAX <= entries.len() {
            // Their tasks find themselves off the table and end.
            entries.retain(|_, it| it.is_watched());
        }
        let entry = Entry::new(target.clone(), EndpointSet::default(), State::Pending);
        // Before its task can look: one that nobody watches waits until somebody does.
        let watch = Watch::new(Arc::clone(&entry));
        if entries.len() < NAMES_MAX && self.shared.begin.try_send(Arc::clone(&entry)).is_ok() {
            entries.insert(target, entry);
        } else {
            let error = format!("more than {NAMES_MAX} names are in use");
            entry.publish(EndpointSet::default(), State::Failed { error: error.into() });
        }
        watch
    }

    /// How many names are remembered.
    pub fn names(&self) -> usize {
        self.shared.entries.lock().len()
    }
}

/// The endpoints of one name, kept up to date for as long as this is kept.
#[derive(Debug)]
pub struct Watch {
    entry: Arc<Entry>,
}

impl Watch {
    fn new(entry: Arc<Entry>) -> Self {
        entry.watchers.fetch_add(1, Ordering::AcqRel);
        Self { entry }
    }

    /// What is known now. Takes no lock.
    pub fn current(&self) -> Arc<Resolved> {
        self.entry.resolved.load_full()
    }

    /// The version of what is known now, for who remembers an earlier one. Takes no lock.
    pub fn version(&self) -> u64 {
        self.entry.resolved.load().version
    }

    /// What is known once there was an answer or a failure, and at `deadline` at the latest:
    /// then it may still be [`State::Pending`].
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn first(&self, deadline: Instant) -> Arc<Resolved> {
        let current = self.current();
        if current.state != State::Pending {
            return current;
        }
        let changed = self.changed(current.version);
        match tokio::time::timeout_at(deadline.into(), changed).await {
            Ok(resolved) => resolved,
            Err(_elapsed) => self.current(),
        }
    }

    /// What is known once it is not `version` any more.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn changed(&self, version: u64) -> Arc<Resolved> {
        // The sender lives in the entry, so the wait ends only with a change.
        let mut versions = self.entry.version.subscribe();
        let _changed = versions.wait_for(|it| *it != version).await.is_ok();
        self.current()
    }

    /// Asks again without waiting for the TTL, because an endpoint turned out to be dead.
    /// Calls in the same second are one.
    pub fn refresh(&self) {
        self.entry.wake.notify_one();
    }
}

impl Clone for Watch {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.entry))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.entry.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
