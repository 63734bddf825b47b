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

mod content;
mod keep;
mod record;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use remora::{
    clock,
    sync::wire::{self, Envelope, Generation, PolicyChange, PolicyStatus, Sidecar},
};
use remora_certs::{spiffe_id::SpiffeId, svid::Svid, x509::fingerprint};
use tokio::{join, sync::watch, time::timeout};
use tracing::warn;

pub(crate) use self::source::Source;
use self::{
    content::{Content, Reading},
    record::Record,
};
use crate::store::{self, Store, Version};

/// How often the record, and the sidecars, are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long sidecars may take, where nobody says.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// How often documents may get another number because a sidecar has a higher one: all
/// sidecars read them again, and what one of them says may be a lie.
const RAISE: Duration = Duration::from_secs(30);

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
    settings: Settings,
    published: watch::Sender<Published>,
    /// What was signed, as long as somebody is to be sent it.
    envelopes: Mutex<HashMap<Terms, Weak<Envelope>>>,
    seen: Mutex<Seen>,
    /// Held from reading the record to replacing it.
    writing: tokio::sync::Mutex<()>,
}

/// The generation, the workload and the services it calls, and the certificate of who signs:
/// all of its sidecars get the same bytes.
type Terms = (u64, SpiffeId, BTreeSet<String>, Option<String>);

/// What is handed out now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    record: Record,
    version: Option<Version>,
    /// The generations of the record that anybody is to get, of those that can be used.
    contents: BTreeMap<u64, Arc<Content>>,
}

/// What one turn leaves to the next.
#[derive(Debug, Default)]
struct Seen {
    /// How the trial that is under way goes, and since when we wait for it.
    trial: Option<(wire::Canary, Instant)>,
    /// When documents last got another number because a sidecar has a higher one.
    raised: Option<Instant>,
    /// What keeps us from doing our work.
    trouble: Option<String>,
}

impl Publisher {
    /// As the store has it; nothing is read from the source before [`Publisher::run`].
    pub(crate) async fn load(
        store: Arc<Store>,
        settings: Settings,
    ) -> Result<Arc<Self>, store::Error> {
        let publisher = Self {
            store,
            settings,
            published: watch::Sender::default(),
            envelopes: Mutex::default(),
            seen: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
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
        let turns = async {
            loop {
                let reading = readings.borrow_and_update().clone();
                let turn = self.turn(reading, &sidecars).await;
                let trouble = turn.unwrap_or_else(|it| Some(it.to_string()));
                let before = mem::replace(&mut self.seen.lock().trouble, trouble.clone());
                if let Some(error) = trouble.filter(|it| before.as_ref() != Some(it)) {
                    warn!(error, "policy cannot be published; what was published stays");
                }
                let _sooner = timeout(LOOK, readings.changed()).await;
            }
        };
        join!(source::follow(self.settings.source.as_ref(), &sender), turns);
    }

    /// Changes whenever [`Publisher::envelope`] may answer something else.
    pub(crate) fn changes(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
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
        let published = self.published.borrow();
        let mut offers = published.record.offers(id.as_str(), instance).map(|it| it.number);
        let (number, content) = offers.find_map(|it| Some((it, published.contents.get(&it)?)))?;
        let services = services.iter().cloned().collect();
        let leaf = signer.chain().first().map(|it| fingerprint(it));
        let terms: Terms = (number, id.clone(), services, leaf);
        let mut envelopes = self.envelopes.lock();
        if let Some(envelope) = envelopes.get(&terms).and_then(Weak::upgrade) {
            return Some(envelope);
        }
        let files = content.selection.select(id.namespace(), id.service_account(), &terms.2);
        let generation = Generation { number, audience: id.to_string(), files };
        let sealed = Envelope::seal(&generation, signer);
        let sealed = sealed.inspect_err(|error| warn!(%error, "policy cannot be signed"));
        let envelope = Arc::new(sealed.ok()?);
        // What nobody has any more makes room before more of it is taken.
        if envelopes.len() == envelopes.capacity() {
            envelopes.retain(|_, it| 0 < it.strong_count());
        }
        envelopes.insert(terms, Arc::downgrade(&envelope));
        Some(envelope)
    }

    /// What is handed out.
    pub(crate) fn status(&self) -> PolicyStatus {
        let (published, seen) = (self.published.borrow(), self.seen.lock());
        let Record { canary, history, held, .. } = &published.record;
        let trial = seen.trial.as_ref().filter(|_| canary.is_some());
        let generation = history.first().map_or(0, |it| it.number);
        let unusable = (0 < generation && !published.contents.contains_key(&generation))
            .then(|| format!("generation `{generation}` cannot be used"));
        PolicyStatus {
            generation,
            canary: trial.map(|it| it.0.clone()),
            history: history.iter().map(|it| it.number).collect(),
            error: seen.trouble.clone().or(unusable).or_else(|| held.clone()),
        }
    }

    /// Does what an operator asks for; any replica may.
    pub(crate) async fn change(&self, change: PolicyChange) -> Result<PolicyStatus, Error> {
        let _writing = self.writing.lock().await;
        self.refresh().await?;
        let mut record = self.published.borrow().record.clone();
        record.roll_back(change.rollback)?;
        if let Some(to) = record.current() {
            self.content(to).await?.map_err(|it| Error::Unusable(to.number, it))?;
        }
        self.write(record, None).await?;
        Ok(self.status())
    }

    /// One look at everything there is to do: works out what the record should be, and
    /// replaces it once. Returns why what the source has is not taken.
    async fn turn(
        &self,
        reading: Option<Reading>,
        sidecars: &(impl Fn() -> Vec<Sidecar> + Send),
    ) -> Result<Option<String>, Error> {
        let _writing = self.writing.lock().await;
        self.refresh().await?;
        let (leads, canary) = (self.store.leads(), self.settings.canary);
        let Published { mut record, contents, .. } = self.published.borrow().clone();
        let usable = record.current().is_some_and(|it| contents.contains_key(&it.number));
        let decided = match &reading {
            Some(Ok(it)) if leads => record.decide(it, canary.map(|it| it.percent), usable),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(_)) | None => Ok(()),
        };
        self.seen.lock().look(&mut record, sidecars, canary.map_or(WAIT, |it| it.wait));
        if leads {
            self.write(record, reading.and_then(Result::ok).as_deref()).await?;
        }
        Ok(decided.err())
    }
}

impl Seen {
    /// Asks the sidecars what is to be known of them.
    fn look(&mut self, record: &mut Record, sidecars: &impl Fn() -> Vec<Sidecar>, wait: Duration) {
        let now = clock::now();
        let passed = |since: Instant| now.saturating_duration_since(since);
        if let Some(trial) = &record.canary {
            // Its time begins anew with us: those who are asked must find us first.
            let known = self.trial.as_ref().filter(|_| trial.below.is_some());
            let known = known.filter(|it| it.0.generation == trial.entry.number);
            let since = known.map_or(now, |it| it.1);
            let canary = record.judge(&sidecars(), wait <= passed(since));
            self.trial = canary.map(|it| (it, since));
        } else if self.raised.is_none_or(|it| RAISE <= passed(it)) && record.raise(&sidecars()) {
            // Not during a trial: two numbers at once are one too many.
            self.raised = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
