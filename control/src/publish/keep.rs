//! Keep: what is handed out, in the store.
//!
//! A generation's documents are kept before the record names them, and removed after it has
//! ceased to: so what a record names is there.

use std::sync::Arc;

use remora::config::catalogue::Files;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{
    Error, Published, Publisher,
    content::Content,
    envelope::Held,
    record::{Entry, Record},
};
use crate::store::{self, Expected, Key, Kind, Version};

/// Numbers that are tried in a row; after a crash one may be taken and in nobody's use.
const NUMBERS_MAX: usize = 64;

impl Publisher {
    /// Keeps documents under the next number, and makes of the record what `change` does with
    /// that.
    pub(super) async fn renew(
        &self,
        content: &Arc<Content>,
        mut record: Record,
        change: impl FnOnce(&mut Record, u64),
    ) -> Result<u64, Error> {
        let number = self.keep(&record, content).await?;
        change(&mut record, number);
        self.write(record, Some(content)).await?;
        Ok(number)
    }

    /// Keeps documents under the next number.
    pub(super) async fn keep(&self, record: &Record, content: &Content) -> Result<u64, Error> {
        let text = store::json(&content.files);
        let mut taken = Ok(record.number);
        for number in (record.number + 1..).take(NUMBERS_MAX) {
            let put = self.store.put(&key(number), &text, &Expected::Absent).await;
            match put {
                Ok(_) => return Ok(number),
                Err(error @ store::Error::Conflict(_)) => taken = Err(error.into()),
                Err(error) => return Err(error.into()),
            }
            // From before a crash, and nobody was told of it.
            let found = self.store.get(&key(number)).await?;
            if found.is_some_and(|it| *it.value == text) {
                return Ok(number);
            }
        }
        taken
    }

    /// Makes `record` what is handed out; `fresh` are documents it names that were not
    /// handed out before.
    pub(super) async fn write(
        &self,
        record: Record,
        fresh: Option<&Arc<Content>>,
    ) -> Result<(), Error> {
        let expected = match &self.published.load().version {
            Some(version) => Expected::Version(version.clone()),
            None => Expected::Absent,
        };
        let text = store::json(&record);
        let version = self.store.put(&state(), &text, &expected).await?;
        self.adopt(record, version, fresh).await;
        if let Err(error) = self.prune().await {
            warn!(%error, "old policy is kept longer than it is of use");
        }
        Ok(())
    }

    /// Hands out what the store says, where that has changed.
    pub(super) async fn refresh(&self) -> Result<(), store::Error> {
        let Some(entry) = self.store.get(&state()).await? else { return Ok(()) };
        if self.published.load().version.as_ref() == Some(&entry.version) {
            return Ok(());
        }
        let damaged = |error: serde_json::Error| store::Error::Failed {
            verb: "read",
            key: state(),
            reason: error.to_string(),
        };
        let record = serde_json::from_slice(&entry.value).map_err(damaged)?;
        self.adopt(record, entry.version, None).await;
        Ok(())
    }

    /// Hands out what `record` names; what of it cannot be used is left out, so that
    /// sidecars keep what they have.
    async fn adopt(&self, record: Record, version: Version, fresh: Option<&Arc<Content>>) {
        let before = self.published.load_full();
        let mut held = [None, None];
        let trial = record.canary.as_ref().map(|it| &it.entry);
        for (held, entry) in held.iter_mut().zip([record.current.as_ref(), trial]) {
            let Some(entry) = entry else { continue };
            let known = before.current.iter().chain(&before.canary);
            if let Some(it) = known.clone().find(|it| it.number == entry.number) {
                *held = Some(Arc::clone(it));
                continue;
            }
            let mut contents = fresh.into_iter().chain(known.map(|it| &it.content));
            let content = match contents.find(|it| it.digest == entry.digest) {
                Some(it) => Ok(Arc::clone(it)),
                None => self.content(entry).await,
            };
            match content {
                Ok(content) => *held = Some(Arc::new(Held::new(entry.number, content))),
                Err(error) => warn!(%error, "sidecars keep the policy they have"),
            }
        }
        let [current, canary] = held;
        let published = Published { record, version: Some(version), current, canary };
        self.published.store(Arc::new(published));
        self.changes.send_modify(|it| *it += 1);
    }

    /// The documents of a generation that was published.
    pub(super) async fn content(&self, entry: &Entry) -> Result<Arc<Content>, Error> {
        let Entry { number, digest, .. } = entry;
        let unusable = |reason: String| Error::Unusable(*number, reason);
        let found = self.store.get(&key(*number)).await?;
        let found = found.ok_or_else(|| unusable("it is missing".to_owned()))?;
        let files = serde_json::from_slice(&found.value);
        let files = files.map_err(|it| unusable(it.to_string()))?;
        let read = spawn_blocking(move || Content::read(&Files::new(&files))).await;
        let content = read.map_err(|it| unusable(it.to_string()))?.map_err(unusable)?;
        if content.digest != *digest {
            return Err(unusable("it is damaged".to_owned()));
        }
        Ok(Arc::new(content))
    }

    /// Removes the generations that nobody can return to. Those above the current one may be
    /// another replica's that is about to name them.
    async fn prune(&self) -> Result<(), store::Error> {
        let published = self.published.load_full();
        let current = published.record.current.as_ref().map_or(0, |it| it.number);
        for name in self.store.list(Kind::Generation).await? {
            let number = name.parse().ok().filter(|it| *it < current);
            if let Some(number) = number.filter(|it| !published.record.names(*it)) {
                let _was_there = self.store.remove(&key(number)).await?;
            }
        }
        Ok(())
    }
}

fn state() -> Key {
    Kind::State.key("policy")
}

fn key(number: u64) -> Key {
    Kind::Generation.key(number.to_string())
}
