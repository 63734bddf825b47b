//! Service policy: how callers reach one service.
//!
//! The defaults are what an empty policy folder gives; each has its reason in the
//! table `remora defaults` prints.

use std::{fmt, sync::Arc, time::Duration};

use super::retry;
pub use crate::resilience::balancer::Algorithm;
use crate::{endpoint::EndpointSet, resilience::service as resilience};

/// A service's name: the key of policy, routes and metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Service's name in it.
    pub name: Arc<str>,
}

impl ServiceName {
    /// The service a host name means to a workload of `namespace`.
    ///
    /// `orders`, `orders.shop`, `orders.shop.svc` and `orders.shop.svc.cluster.local`
    /// are the forms a cluster's DNS answers to; any host of another shape is a name of
    /// its own and has no policy unless a document names it so.
    pub fn from_host(host: &str, namespace: &str) -> Self {
        let host = host.strip_suffix('.').unwrap_or(host);
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
        if bare.parse::<std::net::IpAddr>().is_ok() {
            return Self::new("", bare);
        }
        let mut labels = host.split('.');
        let name = labels.next().unwrap_or_default();
        match (labels.next(), labels.next()) {
            (None, _) => Self::new(namespace, name),
            (Some(space), None | Some("svc")) => Self::new(space, name),
            (Some(_), Some(_)) => Self::new("", host),
        }
    }

    /// The host name of this service, in the form in which `host` names `other`: a workload
    /// that calls `orders.shop.svc` finds `stock` at `stock.shop.svc`.
    pub fn host_beside(&self, host: &str, other: &Self) -> String {
        let rest = host.split_once('.').map(|(_, rest)| rest);
        match rest {
            None if self.namespace == other.namespace => self.name.to_string(),
            None => format!("{}.{}", self.name, self.namespace),
            Some(rest) => {
                let after = rest.split_once('.').map_or("", |(_, after)| after);
                let dot = if after.is_empty() { "" } else { "." };
                format!("{}.{}{dot}{after}", self.name, self.namespace)
            }
        }
    }

    /// The service `name` of `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// How callers reach one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePolicy {
    /// Whether to speak mesh TLS, and who may answer.
    pub tls: TlsPolicy,
    /// How its endpoints are picked, left alone, and called again.
    pub resilience: resilience::Config,
    /// What of a request [`Algorithm::ConsistentHash`] hashes.
    pub hash_key: Option<HashKey>,
    /// What may be sent again.
    pub retries: retry::Policy,
    /// How long each part of a request may take.
    pub timeouts: Timeouts,
    /// Where the endpoints come from.
    pub discovery: Discovery,
}

/// What of a request is hashed, so that requests that agree in it reach one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The first value of this header, in lower case.
    Header(Arc<str>),
    /// The value of this cookie.
    Cookie(Arc<str>),
    /// The address of the client.
    Source,
}

/// Whether to speak mesh TLS to a service, and who may answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// What to do about mesh TLS.
    pub mode: TlsMode,
    /// SPIFFE IDs that may answer for the service. Empty means any workload of the
    /// service's namespace, or of the trust domain where the name has no namespace.
    pub identities: Vec<Arc<str>>,
}

/// What to do about mesh TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// Mesh TLS where the peer speaks it; plaintext, remembered and counted, where not.
    #[default]
    Auto,
    /// Mesh TLS or no request.
    Strict,
    /// Plaintext.
    Off,
}

/// How long each part of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to the response's head.
    pub request: Duration,
    /// From the start of a dial to a usable connection, TLS included.
    pub connect: Duration,
    /// Between two frames of a body, either way.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // A silent total limit breaks long polls and exports; this one ends at the head.
            request: Duration::from_mins(1),
            // Within one cluster a SYN that took a second was lost.
            connect: Duration::from_secs(1),
            idle: Duration::from_mins(5),
        }
    }
}

/// Where a service's endpoints come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Discovery {
    /// The addresses of the host name asked for, at the port asked for.
    #[default]
    Host,
    /// The addresses of this name, at this port or else the port asked for.
    Dns {
        /// The name to resolve.
        name: Arc<str>,
        /// Overrides the port asked for.
        port: Option<u16>,
    },
    /// The targets of this SRV record, with its ports, weights and priorities.
    Srv {
        /// The record's name, such as `_http._tcp.orders.shop.svc.cluster.local`.
        name: Arc<str>,
    },
    /// These, and no others.
    Static(EndpointSet),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_cluster_name_means_the_same_service() {
        let orders = ServiceName::new("shop", "orders");
        for host in ["orders", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local."] {
            assert_eq!(ServiceName::from_host(host, "shop"), orders, "{host}");
        }
    }

    #[test]
    fn a_backend_is_looked_for_the_way_its_parent_was() {
        let (orders, stock) =
            (ServiceName::new("shop", "orders"), ServiceName::new("shop", "stock"));
        let far = ServiceName::new("far", "stock");
        for (host, near, other) in [
            ("orders", "stock", "stock.far"),
            ("orders.shop", "stock.shop", "stock.far"),
            ("orders.shop.svc.k8s.local", "stock.shop.svc.k8s.local", "stock.far.svc.k8s.local"),
        ] {
            assert_eq!(stock.host_beside(host, &orders), near);
            assert_eq!(far.host_beside(host, &orders), other);
        }
    }

    #[test]
    fn a_host_outside_the_cluster_keeps_its_own_name() {
        for (host, name) in
            [("api.example.com", "api.example.com"), ("10.0.0.1", "10.0.0.1"), ("[::1]", "::1")]
        {
            assert_eq!(ServiceName::from_host(host, "shop").to_string(), name);
        }
    }
}
