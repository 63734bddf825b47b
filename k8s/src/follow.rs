//! Follow: ConfigMaps with a label, as they are now, within a second of each change.
//!
//! All of them are listed, and then watched for the first news, upon which they are listed
//! again. So there is no state to keep in step: a watch that has ended, whatever for
//! (`410 Gone` included), costs a list and nothing else; so does one whose connection is dead
//! without a word, within a minute. While the API server is away, what was listed last stays.

use std::{collections::BTreeMap, mem, pin::pin, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, WatchParams};
use remora::drain;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt as _;
use tracing::{info, instrument::WithSubscriber as _, subscriber::NoSubscriber, warn};

use super::{BACKOFF, Cluster, Error};

/// Everything is listed at least so often, in case that news were lost.
const AGAIN: Duration = Duration::from_mins(1);

/// How long news are gathered: changes seldom come alone.
const GATHER: Duration = Duration::from_millis(100);

/// Each document by the name of its file, which is `CONFIGMAP/KEY`.
pub type Documents = BTreeMap<String, String>;

impl Cluster {
    /// The documents in the ConfigMaps with `label`: keys that end in `.yaml` or `.yml`.
    /// Followed from now on.
    ///
    /// # Errors
    ///
    /// When they cannot be listed: nothing is not the same as none.
    pub async fn follow(
        self: &Arc<Self>,
        label: &'static str,
    ) -> Result<watch::Receiver<Documents>, Error> {
        let (documents, mut version) = self.documents(label).await?;
        let (sender, receiver) = watch::channel(documents);
        let (it, mut failed) = (Arc::clone(self), 0_u8);
        drain::spawn("follow", async move {
            loop {
                if let Err(error) = it.take(label, &mut version, &sender).await {
                    failed = failed.saturating_add(1);
                    if failed == 1 {
                        warn!(label, %error, "cannot watch ConfigMaps; what was read last stays");
                    }
                    sleep(BACKOFF.wait(failed, rand::random())).await;
                } else if mem::take(&mut failed) != 0 {
                    info!(label, "watching ConfigMaps again");
                }
            }
        });
        Ok(receiver)
    }

    /// Waits for news since `version`, and takes them.
    async fn take(
        &self,
        label: &str,
        version: &mut String,
        sender: &watch::Sender<Documents>,
    ) -> Result<(), Error> {
        let news = self.news(label, version).with_subscriber(NoSubscriber::new());
        let news = timeout(AGAIN, news).await;
        sleep(GATHER).await;
        let (new, at) = self.documents(label).await?;
        *version = at;
        self.changes.send_modify(|it| *it = it.wrapping_add(1));
        sender.send_if_modified(|it| new != mem::replace(it, new.clone()));
        news.unwrap_or(Ok(()))
    }

    /// The documents, and at which version of the whole.
    async fn documents(&self, label: &str) -> Result<(Documents, String), Error> {
        let (api, params) = (self.api::<ConfigMap>(), ListParams::default().labels(label));
        let list = self.call(|| api.list(&params)).await?;
        let is_document = |key: &str| [".yaml", ".yml"].iter().any(|it| key.ends_with(it));
        let mut documents = Documents::new();
        for it in list.items {
            let name = it.metadata.name.unwrap_or_default();
            let texts = it.data.into_iter().flatten().filter(|(key, _)| is_document(key));
            documents.extend(texts.map(|(key, text)| (format!("{name}/{key}"), text)));
        }
        Ok((documents, list.metadata.resource_version.unwrap_or_default()))
    }

    /// Returns when something has changed since `version`, or may have: the API server ends
    /// each watch after some minutes.
    async fn news(&self, label: &str, version: &str) -> Result<(), Error> {
        let api = self.api::<ConfigMap>();
        let params = WatchParams::default().labels(label).disable_bookmarks();
        let events = self.once(api.watch(&params, version)).await?;
        pin!(events).next().await.transpose()?;
        Ok(())
    }
}
