//! Eyes: a notice whenever something may have changed in a folder.
//!
//! The system watches what a path leads to, and not the path: a folder that is replaced is
//! another one. So each look compares what the paths lead to with what is watched.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;
use tracing::warn;

/// How often the watches are compared with the paths in one look, for a folder that is
/// being made level by level.
const ROUNDS_MAX: usize = 8;

/// What gives a notice when something may have changed in a folder.
#[derive(Debug)]
pub(super) struct Eyes {
    folder: PathBuf,
    noticed: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// What is watched.
    watched: Vec<Target>,
    /// Whether the folder itself has come or gone, and its watch with it: a new folder may
    /// have the inode of the old one.
    is_stale: Arc<AtomicBool>,
    /// Whether the log says that changes are noticed late.
    is_said: bool,
}

/// A path, and the device and inode it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    path: PathBuf,
    id: (u64, u64),
}

impl Eyes {
    /// Closed eyes; `noticed` is told from the first [`Eyes::look`] on.
    pub(super) fn new(folder: &Path, noticed: Arc<Notify>) -> Self {
        // The folder above a relative path of one part has no name.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let is_stale = Arc::default();
        Self { folder, noticed, watcher: None, watched: Vec::new(), is_stale, is_said: false }
    }

    /// Watches what the paths lead to now. What cannot be watched is said once, and left
    /// to the regular reading.
    pub(super) fn look(&mut self) {
        let result = self.try_look();
        match &result {
            Err(error) if !self.is_said => {
                warn!(%error, folder = %self.folder.display(), "policy changes are noticed late");
            }
            _ => (),
        }
        self.is_said = result.is_err();
    }

    fn try_look(&mut self) -> notify::Result<()> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => {
                let (noticed, is_stale) = (Arc::clone(&self.noticed), Arc::clone(&self.is_stale));
                none.insert(open(self.folder.clone(), noticed, is_stale)?)
            }
        };
        if self.is_stale.swap(false, Ordering::AcqRel) {
            for old in self.watched.drain(..) {
                // Fails where the system has dropped it already, which is what is wanted.
                let _dropped = watcher.unwatch(&old.path);
            }
        }
        for _ in 0..ROUNDS_MAX {
            let targets = targets(&self.folder);
            if targets == self.watched {
                break;
            }
            for gone in self.watched.iter().filter(|it| !targets.contains(it)) {
                // Fails where the system has dropped it already, which is what is wanted.
                let _dropped = watcher.unwatch(&gone.path);
            }
            self.watched.retain(|it| targets.contains(it));
            for target in targets {
                if !self.watched.contains(&target) {
                    watcher.watch(&target.path, RecursiveMode::NonRecursive)?;
                    self.watched.push(target);
                }
            }
        }
        Ok(())
    }
}

fn open(
    folder: PathBuf,
    noticed: Arc<Notify>,
    is_stale: Arc<AtomicBool>,
) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error, such as an overflow, hides changes.
        let is_hidden = event.as_ref().map_or(true, notify::Event::need_rescan);
        if let Ok(event) = &event {
            if !is_hidden && !concerns(event, &folder) {
                return;
            }
            if event.paths.iter().any(|it| folder.starts_with(it)) {
                is_stale.store(true, Ordering::Release);
            }
        }
        // Any number of notices before the next reading are one.
        noticed.notify_one();
    })
}

/// Whether `event` may have changed what the folder holds.
fn concerns(event: &notify::Event, folder: &Path) -> bool {
    let is_written = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
    // Our own reading opens and closes files.
    let is_read = event.kind.is_access() && !is_written;
    let is_near = event.paths.iter().any(|it| it.starts_with(folder) || folder.starts_with(it));
    is_near && !is_read
}

/// What must be watched: the nearest folder above that is there, then the folder itself.
fn targets(folder: &Path) -> Vec<Target> {
    let target = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some(Target { path: path.to_owned(), id: (metadata.dev(), metadata.ino()) })
    };
    let above = folder.ancestors().skip(1).find_map(target);
    above.into_iter().chain(target(folder)).collect()
}
