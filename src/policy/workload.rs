//! Workload policy: what guards the workload behind this sidecar.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::PathMatch;
use crate::resilience::{Mode, limiter, rate::Rate};

/// What guards the workload behind this sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPolicy {
    /// For ports without an entry of their own.
    pub mtls: Mtls,
    /// By the port the caller asked for.
    pub port_mtls: BTreeMap<u16, Mtls>,
    /// Ports whose bytes are never looked at, neither inbound nor outbound.
    pub opaque_ports: BTreeSet<u16>,
    /// From the request's head to the response's head.
    pub request_timeout: Duration,
    /// Between two frames of a body, either way.
    pub idle_timeout: Duration,
    /// How often callers may come.
    pub rate_limits: Vec<RateLimit>,
    /// How many requests are taken on at once.
    pub concurrency: limiter::Config,
}

/// How often some callers may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Its name towards callers: its own, or its index.
    pub name: Arc<str>,
    /// What it does.
    pub mode: Mode,
    /// What each bucket is for.
    pub by: RateKey,
    /// Requests whose path does not fit are not counted.
    pub path: Option<PathMatch>,
    /// How often.
    pub rate: Rate,
}

/// What each bucket of a rate limit is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// All requests together.
    All,
    /// Each verified peer; all that are not share one.
    Identity,
    /// Each value of this header; all without it share one.
    Header(Arc<str>),
}

/// Who may reach a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtls {
    /// Mesh peers and plaintext.
    #[default]
    Permissive,
    /// Mesh peers only.
    Strict,
}

impl WorkloadPolicy {
    /// Who may reach `port`.
    pub fn mtls_of(&self, port: u16) -> Mtls {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }
}

impl Default for WorkloadPolicy {
    fn default() -> Self {
        Self {
            mtls: Mtls::default(),
            port_mtls: BTreeMap::new(),
            opaque_ports: BTreeSet::new(),
            request_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_mins(5),
            rate_limits: Vec::new(),
            concurrency: limiter::Config::default(),
        }
    }
}
