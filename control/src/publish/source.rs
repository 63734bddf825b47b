//! Source: what a folder, or whatever keeps files, has now; read and checked off the loop.

use std::{collections::BTreeMap, path::PathBuf};

use remora::config::catalogue::Files;
use tokio::{sync::watch, task::spawn_blocking};

use super::content::{Content, Reading};

/// Where the documents come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A folder of `*.yaml`.
    Folder(PathBuf),
    /// Files by name, as something else keeps them; a name with `/` is as good.
    Files(watch::Receiver<BTreeMap<String, String>>),
}

/// Sends each new reading; returns when there can be no other.
pub(super) async fn follow(source: Option<&Source>, sender: &watch::Sender<Option<Reading>>) {
    let send = |it| drop(sender.send_replace(Some(it)));
    match source {
        Some(Source::Folder(folder)) => Files::follow(folder, Content::read, send).await,
        Some(Source::Files(files)) => {
            let mut files = files.clone();
            files.mark_changed();
            while files.changed().await.is_ok() {
                let now = Files::new(&files.borrow_and_update());
                // It fails when the runtime is being shut down.
                if let Ok(reading) = spawn_blocking(move || Content::read(&now)).await {
                    send(reading);
                }
            }
        }
        None => (),
    }
}
