//! Kept: the numbers that outlive a restart, beside the files they belong to.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use remora_certs::folder::{self, File};
use serde::{Deserialize, Serialize};

use super::Error;

/// Its name in the state folder.
const NAME: &str = "sync.json";

/// What is remembered of what control sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The number of the newest generation of policy that was accepted; 0 for none.
    #[serde(default)]
    pub(super) generation: u64,
    /// The number of the newest roots that control has named; 0 for none.
    #[serde(default)]
    pub(super) bundle: u64,
    /// SHA-256 of each of them, in order.
    #[serde(default)]
    pub(super) roots: Vec<String>,
}

impl Kept {
    /// What the state folder `state` remembers.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read. A damaged one remembers nothing: that is worth
    /// a line in the log, and not an outage.
    pub(super) fn load(state: &Path) -> Result<Self, Error> {
        let path = state.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "state is damaged, and begun anew");
                Self::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::State { path, source }),
        }
    }

    /// Writes it, whole or not at all.
    pub(super) fn store(&self, state: &Path) -> Result<(), folder::Error> {
        let path = state.join(NAME);
        let content = serde_json::to_vec(self).map_err(|it| failed(&path, it.into()))?;
        folder::write_over(&path, &File::public(NAME, &content))
    }
}

fn failed(path: &Path, source: io::Error) -> folder::Error {
    folder::Error::Io { path: PathBuf::from(path), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Kept::load(folder.path()).unwrap(), Kept::default());
        let kept = Kept { generation: 7, bundle: 2, roots: vec!["ab".to_owned()] };
        kept.store(folder.path()).unwrap();
        assert_eq!(Kept::load(folder.path()).unwrap(), kept);
    }

    #[test]
    fn a_damaged_file_remembers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), "{").unwrap();
        assert_eq!(Kept::load(folder.path()).unwrap(), Kept::default());
    }
}
