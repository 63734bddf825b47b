//! Validate: documents that are good each by itself, made into one policy that is.
//!
//! Two documents must not answer the same question: which of them wins would depend on
//! the names of files. References become [`ServiceName`]s here, so that nothing later can
//! meet one that means nothing.
//!
//! # Sources
//!
//! - Gateway API: a route in its service's namespace is for all callers (a producer's),
//!   one in another namespace for the callers of that namespace, and instead of the
//!   producer's (a consumer's). <https://gateway-api.sigs.k8s.io/concepts/glossary/>

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use super::{
    Context,
    report::{Complaint, Place, Report},
    schema::{
        Document, Kind, Parent, RouteDocument, RouteRule, ServiceDocument, Spec, WorkloadDocument,
        too_long,
    },
    units,
};
use crate::{
    policy::{
        PathMatch, RouteTable, Rule, ServiceName, ServicePolicy, Snapshot, WorkloadPolicy,
        service::Timeouts,
    },
    resilience::Mode,
};

/// The policy that `documents` amount to for a workload; what contradicts goes to `report`.
pub(super) fn resolve(
    documents: Vec<Document>,
    context: &Context,
    report: &mut Report,
) -> Snapshot {
    let mut names = Once::default();
    let (mut services, mut workloads, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for Document { kind, namespace, name, place, spec, .. } in documents {
        if let Some(first) = names.taken((kind, namespace.clone(), name.clone()), &place) {
            let message = format!("{} `{namespace}/{name}` comes twice", kind.name());
            report.error(place.clone(), Complaint::new(message, rename(&first)));
        }
        match spec {
            Some(Spec::Service(document)) => services.push(document),
            Some(Spec::Workload(document)) => workloads.push((namespace, place, document)),
            Some(Spec::Route(document)) => {
                routes.push((Origin { kind, namespace, name, place }, document));
            }
            None => (),
        }
    }
    let services = service_policies(services, report);
    let workload = Arc::new(workload_policy(workloads, context, report));
    let mut by_service = Rules { context, services: &services, report, found: HashMap::new() };
    for (origin, document) in routes {
        by_service.add(document, &origin);
    }
    let routes = by_service.tables();
    Snapshot { generation: 0, services, routes, workload }
}

/// Things that may be claimed once, and where they were.
#[derive(Debug)]
struct Once<K>(HashMap<K, Place>);

impl<K> Default for Once<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Once<K> {
    /// Claims `key`; answers with the place of an earlier claim.
    fn taken(&mut self, key: K, place: &Place) -> Option<Place> {
        let first = self.0.get(&key).cloned();
        self.0.entry(key).or_insert_with(|| place.clone());
        first
    }
}

fn rename(first: &Place) -> String {
    format!("rename or remove one; the first is at {first}")
}

fn merge(first: &Place) -> String {
    format!("put both into one document; the first is at {first}")
}

fn service_policies(
    documents: Vec<ServiceDocument>,
    report: &mut Report,
) -> HashMap<ServiceName, Arc<ServicePolicy>> {
    let (mut services, mut once) = (HashMap::new(), Once::default());
    for ServiceDocument { targets, policy } in documents {
        for (place, service) in targets {
            if let Some(first) = once.taken(service.clone(), &place) {
                let message = format!("service `{service}` has two ServicePolicies");
                report.error(place, Complaint::new(message, merge(&first)));
                continue;
            }
            services.insert(service, Arc::clone(&policy));
        }
    }
    services
}

/// The policy for the account at hand, else the one for its whole namespace.
fn workload_policy(
    documents: Vec<(String, Place, WorkloadDocument)>,
    context: &Context,
    report: &mut Report,
) -> WorkloadPolicy {
    let mut once: Once<(String, Option<String>)> = Once::default();
    let (mut own, mut general) = (None, None);
    for (namespace, place, WorkloadDocument { accounts, policy }) in documents {
        let ours = namespace == context.namespace;
        let Some(accounts) = accounts else {
            if let Some(first) = once.taken((namespace.clone(), None), &place) {
                let message = format!("namespace `{namespace}` has two WorkloadPolicies");
                report.error(place, Complaint::new(message, merge(&first)));
            }
            general = general.or(ours.then_some(policy));
            continue;
        };
        for (place, account) in accounts {
            if ours && context.service_account.as_ref() == Some(&account) {
                own = own.or_else(|| Some(policy.clone()));
            }
            let key = (namespace.clone(), Some(account.clone()));
            if let Some(first) = once.taken(key, &place) {
                let message =
                    format!("service account `{namespace}/{account}` has two WorkloadPolicies");
                report.error(place, Complaint::new(message, merge(&first)));
            }
        }
    }
    own.or(general).unwrap_or_default()
}

/// The rules attached to each service, as they are found.
#[derive(Debug)]
struct Rules<'a> {
    context: &'a Context,
    services: &'a HashMap<ServiceName, Arc<ServicePolicy>>,
    report: &'a mut Report,
    found: HashMap<ServiceName, Attached>,
}

/// The document that rules are of.
#[derive(Clone, Debug)]
struct Origin {
    kind: Kind,
    namespace: String,
    name: String,
    place: Place,
}

