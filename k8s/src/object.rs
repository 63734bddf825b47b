//! Object: a Secret or ConfigMap `remora-KIND-NAME`, which is written by compare-and-swap.
//!
//! The API server is the judge: a create fails where the object exists, a replacement where
//! its `resourceVersion` is another, a removal where it is gone. So of any number of replicas
//! one wins. A write whose answer was lost is looked after: it was made when what is there is
//! what it would have put there. A removal whose answer was lost is an error, for nobody can
//! tell whose it was.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Cluster, Error, PARAMS, write};

/// The label that says of which kind an object is.
const KIND: &str = "remora.dev/kind";

/// Which object; kind and name are of lower-case letters, digits and `-`.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Its label, and part of its name.
    pub kind: &'a str,
    /// The rest of its name.
    pub name: &'a str,
    /// Whether it is a Secret. A ConfigMap is text where it can be, for people to read.
    pub secret: bool,
}

/// What an object holds, and its version, which changes with each write.
pub type Entry = (Zeroizing<Vec<u8>>, String);

/// What a write replaces.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// Nothing: the object is new.
    Absent,
    /// The object at this version.
    Version(&'a str),
    /// Whatever is there.
    Any,
}

impl Cluster {
    /// The object, if it is there.
    ///
    /// # Errors
    ///
    /// When the API server does not serve it, or it holds nothing.
    pub async fn get(&self, object: Object<'_>) -> Result<Option<Entry>, Error> {
        let (api, name) = self.place(object);
        let Some(found) = self.call(|| api.get_opt(&name)).await? else { return Ok(None) };
        let value = object.value(&found.data);
        let value = value.ok_or_else(|| {
            let reason = format!("`{name}` has no `value` in its data");
            Error::unusable(reason, "`kubectl describe` shows what it has")
        })?;
        let version = found.metadata.resource_version.unwrap_or_default();
        Ok(Some((Zeroizing::new(value), version)))
    }

    /// Writes the object whole, or not at all; its new version, or `None` where there is
    /// something else than `expected`.
    ///
    /// # Errors
    ///
    /// When the API server does not serve it, as where it has more than 1 MiB.
    pub async fn put(
        &self,
        object: Object<'_>,
        value: &[u8],
        expected: Expected<'_>,
    ) -> Result<Option<String>, Error> {
        let ((api, name), mut new) = (self.place(object), object.holding(value));
        if let Expected::Version(version) = expected {
            new.metadata.resource_version = Some(version.to_owned());
        }
        let put = match expected {
            Expected::Any => match self.call(|| api.replace(&name, &PARAMS, &new)).await {
                Err(error) if error.is(404) => self.call(|| write(&api, &new)).await,
                put => put,
            },
            Expected::Absent | Expected::Version(_) => self.call(|| write(&api, &new)).await,
        };
        match put {
            Ok(it) => Ok(it.metadata.resource_version),
            Err(error) if error.is(404) || error.is(409) => {
                // An earlier try may have been heard, though not answered.
                let found = if error.unsure { self.get(object).await? } else { None };
                Ok(found.filter(|it| *it.0 == value).map(|it| it.1))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the object; whether it was there.
    ///
    /// # Errors
    ///
    /// When the API server does not serve it, or nobody knows whether it has.
    pub async fn remove(&self, object: Object<'_>) -> Result<bool, Error> {
        let (api, name) = self.place(object);
        match self.once(api.delete(&name, &DeleteParams::default())).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names of the objects of a kind, in order.
    ///
    /// # Errors
    ///
    /// When the API server does not serve it.
    pub async fn list(&self, kind: &str, secret: bool) -> Result<Vec<String>, Error> {
        let (api, prefix) = self.place(Object { kind, name: "", secret });
        let params = ListParams::default().labels(&format!("{KIND}={kind}"));
        let listed = self.call(|| api.list_metadata(&params)).await?;
        let names = listed.items.into_iter().filter_map(|it| it.metadata.name);
        let names = names.filter_map(|it| it.strip_prefix(&prefix).map(str::to_owned));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What a Secret of another's has, by its keys.
    ///
    /// # Errors
    ///
    /// When the API server does not serve it.
    pub async fn secret(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let api = self.api::<Secret>();
        let named =
            |it: Error| Error { reason: format!("cannot read secret `{name}`: {it}"), ..it };
        let found = self.call(|| api.get(name)).await.map_err(named)?;
        Ok(found.data.into_iter().flatten().map(|(key, it)| (key, it.0)).collect())
    }

    fn place(&self, object: Object<'_>) -> (Api<DynamicObject>, String) {
        let api = Api::namespaced_with(self.client.clone(), &self.namespace, &object.resource());
        (api, object.full_name())
    }
}

impl Object<'_> {
    fn full_name(&self) -> String {
        format!("remora-{}-{}", self.kind, self.name)
    }

    fn resource(&self) -> ApiResource {
        let kind = if self.secret { "Secret" } else { "ConfigMap" };
        ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind))
    }

    fn holding(&self, value: &[u8]) -> DynamicObject {
        let mut object = DynamicObject::new(&self.full_name(), &self.resource());
        object.metadata.labels = Some([(KIND.to_owned(), self.kind.to_owned())].into());
        let bytes = || ByteString(value.to_vec());
        object.data = match str::from_utf8(value) {
            _ if self.secret => json!({ "data": { "value": bytes() } }),
            Ok(text) => json!({ "data": { "value": text } }),
            Err(_) => json!({ "binaryData": { "value": bytes() } }),
        };
        object
    }

    fn value(&self, object: &Value) -> Option<Vec<u8>> {
        let bytes = |it: &Value| serde_json::from_value::<ByteString>(it.clone()).ok();
        match object.pointer("/data/value") {
            Some(it) if self.secret => Some(bytes(it)?.0),
            Some(it) => Some(it.as_str()?.as_bytes().to_vec()),
            None => Some(bytes(object.pointer("/binaryData/value")?)?.0),
        }
    }
}
