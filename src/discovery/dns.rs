//! DNS: the records of a name, each set of them known or failed on its own.

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, Record, RecordType, rdata::SRV},
    system_conf::read_system_conf,
};

use super::{Error, Target, memory::Answer};
use crate::{
    drain,
    endpoint::{Endpoint, EndpointSet},
};

/// How long the second of A and AAAA may take longer than the first that found something.
/// Some servers never answer AAAA; in one cluster both come within a few milliseconds.
const SECOND_FAMILY: Duration = Duration::from_millis(300);

/// Targets of one SRV record that are used: an answer over TCP holds about a thousand.
const TARGETS_MAX: usize = 1_000;

/// Targets asked for at a time.
const TARGETS_AT_A_TIME: usize = 8;

/// The resolver and where it looks for short names.
#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    search: Vec<Name>,
    ndots: usize,
}

/// The records of one name and type.
#[derive(Clone, Debug)]
enum Records {
    Found { records: Vec<Record>, additionals: Vec<Record>, ttl: Duration },
    Nothing { ttl: Duration },
    Failed(Failure),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
struct Failure {
    error: Arc<str>,
    /// A server said so. A name of another domain may still be found, as in glibc; after
    /// silence it may not.
    answered: bool,
}

/// The addresses of one name, of both families.
#[derive(Debug)]
enum Addresses {
    Found { addresses: Vec<IpAddr>, ttl: Duration, stale: Option<Arc<str>> },
    Nothing { ttl: Duration },
    Failed(Failure),
}

impl Dns {
    pub(super) fn new(servers: Option<&[SocketAddr]>) -> Result<Self, Error> {
        let failed = |it: NetError| Error::ResolvConf(Box::new(it));
        let (config, mut options) = match servers {
            None => read_system_conf().map_err(failed)?,
            Some([]) => return Err(Error::NoServers),
            Some(servers) => {
                let servers = servers.iter().map(|it| server(*it)).collect();
                (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
            }
        };
        // See the module: a refresh must not be answered from a cache.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Always;
        // A headless service of 40 pods does not fit the 512 bytes of plain DNS.
        options.edns0 = true;
        let (search, ndots) = (config.search().to_vec(), options.ndots);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { resolver: builder.build().map_err(failed)?, search, ndots })
    }

    /// The absolute names that `name` may mean, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Result<Vec<Name>, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let error = format!("`{name}` is not a DNS name: {error}").into();
            Failure { error, answered: true }
        };
        let mut absolute = Name::from_str_relaxed(name).map_err(|it| failed(&it))?;
        if absolute.is_fqdn() {
            return Ok(vec![absolute]);
        }
        // Names that get too long with a domain appended are no candidates.
        let mut names: Vec<_> =
            self.search.iter().filter_map(|it| absolute.clone().append_domain(it).ok()).collect();
        let dots = name.matches('.').count();
        absolute.set_fqdn(true);
        names.insert(if self.ndots <= dots { 0 } else { names.len() }, absolute);
        Ok(names)
    }

    async fn lookup(&self, name: &Name, kind: RecordType) -> Records {
        match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|it| it.ttl).min().unwrap_or(0);
                let ttl = Duration::from_secs(u64::from(ttl));
                let of_kind = lookup.answers().iter().filter(|it| it.record_type() == kind);
                let records: Vec<_> = of_kind.cloned().collect();
                if records.is_empty() {
                    return Records::Nothing { ttl };
                }
                Records::Found { records, additionals: lookup.additionals().to_vec(), ttl }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
                let ttl = Duration::from_secs(u64::from(nothing.negative_ttl.unwrap_or(0)));
                Records::Nothing { ttl }
            }
            Err(error) => Records::Failed(Failure {
                answered: matches!(error, NetError::Dns(_)),
                error: format!("`{name}` {kind}: {error}").into(),
            }),
        }
    }

    /// A and AAAA.
    async fn families(&self, name: &Name) -> [Records; 2] {
        let mut v4 = pin!(self.lookup(name, RecordType::A));
        let mut v6 = pin!(self.lookup(name, RecordType::AAAA));
        tokio::select! {
            first = &mut v4 => {
                let second = second_family(&first, v6).await;
                [first, second]
            }
            first = &mut v6 => {
                let second = second_family(&first, v4).await;
                [second, first]
            }
        }
    }
}

async fn second_family(first: &Records, second: impl Future<Output = Records>) -> Records {
    if !matches!(first, Records::Found { .. }) {
        return second.await;
    }
    let late = || Failure { error: "only one of A and AAAA is answered".into(), answered: false };
    let second = tokio::time::timeout(SECOND_FAMILY, second).await;
    second.unwrap_or_else(|_elapsed| Records::Failed(late()))
}

