//! Kubernetes: what control is told of a cluster, and how it begins in one.
//!
//! The first authority, where nobody has begun one yet, is that of a Secret of cert-manager's
//! shape, or a new one. The key of a new root is dropped, so that nothing in the cluster can
//! sign another issuer; the next one comes with a root of its own, by `rotate --root`.

use std::{sync::Arc, time::Duration};

use clap::Args;
use remora::{
    clock,
    drain::{self, Drain},
    telemetry::words,
};
use remora_certs::authority::{self, Authority, Lives, Pem};
use remora_kubernetes::{HINT, Place};

use crate::{
    issuing::{self, Issuing, Live, Names},
    publish::Source,
};

pub(crate) use remora_kubernetes::{Cluster, Error, Refused};

/// The Lease of the replica that leads.
const LEASE: &str = "remora-control";

/// What selects the records that replicas change in turn.
const RECORDS: &str = "remora.dev/kind=state";

/// What selects the documents of policy.
const POLICY: &str = "remora.dev/policy=true";

/// What to do about an authority that cannot sign.
const DAMAGED: &str = "`kubectl get secrets -l remora.dev/kind=authority` shows issuers";

/// What to do about a Secret with which nothing can begin.
const UNFIT: &str = "--issuer-secret takes a cert-manager Certificate's with `isCA: true`";

/// How long what is new is valid: as `init` has it.
const LIVES: Lives =
    Lives { root: Duration::from_hours(3650 * 24), issuer: Duration::from_hours(365 * 24) };

/// What only Kubernetes has.
#[derive(Args, Clone, Debug)]
#[group(requires = "kubernetes")]
pub(crate) struct Options {
    /// Control's own namespace in Kubernetes; without it, that of the pod or the context
    #[arg(long, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// A Secret with the issuer to begin with, as cert-manager makes it: tls.crt, tls.key,
    /// ca.crt. Without it, and where there is none yet, a root and an issuer are made; the
    /// root's key is not kept
    #[arg(long, value_name = "NAME")]
    pub(crate) issuer_secret: Option<String>,
    /// The trust domain to begin with, where the issuer names none
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// The name of this replica, another for each; without it the host's, which is the pod's
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// Whom service-account tokens must be for
    #[arg(long, value_name = "AUDIENCE", default_value = "remora.dev/control")]
    pub(crate) audience: String,
    /// Keep ConfigMap remora-bundle in these namespaces, too, for sidecars to know control by
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub(crate) bundle_namespaces: Vec<String>,
}

impl From<issuing::Error> for Error {
    fn from(error: issuing::Error) -> Self {
        let is_away = matches!(error, issuing::Error::Store(_));
        Self::unusable(words(&error), if is_away { HINT } else { DAMAGED })
    }
}

impl Options {
    /// Sees to it that the store has an authority.
    pub(crate) async fn begin(&self, cluster: &Cluster) -> Result<(), Error> {
        match Issuing::read(cluster, &Names::default(), clock::wall()).await {
            Err(issuing::Error::None) => (),
            other => return Ok(other.map(drop)?),
        }
        let first = match &self.issuer_secret {
            Some(name) => self.issuer(cluster, name).await?,
            None => authority::fresh(&self.trust_domain, LIVES, clock::wall())
                .map_err(issuing::Error::from)?,
        };
        Ok(issuing::begin(cluster, &first).await?)
    }

    async fn issuer(&self, cluster: &Cluster, name: &str) -> Result<Authority, Error> {
        let unfit = |reason| Error::unusable(format!("secret `{name}`{reason}"), UNFIT);
        let mut data = cluster.secret(name).await?;
        let mut text = |key| {
            let text = data.remove(key).and_then(|it| String::from_utf8(it).ok());
            text.ok_or_else(|| unfit(format!(" has no `{key}`")))
        };
        let (key, trust_domain) = (text("tls.key")?.into(), self.trust_domain.clone());
        let pem = Pem { root: text("ca.crt")?, issuer: text("tls.crt")?, key, trust_domain };
        authority::take_over(&pem, clock::wall()).map_err(|it| unfit(format!(": {it}")))
    }
}

/// Stands for election, and follows what others write: records, and the documents of policy.
pub(crate) async fn start(cluster: &Arc<Cluster>, drain: &Drain) -> Result<Source, Error> {
    cluster.follow(RECORDS).await?;
    drain::spawn("election", Arc::clone(cluster).stand(LEASE, drain.clone()));
    Ok(Source::Files(cluster.follow(POLICY).await?))
}

/// Keeps ConfigMap `remora-bundle`, by which pods know control before they have a certificate.
pub(crate) async fn keep_bundle(cluster: Arc<Cluster>, others: Vec<String>, live: Arc<Live>) {
    let place = Place { name: "remora-bundle", key: "ca.crt", others };
    let changes = live.changes();
    cluster.keep_published(place, move || live.get().record.bundle.roots.clone(), changes).await;
}

#[cfg(test)]
mod tests;
