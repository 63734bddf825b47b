//! Driver: one task a name, on one runtime, for as long as somebody watches it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Semaphore, mpsc},
    time,
};

use super::{
    Config, Entry, Shared, State, Timing,
    dns::{Dns, Session},
    memory::{Answer, Memory},
};
use crate::{
    clock, drain,
    telemetry::{Metrics, metrics::DnsAge},
};

/// Names resolved at a time. A resolver takes 32 queries on a connection, and a name is two.
const LOOKUPS_MAX: usize = 16;

/// What resolves the names that are watched.
#[derive(Debug)]
pub struct Driver {
    begun: mpsc::Receiver<Arc<Entry>>,
    shared: Weak<Shared>,
    common: Arc<Common>,
    rng: StdRng,
}

/// What all names have in common.
#[derive(Debug)]
struct Common {
    dns: Arc<Dns>,
    timing: Timing,
    lookups: Semaphore,
    metrics: Metrics,
}

impl Driver {
    pub(super) fn new(
        begun: mpsc::Receiver<Arc<Entry>>,
        shared: Weak<Shared>,
        dns: Dns,
        config: &Config,
        metrics: Metrics,
    ) -> Self {
        let (dns, timing) = (Arc::new(dns), config.timing);
        let common = Common { dns, timing, lookups: Semaphore::new(LOOKUPS_MAX), metrics };
        Self { begun, shared, common: common.into(), rng: StdRng::seed_from_u64(config.seed) }
    }

    /// Resolves on the current runtime until the last [`super::Discovery`] is dropped.
    ///
    /// # Cancel safety
    ///
    /// Names that are already watched go on being resolved; no other begins to be.
    pub async fn run(mut self) {
        while let Some(entry) = self.begun.recv().await {
            let task = Task {
                shared: Weak::clone(&self.shared),
                common: Arc::clone(&self.common),
                rng: StdRng::from_rng(&mut self.rng),
                entry,
            };
            let _detached = drain::spawn("resolve", task.run());
        }
    }
}

/// Resolves one name.
struct Task {
    entry: Arc<Entry>,
    shared: Weak<Shared>,
    common: Arc<Common>,
    rng: StdRng,
}

impl Task {
    async fn run(mut self) {
        let mut session = Session::new(Arc::clone(&self.common.dns), self.entry.target.clone());
        let mut memory = Memory::new(self.common.timing, clock::now());
        let age = self.common.metrics.dns_age(&self.entry.target.label());
        loop {
            if !self.entry.is_watched() && self.is_forgotten().await {
                return;
            }
            let answer = self.resolve(&mut session).await;
            let wait = self.take_in(answer, &mut memory, age.as_ref());
            let refresh = self.common.timing.refresh.min(wait);
            // However often a newer answer is wanted, this one is good for `refresh`.
            time::sleep(refresh).await;
            let until_ttl = time::timeout(wait.saturating_sub(refresh), self.entry.wake.notified());
            let _asked_for = until_ttl.await.is_ok();
        }
    }

    /// Whether nobody came back to a name nobody watches, and it is off the table.
    async fn is_forgotten(&self) -> bool {
        let woken = time::timeout(self.common.timing.idle, self.entry.wake.notified());
        let woken = woken.await.is_ok();
        let Some(shared) = self.shared.upgrade() else { return true };
        let mut entries = shared.entries.lock();
        let listed = entries.get(&self.entry.target).is_some_and(|it| Arc::ptr_eq(it, &self.entry));
        // Under the lock nobody can begin to watch it.
        if listed && !woken && !self.entry.is_watched() {
            entries.remove(&self.entry.target);
            return true;
        }
        !listed && !self.entry.is_watched()
    }

    async fn resolve(&self, session: &mut Session) -> Answer {
        let deadline = self.common.timing.deadline;
        let resolved = time::timeout(deadline, async {
            // An error means the semaphore was closed, which nothing does.
            let _permit = self.common.lookups.acquire().await.ok();
            session.resolve().await
        });
        resolved.await.unwrap_or_else(|_elapsed| Answer::Failed {
            error: format!("no answer within {deadline:?}").into(),
        })
    }

    /// Publishes what an answer leads to; returns the time to the next question.
    fn take_in(&mut self, answer: Answer, memory: &mut Memory, age: Option<&DnsAge>) -> Duration {
        let result = match &answer {
            Answer::Found { stale: None, .. } => "answered",
            Answer::Nothing { .. } => "negative",
            Answer::Found { stale: Some(_), .. } | Answer::Failed { .. } => "failed",
        };
        self.common.metrics.dns_lookup(result);
        let verdict = memory.learn(answer, clock::now());
        if let Some(age) = age {
            age.set(verdict.age);
        }
        self.log(&verdict.state);
        self.entry.publish(verdict.endpoints, verdict.state);
        // Thousandths, from 0.9 to 1.1.
        verdict.wait * self.rng.random_range(900..=1_100) / 1_000
    }

    /// Logs a change from good to bad or back, and not each failure.
    fn log(&self, state: &State) {
        let before = &self.entry.resolved.load().state;
        if std::mem::discriminant(before) == std::mem::discriminant(state) {
            return;
        }
        let name = self.entry.target.label();
        match state {
            State::Stale { error } | State::Failed { error } => {
                tracing::warn!(name, %error, "name cannot be resolved");
            }
            State::NotFound => tracing::warn!(name, "name does not exist"),
            State::Fresh if *before != State::Pending => {
                tracing::info!(name, "name resolves again");
            }
            State::Fresh | State::Pending => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::{Discovery, NAMES_MAX, Target};
    use super::*;

    /// The task of a name that nobody watches waits a minute for somebody.
    #[test]
    fn a_name_is_watched_before_its_task_begins() {
        let config = Config {
            nameservers: Some(vec!["127.0.0.1:53".parse().unwrap()]),
            ..Config::default()
        };
        let watched = (0..20).all(|_| {
            let (discovery, mut driver) = Discovery::new(&config, Metrics::new()).unwrap();
            let looking = thread::spawn(move || {
                let mut watched = true;
                while let Some(entry) = driver.begun.blocking_recv() {
                    watched &= entry.is_watched();
                }
                watched
            });
            let names = (0..NAMES_MAX).map(|it| format!("{it}.test").into());
            let watches: Vec<_> =
                names.map(|name| discovery.watch(Target::Host { name, port: 80 })).collect();
            drop(discovery);
            let watched = looking.join().unwrap();
            drop(watches);
            watched
        });
        assert!(watched);
    }
}
