//! Kubernetes: the API server as Remora uses it: few kinds of object, and bounded calls.
//!
//! Each call has a deadline, and is made again a few times where the API server is busy or
//! cannot be reached. What a process runs on is what it has read last: an API server that is
//! away changes nothing of it.
//!
//! | object | for |
//! |---|---|
//! | Secrets and ConfigMaps `remora-KIND-NAME` | what must not be lost ([`Object`]) |
//! | a Lease | which replica leads ([`Cluster::stand`]) |
//! | ConfigMaps with a label | what others write ([`Cluster::follow`]) |
//! | a ConfigMap in some namespaces | a text for others to read ([`Cluster::keep_published`]) |
//! | TokenReview | whose a token is ([`Cluster::review`]) |

mod error;
mod follow;
mod lease;
mod object;
mod publish;
mod review;

use std::{
    fmt,
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config, Resource, ResourceExt as _, api::PostParams, core::NamespaceResourceScope,
};
use remora::{clock, resilience::backoff, telemetry::words};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tracing::{instrument::WithSubscriber as _, subscriber::NoSubscriber};

pub use self::{
    error::{Error, HINT},
    follow::Documents,
    object::{Entry, Expected, Object},
    publish::Place,
    review::{Account, Refused},
};

/// How long one try of a call may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a call is tried.
const TRIES: u8 = 4;

/// How long to wait between tries.
const BACKOFF: backoff::Config =
    backoff::Config { base: Duration::from_millis(200), max: Duration::from_secs(2) };

/// Tokens that are asked about at once.
const REVIEWS_MAX: usize = 16;

/// Of writes: none.
const PARAMS: PostParams = PostParams { dry_run: false, field_manager: None };

/// The API server, and the namespace that is Remora's own.
///
/// A call that is given up takes its connection along (it is of HTTP/1.1), so that none that
/// is dead is used for ever. Roots and tokens that are in files are read again as they change.
pub struct Cluster {
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

impl Cluster {
    /// A client of the API server that the environment names; nothing is sent yet.
    ///
    /// Remora's own namespace is that of the pod, or of the kubeconfig's context, where it is
    /// not named.
    ///
    /// # Errors
    ///
    /// When the environment names none, or credentials that cannot be used.
    pub async fn connect(namespace: Option<&str>, replica: &str) -> Result<Self, Error> {
        let mut config = Box::pin(Config::infer()).await.map_err(|it| {
            let reason = format!("cannot find out how to reach the API server: {}", words(&it));
            Error::unusable(reason, "name a kubeconfig by KUBECONFIG, or run in a pod")
        })?;
        if let Some(namespace) = namespace {
            namespace.clone_into(&mut config.default_namespace);
        }
        Self::with(config, replica)
    }

    /// The same, of the API server that `config` names.
    ///
    /// # Errors
    ///
    /// When its credentials cannot be used.
    pub fn with(mut config: Config, replica: &str) -> Result<Self, Error> {
        // Calls are tried again here, where it is known which may have been heard.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|it| {
            let reason = format!("cannot use the credentials for the API server: {it}");
            Error::unusable(reason, "check the certificates and keys that the kubeconfig names")
        })?;
        Ok(Self {
            client,
            namespace,
            replica: format!("{replica}_{:08x}", rand::random::<u32>()),
            leading: watch::Sender::default(),
            changes: watch::Sender::default(),
            reviews: Semaphore::new(REVIEWS_MAX),
            patience: PATIENCE,
        })
    }

    /// Remora's own namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether this replica is the elected one.
    pub fn leads(&self) -> bool {
        self.leading.borrow().is_some_and(|until| clock::now() < until)
    }

    /// Counts the changes of what is followed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A call that may be made more than once.
    async fn call<T, F>(&self, make: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let (mut tried, mut unsure) = (1, false);
        loop {
            let mut error = match self.once(make()).await {
                Err(error) => error,
                made => return made,
            };
            unsure |= error.unsure;
            let may_pass = error.unsure || error.is(429);
            if tried == TRIES || !may_pass {
                error.unsure = unsure;
                return Err(error);
            }
            sleep(BACKOFF.wait(tried, rand::random())).await;
            tried += 1;
        }
    }

    /// A call that is made once.
    fn once<T, F>(&self, made: F) -> impl Future<Output = Result<T, Error>>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        // Boxed, since `kube`'s are large and would be part of whatever awaits them. It logs an
        // error for each try that fails; whoever calls does, when that changes.
        let made = timeout(self.patience, Box::pin(made).with_subscriber(NoSubscriber::new()));
        let late = |_| Error::unheard("the API server did not answer in time".to_owned());
        async move { Ok(made.await.map_err(late)??) }
    }
}

/// Creates an object that has no version; replaces one where it still has its version.
async fn write<K>(api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource + Clone + fmt::Debug + Serialize + DeserializeOwned,
{
    match object.meta().resource_version {
        None => api.create(&PARAMS, object).await,
        Some(_) => api.replace(&object.name_any(), &PARAMS, object).await,
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("replica", &self.replica).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
