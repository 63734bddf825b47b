//! Folder: the store of one machine, a file an object below `DIR/state`.
//!
//! Several processes may use it at a time (a server, and an operator's commands): each write
//! holds a lock of its folder from its comparison to its rename. An object's version is the
//! digest of its content.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use remora_certs::{
    folder::{self, Content},
    x509::fingerprint,
};

use super::{Error, Expected, Found, Key, Kind, Objects, Version};

/// The folder of all objects, in that of the authority.
const STATE: &str = "state";

/// The lock that a server holds as long as it runs.
const SERVING: &str = ".serving";

/// A store of files.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The store below the authority's folder `dir`; nothing is written until an object is.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { root: dir.join(STATE) }
    }

    /// Makes this process the server of the folder, as long as what is returned lives; `None`
    /// when another one is.
    pub(crate) fn serve(&self) -> io::Result<Option<File>> {
        folder::create_dir(&self.root, 0o700, true).map_err(io::Error::other)?;
        let file = File::create(self.root.join(SERVING))?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            tried => Ok(tried.map(|()| Some(file))?),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.kind.name).join(&key.name)
    }
}

#[async_trait]
impl Objects for Folder {
    async fn get(&self, key: &Key) -> Result<Found<Content>, Error> {
        let read = there(fs::read(self.path(key))).map_err(Error::failed("read", key))?;
        let Some(value) = read.map(Content::new) else { return Ok(None) };
        let version = fingerprint(&value);
        Ok(Some((value, version)))
    }

    async fn put(&self, key: &Key, value: &[u8], expected: Expected<'_>) -> Result<Version, Error> {
        let dir = self.root.join(key.kind.name);
        folder::create_dir(&dir, 0o700, true).map_err(Error::failed("write", key))?;
        let _lock = folder::lock(&dir).map_err(Error::failed("write", key))?;
        match (expected, self.get(key).await?) {
            (Expected::Any, _) | (Expected::Absent, None) => {}
            (Expected::Version(it), Some((_, found))) if it == found => {}
            _ => return Err(Error::Conflict(key.clone())),
        }
        let file = folder::File { name: &key.name, content: value, secret: key.kind.secret };
        folder::write_over(&self.path(key), &file).map_err(Error::failed("write", key))?;
        Ok(fingerprint(value))
    }

    async fn remove(&self, key: &Key) -> Result<bool, Error> {
        let removed = there(fs::remove_file(self.path(key)));
        Ok(removed.map_err(Error::failed("remove", key))?.is_some())
    }

    async fn list(&self, kind: Kind) -> Result<Vec<String>, Error> {
        let entries = there(fs::read_dir(self.root.join(kind.name)));
        let entries = entries.and_then(|it| it.into_iter().flatten().collect());
        let entries: Vec<_> = entries.map_err(Error::failed("list", &kind.key("*")))?;
        let names = entries.iter().map(|it| it.file_name().to_string_lossy().into_owned());
        // What begins with a dot is half written.
        let mut names: Vec<_> = names.filter(|it| !it.starts_with('.')).collect();
        names.sort_unstable();
        Ok(names)
    }
}

/// That something is not there is no error.
fn there<T>(tried: io::Result<T>) -> io::Result<Option<T>> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        tried => tried.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_write_replaces_what_it_expects_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::STATE.key("policy");
        assert!(store.get(&key).await.unwrap().is_none());
        let first = store.put(&key, b"one", Expected::Absent).await.unwrap();
        for wrong in [Expected::Absent, Expected::Version("other")] {
            assert!(matches!(store.put(&key, b"two", wrong).await, Err(Error::Conflict(_))));
        }
        let second = store.put(&key, b"two", Expected::Version(&first)).await.unwrap();
        let entry = store.get(&key).await.unwrap().unwrap();
        assert_eq!((&entry.0[..], entry.1), (&b"two"[..], second));
        assert!(store.put(&key, b"three", Expected::Any).await.is_ok());
    }

    #[tokio::test]
    async fn removing_says_whether_it_was_there_so_that_one_of_two_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::TOKEN.key("a");
        store.put(&key, b"x", Expected::Absent).await.unwrap();
        assert_eq!(store.list(Kind::TOKEN).await.unwrap(), ["a"]);
        assert!(store.remove(&key).await.unwrap());
        assert!(!store.remove(&key).await.unwrap());
        assert!(store.list(Kind::TOKEN).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_secret_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::AUTHORITY.key("1");
        store.put(&key, b"key", Expected::Absent).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path(&key)), 0o600);
        assert_eq!(mode(&store.root), 0o700);
    }

    #[test]
    fn one_server_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let serving = store.serve().unwrap();
        assert!(serving.is_some());
        assert!(store.serve().unwrap().is_none());
        drop(serving);
        assert!(store.serve().unwrap().is_some());
    }
}
