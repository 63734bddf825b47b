//! Source: what a folder, or whatever keeps files, has now; read and checked off the loop.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use remora::config::{catalogue::Files, watch};
use tokio::{sync::watch as channel, task::spawn_blocking};

use super::content::Content;

/// Where the documents come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A folder of `*.yaml`.
    Folder(PathBuf),
    /// Files by name, as something else keeps them; a name with `/` is as good.
    Files(channel::Receiver<BTreeMap<String, String>>),
}

/// What is there, or what is wrong with it.
pub(super) type Reading = Arc<Result<Arc<Content>, String>>;

/// Sends each new reading; never returns.
pub(super) async fn follow(source: Option<Source>, sender: channel::Sender<Option<Reading>>) {
    match source {
        Some(Source::Folder(folder)) => {
            let (path, last) = (folder.clone(), Arc::new(Mutex::new(None)));
            let look = move || {
                let files = Files::read(&path);
                let seen = Some(files.fingerprint());
                let is_new = std::mem::replace(&mut *last.lock(), seen) != seen;
                is_new.then(|| read(&files))
            };
            let found = |it: Option<Reading>| drop(it.map(|it| sender.send_replace(Some(it))));
            watch::follow(&folder, look, found).await;
        }
        Some(Source::Files(mut files)) => loop {
            let now = files.borrow_and_update().clone();
            // It fails when the runtime is being shut down.
            if let Ok(reading) = spawn_blocking(move || read(&Files::new(&now))).await {
                sender.send_replace(Some(reading));
            }
            if files.changed().await.is_err() {
                break;
            }
        },
        None => (),
    }
    std::future::pending::<()>().await;
}

fn read(files: &Files) -> Reading {
    Arc::new(Content::read(files).map(Arc::new))
}
