//! Drive: does what the record says, and writes the next one when nobody is behind.
//!
//! A step is written before anything is done about it, and done again after a crash: all of
//! it is idempotent. The fleet is looked at only after what signs is of the step at hand, so
//! that whoever is not seen there gets what fits (see [`issuing`](crate::issuing)).
//!
//! What a sidecar says of itself is not what it serves: a live handshake shows that it serves a
//! leaf of the new issuer, and takes control's, which is of it too.

use std::{mem, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use remora::{
    clock,
    identity::proof,
    sync::wire::{RotationStatus, Sidecar},
};
use tokio::time;

use super::{Record, Step};
use crate::{
    fleet::Fleet,
    issuing::{Error, Issuing, Live},
    store::{self, Expected, Store},
};

/// How often to look while a rotation is under way.
const TURN: Duration = Duration::from_millis(250);

/// How often to look whether one begins, and to try again what went wrong.
const REST: Duration = Duration::from_secs(1);

/// Handshakes at a time: sockets, and some 10 ms of CPU a second's worth each.
const AT_A_TIME: usize = 32;

/// The rotation of one control.
#[derive(Debug)]
pub(crate) struct Rotation {
    store: Arc<Store>,
    live: Arc<Live>,
    /// The folder that is to have the files of what signs, for `issue` and for backups.
    dir: Option<PathBuf>,
    error: Mutex<Option<String>>,
}

impl Rotation {
    /// Does nothing until it is run.
    pub(crate) fn new(store: Arc<Store>, live: Arc<Live>, dir: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { store, live, dir, error: Mutex::default() })
    }

    /// How far it is, what each sidecar lacks, and what keeps control from driving it.
    pub(crate) fn status(&self, fleet: &Fleet, now: Duration) -> RotationStatus {
        let (live, all) = (self.live.get(), fleet.all(now));
        let (record, proofs) = (&live.record, live.proofs.lock());
        RotationStatus {
            step: (record.step != Step::Rest).then(|| record.step.to_string()),
            finished: record.finished,
            error: self.error.lock().clone(),
            sidecars: all.iter().map(|it| record.standing(it, &proofs, now)).collect(),
        }
    }

    /// Drives; never returns.
    ///
    /// # Cancel safety
    ///
    /// Safe: what a turn has written stays; the rest is done by whoever drives next.
    pub(crate) async fn run(&self, fleet: &Fleet) {
        // A folder tells of none: it is looked at again and again.
        let mut written = self.store.changes();
        loop {
            let turned = self.turn(fleet, clock::wall()).await;
            let wait = *turned.as_ref().unwrap_or(&REST);
            let error = turned.err().map(|it| it.to_string());
            let before = mem::replace(&mut *self.error.lock(), error.clone());
            if let Some(error) = error.filter(|it| before.as_ref() != Some(it)) {
                tracing::error!(%error, "rotation not driven");
            }
            let _sooner = time::timeout(wait, written.changed()).await;
        }
    }

    /// Does what is to be done now; when to look again.
    pub(crate) async fn turn(&self, fleet: &Fleet, now: Duration) -> Result<Duration, Error> {
        let live = self.live.follow(&*self.store, now).await?;
        let record = &live.record;
        // Who does not lead is told when another step is written.
        if record.step == Step::Rest || !self.store.leads() {
            return Ok(REST);
        }
        if record.step == Step::Prove {
            prove(&live, fleet.all(now)).await;
        }
        let look = || record.advance(&fleet.all(now), &live.proofs.lock(), now);
        let next = if let (Step::Clean, Some(old)) = (record.step, &record.other) {
            if let Some(dir) = &self.dir {
                live.authority.replace(dir, &old.root)?;
            }
            let _was_there = self.store.remove(&old.key()).await?;
            record.cleaned()
        } else if look().is_some() {
            // By what all replicas know by now.
            fleet.refresh(&*self.store, now).await?;
            look()
        } else {
            None
        };
        let Some(next) = next else {
            return Ok(if record.step == Step::Prove { REST } else { TURN });
        };
        let expected = Expected::Version(&live.version);
        match self.store.put_json(&Record::key(), &next, expected).await {
            Ok(_) => {
                tracing::info!(step = %next.step, finished = next.finished, "rotation goes on");
            }
            // Given up, or driven by another: the next turn sees what there is.
            Err(store::Error::Conflict(_)) => (),
            Err(error) => return Err(error.into()),
        }
        Ok(Duration::ZERO)
    }
}

/// Shakes hands with whom it did not yet at this moment.
async fn prove(live: &Issuing, mut sidecars: Vec<Sidecar>) {
    let proved = |it: &Sidecar| live.proofs.lock().get(&it.key()) == Some(&Ok(()));
    sidecars.retain(|it| it.connected && !proved(it));
    let each = |it| async move {
        let proof = shown(live, &it).await;
        live.proofs.lock().insert(it.key(), proof);
    };
    stream::iter(sidecars).for_each_concurrent(AT_A_TIME, each).await;
}

async fn shown(issuing: &Issuing, it: &Sidecar) -> Result<(), String> {
    // It has no listener, so that nobody is ever served its certificate.
    let Some(address) = it.listener()? else { return Ok(()) };
    proof::prove(address, &it.id, &issuing.svid).await.map_err(|it| it.to_string())
}

#[cfg(test)]
mod tests;
