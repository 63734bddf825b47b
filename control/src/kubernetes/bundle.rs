//! Bundle: whom to trust, as ConfigMap `remora-bundle`, key `ca.crt`.
//!
//! A pod mounts it to know control by, before it has a certificate. The leader alone writes
//! it, so that no replica that lags behind puts an old one back.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::timeout;
use tracing::warn;

use super::{Cluster, Unserved};
use crate::issuing::Live;

/// The ConfigMap's name.
const NAME: &str = "remora-bundle";

/// Its key.
const ROOTS: &str = "ca.crt";

/// How often it is looked whether somebody else changed it.
const LOOK: Duration = Duration::from_mins(1);

/// Publishes what is to be trusted now, whenever that changes, for as long as this replica
/// leads.
pub(crate) async fn keep(cluster: Arc<Cluster>, others: Vec<String>, live: Arc<Live>) {
    let (mut changes, mut leading) = (live.changes(), cluster.leading.subscribe());
    loop {
        if cluster.leads() {
            let roots = live.get().bundle.roots.clone();
            if let Err(error) = cluster.publish_bundle(&others, &roots).await {
                warn!(%error, "the trust bundle is not published everywhere");
            }
        }
        let looked = timeout(LOOK, async {
            tokio::select! {
                changed = changes.changed() => changed,
                changed = leading.wait_for(Option::is_some) , if !cluster.leads() => changed.map(drop),
            }
        });
        if let Ok(Err(_)) = looked.await {
            return;
        }
    }
}

impl Cluster {
    /// Publishes root certificates in PEM in control's namespace and in `others`; where they
    /// are there already, nothing is written.
    ///
    /// # Errors
    ///
    /// The first one; the other namespaces have them all the same.
    pub(crate) async fn publish_bundle(
        &self,
        others: &[String],
        roots: &str,
    ) -> Result<(), Unserved> {
        let mut result = Ok(());
        for namespace in std::iter::once(&self.namespace).chain(others) {
            result = result.and(self.publish_to(namespace, roots).await);
        }
        result
    }

    async fn publish_to(&self, namespace: &str, roots: &str) -> Result<(), Unserved> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let data = Some([(ROOTS.to_owned(), roots.to_owned())].into());
        let name = Some(NAME.to_owned());
        let metadata = ObjectMeta { name, ..ObjectMeta::default() };
        let mut new = ConfigMap { metadata, data, ..ConfigMap::default() };
        match self.call(|| api.get(NAME)).await {
            Ok(found) if found.data == new.data => {}
            Ok(found) => {
                new.metadata.resource_version = found.metadata.resource_version;
                self.call(|| api.replace(NAME, &params, &new)).await?;
            }
            Err(error) if error.is(404) => {
                self.call(|| api.create(&params, &new)).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
