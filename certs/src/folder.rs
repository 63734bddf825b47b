//! Folder: several files that change together, by one rename.
//!
//! A certificate, its key and its roots are only right together, and a watcher may read at
//! any instant. The layout is the one Kubernetes gives mounted Secrets:
//!
//! ```text
//! tls.crt -> ..data/tls.crt
//! tls.key -> ..data/tls.key
//! ..data  -> ..1770087906.789012345
//! ..1770087906.789012345/{tls.crt,tls.key}
//! ```
//!
//! [`replace`] fills a new dated directory, then renames a new `..data` over the old one:
//! a reader that resolves `..data` once sees the old files or the new, never some of each.
//! A crash at any point leaves a complete set, old or new, and so does a full disk.
//!
//! Links to files that are new to the set are made before the swap, and those to files
//! that have left it removed after: a reader of the names in between finds one that leads
//! nowhere, which is an error to it, rather than a part of a set that looks whole.
//!
//! # Sources
//!
//! - Kubernetes' `AtomicWriter`:
//!   <https://github.com/kubernetes/kubernetes/blob/master/pkg/volume/util/atomic_writer.go>

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::pem;

/// The link to the current directory.
const DATA: &str = "..data";

/// Sixty-four roots of the largest kind fit; nothing sensible is larger.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// Somebody who swaps faster than three small files are read is not rotating certificates.
const READ_TRIES: u32 = 3;

/// What a file holds, wiped when dropped since it may be a key.
pub type Content = Zeroizing<Vec<u8>>;

/// One file to write.
#[derive(Clone, Copy)]
pub struct File<'a> {
    /// Its name in the folder.
    pub name: &'a str,
    /// What it holds.
    pub content: &'a [u8],
    /// Whether only its owner may read it.
    pub secret: bool,
}

impl<'a> File<'a> {
    /// One that anybody may read, as far as the umask lets them.
    pub fn public(name: &'a str, content: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { name, content: content.as_ref(), secret: false }
    }

    /// One that only its owner may read.
    pub fn secret(name: &'a str, content: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { name, content: content.as_ref(), secret: true }
    }
}

impl std::fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a key.
        f.debug_struct("File").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a folder or a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the same name is in the way.
    #[error("`{0}` exists")]
    Exists(PathBuf),
    /// A file of the same name is in the way that is not part of the layout.
    #[error("`{0}` is a file of its own and cannot be replaced together with the others")]
    NotALink(PathBuf),
    /// A name that leads elsewhere, or is the layout's own.
    #[error("`{0}` cannot be the name of a file in a folder")]
    Name(String),
    /// A file is missing or unreadable.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More bytes than are read.
    #[error("`{0}` has more than {max}", max = size(*.1))]
    TooLarge(PathBuf, usize),
    /// The file system said no.
    #[error("cannot write `{path}`")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn size(bytes: usize) -> String {
    if bytes < 1024 * 1024 {
        format!("{} KiB", bytes / 1024)
    } else {
        format!("{} MiB", bytes / 1024 / 1024)
    }
}

impl Error {
    /// Whether the input is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Read { .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => {
                "nothing was overwritten: choose another folder, or `--force` to replace them"
            }
            Self::NotALink(_) => {
                "choose an empty folder, or remove the file: links into `..data` replace it"
            }
            Self::Read { .. } => "check the path and who may read it",
            Self::TooLarge(..) => pem::HINT,
            Self::Name(_) | Self::Io { .. } => {
                "check the path, the space left and who may write there"
            }
        }
    }
}

