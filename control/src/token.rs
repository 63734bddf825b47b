//! Token: a secret that gets one workload its first certificate, once.
//!
//! The store has the token's digest and never the token. The first CSR it is shown with
//! binds it to that CSR's key: whoever lost the answer may ask again with the same key until
//! the token ends, anybody with another key is refused, and the true owner learns of it.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remora_certs::{spiffe_id::SpiffeId, x509::fingerprint};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    serve::Reason,
    store::{self, Expected, Key, Kind, Store, Version},
};

/// What every join token begins with: tells it from a service account's, and scanners of
/// leaked secrets what they found.
pub(crate) const PREFIX: &str = "remora-join-";

/// The longest life of a token.
pub(crate) const LIFE_MAX: Duration = Duration::from_hours(7 * 24);

/// For so long after its end a token is told from one that never was.
const REMEMBERED: u64 = 24 * 60 * 60;

/// What the store has of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// SHA-256 of the token, in hexadecimal.
    digest: String,
    /// Who proves to be whom.
    id: String,
    /// In seconds since the Unix epoch.
    expires: u64,
    /// SHA-256 of the public key it is bound to.
    key: Option<String>,
}

/// A token that is valid now.
#[derive(Debug)]
pub(crate) struct Valid {
    /// What may be said of it: the beginning of its digest.
    pub(crate) name: String,
    pub(crate) id: SpiffeId,
    record: Record,
    version: Version,
}

/// Makes a token for `id`, good for `life`: what to show once, and what may be said of it.
///
/// Removes those that ended long ago: so there are no more of them than somebody made in a while.
pub(crate) async fn create(
    store: &Store,
    id: &SpiffeId,
    life: Duration,
    now: Duration,
) -> Result<(Zeroizing<String>, String), store::Error> {
    for name in store.list(Kind::TOKEN).await? {
        let key = Kind::TOKEN.key(name);
        // What is damaged stays.
        if let Ok(Some((Record { expires, .. }, _))) = store.get_json(&key).await
            && expires + REMEMBERED <= now.as_secs()
        {
            let _gone = store.remove(&key).await?;
        }
    }
    let secret = Zeroizing::new(rand::random::<[u8; 32]>());
    let secret = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(*secret));
    let token = Zeroizing::new(format!("{PREFIX}{}", *secret));
    let (key, digest) = name_of(&token);
    let record = Record { digest, id: id.to_string(), expires: (now + life).as_secs(), key: None };
    store.put_json(&key, &record, Expected::Absent).await?;
    Ok((token, key.name))
}

/// The token's record, when it is valid. Writes nothing, whoever asks.
pub(crate) async fn find(store: &Store, token: &str, now: Duration) -> Result<Valid, Reason> {
    let (key, digest) = name_of(token);
    let (record, version): (Record, _) = store.get_json(&key).await?.ok_or(Reason::TokenUnknown)?;
    // A name is but the beginning of a digest.
    if record.digest != digest {
        return Err(Reason::TokenUnknown);
    }
    if record.expires <= now.as_secs() {
        return Err(Reason::TokenExpired);
    }
    let id = record.id.parse().map_err(|_| Reason::ForeignId(record.id.clone()))?;
    Ok(Valid { name: key.name, id, record, version })
}

impl Valid {
    /// Binds the token to the key of this digest, once and for all.
    pub(crate) async fn bind(mut self, store: &Store, key: &str) -> Result<(), Reason> {
        if self.record.key.is_none() {
            self.record.key = Some(key.to_owned());
            let (at, expected) = (Kind::TOKEN.key(self.name), Expected::Version(&self.version));
            match store.put_json(&at, &self.record, expected).await {
                // Another replica was first: with this very key, or with another.
                Err(store::Error::Conflict(_)) => {
                    (self.record, _) = store.get_json(&at).await?.ok_or(Reason::TokenUnknown)?;
                }
                put => drop(put?),
            }
        }
        if self.record.key.as_deref() == Some(key) { Ok(()) } else { Err(Reason::TokenUsed) }
    }
}

/// Where a token's record is, and the digest in it.
fn name_of(token: &str) -> (Key, String) {
    let digest = fingerprint(token.as_bytes());
    (Kind::TOKEN.key(digest.get(..16).unwrap_or_default()), digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Folder;

    const NOW: Duration = Duration::from_secs(1_770_091_506);
    const HOUR: Duration = Duration::from_hours(1);
    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    #[tokio::test]
    async fn a_token_is_for_one_key_which_may_ask_again() {
        let (_dir, store) = store();
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().0;
        for key in ["one", "one"] {
            let valid = find(&store, &token, NOW).await.unwrap();
            assert_eq!(valid.id.as_str(), WEB);
            valid.bind(&store, key).await.unwrap();
        }
        let valid = find(&store, &token, NOW).await.unwrap();
        assert_eq!(valid.bind(&store, "two").await, Err(Reason::TokenUsed));
    }

    #[tokio::test]
    async fn of_two_keys_at_the_same_time_one_wins() {
        let (_dir, store) = store();
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().0;
        let (first, second) =
            (find(&store, &token, NOW).await.unwrap(), find(&store, &token, NOW).await.unwrap());
        let again = find(&store, &token, NOW).await.unwrap();
        first.bind(&store, "one").await.unwrap();
        assert_eq!(second.bind(&store, "two").await, Err(Reason::TokenUsed));
        again.bind(&store, "one").await.unwrap();
    }

    #[tokio::test]
    async fn a_token_ends_and_is_told_from_one_that_never_was() {
        let (_dir, store) = store();
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().0;
        assert!(
            find(&store, &token, NOW + HOUR.saturating_sub(Duration::from_secs(1))).await.is_ok()
        );
        let found = find(&store, &token, NOW + HOUR).await;
        assert_eq!(found.unwrap_err(), Reason::TokenExpired);
        // The next one is made, and removes what ended long ago.
        for (later, expected) in [(HOUR, Reason::TokenExpired), (HOUR * 25, Reason::TokenUnknown)] {
            create(&store, &WEB.parse().unwrap(), HOUR, NOW + later).await.unwrap();
            assert_eq!(find(&store, &token, NOW + HOUR).await.unwrap_err(), expected);
        }
        let other = find(&store, "remora-join-x", NOW).await;
        assert_eq!(other.unwrap_err(), Reason::TokenUnknown);
    }

    #[tokio::test]
    async fn the_store_never_has_the_token() {
        let (dir, store) = store();
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().0;
        let secret = token.strip_prefix(PREFIX).unwrap();
        assert_eq!(secret.len(), 43);
        let folder = dir.path().join("state/token");
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains(secret), "{text}");
        }
    }

    fn store() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        (dir, store)
    }
}
