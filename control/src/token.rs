//! Token: a secret that gets one workload its first certificate, once.
//!
//! The store has the token's digest and never the token. The first CSR it is shown with
//! binds it to that CSR's key: whoever lost the answer may ask again with the same key until
//! the token ends, anybody with another key is refused, and the true owner learns of it.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remora::sync::wire;
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
    #[serde(default)]
    key: Option<String>,
}

/// A token that was just made.
pub(crate) struct Created {
    /// To be shown once.
    pub(crate) token: Zeroizing<String>,
    /// What may be said of it.
    pub(crate) name: String,
    pub(crate) expires: Duration,
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

/// Makes a token for `id`, good for `life`.
pub(crate) async fn create(
    store: &Store,
    id: &SpiffeId,
    life: Duration,
    now: Duration,
) -> Result<Created, store::Error> {
    let token = Zeroizing::new(format!("{PREFIX}{}", *random()?));
    let expires = Duration::from_secs((now + life).as_secs());
    let (key, digest) = name_of(&token);
    let record =
        Record { digest, id: id.as_str().to_owned(), expires: expires.as_secs(), key: None };
    store.put(&key, &store::json(&record), &Expected::Absent).await?;
    Ok(Created { token, name: key.name, expires })
}

/// The token's record, when it is valid. Writes nothing, whoever asks.
pub(crate) async fn find(store: &Store, token: &str, now: Duration) -> Result<Valid, Reason> {
    let (key, digest) = name_of(token);
    let entry = store.get(&key).await?.ok_or(Reason::TokenUnknown)?;
    let record: Record =
        serde_json::from_slice(&entry.value).map_err(|it| Reason::StoreFailed(it.to_string()))?;
    if record.digest != digest {
        return Err(Reason::TokenUnknown);
    }
    if record.expires <= now.as_secs() {
        return Err(Reason::TokenExpired);
    }
    let id = record.id.parse().map_err(|_| Reason::ForeignId(record.id.clone()))?;
    Ok(Valid { name: key.name, id, record, version: entry.version })
}

impl Valid {
    /// Binds the token to the key of this digest, once and for all.
    pub(crate) async fn bind(mut self, store: &Store, key: &str) -> Result<(), Reason> {
        match &self.record.key {
            Some(bound) if bound == key => return Ok(()),
            Some(_) => return Err(Reason::TokenUsed),
            None => self.record.key = Some(key.to_owned()),
        }
        let at = Kind::Token.key(self.name);
        match store.put(&at, &store::json(&self.record), &Expected::Version(self.version)).await {
            Ok(_) => Ok(()),
            // Another replica was first: with this very key, or with another.
            Err(store::Error::Conflict(_)) => {
                let entry = store.get(&at).await?.ok_or(Reason::TokenUnknown)?;
                let bound = serde_json::from_slice(&entry.value).ok().and_then(|it: Record| it.key);
                if bound.as_deref() == Some(key) { Ok(()) } else { Err(Reason::TokenUsed) }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Removes tokens that ended long ago.
pub(crate) async fn sweep(store: &Store, now: Duration) -> Result<(), store::Error> {
    for name in store.list(Kind::Token).await? {
        let key = Kind::Token.key(name);
        let Some(entry) = store.get(&key).await? else { continue };
        let ended = serde_json::from_slice(&entry.value)
            .is_ok_and(|it: Record| it.expires + REMEMBERED <= now.as_secs());
        if ended {
            let _gone = store.remove(&key).await?;
        }
    }
    Ok(())
}

/// Whether an id is control's own or an operator's: no workload may have it.
pub(crate) fn is_reserved(id: &SpiffeId) -> bool {
    [wire::CONTROL_PATH, wire::OPERATOR_PATH].contains(&id.path())
}

/// Where a token's record is, and the digest in it.
fn name_of(token: &str) -> (Key, String) {
    let digest = fingerprint(token.as_bytes());
    (Kind::Token.key(digest.get(..16).unwrap_or_default()), digest)
}

fn random() -> Result<Zeroizing<String>, store::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| store::Error::Failed {
        verb: "write",
        key: Kind::Token.key("new"),
        reason: "the operating system gives no random bytes".to_owned(),
    })?;
    Ok(Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(*bytes)))
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
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().token;
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
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().token;
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
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().token;
        assert!(
            find(&store, &token, NOW + HOUR.saturating_sub(Duration::from_secs(1))).await.is_ok()
        );
        let found = find(&store, &token, NOW + HOUR).await;
        assert_eq!(found.unwrap_err(), Reason::TokenExpired);
        sweep(&store, NOW + HOUR).await.unwrap();
        assert_eq!(find(&store, &token, NOW + HOUR).await.unwrap_err(), Reason::TokenExpired);
        sweep(&store, NOW + HOUR + Duration::from_hours(24)).await.unwrap();
        assert_eq!(find(&store, &token, NOW + HOUR).await.unwrap_err(), Reason::TokenUnknown);
        let other = find(&store, "remora-join-x", NOW).await;
        assert_eq!(other.unwrap_err(), Reason::TokenUnknown);
    }

    #[tokio::test]
    async fn the_store_never_has_the_token() {
        let (dir, store) = store();
        let token = create(&store, &WEB.parse().unwrap(), HOUR, NOW).await.unwrap().token;
        let secret = token.strip_prefix(PREFIX).unwrap();
        assert_eq!(secret.len(), 43);
        let folder = dir.path().join("state/token");
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains(secret), "{text}");
        }
    }

    #[test]
    fn controls_and_operators_ids_are_reserved() {
        for (path, reserved) in [
            ("/ns/remora/sa/control", true),
            ("/ns/remora/sa/operator", true),
            ("/ns/remora/sa/web", false),
            ("/ns/shop/sa/control", false),
        ] {
            let id = format!("spiffe://cluster.local{path}").parse().unwrap();
            assert_eq!(is_reserved(&id), reserved, "{path}");
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::Folder(Folder::new(dir.path()));
        (dir, store)
    }
}
