//! Turn: what there is to do about policy, again and again.
//!
//! Each turn begins with the record as the store has it, and ends when that could not be
//! replaced; the next one begins anew.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use remora::{clock, sync::wire::Sidecar};
use tracing::{info, warn};

use super::{
    Error, Publisher, WAIT,
    canary::{Standing, Verdict},
    record::Record,
    source::Reading,
};

/// How often documents get another number because a sidecar has a higher one, at most: all
/// sidecars read them again, and what one of them says may be a lie.
const RAISE: Duration = Duration::from_secs(30);

/// What the loop remembers from turn to turn.
#[derive(Default)]
pub(super) struct Turns {
    /// The reading that was decided upon.
    pub(super) decided: Option<Reading>,
    /// Which trial is under way, and since when we wait for it.
    pub(super) trial: Option<(u64, Instant)>,
    /// When documents got another number because a sidecar has a higher one.
    pub(super) raised: Option<Instant>,
}

impl Publisher {
    /// One look at everything there is to do.
    pub(super) async fn turn(
        &self,
        reading: Option<Reading>,
        sidecars: &(impl Fn() -> Vec<Sidecar> + Send),
        turns: &mut Turns,
    ) -> Result<(), Error> {
        let _writing = self.writing.lock().await;
        self.refresh().await?;
        let leads = self.store.leads();
        let is_new = |it: &Reading| !turns.decided.as_ref().is_some_and(|old| Arc::ptr_eq(old, it));
        if !leads {
            turns.decided = None;
        } else if let Some(reading) = reading.filter(is_new) {
            self.decide(&reading).await?;
            turns.decided = Some(reading);
        }
        let verdict = self.judge(sidecars, turns);
        if leads {
            self.settle(verdict).await?;
            self.raise(turns).await?;
        }
        Ok(())
    }

    /// Makes a reading of the source what is handed out, or says why it is not.
    async fn decide(&self, reading: &Reading) -> Result<(), Error> {
        let published = self.published.load_full();
        let (before, mut record) = (&published.record, published.record.clone());
        // What cannot be used any more is as good as never published.
        let current = published.current.as_ref().map(|it| it.content.digest.as_str());
        let source = current.map(|_| before.source.as_str());
        match &**reading {
            Err(error) => record.error = Some(error.clone()),
            Ok(it) if it.files.is_empty() && current.is_some_and(|digest| digest != it.digest) => {
                record.error = Some(
                    "the policy folder is empty, which is not taken for an order to forget all\n\
                     hint: leave a file with a comment in it"
                        .to_owned(),
                );
            }
            Ok(content) if source == Some(&content.digest) => record.decided(&content.digest),
            Ok(content) if current == Some(&content.digest) => {
                record.decided(&content.digest);
                if record.canary.is_some() {
                    let stop = |it: &mut Record, number| it.stop(number, None);
                    return self.renew(content, record, stop).await.map(drop);
                }
            }
            Ok(content) => {
                let percent = self.canary.filter(|_| current.is_some()).map(|it| it.percent);
                let publish =
                    |it: &mut Record, number| it.publish(number, &content.digest, percent);
                let number = self.renew(content, record, publish).await?;
                info!(number, percent, "policy published");
                return Ok(());
            }
        }
        if record == *before {
            return Ok(());
        }
        if let Some(error) = &record.error {
            warn!(error, "policy refused; what was published stays");
        }
        self.write(record, None).await
    }

    /// How the trial is going, if one is.
    fn judge(&self, sidecars: &impl Fn() -> Vec<Sidecar>, turns: &mut Turns) -> Verdict {
        let published = self.published.load();
        let Some(trial) = &published.record.canary else {
            *self.standing.lock() = Standing::default();
            return Verdict::Wait;
        };
        // Its time begins anew with us: those who were asked must find us first.
        let asked = trial.below.map(|_| trial.entry.number);
        if turns.trial.map(|(number, _)| number) != asked {
            turns.trial = asked.map(|it| (it, clock::now()));
        }
        let wait = self.canary.map_or(WAIT, |it| it.wait);
        let waited = turns.trial.map(|(_, since)| clock::now().saturating_duration_since(since));
        let standing = trial.judge(&sidecars(), waited.is_some_and(|it| wait <= it));
        *self.standing.lock() = standing.clone();
        standing.verdict
    }

    /// Does what is to be done about the trial.
    async fn settle(&self, verdict: Verdict) -> Result<(), Error> {
        let mut record = self.published.load().record.clone();
        let Some(trial) = &mut record.canary else { return Ok(()) };
        let number = trial.entry.number;
        match verdict {
            Verdict::Wait => return Ok(()),
            Verdict::Ask(below) => trial.below = Some(below),
            Verdict::Promote => {
                record.promote();
                info!(number, "every sidecar asked took the policy: now it is for all");
            }
            Verdict::Stop(reason) => {
                warn!(number, reason, "policy stopped; all return to the one before");
                let why = format!(
                    "generation {number} was stopped: {reason}\n\
                     hint: correct the documents; who had them has the ones before again"
                );
                return self.stop(why).await;
            }
        }
        self.write(record, None).await
    }

    /// Ends the trial; all get the current documents, as a new generation.
    pub(super) async fn stop(&self, why: String) -> Result<(), Error> {
        let published = self.published.load_full();
        let Some(current) = &published.current else { return Ok(()) };
        let stop = |it: &mut Record, number| it.stop(number, Some(why));
        self.renew(&current.content, published.record.clone(), stop).await.map(drop)
    }

    /// Goes above the number that a sidecar has, which an earlier store gave it.
    async fn raise(&self, turns: &mut Turns) -> Result<(), Error> {
        let published = self.published.load_full();
        let (mut record, now) = (published.record.clone(), clock::now());
        let heard = self.heard.load(Ordering::Acquire);
        let is_soon = turns.raised.is_some_and(|it| now.saturating_duration_since(it) < RAISE);
        // A trial ends in a while, and two numbers at once are one too many.
        if heard <= record.number || is_soon || record.canary.is_some() {
            return Ok(());
        }
        record.number = heard;
        let Some(current) = &published.current else { return self.write(record, None).await };
        turns.raised = Some(now);
        let number = self.renew(&current.content, record, Record::renumber).await?;
        info!(number, heard, "policy published again, above what a sidecar has");
        Ok(())
    }
}
