//! Publish: a text as a ConfigMap of some namespaces, for pods to mount.
//!
//! The leader alone writes it, so that no replica that lags behind puts an old one back.

use std::{iter, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ObjectMeta};
use tokio::{sync::watch, time::timeout};
use tracing::warn;

use super::{Cluster, Error, write};

/// How often it is looked whether somebody else changed it.
const LOOK: Duration = Duration::from_mins(1);

/// Where a text is published.
#[derive(Clone, Debug)]
pub struct Place {
    /// The ConfigMap's name.
    pub name: &'static str,
    /// Its one key.
    pub key: &'static str,
    /// Namespaces that have it, beside Remora's own.
    pub others: Vec<String>,
}

impl Cluster {
    /// Publishes what `text` gives, whenever that changes, for as long as this replica leads.
    pub async fn keep_published<T: Send + Sync>(
        self: Arc<Self>,
        place: Place,
        text: impl Fn() -> String + Send,
        mut changes: watch::Receiver<T>,
    ) {
        let mut leading = self.leading.subscribe();
        loop {
            if self.leads() {
                let text = text();
                for namespace in iter::once(&self.namespace).chain(&place.others) {
                    if let Err(error) = self.publish(namespace, &place, &text).await {
                        warn!(%error, name = place.name, namespace, "a ConfigMap is not published");
                    }
                }
            }
            let looked = timeout(LOOK, async {
                tokio::select! {
                    changed = changes.changed() => changed,
                    led = leading.wait_for(Option::is_some), if !self.leads() => led.map(drop),
                }
            });
            if let Ok(Err(_)) = looked.await {
                return;
            }
        }
    }

    /// Publishes a text in a namespace; where it is there already, nothing is written.
    pub(super) async fn publish(
        &self,
        namespace: &str,
        place: &Place,
        text: &str,
    ) -> Result<(), Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let data = Some([(place.key.to_owned(), text.to_owned())].into());
        let found = self.call(|| api.get_opt(place.name)).await?;
        if found.as_ref().is_some_and(|it| it.data == data) {
            return Ok(());
        }
        let metadata = ObjectMeta {
            name: Some(place.name.to_owned()),
            resource_version: found.and_then(|it| it.metadata.resource_version),
            ..ObjectMeta::default()
        };
        let new = ConfigMap { metadata, data, ..ConfigMap::default() };
        self.call(|| write(&api, &new)).await.map(drop)
    }
}
