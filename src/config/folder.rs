//! Folder: the files of a policy folder, all of one moment.
//!
//! Kubernetes fills a mounted folder with links into `..data`, itself a link to a folder
//! of one version, and swaps that one link. The version is looked up once and every file
//! is read from it, so that two versions are never mixed.
//!
//! # Sources
//!
//! - Kubernetes, `AtomicWriter`: the layout and the order of an update.
//!   <https://github.com/kubernetes/kubernetes/blob/master/pkg/volume/util/atomic_writer.go>

use std::{
    ffi::OsStr,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::report::{Complaint, Place, Report};

/// The most one file may hold; a policy of a large service has a few KiB.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most files of a folder.
const FILES_MAX: usize = 1_000;

/// The most all files together may hold, for they are in memory at the same time.
const TOTAL_BYTES_MAX: usize = 16 << 20;

/// How often a version is looked up that is swapped while it is being read.
const SWAPS_MAX: usize = 3;

/// The link that Kubernetes swaps.
const DATA: &str = "..data";

/// One file.
#[derive(Debug)]
pub(super) struct Source {
    /// The name that problems are reported under.
    pub(super) file: Arc<Path>,
    /// What it holds, or why it could not be read.
    pub(super) content: Result<Vec<u8>, Complaint>,
}

/// The files that `path` names, by name: itself, or those of the folder it is.
///
/// # Errors
///
/// `path` cannot be read at all.
pub(super) fn read(path: &Path) -> io::Result<Vec<Source>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![source(path.to_owned(), path)]);
    }
    let mut sources = Vec::new();
    for _ in 0..SWAPS_MAX {
        let version = fs::read_link(path.join(DATA)).ok();
        sources = read_version(path, version.as_deref())?;
        if version == fs::read_link(path.join(DATA)).ok() {
            break;
        }
    }
    Ok(sources)
}

/// The files of a folder whose `..data` leads to `version`.
fn read_version(folder: &Path, version: Option<&Path>) -> io::Result<Vec<Source>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if is_document(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    let excess = names.len().saturating_sub(FILES_MAX);
    names.truncate(FILES_MAX);
    let mut total = 0;
    let mut sources = Vec::new();
    for name in names {
        let shown = folder.join(name);
        let real = match (version, fs::read_link(&shown)) {
            (Some(version), Ok(link)) => match link.strip_prefix(DATA) {
                Ok(rest) => folder.join(version).join(rest),
                Err(_) => shown.clone(),
            },
            _ => shown.clone(),
        };
        let mut source = source(shown, &real);
        total += source.content.as_ref().map_or(0, Vec::len);
        if TOTAL_BYTES_MAX < total {
            let message = format!("the folder holds more than {} MiB", TOTAL_BYTES_MAX >> 20);
            source.content = Err(Complaint::new(message, "remove what this workload never calls"));
        }
        let full = TOTAL_BYTES_MAX < total;
        sources.push(source);
        if full {
            break;
        }
    }
    if 0 < excess {
        let message = format!("the folder holds {excess} files over the limit of {FILES_MAX}");
        let complaint = Complaint::new(message, "put several documents into one file");
        sources.push(Source { file: folder.into(), content: Err(complaint) });
    }
    Ok(sources)
}

/// `*.yaml` and `*.yml`, but nothing hidden: neither `..data` nor an editor's copy.
fn is_document(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    !name.as_encoded_bytes().starts_with(b".")
        && extension.is_some_and(|it| it == "yaml" || it == "yml")
}

fn source(shown: PathBuf, real: &Path) -> Source {
    let content = content(real).unwrap_or_else(|error| {
        let message = format!("the file cannot be read: {error}");
        Err(Complaint::new(message, "make it readable for this user, or remove it"))
    });
    Source { file: shown.into(), content }
}

fn content(path: &Path) -> io::Result<Result<Vec<u8>, Complaint>> {
    // Asked before it is opened: opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Ok(Err(Complaint::new("this is not a file", "remove it, or rename it")));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if FILE_BYTES_MAX < bytes.len() as u64 {
        let message = format!("the file is over {} MiB", FILE_BYTES_MAX >> 20);
        return Ok(Err(Complaint::new(message, "split it into several files")));
    }
    Ok(Ok(bytes))
}