fn server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut it| {
        it.port = address.port();
        it
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// Resolves one target again and again, and knows the last good records of each name.
pub(super) struct Session {
    dns: Arc<Dns>,
    target: Target,
    /// The last good addresses of each name asked for: A, and AAAA.
    known: HashMap<Name, [Vec<IpAddr>; 2]>,
}

impl Session {
    pub(super) fn new(dns: Arc<Dns>, target: Target) -> Self {
        Self { dns, target, known: HashMap::new() }
    }

    /// Asks for the endpoints once.
    ///
    /// # Cancel safety
    ///
    /// What is known may be newer than what was returned, and is used the next time.
    pub(super) async fn resolve(&mut self) -> Answer {
        match self.target.clone() {
            Target::Host { name, port } => self.host(&name, port).await,
            Target::Srv { name } => self.srv(&name).await,
            Target::Static(endpoints) => {
                Answer::Found { endpoints, ttl: Duration::MAX, stale: None }
            }
        }
    }

    async fn host(&mut self, name: &str, port: u16) -> Answer {
        let candidates = match self.dns.candidates(name) {
            Ok(candidates) => candidates,
            Err(failure) => return Answer::Failed { error: failure.error },
        };
        let (mut least, mut failed) = (Duration::MAX, None);
        for name in &candidates {
            let families = self.dns.families(name).await;
            match self.merge(name, families) {
                Addresses::Found { addresses, ttl, stale } => {
                    self.known.retain(|it, _| it == name);
                    let endpoints = addresses.into_iter().map(|it| (it, port).into());
                    let endpoints = endpoints.map(Endpoint::new).collect();
                    return Answer::Found { endpoints, ttl, stale };
                }
                Addresses::Nothing { ttl } => least = least.min(ttl),
                Addresses::Failed(it) if it.answered => failed = Some(it.error),
                Addresses::Failed(it) => return Answer::Failed { error: it.error },
            }
        }
        match failed {
            Some(error) => Answer::Failed { error },
            None => Answer::Nothing { ttl: least },
        }
    }

    async fn srv(&mut self, name: &str) -> Answer {
        let candidates = match self.dns.candidates(name) {
            Ok(candidates) => candidates,
            Err(failure) => return Answer::Failed { error: failure.error },
        };
        let (mut least, mut failed) = (Duration::MAX, None);
        for name in &candidates {
            match self.dns.lookup(name, RecordType::SRV).await {
                Records::Found { records, additionals, ttl } => {
                    return self.targets(&records, &additionals, ttl).await;
                }
                Records::Nothing { ttl } => least = least.min(ttl),
                Records::Failed(it) if it.answered => failed = Some(it.error),
                Records::Failed(it) => return Answer::Failed { error: it.error },
            }
        }
        match failed {
            Some(error) => Answer::Failed { error },
            None => Answer::Nothing { ttl: least },
        }
    }

    /// The endpoints of an SRV record's targets.
    async fn targets(
        &mut self,
        records: &[Record],
        additionals: &[Record],
        mut ttl: Duration,
    ) -> Answer {
        // > A Target of "." means that the service is decidedly not available at this domain.
        let srv = |it: &Record| {
            let RData::SRV(srv) = &it.data else { return None };
            (!srv.target.is_root()).then(|| srv.clone())
        };
        let targets: Vec<SRV> = records.iter().filter_map(srv).take(TARGETS_MAX).collect();
        let mut names: Vec<_> = targets.iter().map(|it| it.target.clone()).collect();
        names.sort();
        names.dedup();
        self.known.retain(|it, _| names.binary_search(it).is_ok());
        let (mut found, mut stale) = (HashMap::new(), None);
        for (name, families) in self.ask(names, additionals).await {
            match self.merge(&name, families) {
                Addresses::Found { addresses, ttl: shorter, stale: error } => {
                    ttl = ttl.min(shorter);
                    stale = error.or(stale);
                    found.insert(name, addresses);
                }
                Addresses::Nothing { ttl: shorter } => ttl = ttl.min(shorter),
                Addresses::Failed(failure) => stale = Some(failure.error),
            }
        }
        let endpoints: EndpointSet = targets.iter().flat_map(|it| endpoints(it, &found)).collect();
        match stale {
            Some(error) if endpoints.is_empty() => Answer::Failed { error },
            None if endpoints.is_empty() => Answer::Nothing { ttl },
            stale => Answer::Found { endpoints, ttl, stale },
        }
    }

    /// The address records of each name: those that came along, or else those it has.
    async fn ask(&self, names: Vec<Name>, additionals: &[Record]) -> Vec<(Name, [Records; 2])> {
        let mut asked = Vec::with_capacity(names.len());
        let mut left = Vec::new();
        for name in names {
            let came =
                [RecordType::A, RecordType::AAAA].map(|kind| along(&name, kind, additionals));
            if came.iter().all(|it| matches!(it, Records::Nothing { .. })) {
                left.push(name);
            } else {
                asked.push((name, came));
            }
        }
        for names in left.chunks(TARGETS_AT_A_TIME) {
            let tasks: Vec<_> = names
                .iter()
                .map(|name| {
                    let (dns, name) = (Arc::clone(&self.dns), name.clone());
                    drain::spawn("resolve target", async move { dns.families(&name).await })
                })
                .collect();
            for (name, task) in names.iter().zip(tasks) {
                // A task that panicked is a name that failed.
                let failed = |error: tokio::task::JoinError| {
                    let failure = Failure { error: error.to_string().into(), answered: false };
                    [Records::Failed(failure.clone()), Records::Failed(failure)]
                };
                asked.push((name.clone(), task.await.unwrap_or_else(failed)));
            }
        }
        asked
    }

    /// The addresses of both families; where one failed, those it had before.
    fn merge(&mut self, name: &Name, families: [Records; 2]) -> Addresses {
        let known = self.known.entry(name.clone()).or_default();
        let (mut least, mut nothing) = (Duration::MAX, Duration::MAX);
        let (mut stale, mut failed) = (None, None);
        for (known, records) in known.iter_mut().zip(families) {
            match records {
                Records::Found { records, ttl, .. } => {
                    *known = records.iter().filter_map(|it| it.data.ip_addr()).collect();
                    least = least.min(ttl);
                }
                Records::Nothing { ttl } => {
                    known.clear();
                    nothing = nothing.min(ttl);
                }
                Records::Failed(failure) if known.is_empty() => failed = Some(failure),
                Records::Failed(failure) => stale = Some(failure.error),
            }
        }
        let addresses = known.concat();
        match failed {
            // What was found is all there is to use; a failure beside it is nobody's loss.
            _ if !addresses.is_empty() => Addresses::Found { addresses, ttl: least, stale },
            Some(failure) => Addresses::Failed(failure),
            None => Addresses::Nothing { ttl: nothing },
        }
    }
}

/// The records of `name` among those that came along with another answer.
fn along(name: &Name, kind: RecordType, additionals: &[Record]) -> Records {
    let of_name = |it: &&Record| it.name == *name && it.record_type() == kind;
    let records: Vec<_> = additionals.iter().filter(of_name).cloned().collect();
    match records.iter().map(|it| it.ttl).min() {
        Some(ttl) => {
            let ttl = Duration::from_secs(u64::from(ttl));
            Records::Found { records, additionals: Vec::new(), ttl }
        }
        None => Records::Nothing { ttl: Duration::MAX },
    }
}

fn endpoints<'a>(
    srv: &'a SRV,
    addresses: &'a HashMap<Name, Vec<IpAddr>>,
) -> impl Iterator<Item = Endpoint> + 'a {
    let addresses = addresses.get(&srv.target).into_iter().flatten();
    // Zero means "when there is no selecting to do"; never at all would be an outage.
    let (weight, priority) = (srv.weight.max(1), srv.priority);
    addresses.map(move |it| Endpoint { weight, priority, ..Endpoint::new((*it, srv.port).into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_few_dots_is_searched_for_first() {
        let dns = dns(5, &["shop.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(
            candidates(&dns, "orders.shop"),
            [
                "orders.shop.shop.svc.cluster.local.",
                "orders.shop.svc.cluster.local.",
                "orders.shop."
            ]
        );
        assert_eq!(candidates(&dns, "a.b.c.d.e.f")[0], "a.b.c.d.e.f.");
    }

    #[test]
    fn an_absolute_name_is_not_searched_for() {
        assert_eq!(candidates(&dns(5, &["lan"]), "orders."), ["orders."]);
    }

    #[test]
    fn what_is_no_name_is_no_candidate() {
        let label = "x".repeat(64);
        let error = dns(1, &[]).candidates(&label).unwrap_err().error;
        assert!(error.starts_with(&format!("`{label}` is not a DNS name: ")), "{error}");
        assert!(dns(1, &[]).candidates("a..b").is_err());
    }

    fn candidates(dns: &Dns, name: &str) -> Vec<String> {
        dns.candidates(name).unwrap().iter().map(ToString::to_string).collect()
    }

    fn dns(ndots: usize, search: &[&str]) -> Dns {
        let mut dns = Dns::new(Some(&[([127, 0, 0, 1], 53).into()])).unwrap();
        dns.ndots = ndots;
        dns.search = search.iter().map(|it| Name::from_str_relaxed(it).unwrap()).collect();
        dns
    }
}