/// Writes `files` into `folder`, made when absent, in place of those of the last call.
///
/// Files of the last call that are not among `files` are gone, links and all. `now` is the
/// time since the Unix epoch.
///
/// # Errors
///
/// When a file of that name exists outside the layout, or on IO errors; the old files are
/// then still in place. What cannot be cleared away of the old ones is no error, and is
/// cleared away by the next call.
pub fn replace(folder: &Path, files: &[File<'_>], now: Duration) -> Result<(), Error> {
    create_dir(folder, 0o755, true)?;
    let _lock = lock(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    for file in files {
        if ["", "."].contains(&file.name) || file.name.starts_with("..") || file.name.contains('/')
        {
            return Err(Error::Name(file.name.to_owned()));
        }
        let path = folder.join(file.name);
        match fs::symlink_metadata(&path) {
            Ok(it) if !it.is_symlink() => return Err(Error::NotALink(path)),
            Ok(_) | Err(_) => {}
        }
    }
    let dated = create_dated(folder, now)?;
    let fresh = folder.join(&dated);
    let filled = files.iter().try_for_each(|file| write_new(&fresh.join(file.name), file));
    let mut links = files.iter().map(|file| (folder.join(file.name), in_data(file.name)));
    let linked = filled.and_then(|()| links.try_for_each(|(path, target)| link(&path, &target)));
    let swapped = linked.and_then(|()| link(&folder.join(DATA), Path::new(&dated)));
    if swapped.is_err() {
        // The set is not in use: leave no half of it behind. The first error is the one to tell.
        let _removed = fs::remove_dir_all(&fresh);
    }
    let _cleared = clear_away(folder);
    swapped
}

/// Removes what a [`replace`] that was interrupted may have left of other sets: to a reader of
/// all files, a link to none is a mistake.
///
/// # Errors
///
/// When the folder cannot be read or changed; that it is not there is none.
pub fn clear(folder: &Path) -> io::Result<()> {
    match lock(folder).and_then(|_lock| clear_away(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        cleared => cleared,
    }
}

/// Keeps others out until it is dropped: two at once would undo each other's work.
///
/// # Errors
///
/// When the folder cannot be opened.
pub fn lock(folder: &Path) -> io::Result<fs::File> {
    fs::File::open(folder).and_then(|it| it.lock().map(|()| it))
}

/// Reads the files `names` of `folder` as one set.
///
/// A swap of `..data` in between is noticed, and the set read again. Outside the layout
/// nothing tells whether the files belong together: the reader must check.
///
/// # Errors
///
/// When a file is missing, unreadable or larger than any certificate.
pub fn read<const N: usize>(folder: &Path, names: [&str; N]) -> Result<[Content; N], Error> {
    let link = || fs::read_link(folder.join(DATA)).ok();
    let mut tries = 0;
    loop {
        let before = link();
        let set = names.map(|name| read_file(&folder.join(name), FILE_BYTES_MAX));
        tries += 1;
        if before == link() || tries == READ_TRIES {
            let mut files = std::array::from_fn(|_| Content::default());
            for (file, read) in files.iter_mut().zip(set) {
                *file = read?;
            }
            return Ok(files);
        }
    }
}

/// Reads one file of at most `max` bytes.
///
/// # Errors
///
/// When it is missing, unreadable or larger.
pub fn read_file(path: &Path, max: usize) -> Result<Content, Error> {
    let io_error = |source| Error::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    // Sized at once: a buffer that grows leaves copies of a key behind.
    let capacity = usize::try_from(length).unwrap_or_default().min(max) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(max as u64 + 1).read_to_end(&mut content).map_err(io_error)?;
    if max < content.len() {
        return Err(Error::TooLarge(path.to_owned(), max));
    }
    Ok(content)
}

/// Writes one new file, whole or not at all, and never over another.
///
/// # Errors
///
/// [`Error::Exists`] when there is a file of that name, else on IO errors.
pub fn write_new(path: &Path, file: &File<'_>) -> Result<(), Error> {
    // Unlike a rename, a link fails when the name is taken.
    write_by(path, file, |partial| {
        fs::hard_link(partial, path)?;
        fs::remove_file(partial)
    })
}

/// Writes one file, whole or not at all, in place of one that may be there.
///
/// # Errors
///
/// On IO errors; what was there is then still there.
pub fn write_over(path: &Path, file: &File<'_>) -> Result<(), Error> {
    write_by(path, file, |partial| fs::rename(partial, path))
}

/// Writes a file beside `path`, and has `place` give it that name.
fn write_by(
    path: &Path,
    file: &File<'_>,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), Error> {
    let partial = path.with_file_name(format!(".{}.{}.partial", file.name, std::process::id()));
    let mode = if file.secret { 0o600 } else { 0o644 };
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)
        .and_then(|mut it| it.write_all(file.content).and_then(|()| it.sync_all()));
    written.and_then(|()| place(&partial)).map_err(|source| {
        // Half a file is of no use, and may be half a key. The first error is the one to tell.
        let _removed = fs::remove_file(&partial);
        if source.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(path).is_ok() {
            return Error::Exists(path.to_owned());
        }
        Error::Io { path: path.to_owned(), source }
    })
}

/// Makes a directory, and its parents when `parents`.
///
/// # Errors
///
/// [`Error::Exists`] when it is there and `parents` is not given, else on IO errors.
pub fn create_dir(path: &Path, mode: u32, parents: bool) -> Result<(), Error> {
    match DirBuilder::new().mode(mode).recursive(parents).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            Err(Error::Exists(path.to_owned()))
        }
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// Makes a dated directory of a name that is free, and gives the name.
fn create_dated(folder: &Path, now: Duration) -> Result<String, Error> {
    let mut at = now;
    loop {
        let name = format!("..{}.{:09}", at.as_secs(), at.subsec_nanos());
        match create_dir(&folder.join(&name), 0o755, false) {
            Ok(()) => return Ok(name),
            // The clock stood still: at most as often as there are directories.
            Err(Error::Exists(_)) => at += Duration::from_nanos(1),
            Err(error) => return Err(error),
        }
    }
}

/// What the link of a file leads to.
fn in_data(name: impl AsRef<Path>) -> PathBuf {
    Path::new(DATA).join(name)
}

/// Makes `path` a link to `target`, in place of what it linked to before.
fn link(path: &Path, target: &Path) -> Result<(), Error> {
    if fs::read_link(path).is_ok_and(|it| it == target) {
        return Ok(());
    }
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Names with two dots are the layout's own, so nobody else's file can be in the way.
    let fresh = path.with_file_name(format!("..{}_tmp", name.trim_start_matches("..")));
    match fs::remove_file(&fresh) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }
    symlink(target, &fresh).and_then(|()| fs::rename(&fresh, path)).map_err(io_error)
}

/// Removes what is not of the set in use: dated directories, and links to no file of it.
fn clear_away(folder: &Path) -> io::Result<()> {
    let current = fs::read_link(folder.join(DATA)).unwrap_or_default();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = Path::new(path.file_name().unwrap_or_default());
        if is_dated(&name.to_string_lossy()) && name != current {
            fs::remove_dir_all(&path)?;
        } else if fs::read_link(&path).is_ok_and(|it| it == in_data(name)) && !path.exists() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Whether a directory's name is one [`replace`] gives: `..` and then digits.
fn is_dated(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let parts = name.strip_prefix("..").and_then(|it| it.split_once('.'));
    parts.is_some_and(|(seconds, nanos)| digits(seconds) && digits(nanos))
}

#[cfg(test)]
mod tests;