/// The rules attached to one service.
#[derive(Debug, Default)]
struct Attached {
    /// For every caller.
    producer: Vec<(Place, Rule)>,
    /// For the callers of this workload's namespace, instead of those.
    consumer: Vec<(Place, Rule)>,
    /// The documents those are of, and the ports they are for.
    origins: Vec<(Option<u16>, Origin)>,
}

impl Attached {
    /// A document of another kind for the same requests: which of the two applies, nobody
    /// could say.
    fn other_kind(&self, port: Option<u16>, origin: &Origin) -> Option<&Origin> {
        let same_port = |it: Option<u16>| it == port || it.is_none() || port.is_none();
        let other = self.origins.iter().find(|(at, it)| {
            same_port(*at) && it.kind != origin.kind && it.namespace == origin.namespace
        });
        other.map(|(_, it)| it)
    }
}

impl Rules<'_> {
    fn add(&mut self, document: RouteDocument, origin: &Origin) {
        let Origin { namespace, name, .. } = origin;
        let RouteDocument { parents, rules } = document;
        for rule in &rules {
            // The tightest of the services' timeouts is the one a try is held against.
            let tightest = parents.iter().map(|it| self.request_timeout(&it.service)).min();
            self.check_try(rule, rule.request_timeout.or(tightest));
            self.check_retry(rule, &parents);
        }
        for Parent { service, port } in parents {
            let produced = *service.namespace == **namespace;
            if !produced && *namespace != self.context.namespace {
                continue;
            }
            let attached = self.found.entry(service.clone()).or_default();
            if let Some(first) = attached.other_kind(port, origin) {
                let (one, two) = (first.kind.name(), origin.kind.name());
                let message = format!("`{service}` has rules of {one} and of {two} at one port");
                let hint =
                    format!("choose one kind for all of them; the first is at {}", first.place);
                self.report.error(origin.place.clone(), Complaint::new(message, hint));
            }
            attached.origins.push((port, origin.clone()));
            let list = if produced { &mut attached.producer } else { &mut attached.consumer };
            for rule in &rules {
                list.extend(expand(rule, name, port));
            }
        }
    }

    /// The linter's classic: a limit on a try that the limit on the request always beats.
    fn check_try(&mut self, rule: &RouteRule, request: Option<Duration>) {
        let (Some((place, per_try)), Some(request)) = (&rule.try_timeout, request) else { return };
        let attempts = rule.retry.as_ref().and_then(|(_, it)| it.attempts).unwrap_or(0);
        if request <= *per_try {
            let request = units::written(request);
            let message = format!("`backendRequest` never fires: the request may take {request}");
            let complaint = Complaint::new(message, "choose it well below the request timeout");
            self.report.warning(place.clone(), complaint);
        } else if let Some(message) = too_long(attempts, *per_try, request) {
            let hint = "choose fewer `attempts` or a shorter `backendRequest`";
            self.report.warning(place.clone(), Complaint::new(message, hint));
        }
    }

    /// A rule cannot turn on what the policy of its service turns off.
    fn check_retry(&mut self, rule: &RouteRule, parents: &[Parent]) {
        let Some((place, _)) = &rule.retry else { return };
        let off = |it: &&Parent| {
            self.services.get(&it.service).is_some_and(|it| it.retries.mode == Mode::Off)
        };
        if let Some(Parent { service, .. }) = parents.iter().find(off) {
            let message = format!("`retry` does nothing: `retries` of `{service}` are off");
            let hint = "remove it, or `mode: off` from the ServicePolicy";
            self.report.warning(place.clone(), Complaint::new(message, hint));
        }
    }

    fn request_timeout(&self, service: &ServiceName) -> Duration {
        let policy = self.services.get(service);
        policy.map_or(Timeouts::default().request, |it| it.timeouts.request)
    }

    fn tables(self) -> HashMap<ServiceName, Arc<RouteTable>> {
        let Self { found, report, .. } = self;
        let tables = found.into_iter().map(|(service, Attached { producer, consumer, .. })| {
            let rules = if consumer.is_empty() { producer } else { consumer };
            let mut once = Once::default();
            for (place, rule) in &rules {
                if let Some(first) = once.taken((rule.port, rule.path.clone()), place) {
                    let message =
                        format!("never taken: an earlier rule of `{service}` is the same");
                    let hint = format!("remove one; the first is at {first}");
                    report.warning(place.clone(), Complaint::new(message, hint));
                }
            }
            let rules = rules.into_iter().map(|(_, rule)| rule).collect();
            (service, Arc::new(RouteTable::new(rules)))
        });
        tables.collect()
    }
}

/// One rule for each match of `rule`.
fn expand(rule: &RouteRule, document: &str, port: Option<u16>) -> Vec<(Place, Rule)> {
    let name: Arc<str> = format!("{document}/{}", rule.name).into();
    let one = |(place, path): &(Place, PathMatch)| {
        let rule = Rule {
            name: Arc::clone(&name),
            path: path.clone(),
            port,
            backends: Arc::clone(&rule.backends),
            request_timeout: rule.request_timeout,
            try_timeout: rule.try_timeout.as_ref().map(|(_, it)| *it),
            retry: rule.retry.as_ref().map(|(_, it)| it.clone()),
        };
        (place.clone(), rule)
    };
    rule.matches.iter().map(one).collect()
}
