//! Kubernetes: the API server as control uses it: few kinds of object, and bounded calls.
//!
//! Each call has a deadline, and is made again a few times where the API server is busy or
//! cannot be reached. What control runs on is what it has read last: an API server that is
//! away changes nothing of it.
//!
//! | object | for |
//! |---|---|
//! | Secrets and ConfigMaps `remora-KIND-NAME` | the store ([`crate::store::Kubernetes`]) |
//! | Lease `remora-control` | which replica leads ([`lease`]) |
//! | ConfigMaps labelled `remora.dev/policy: "true"` | policy, each key a file ([`follow`]) |
//! | ConfigMap `remora-bundle` | whom to trust, for others to read ([`bundle`]) |
//! | TokenReview | whose a token is ([`review`]) |

mod begin;
mod bundle;
mod connect;
mod follow;
mod lease;
mod review;

use std::{
    collections::BTreeMap,
    error::Error as _,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::NamespaceResourceScope,
};
use remora::{
    clock,
    drain::{self, Drain},
    resilience::backoff,
    telemetry::words,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

pub(crate) use self::{
    begin::{Error, First},
    bundle::keep as keep_bundle,
    connect::Options,
    review::Refused,
};

/// The label that says of which kind an object of the store is.
pub(crate) const KIND: &str = "remora.dev/kind";

/// What selects the documents of policy.
const POLICY: &str = "remora.dev/policy=true";

/// What selects the records that replicas change in turn.
const RECORDS: &str = "remora.dev/kind=state";

/// How long one try of a call may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a call is tried.
const TRIES: u8 = 4;

/// How long to wait between tries.
const BACKOFF: backoff::Config =
    backoff::Config { base: Duration::from_millis(200), max: Duration::from_secs(2) };

/// The API server, and the namespace that is control's own.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
    /// Another one for each process.
    replica: String,
    /// Until when this replica leads, unless it is elected again.
    leading: watch::Sender<Option<Instant>>,
    changes: watch::Sender<u64>,
    reviews: Semaphore,
    /// How long one try of a call may take.
    patience: Duration,
}

/// Why a call was not served.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Unserved {
    reason: String,
    /// The status of the answer, if there was one.
    code: Option<u16>,
    /// Whether a try may have been heard, though it was not answered.
    pub(crate) unsure: bool,
}

impl Cluster {
    /// Stands for election, and tells of changed records, until the drain begins.
    ///
    /// # Errors
    ///
    /// When the records cannot be listed.
    pub(crate) async fn start(self: &Arc<Self>, drain: &Drain) -> Result<(), Unserved> {
        let version = follow::list(self, RECORDS).await?.version;
        let changes = self.changes.clone();
        let tell = move |_| changes.send_modify(|it| *it = it.wrapping_add(1));
        drain::spawn("records", follow::follow(Arc::clone(self), RECORDS, version, tell));
        drain::spawn("election", lease::stand(Arc::clone(self), drain.clone()));
        Ok(())
    }

    /// The documents of policy by the name of their file, which is `CONFIGMAP/KEY`; followed
    /// from now on.
    ///
    /// # Errors
    ///
    /// When they cannot be listed: nothing is not the same as no policy.
    pub(crate) async fn policy(
        self: &Arc<Self>,
    ) -> Result<watch::Receiver<BTreeMap<String, String>>, Unserved> {
        let listed = follow::list(self, POLICY).await?;
        let (sender, receiver) = watch::channel(files(listed.items));
        let tell = move |items| {
            let new = files(items);
            sender.send_if_modified(|it| new != std::mem::replace(it, new.clone()));
        };
        drain::spawn("policy", follow::follow(Arc::clone(self), POLICY, listed.version, tell));
        Ok(receiver)
    }

    /// Control's own namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether this replica is the elected one.
    pub(crate) fn leads(&self) -> bool {
        self.leading.borrow().is_some_and(|until| clock::now() < until)
    }

    /// Counts the changes of records.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A handle on objects of a kind that is known at run time.
    pub(crate) fn api_of(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, resource)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A call that may be made more than once.
    pub(crate) async fn call<T, F>(&self, make: impl Fn() -> F) -> Result<T, Unserved>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let mut unsure = false;
        for tried in 1..TRIES {
            match self.once(make()).await {
                Err(error) if error.may_pass() => unsure |= error.unsure,
                Err(error) => return Err(Unserved { unsure, ..error }),
                Ok(it) => return Ok(it),
            }
            sleep(BACKOFF.wait(tried, rand::random())).await;
        }
        self.once(make()).await.map_err(|it| Unserved { unsure: unsure | it.unsure, ..it })
    }

    /// A call that is made once.
    pub(crate) async fn once<T, F>(&self, made: F) -> Result<T, Unserved>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        // Boxed, since `kube`'s are large and would be part of whatever awaits the store.
        let Ok(made) = timeout(self.patience, Box::pin(made)).await else {
            let reason = "the API server did not answer in time".to_owned();
            return Err(Unserved { reason, code: None, unsure: true });
        };
        made.map_err(Unserved::from)
    }
}

/// Each key that is a document.
fn files(items: Vec<ConfigMap>) -> BTreeMap<String, String> {
    let named = items.into_iter().filter_map(|it| Some((it.metadata.name?, it.data?)));
    let files = named.flat_map(|(name, data)| {
        data.into_iter().map(move |(key, text)| (format!("{name}/{key}"), text))
    });
    let is_document =
        |name: &String| Path::new(name).extension().is_some_and(|it| it == "yaml" || it == "yml");
    files.filter(|(name, _)| is_document(name)).collect()
}

impl Unserved {
    /// Whether it is this status that the API server answered.
    pub(crate) fn is(&self, code: u16) -> bool {
        self.code == Some(code)
    }

    /// Whether another try may be served.
    fn may_pass(&self) -> bool {
        self.unsure || self.is(429)
    }
}

impl From<kube::Error> for Unserved {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(it) = &error {
            let reason = format!("the API server answered {}: {}", it.code, it.message);
            return Self { reason, code: Some(it.code), unsure: 500 <= it.code };
        }
        let causes = error.source().map_or_else(String::new, |it| format!(": {}", words(it)));
        let reason = format!("cannot reach the API server{causes}");
        Self { reason, code: None, unsure: true }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut it = f.debug_struct("Cluster");
        it.field("namespace", &self.namespace).field("replica", &self.replica);
        it.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
