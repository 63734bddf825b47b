//! Keep: what is handed out, in the store.
//!
//! Documents are kept before the record names them, under a name that holds the number they
//! are given and their digest. The record alone decides whether that number is theirs: two
//! replicas that give the same one keep different names, and one of them loses.
//!
//! What the record has ceased to name is removed after it was replaced, and never what
//! another replica is about to name. That is new, so its number is one above the record that
//! the replica replaces: were it not above ours, that record would be an older one than
//! ours, and could not be replaced any more.
//!
//! Documents that an earlier control kept under bare numbers are not found under these names:
//! the source's are published again, as the next number, and the others are removed.

use std::{collections::BTreeMap, sync::Arc};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{
    Published, Publisher,
    content::{Content, Reading},
    record::{Entry, Record},
};
use crate::store::{self, Expected, Kind};

impl Publisher {
    /// Hands out what the store says, where that has changed; what of it cannot be used is
    /// left out, so that sidecars keep what they have.
    pub(super) async fn refresh(&self) -> Result<(), store::Error> {
        let before = self.published.borrow().clone();
        let found = self.store.get_json::<Record>(&Record::key()).await?;
        let Some((record, version)) = found else { return Ok(()) };
        if before.version.as_ref() == Some(&version) {
            return Ok(());
        }
        let mut contents = BTreeMap::new();
        for entry in record.canary.iter().map(|it| &it.entry).chain(record.current()) {
            match self.content(entry).await? {
                Ok(content) => contents.extend([(entry.number, content)]),
                Err(error) => warn!(entry.number, error, "sidecars keep the policy they have"),
            }
        }
        info!(generations = ?contents.keys(), "policy handed out");
        if let Some(reason) = record.held.as_ref().filter(|_| record.held != before.record.held) {
            warn!(reason, "the newest documents are not what everybody gets");
        }
        self.published.send_replace(Published { record, version: Some(version), contents });
        Ok(())
    }

    /// Makes `record` what is handed out, where it is not; `content` is what it may have that
    /// is new.
    pub(super) async fn write(
        &self,
        record: Record,
        content: Option<&Content>,
    ) -> Result<(), store::Error> {
        let before = self.published.borrow().clone();
        if record == before.record {
            return Ok(());
        }
        let new = record.entries().find(|it| before.record.number < it.origin);
        if let (Some(entry), Some(content)) = (new, content) {
            self.store.put_json(&entry.key(), &content.files, Expected::Any).await?;
        }
        let expected = before.version.as_deref().map_or(Expected::Absent, Expected::Version);
        self.store.put_json(&Record::key(), &record, expected).await?;
        self.refresh().await?;
        if let Err(error) = self.prune(&record).await {
            warn!(%error, "old policy is kept longer than it is of use");
        }
        Ok(())
    }

    /// The documents of a generation that was published, or why they cannot be used.
    pub(super) async fn content(&self, entry: &Entry) -> Result<Reading, store::Error> {
        if let Some(known) = self.published.borrow().contents.get(&entry.number) {
            return Ok(Ok(Arc::clone(known)));
        }
        let Some((kept, _)) = self.store.get(&entry.key()).await? else {
            return Ok(Err("it is missing".to_owned()));
        };
        let digest = entry.digest.clone();
        let read = spawn_blocking(move || Content::kept(&kept, &digest)).await;
        Ok(read.unwrap_or_else(|it| Err(it.to_string())))
    }

    /// Removes the documents that nobody can return to.
    async fn prune(&self, record: &Record) -> Result<(), store::Error> {
        for name in self.store.list(Kind::GENERATION).await? {
            let origin: Option<u64> = name.split('-').next().and_then(|it| it.parse().ok());
            let is_old = origin.is_some_and(|it| it <= record.number);
            let key = Kind::GENERATION.key(name);
            if is_old && record.entries().all(|it| it.key() != key) {
                self.store.remove(&key).await?;
            }
        }
        Ok(())
    }
}
