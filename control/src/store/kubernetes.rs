//! Kubernetes: objects as Secrets and ConfigMaps `remora-KIND-NAME` of control's own namespace.

use async_trait::async_trait;
use remora_certs::folder::Content;
use remora_kubernetes::{Cluster, Object};
use tokio::sync::watch;

use super::{Error, Expected, Found, Key, Kind, Objects, Version};

#[async_trait]
impl Objects for Cluster {
    async fn get(&self, key: &Key) -> Result<Found<Content>, Error> {
        self.get(object(key)).await.map_err(Error::failed("read", key))
    }

    async fn put(&self, key: &Key, value: &[u8], expected: Expected<'_>) -> Result<Version, Error> {
        let put = self.put(object(key), value, expected).await.map_err(Error::failed("write", key));
        put?.ok_or_else(|| Error::Conflict(key.clone()))
    }

    async fn remove(&self, key: &Key) -> Result<bool, Error> {
        self.remove(object(key)).await.map_err(Error::failed("remove", key))
    }

    async fn list(&self, kind: Kind) -> Result<Vec<String>, Error> {
        self.list(kind.name, kind.secret).await.map_err(Error::failed("list", &kind.key("*")))
    }

    fn leads(&self) -> bool {
        self.leads()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes()
    }
}

fn object(Key { kind, name }: &Key) -> Object<'_> {
    Object { kind: kind.name, name, secret: kind.secret }
}
