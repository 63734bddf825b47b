//! Drive: does what the record says, and writes the next one when nobody is behind.
//!
//! A step is written before anything is done about it, and done again after a crash: all of
//! it is idempotent. The fleet is looked at only after what signs is of the step at hand, so
//! that whoever is not seen there gets what fits (see [`issuing`]).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use remora::{clock, drain::Drain, sync::wire};
use remora_certs::{
    authority::{ISSUER_CERTIFICATE, ISSUER_KEY, Pem, ROOT_CERTIFICATE, ROOT_KEY},
    folder::{self, File, write_over},
};
use tokio::time;

use super::{Proofs, Record, Step, advance, prove::prove, status};
use crate::{
    fleet::Fleet,
    issuing::{self, Live},
    store::{self, Expected, Store, Version},
};

/// How often to look while a rotation is under way.
const TURN: Duration = Duration::from_millis(250);

/// How often to look whether one begins, and to try again what went wrong.
const REST: Duration = Duration::from_secs(1);

/// Why a turn was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Issuing(#[from] issuing::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the authority's folder: {0}")]
    Folder(#[from] folder::Error),
}

/// The rotation of one control.
#[derive(Debug)]
pub(crate) struct Rotation {
    store: Arc<Store>,
    live: Arc<Live>,
    /// The folder that is to have the files of what signs, for `issue` and for backups.
    dir: Option<PathBuf>,
    /// With how many rotations were finished before the one they are of.
    proofs: Mutex<(u64, Proofs)>,
    error: Mutex<Option<String>>,
}

impl Rotation {
    /// Does nothing until it is run.
    pub(crate) fn new(store: Arc<Store>, live: Arc<Live>, dir: Option<PathBuf>) -> Arc<Self> {
        let (proofs, error) = (Mutex::default(), Mutex::default());
        Arc::new(Self { store, live, dir, proofs, error })
    }

    /// How far it is, and what keeps it.
    pub(crate) fn status(&self, fleet: &Fleet, now: Duration) -> wire::RotationStatus {
        let (record, error) = (&self.live.get().record, self.error.lock().clone());
        let status = status(record, &fleet.all(now), &self.proofs.lock().1, now);
        wire::RotationStatus { error, ..status }
    }

    /// Drives, until the drain begins.
    pub(crate) async fn run(&self, fleet: &Fleet, drain: &Drain) {
        // A folder tells of none: it is looked at again and again.
        let mut written = self.store.changes();
        loop {
            // What a turn has written stays; the rest is done by whoever drives next.
            let turned = tokio::select! {
                () = drain.begun() => return,
                turned = self.turn(fleet, clock::wall()) => turned,
            };
            let wait = turned.as_ref().map_or(REST, |it| *it);
            let error = turned.err().map(|it| it.to_string());
            let before = std::mem::replace(&mut *self.error.lock(), error.clone());
            if let Some(error) = error.filter(|it| before.as_ref() != Some(it)) {
                tracing::error!(%error, "rotation not driven");
            }
            tokio::select! {
                () = drain.begun() => return,
                _ = written.changed() => {}
                () = time::sleep(wait) => {}
            }
        }
    }

    /// Does what is to be done now; when to look again.
    pub(crate) async fn turn(&self, fleet: &Fleet, now: Duration) -> Result<Duration, Error> {
        self.live.follow(&self.store, now).await?;
        let (record, version) = {
            let live = self.live.get();
            (live.record.clone(), live.version.clone())
        };
        {
            // Others may have driven rotations meanwhile: theirs are not what ours proved.
            let mut proofs = self.proofs.lock();
            if proofs.0 != record.finished {
                *proofs = (record.finished, Proofs::new());
            }
        }
        if record.step == Step::Rest {
            return Ok(REST);
        }
        if !self.store.leads() {
            return Ok(TURN);
        }
        let (next, wait) = match record.step {
            Step::Clean => {
                self.clean(&record).await?;
                (record.cleaned(), TURN)
            }
            Step::Prove => {
                self.prove(fleet, now).await;
                (self.next(&record, fleet, now).await?, REST)
            }
            Step::Rest | Step::Prepare | Step::Trust | Step::Renew | Step::Retire => {
                (self.next(&record, fleet, now).await?, TURN)
            }
        };
        let Some(next) = next else { return Ok(wait) };
        self.go(&next, version, now).await?;
        Ok(Duration::ZERO)
    }

    /// The next record, by what all replicas know by now.
    async fn next(
        &self,
        record: &Record,
        fleet: &Fleet,
        now: Duration,
    ) -> Result<Option<Record>, Error> {
        let look = || advance(record, &fleet.all(now), &self.proofs.lock().1, now);
        if look().is_none() {
            return Ok(None);
        }
        fleet.refresh(&self.store, now).await?;
        Ok(look())
    }

    async fn go(&self, next: &Record, version: Version, now: Duration) -> Result<(), Error> {
        match issuing::write(&self.store, next, &Expected::Version(version)).await {
            // Given up, or driven by another: the next turn sees what there is.
            Err(store::Error::Conflict(_)) => return Ok(()),
            other => other?,
        };
        self.live.follow(&self.store, now).await?;
        tracing::info!(step = next.step.as_str(), finished = next.finished, "rotation goes on");
        Ok(())
    }

    /// Shakes hands with whom it did not yet.
    async fn prove(&self, fleet: &Fleet, now: Duration) {
        let (issuing, all) = (self.live.get(), fleet.all(now));
        let todo: Vec<_> = {
            let proofs = self.proofs.lock();
            let proved = |it: &wire::Sidecar| {
                let name = (it.id.clone(), it.report.instance.clone());
                matches!(proofs.1.get(&name), Some(Ok(())))
            };
            all.iter().filter(|it| it.connected && !proved(it)).collect()
        };
        let proofs = prove(&issuing, &todo).await;
        self.proofs.lock().1.extend(proofs);
    }

    /// Has the folder hold what signs, and removes the key of what signed before.
    async fn clean(&self, record: &Record) -> Result<(), Error> {
        if let Some(dir) = &self.dir {
            let next = next_root_key(dir, &record.signs.fingerprint);
            mirror(dir, &self.live.get().authority.to_pem(), &next)?;
        }
        if let Some(old) = &record.other {
            let _was_there = self.store.remove(&old.key()).await?;
        }
        Ok(())
    }
}

/// Where the key of a new root is until `issuer`, the first under it, signs alone. Each attempt has
/// its own: what one leaves behind never takes the place of the key of the root in use.
pub(crate) fn next_root_key(dir: &Path, issuer: &str) -> PathBuf {
    dir.join(format!("next-root-{}.key", issuer.get(..16).unwrap_or_default()))
}

/// Writes the files that `init` made anew, the key before its certificate.
fn mirror(dir: &Path, pem: &Pem, next: &Path) -> Result<(), folder::Error> {
    let public = |name, content| File { name, content, secret: false };
    for file in [
        public(ROOT_CERTIFICATE, pem.root.as_bytes()),
        File { name: ISSUER_KEY, content: pem.key.as_bytes(), secret: true },
        public(ISSUER_CERTIFICATE, pem.issuer.as_bytes()),
    ] {
        write_over(&dir.join(file.name), &file)?;
    }
    match std::fs::rename(next, dir.join(ROOT_KEY)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(folder::Error::Io { path: next.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
