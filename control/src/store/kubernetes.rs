//! Kubernetes: objects as Secrets and ConfigMaps of control's own namespace.
//!
//! The API server is the judge: a create fails where the object exists, a replacement where
//! its `resourceVersion` is another, a removal where it is gone. So of any number of replicas
//! one wins. A write whose answer was lost is looked after: it was made when what is there is
//! what it would have put there. A removal whose answer was lost is an error, for nobody can
//! tell whose it was.

use std::sync::Arc;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Entry, Error, Expected, Key, Kind, Version};
use crate::kubernetes::{Cluster, KIND, Unserved};

/// What Kubernetes itself allows.
const BYTES_MAX: usize = 1 << 20;

/// Objects of a namespace.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    cluster: Arc<Cluster>,
}

impl Kubernetes {
    /// The store in the cluster's namespace.
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let (api, name) = (self.api(key.kind), name(key));
        let found = match self.cluster.call(|| api.get(&name)).await {
            Err(error) if error.is(404) => return Ok(None),
            Err(error) => return Err(failed("read", key, &error)),
            Ok(found) => found,
        };
        let value = value(key.kind, &found.data).ok_or_else(|| {
            failed("read", key, &format_args!("`{name}` has no `value` in its data"))
        })?;
        Ok(Some(Entry { value: Zeroizing::new(value), version: version(found) }))
    }

    pub(crate) async fn put(
        &self,
        key: &Key,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, Error> {
        if BYTES_MAX < value.len() {
            let size = value.len();
            let reason = format_args!("it has {size} bytes, and Kubernetes keeps {BYTES_MAX}");
            return Err(failed("write", key, &reason));
        }
        let put = match expected {
            Expected::Absent => self.create(key, value).await,
            Expected::Version(version) => self.replace(key, value, Some(version)).await,
            Expected::Any => match self.replace(key, value, None).await {
                Err(error) if error.is(404) => self.create(key, value).await,
                put => put,
            },
        };
        match put {
            Ok(it) => Ok(version(it)),
            // An earlier try may have been heard, though not answered.
            Err(error) if error.unsure && (error.is(404) || error.is(409)) => {
                let ours = self.get(key).await?.filter(|it| it.value.as_slice() == value);
                ours.map(|it| it.version).ok_or_else(|| Error::Conflict(key.clone()))
            }
            Err(error) if error.is(404) || error.is(409) => Err(Error::Conflict(key.clone())),
            Err(error) => Err(failed("write", key, &error)),
        }
    }

    pub(crate) async fn remove(&self, key: &Key) -> Result<bool, Error> {
        let (api, name) = (self.api(key.kind), name(key));
        match self.cluster.once(api.delete(&name, &DeleteParams::default())).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(failed("remove", key, &error)),
        }
    }

    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<String>, Error> {
        let (api, prefix) = (self.api(kind), name(&kind.key("")));
        let params = ListParams::default().labels(&format!("{KIND}={}", kind.as_str()));
        let listed = self.cluster.call(|| api.list_metadata(&params)).await;
        let listed = listed.map_err(|error| failed("list", &kind.key("*"), &error))?;
        let names = listed.items.into_iter().filter_map(|it| it.metadata.name);
        let names = names.filter_map(|it| it.strip_prefix(&prefix).map(str::to_owned));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn leads(&self) -> bool {
        self.cluster.leads()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.changes()
    }

    async fn create(&self, key: &Key, value: &[u8]) -> Result<DynamicObject, Unserved> {
        let (api, object) = (self.api(key.kind), object(key, value, None));
        self.cluster.call(|| api.create(&PARAMS, &object)).await
    }

    async fn replace(
        &self,
        key: &Key,
        value: &[u8],
        version: Option<&Version>,
    ) -> Result<DynamicObject, Unserved> {
        let (api, name, object) = (self.api(key.kind), name(key), object(key, value, version));
        self.cluster.call(|| api.replace(&name, &PARAMS, &object)).await
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        self.cluster.api_of(&resource(kind))
    }
}

/// Of writes: none.
const PARAMS: PostParams = PostParams { dry_run: false, field_manager: None };

fn resource(kind: Kind) -> ApiResource {
    if kind.is_secret() {
        ApiResource::erase::<Secret>(&())
    } else {
        ApiResource::erase::<ConfigMap>(&())
    }
}

fn name(Key { kind, name }: &Key) -> String {
    format!("remora-{}-{name}", kind.as_str())
}

fn object(key: &Key, value: &[u8], version: Option<&Version>) -> DynamicObject {
    let mut object = DynamicObject::new(&name(key), &resource(key.kind));
    let kind = key.kind.as_str().to_owned();
    object.metadata.labels = Some([(KIND.to_owned(), kind)].into());
    object.metadata.resource_version = version.map(|it| it.0.clone());
    let bytes = || ByteString(value.to_vec());
    object.data = match str::from_utf8(value) {
        _ if key.kind.is_secret() => json!({ "data": { "value": bytes() } }),
        // For people to read.
        Ok(text) => json!({ "data": { "value": text } }),
        Err(_) => json!({ "binaryData": { "value": bytes() } }),
    };
    object
}

fn value(kind: Kind, object: &Value) -> Option<Vec<u8>> {
    let bytes = |it: &Value| serde_json::from_value::<ByteString>(it.clone()).ok();
    match object.pointer("/data/value") {
        Some(it) if kind.is_secret() => Some(bytes(it)?.0),
        Some(it) => Some(it.as_str()?.as_bytes().to_vec()),
        None => Some(bytes(object.pointer("/binaryData/value")?)?.0),
    }
}

fn version(object: DynamicObject) -> Version {
    Version(object.metadata.resource_version.unwrap_or_default())
}

fn failed(verb: &'static str, key: &Key, reason: &impl std::fmt::Display) -> Error {
    Error::Failed { verb, key: key.clone(), reason: reason.to_string() }
}
