//! Begin: the first authority, where nobody has begun one yet.
//!
//! That of a Secret of cert-manager's shape, or a new one. The key of a new root is dropped,
//! so that nothing in the cluster can sign another issuer; the next one comes with a root of
//! its own, by `rotate --root`. Of replicas that begin at once, one wins, and the others take
//! up what it made.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, config::InferConfigError};
use remora_certs::authority::{self, Authority, Lives, Pem};
use tower::BoxError;
use zeroize::Zeroizing;

use super::{Cluster, Unserved};
use crate::{
    issuing::{self, Issuing},
    rotation::Record,
    store::{self, Expected, Store},
};

/// How long what is new is valid: as `init` has it.
const LIVES: Lives =
    Lives { root: Duration::from_hours(3650 * 24), issuer: Duration::from_hours(365 * 24) };

/// Where the first authority comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First<'a> {
    /// The trust domain, where no certificate names it.
    pub(crate) trust_domain: &'a str,
    /// The Secret with the issuer; without one, all is new.
    pub(crate) secret: Option<&'a str>,
}

/// Why control cannot begin in Kubernetes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Neither a kubeconfig nor a pod.
    #[error("cannot find out how to reach the API server")]
    Infer(#[source] Box<InferConfigError>),
    /// What they name is wrong.
    #[error("cannot use the credentials for the API server: {0}")]
    Credentials(BoxError),
    /// The API server said no, or nothing.
    #[error(transparent)]
    Unserved(#[from] Unserved),
    #[error(transparent)]
    Issuing(#[from] issuing::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("secret `{name}`: {source}")]
    Unfit { name: String, source: authority::Error },
    #[error("cannot read secret `{name}`: {reason}")]
    Secret { name: String, reason: Unserved },
    #[error("secret `{name}` has no `{key}`")]
    Missing { name: String, key: &'static str },
}

impl Error {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Infer(_) => "name a kubeconfig by KUBECONFIG, or run in a pod",
            Self::Credentials(_) => "check the certificates and keys that the kubeconfig names",
            Self::Unserved(_) | Self::Store(_) | Self::Secret { .. } => {
                "check the API server, and what control's service account may: k8s/control/rbac.yaml"
            }
            Self::Issuing(_) => "`kubectl get secrets -l remora.dev/kind=authority` shows issuers",
            Self::Unfit { .. } | Self::Missing { .. } => {
                "--issuer-secret takes a cert-manager Certificate's with `isCA: true`"
            }
        }
    }
}

impl Cluster {
    /// Sees to it that the store has an authority.
    pub(crate) async fn begin(
        &self,
        store: &Store,
        first: First<'_>,
        now: Duration,
    ) -> Result<(), Error> {
        match Issuing::read(store, now).await {
            Err(issuing::Error::None) => (),
            other => return Ok(other.map(drop)?),
        }
        let authority = match first.secret {
            Some(name) => self.issuer(name, first.trust_domain, now).await?,
            None => {
                authority::fresh(first.trust_domain, LIVES, now).map_err(issuing::Error::from)?
            }
        };
        let issuer = issuing::keep(store, &authority).await?;
        let record = Record::first(issuer.clone());
        match issuing::write(store, &record, &Expected::Absent).await {
            Ok(_) => tracing::info!(issuer = issuer.fingerprint, "an authority was begun"),
            Err(store::Error::Conflict(_)) => {
                let taken = Issuing::read(store, now).await?;
                if taken.issuer != issuer.fingerprint {
                    store.remove(&issuer.key()).await?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn issuer(
        &self,
        name: &str,
        trust_domain: &str,
        now: Duration,
    ) -> Result<Authority, Error> {
        let api: Api<Secret> = self.api();
        let found = self.call(|| api.get(name)).await;
        let found = found.map_err(|reason| Error::Secret { name: name.to_owned(), reason })?;
        let mut data = found.data.unwrap_or_default();
        let mut text = |key| {
            let text = data.remove(key).and_then(|it| String::from_utf8(it.0).ok());
            text.ok_or_else(|| Error::Missing { name: name.to_owned(), key })
        };
        let key = Zeroizing::new(text("tls.key")?);
        let (issuer, root) = (text("tls.crt")?, text("ca.crt")?);
        let pem = Pem { root, issuer, key, trust_domain: trust_domain.to_owned() };
        let unfit = |source| Error::Unfit { name: name.to_owned(), source };
        authority::take_over(&pem, now).map_err(unfit)
    }
}