impl Source {
    /// What it holds; why it could not be read goes to `report`.
    pub(super) fn content(&self, report: &mut Report) -> &[u8] {
        match &self.content {
            Ok(bytes) => bytes,
            Err(complaint) => {
                report.error(whole(&self.file), complaint.clone());
                &[]
            }
        }
    }
}

/// A file as a whole.
pub(super) fn whole(file: &Arc<Path>) -> Place {
    Place { file: Arc::clone(file), line: 0, column: 0 }
}

/// A number that changes whenever one of the files does.
pub(super) fn fingerprint(sources: &[Source]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for Source { file, content } in sources {
        file.hash(&mut hasher);
        match content {
            Ok(bytes) => (true, bytes).hash(&mut hasher),
            Err(Complaint { message, .. }) => (false, message).hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_yaml_that_is_not_hidden_is_read_and_in_order() {
        let folder = TempDir::new().unwrap();
        for name in ["b.yaml", "a.yml", "c.json", ".d.yaml", "..e.yaml", "f.yaml~"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        assert_eq!(names(&read(folder.path()).unwrap()), ["a.yml", "b.yaml"]);
    }

    #[test]
    fn a_mounted_folder_is_read_through_its_version() {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("..1")).unwrap();
        fs::write(folder.path().join("..1/a.yaml"), "one").unwrap();
        symlink("..1", folder.path().join(DATA)).unwrap();
        symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
        let sources = read(folder.path()).unwrap();
        assert_eq!(names(&sources), ["a.yaml"]);
        assert_eq!(sources[0].content.as_deref(), Ok(b"one".as_slice()));
    }

    #[test]
    fn every_file_is_of_the_version_that_was_looked_up() {
        let folder = TempDir::new().unwrap();
        for version in ["..1", "..2"] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("a.yaml"), version).unwrap();
        }
        symlink("..2", folder.path().join(DATA)).unwrap();
        symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
        // The link was swapped between the look and the reading.
        let sources = read_version(folder.path(), Some(Path::new("..1"))).unwrap();
        assert_eq!(sources[0].content.as_deref(), Ok(b"..1".as_slice()));
    }

    #[test]
    fn what_is_over_a_limit_is_refused_and_said() {
        let folder = TempDir::new().unwrap();
        let size = usize::try_from(FILE_BYTES_MAX).unwrap();
        fs::write(folder.path().join("a.yaml"), vec![b'#'; size]).unwrap();
        fs::write(folder.path().join("b.yaml"), vec![b'#'; size + 1]).unwrap();
        fs::create_dir(folder.path().join("c.yaml")).unwrap();
        let sources = read(folder.path()).unwrap();
        let messages: Vec<_> =
            sources.iter().map(|it| it.content.as_ref().err().map(|it| &*it.message)).collect();
        assert_eq!(messages, [None, Some("the file is over 1 MiB"), Some("this is not a file")]);
    }

    #[test]
    fn more_files_than_the_limit_are_refused_and_said() {
        let folder = TempDir::new().unwrap();
        for index in 0..=FILES_MAX {
            fs::write(folder.path().join(format!("{index}.yaml")), "").unwrap();
        }
        let sources = read(folder.path()).unwrap();
        let last = sources.last().unwrap().content.as_ref().unwrap_err();
        assert_eq!(last.message, "the folder holds 1 files over the limit of 1000");
    }

    #[test]
    fn a_fingerprint_follows_names_and_contents() {
        let source = |file: &str, text: &str| Source {
            file: Path::new(file).into(),
            content: Ok(text.as_bytes().to_vec()),
        };
        let one = fingerprint(&[source("a", "x")]);
        assert_eq!(one, fingerprint(&[source("a", "x")]));
        assert_ne!(one, fingerprint(&[source("b", "x")]));
        assert_ne!(one, fingerprint(&[source("a", "y")]));
        assert_ne!(one, fingerprint(&[]));
    }

    fn names(sources: &[Source]) -> Vec<&str> {
        sources.iter().map(|it| it.file.file_name().unwrap().to_str().unwrap()).collect()
    }
}
