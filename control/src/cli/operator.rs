//! Operator: who calls control's API, and where it is.
//!
//! Who can read the key of the issuer can make any identity there is, so nobody else needs
//! to vouch for an operator: each call mints a certificate of [`LIFE`] for itself, by what
//! the store says at that moment. So a rotation may pass between two calls. Where there is
//! no such key, a folder with an identity of the operator does, made by `issue`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{ArgGroup, Args};
use remora::{
    clock,
    identity::{Material, control},
    sync::{self, client, wire},
};
use remora_kubernetes::Cluster;
use tokio::net::lookup_host;

use super::error::Error;
use crate::{
    issuing::{Issuing, Names},
    store::{Folder, Store},
};

/// How long an operator's certificate is valid that is made for one call.
const LIFE: Duration = Duration::from_mins(10);

/// Where control is, and who calls.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("operator").required(true).args(["dir", "identity", "kubernetes"]))]
pub(super) struct Operator {
    /// The authority's folder, whose key makes an operator of the caller
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// A folder with tls.crt, tls.key and ca.crt of the operator, instead of --dir
    #[arg(long, value_name = "FOLDER")]
    identity: Option<PathBuf>,
    /// Control keeps its authority in Kubernetes, where KUBECONFIG leads
    #[arg(long)]
    kubernetes: bool,
    /// Control's namespace in Kubernetes; without it, that of the context
    #[arg(long, value_name = "NS", requires = "kubernetes")]
    namespace: Option<String>,
    /// Where `remora-control serve` listens
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:15030")]
    server: String,
}

impl Operator {
    /// Connects by a certificate of this moment, and makes `calls`.
    pub(super) async fn call<T>(
        &self,
        calls: impl AsyncFnOnce(&client::Client) -> Result<T, client::Error>,
    ) -> Result<T, Error> {
        let resolve: sync::Resolve = Arc::new(|host, port| {
            Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
        });
        let failed = |it| Error::Call(self.server.clone(), Box::new(it));
        let target = sync::Target::at(&self.server, resolve).map_err(failed)?;
        let Material { svid, roots } = Box::pin(self.identity()).await?;
        let (roots, named) = (vec![roots], control::Named::Path(wire::CONTROL_PATH));
        let terms = control::Terms { roots, named, svid: Some(svid), wall: sync::wall() };
        let called = async { calls(&client::Client::connect(&target, &terms).await?).await };
        Box::pin(called).await.map_err(failed)
    }

    /// Where the authority is kept; `None` for an operator who has but an identity.
    ///
    /// # Errors
    ///
    /// When it is in Kubernetes, and there is no way to get there.
    pub(super) async fn store(&self) -> Result<Option<Box<Store>>, Error> {
        if self.kubernetes {
            let cluster = Cluster::connect(self.namespace.as_deref(), "operator").await;
            return Ok(Some(Box::new(cluster.map_err(Error::Cluster)?)));
        }
        Ok(self.dir.as_deref().map(|it| Box::new(Folder::new(it)) as _))
    }

    /// Who calls, and whom to trust.
    async fn identity(&self) -> Result<Material, Error> {
        let (now, names) = (clock::wall(), Names::default());
        let Some(store) = self.store().await? else {
            let folder = self.identity.clone().unwrap_or_default();
            return Material::load(&folder, now).map_err(|it| Error::Identity(folder, it));
        };
        let signs = Issuing::read(&*store, &names, now).await.map_err(Error::Operator)?;
        let svid = signs.authority.own(wire::OPERATOR_PATH, LIFE, &names, now);
        let svid = svid.map_err(|it| Error::Operator(it.into()))?;
        Ok(Material { svid, roots: signs.roots })
    }
}
