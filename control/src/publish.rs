//! Publish: each workload gets the documents it needs, of one numbered generation.
//!
//! A folder (or whatever fills [`Source::Files`]) is followed; what is good as a whole
//! becomes a generation, and what is not changes nothing. Numbers only grow: to return to
//! older documents is a new generation of them. A new one may be tried by some sidecars
//! before everybody gets it ([`Canary`]).
//!
//! What is handed out is what `state/policy` in the store says, and every change of it is a
//! compare-and-swap of that one object, made after the documents it names are kept. So a
//! crash at any point leaves the old or the new, replicas follow by reading it, and who
//! leads by mistake cannot do harm.

mod canary;
mod content;
mod envelope;
mod keep;
mod record;
mod source;
mod turn;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use remora::sync::wire::{self, Envelope, PolicyChange, PolicyStatus, Sidecar};
use remora_certs::{spiffe_id::SpiffeId, svid::Svid};
use tokio::{select, sync::watch, time::sleep};
use tracing::{debug, info, warn};

pub(crate) use self::source::Source;
use self::{canary::Standing, envelope::Held, record::Record, turn::Turns};
use crate::store::{self, Store, Version};

/// How often the record, and the sidecars, are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long sidecars may take, where nobody says.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// How far above ours a sidecar's number is believed, or one of them could use all up.
const LEAP_MAX: u64 = 1_000_000;

/// What to publish, and how.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Without one, what the store has is handed out.
    pub(crate) source: Option<Source>,
    /// Without one, everybody gets a generation at once.
    pub(crate) canary: Option<Canary>,
}

/// How a generation is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Canary {
    /// Sidecars of a hundred that get it first, 1 to 99; at least one.
    pub(crate) percent: u8,
    /// How long they may take to say what they make of it.
    pub(crate) wait: Duration,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such generation any more.
    #[error("generation `{0}` is not kept")]
    NotKept(u64),
    /// Nothing was published before.
    #[error("there is no generation before this one")]
    NoneBefore,
    /// The documents of a generation are not good any more, or damaged.
    #[error("generation `{0}` cannot be used: {1}")]
    Unusable(u64, String),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Numbers generations and hands them out.
#[derive(Debug)]
pub(crate) struct Publisher {
    store: Arc<Store>,
    source: Mutex<Option<Source>>,
    canary: Option<Canary>,
    published: ArcSwap<Published>,
    changes: watch::Sender<u64>,
    /// The highest number a sidecar says it has.
    heard: AtomicU64,
    standing: Mutex<Standing>,
    /// What keeps us from doing our work.
    trouble: Mutex<Option<String>>,
    /// Held from reading the record to replacing it.
    writing: tokio::sync::Mutex<()>,
}

/// What is handed out now.
#[derive(Debug, Default)]
struct Published {
    record: Record,
    version: Option<Version>,
    current: Option<Arc<Held>>,
    canary: Option<Arc<Held>>,
}

impl Publisher {
    /// As the store has it; nothing is read from the source before [`Publisher::run`].
    pub(crate) async fn load(
        store: Arc<Store>,
        settings: Settings,
    ) -> Result<Arc<Self>, store::Error> {
        let Settings { source, canary } = settings;
        let publisher = Self {
            store,
            source: Mutex::new(source),
            canary,
            published: ArcSwap::default(),
            changes: watch::Sender::new(0),
            heard: AtomicU64::new(0),
            standing: Mutex::default(),
            trouble: Mutex::new(None),
            writing: tokio::sync::Mutex::new(()),
        };
        publisher.refresh().await?;
        Ok(Arc::new(publisher))
    }

    /// Keeps what is handed out up to date; never returns. `sidecars` tells how all of them
    /// do, and is asked twice a second.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is handed out stays.
    pub(crate) async fn run(self: Arc<Self>, sidecars: impl Fn() -> Vec<Sidecar> + Send) {
        let (sender, mut readings) = watch::channel(None);
        let source = self.source.lock().take();
        let turns = async {
            let mut turns = Turns::default();
            loop {
                let reading = readings.borrow_and_update().clone();
                let done = self.turn(reading, &sidecars, &mut turns).await;
                self.in_trouble(done.err().as_ref());
                select! {
                    _changed = readings.changed() => (),
                    () = sleep(LOOK) => (),
                }
            }
        };
        select! {
            () = source::follow(source, sender) => (),
            () = turns => (),
        }
    }

    /// Changes whenever [`Publisher::envelope`] may answer something else.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What the sidecar `instance` of `id` is to have, which calls `services`; `None` where
    /// nothing was published yet. The same [`Arc`] as before where nothing has changed and
    /// somebody still has it.
    pub(crate) fn envelope(
        &self,
        id: &SpiffeId,
        instance: &str,
        services: &[String],
        signer: &Svid,
    ) -> Option<Arc<Envelope>> {
        let published = self.published.load();
        let trial = published.record.canary.as_ref();
        let tries = trial.is_some_and(|it| it.asks(id.as_str(), instance));
        let canary = published.canary.as_ref().filter(|_| tries);
        canary.or(published.current.as_ref())?.envelope(id, services, signer)
    }

    /// A sidecar says that it has `number`: what it is to take must be above it.
    pub(crate) fn higher(&self, number: u64) {
        let ours = self.published.load().record.number;
        if number <= ours.saturating_add(LEAP_MAX) {
            self.heard.fetch_max(number, Ordering::AcqRel);
        } else {
            debug!(number, ours, "a sidecar has a number that nobody can have given it");
        }
    }

    /// What is handed out.
    pub(crate) fn status(&self) -> PolicyStatus {
        let published = self.published.load();
        let Record { current, canary, history, held, error, .. } = &published.record;
        let Standing { asked, accepted, .. } = *self.standing.lock();
        let unusable = current.as_ref().filter(|_| published.current.is_none());
        let unusable = unusable.map(|it| format!("generation `{}` cannot be used", it.number));
        let trouble = self.trouble.lock().clone();
        PolicyStatus {
            generation: current.as_ref().map_or(0, |it| it.number),
            canary: canary.as_ref().map(|it| wire::Canary {
                generation: it.entry.number,
                percent: it.percent,
                accepted,
                asked,
            }),
            history: history.iter().map(|it| it.number).collect(),
            error: [trouble, unusable, error.clone(), held.clone()].into_iter().find_map(|it| it),
        }
    }

    /// Does what an operator asks for; any replica may.
    pub(crate) async fn change(&self, change: PolicyChange) -> Result<PolicyStatus, Error> {
        let _writing = self.writing.lock().await;
        self.refresh().await?;
        let record = self.published.load().record.clone();
        let ours = record.current.as_ref().map(|it| it.number);
        match (change.rollback, record.canary.is_some()) {
            (Some(number), false) if Some(number) == ours => return Ok(self.status()),
            // What everybody else has is the one before.
            (None, true) => self.stop("rolled back".to_owned()).await?,
            (wanted, _) => {
                let found = wanted.map_or_else(|| record.before(), |it| record.kept(it));
                let to = found.cloned().ok_or(wanted.map_or(Error::NoneBefore, Error::NotKept))?;
                let content = self.content(&to).await?;
                let number = self.renew(&content, record, |it, n| it.roll_back(n, &to)).await?;
                info!(number, to = to.number, "policy rolled back");
            }
        }
        Ok(self.status())
    }

    fn in_trouble(&self, error: Option<&Error>) {
        let now = error.map(ToString::to_string);
        let before = std::mem::replace(&mut *self.trouble.lock(), now.clone());
        match now {
            Some(error) if before.as_ref() != Some(&error) => {
                warn!(error, "policy cannot be published");
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests;
