//! Policy: what an operator asked for, resolved and ready to be consulted.
//!
//! Built by [`crate::config`] from documents; nothing here can be invalid. A request
//! keeps the [`Snapshot`] it began with, so a reload never changes it half-way.

pub mod deadline;
pub mod path;
pub mod retry;
pub mod route;
pub mod service;
pub mod workload;

use std::{collections::HashMap, sync::Arc};

pub use route::{Backend, PathMatch, RouteTable, Rule};
pub use service::{Algorithm, Discovery, HashKey, ServiceName, ServicePolicy, TlsMode, TlsPolicy};
pub use workload::{Mtls, WorkloadPolicy};

/// One generation of everything the documents say.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with each accepted load; 0 is "no policy folder was read yet".
    pub generation: u64,
    /// How services are called, by name.
    pub services: HashMap<ServiceName, Arc<ServicePolicy>>,
    /// The routes attached to a service, by name.
    pub routes: HashMap<ServiceName, Arc<RouteTable>>,
    /// What guards this workload.
    pub workload: Arc<WorkloadPolicy>,
}
