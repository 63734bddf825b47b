//! Follow: ConfigMaps with a label, as they are now, within a second of each change.
//!
//! All of them are listed, and then watched for the first byte of news, upon which they are
//! listed again. So there is no state to keep in step: a watch that has ended, whatever for,
//! (`410 Gone` included) costs a list and nothing else. While the API server is away, what was
//! listed last stays.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Resource as _,
    api::{ListParams, WatchParams},
    client::Body,
    core::Request,
};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{BACKOFF, Cluster, Unserved};

/// Everything is listed at least so often, in case that news were lost.
const AGAIN: Duration = Duration::from_mins(5);

/// How long news are gathered: changes seldom come alone.
const GATHER: Duration = Duration::from_millis(100);

/// Objects of a label, at a version of the whole.
pub(super) struct Listed {
    pub(super) items: Vec<ConfigMap>,
    pub(super) version: String,
}

/// Lists the ConfigMaps with `label`.
pub(super) async fn list(cluster: &Cluster, label: &str) -> Result<Listed, Unserved> {
    let (api, params): (Api<ConfigMap>, _) = (cluster.api(), ListParams::default().labels(label));
    let list = cluster.call(|| api.list(&params)).await?;
    Ok(Listed { items: list.items, version: list.metadata.resource_version.unwrap_or_default() })
}

/// Hands the ConfigMaps with `label` to `take` whenever one has changed, and now and then
/// without a reason; `version` is that of the list it has.
pub(super) async fn follow(
    cluster: Arc<Cluster>,
    label: &'static str,
    mut version: String,
    take: impl Fn(Vec<ConfigMap>) + Send,
) {
    let mut failed: u8 = 0;
    loop {
        let news = timeout(AGAIN, news(&cluster, label, &version)).await;
        sleep(GATHER).await;
        let listed = list(&cluster, label).await;
        let reason = match (listed, news) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(listed), news) => {
                version = listed.version;
                take(listed.items);
                news.ok().and_then(Result::err)
            }
        };
        if let Some(error) = reason {
            failed = failed.saturating_add(1);
            if failed == 1 {
                warn!(label, error, "cannot watch ConfigMaps; what was read last stays");
            }
            sleep(BACKOFF.wait(failed, rand::random())).await;
        } else if std::mem::take(&mut failed) != 0 {
            info!(label, "watching ConfigMaps again");
        }
    }
}

/// Returns when something has changed since `version`, or may have.
async fn news(cluster: &Cluster, label: &str, version: &str) -> Result<(), String> {
    let url = ConfigMap::url_path(&(), Some(&cluster.namespace));
    let params = WatchParams::default().labels(label).disable_bookmarks();
    let request = Request::new(url).watch(&params, version).map_err(|it| it.to_string())?;
    let asked = timeout(cluster.patience, cluster.client.send(request.map(Body::from))).await;
    let answer = asked.map_err(|_| "the API server does not answer".to_owned())?;
    let answer = answer.map_err(|it| Unserved::from(it).to_string())?;
    if !answer.status().is_success() {
        return Err(format!("the API server answered {}", answer.status()));
    }
    match answer.into_body().frame().await {
        Some(Err(error)) => Err(error.to_string()),
        // The API server ends each watch after some minutes.
        Some(Ok(_)) | None => Ok(()),
    }
}
