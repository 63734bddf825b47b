//! Folder: the store of one machine, a file an object below `DIR/state`.
//!
//! Several processes may use it at a time (a server, and an operator's commands): each write
//! holds a lock of the folder from its comparison to its rename. An object's version is the
//! digest of its content.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use remora::telemetry::words;
use remora_certs::{
    folder::{create_dir, write_over},
    x509::fingerprint,
};
use zeroize::Zeroizing;

use super::{Entry, Error, Expected, Key, Kind, Version};

/// The folder of all objects, in that of the authority.
const STATE: &str = "state";

/// The lock that every write holds.
const LOCK: &str = ".lock";

/// The lock that a server holds as long as it runs.
const SERVING: &str = ".serving";

/// A store of files.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

/// As long as it lives, no other server may use the folder.
#[derive(Debug)]
pub(crate) struct Serving {
    _lock: File,
}

impl Folder {
    /// The store below the authority's folder `dir`; nothing is written until an object is.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { root: dir.join(STATE) }
    }

    /// Makes this process the server of the folder; `None` when another one is.
    pub(crate) fn serve(&self) -> io::Result<Option<Serving>> {
        let file = self.lock_file(SERVING)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Serving { _lock: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        match fs::read(self.path(key)) {
            Ok(bytes) => {
                let version = version(&bytes);
                Ok(Some(Entry { value: Zeroizing::new(bytes), version }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", key, error)),
        }
    }

    pub(crate) fn put(
        &self,
        key: &Key,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, Error> {
        let wrong = |error| failed("write", key, error);
        let lock = self.lock_file(LOCK).map_err(wrong)?;
        lock.lock().map_err(wrong)?;
        let found = self.get(key)?.map(|it| it.version);
        let as_expected = match expected {
            Expected::Absent => found.is_none(),
            Expected::Version(version) => found.as_ref() == Some(version),
            Expected::Any => true,
        };
        if !as_expected {
            return Err(Error::Conflict(key.clone()));
        }
        make_dir(&self.root.join(key.kind.as_str())).map_err(|it| failed("write", key, it))?;
        let secret = key.kind.is_secret();
        let file = remora_certs::folder::File { name: &key.name, content: value, secret };
        write_over(&self.path(key), &file).map_err(|it| failed("write", key, it))?;
        Ok(version(value))
    }

    pub(crate) fn remove(&self, key: &Key) -> Result<bool, Error> {
        match fs::remove_file(self.path(key)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", key, error)),
        }
    }

    pub(crate) fn list(&self, kind: Kind) -> Result<Vec<String>, Error> {
        let wrong = |error| failed("list", &kind.key("*"), error);
        let entries = match fs::read_dir(self.root.join(kind.as_str())) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(wrong(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(wrong)?.file_name().to_string_lossy().into_owned();
            // What begins with a dot is half written.
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.kind.as_str()).join(&key.name)
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        make_dir(&self.root).map_err(io::Error::other)?;
        File::options().create(true).truncate(false).write(true).open(self.root.join(name))
    }
}

fn make_dir(path: &Path) -> Result<(), remora_certs::folder::Error> {
    create_dir(path, 0o700, true)
}

fn version(bytes: &[u8]) -> Version {
    Version(fingerprint(bytes))
}

fn failed(verb: &'static str, key: &Key, reason: impl std::error::Error) -> Error {
    Error::Failed { verb, key: key.clone(), reason: words(&reason) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_write_replaces_what_it_expects_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::State.key("policy");
        assert!(store.get(&key).unwrap().is_none());
        let first = store.put(&key, b"one", &Expected::Absent).unwrap();
        for wrong in [Expected::Absent, Expected::Version(Version("other".into()))] {
            assert!(matches!(store.put(&key, b"two", &wrong), Err(Error::Conflict(_))));
        }
        let second = store.put(&key, b"two", &Expected::Version(first)).unwrap();
        let entry = store.get(&key).unwrap().unwrap();
        assert_eq!((&entry.value[..], entry.version), (&b"two"[..], second));
        assert!(store.put(&key, b"three", &Expected::Any).is_ok());
    }

    #[test]
    fn removing_says_whether_it_was_there_so_that_one_of_two_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::Token.key("a");
        store.put(&key, b"x", &Expected::Absent).unwrap();
        assert_eq!(store.list(Kind::Token).unwrap(), ["a"]);
        assert!(store.remove(&key).unwrap());
        assert!(!store.remove(&key).unwrap());
        assert!(store.list(Kind::Token).unwrap().is_empty());
    }

    #[test]
    fn what_is_secret_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path());
        let key = Kind::Authority.key("1");
        store.put(&key, b"key", &Expected::Absent).unwrap();
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
