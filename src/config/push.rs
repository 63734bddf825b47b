//! Push: documents take the place of those in a folder that sidecars watch, by one swap.
//!
//! Files that are there and not among the new ones are gone then, unless they are of another
//! making: a sidecar would read them with the others, and they are nobody's to remove.

use std::{fmt, path::Path, time::Duration};

use remora_certs::folder::{self, Error, File};

use super::catalogue::Files;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Added,
    /// It held something else.
    Changed,
    /// It is not there any more.
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

impl Files {
    /// Puts them in place of those in the folder `to`, made when absent, and says what that
    /// changes; where nothing does, nothing is written. What is no text is left out.
    ///
    /// # Errors
    ///
    /// When they cannot be written, or a file is in the way that no push has made; all is then
    /// as it was.
    pub fn push_to(&self, to: &Path, now: Duration) -> Result<Vec<(Change, String)>, Error> {
        let there = to.exists().then(|| Self::read(to));
        let before = there.as_ref().map(Self::texts).unwrap_or_default();
        let after = self.texts();
        let change = |(name, text): (&String, _)| match before.get(name) {
            None => Some((Change::Added, name.to_owned())),
            old => (old != Some(text)).then(|| (Change::Changed, name.to_owned())),
        };
        let mut changes: Vec<_> = after.iter().filter_map(change).collect();
        for name in there.iter().flat_map(Self::names).filter(|it| !after.contains_key(it)) {
            if !to.join(&name).is_symlink() {
                return Err(Error::NotALink(to.join(name)));
            }
            changes.push((Change::Removed, name));
        }
        if !changes.is_empty() {
            let files: Vec<_> = after.iter().map(|(name, text)| File::public(name, text)).collect();
            folder::replace(to, &files, now)?;
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_changes_is_said_and_a_second_time_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let old = [("a.yaml", "# one\n"), ("b.yaml", "# two\n")];
        let added = |name: &str| (Change::Added, name.to_owned());
        assert_eq!(push(&dir, &old).unwrap(), [added("a.yaml"), added("b.yaml")]);
        assert_eq!(push(&dir, &old).unwrap(), []);
        let new = [("a.yaml", "# none\n"), ("c.yaml", "")];
        let (changed, removed) = ("a.yaml".to_owned(), "b.yaml".to_owned());
        assert_eq!(
            push(&dir, &new).unwrap(),
            [(Change::Changed, changed), added("c.yaml"), (Change::Removed, removed)]
        );
        assert_eq!(Files::read(&dir.path().join("to")).texts(), files(&new).texts());
    }

    #[test]
    fn files_of_somebody_else_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("to/own.yaml"), "# mine\n").unwrap();
        let error = push(&dir, &[("a.yaml", "")]).unwrap_err().to_string();
        assert!(error.contains("own.yaml` is a file of its own"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_behind_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        push(&dir, &[("a.yaml", "")]).unwrap();
        symlink("..data/b.yaml", dir.path().join("to/b.yaml")).unwrap();
        let told = push(&dir, &[("a.yaml", "")]).unwrap();
        assert_eq!(told, [(Change::Removed, "b.yaml".to_owned())]);
    }

    fn files(files: &[(&str, &str)]) -> Files {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Files::new(&files.collect::<BTreeMap<_, _>>())
    }

    fn push(dir: &TempDir, new: &[(&str, &str)]) -> Result<Vec<(Change, String)>, Error> {
        files(new).push_to(&dir.path().join("to"), Duration::from_secs(1))
    }
}
