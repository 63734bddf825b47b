//! Session: one connection to control, from the first word to the last.
//!
//! Three things go on at once and none waits for another: news are taken as they come,
//! reports are sent, and the certificate is renewed when it is time. A session ends when
//! the connection does, or when there is another certificate: control is to see that one.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    mem::discriminant,
    time::Duration,
};

use rand::RngExt as _;
use remora_certs::{svid::Svid, x509::fingerprint};
use tokio::{
    select,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Host, Source, Sync,
    certificates::Trouble,
    client::{self, Client, Lines},
    policy::{self, Measure},
    schedule::{self, Life},
    wire::{self, Envelope, Message, Report},
};
use crate::config;

/// The least time between two certificates: a life that is over at once must not become a
/// flood of requests.
const RENEWALS_APART: Duration = Duration::from_millis(500);

/// The longest sleep before the clock is looked at again: it may have been set.
const NAP_MAX: Duration = Duration::from_secs(30);

impl Sync {
    /// Speaks with control until there is another certificate to do it with.
    pub(super) async fn session(&self, host: &Host) -> Result<(), Trouble> {
        if self.config.source == Source::Control
            && (self.memory.lock().by_token || self.renewal(host) <= (self.config.wall)())
        {
            return self.renew(host, None).await;
        }
        let svid = host.identity.material().svid;
        let client = self.connect(Some(svid.clone())).await?;
        // Control chooses policy by the services it knows of, and so is to know of ours first.
        // Where it takes no report now, it is told again.
        let mut told = None;
        let _taken = self.tell_control(host, &client, &mut told).await?.is_ok();
        let has = self.in_force(svid.id().to_string(), host).await;
        let watch = client.watch(&self.config.instance, has.as_deref()).await;
        let mut lines = watch.map_err(|it| self.doubted(it))?;
        self.connected(host);
        select! {
            ended = self.watching(host, &mut lines) => ended,
            ended = self.reporting(host, (&client, &svid), told) => ended,
            ended = self.renewing(host, &client) => ended,
        }
    }

    /// Takes news as they come. What cannot be written down is tried again, unless there is
    /// something newer of its kind: control does not send it twice.
    async fn watching(&self, host: &Host, lines: &mut Lines) -> Result<(), Trouble> {
        let (mut unwritten, mut failures) = (VecDeque::new(), 0);
        loop {
            let message = match self.next(lines, &mut unwritten, failures).await? {
                Some(Message::Heartbeat) | None => continue,
                Some(message) => message,
            };
            unwritten.retain(|it| discriminant(it) != discriminant(&message));
            let taken = match &message {
                Message::Bundle(bundle) => self.bundle(host, bundle),
                Message::Policy(envelope) => self.policy(host, envelope).await,
                Message::Renew { issuer, within } => {
                    self.asked(host, issuer, *within);
                    Ok(())
                }
                Message::Heartbeat => Ok(()),
            };
            if let Err(trouble) = &taken {
                if failures == 0 {
                    let error = trouble.words();
                    tracing::warn!(%error, "what control sent is not written down");
                }
                unwritten.push_back(message);
                failures += 1;
            } else if unwritten.is_empty() {
                failures = 0;
            }
            self.memory.lock().state_error = taken.err().map(|it| it.words());
            self.tell(host);
            self.dirty.notify_one();
        }
    }

    /// The next message, or one of those that could not be written down after a while.
    async fn next(
        &self,
        lines: &mut Lines,
        unwritten: &mut VecDeque<Message>,
        failures: u32,
    ) -> Result<Option<Message>, Trouble> {
        let silence = self.config.pace.silence;
        if unwritten.is_empty() {
            return Ok(lines.next(silence).await?);
        }
        let draw = self.memory.lock().rng.random();
        let wait = schedule::wait(self.config.pace.retry, failures, None, None, draw);
        match timeout(wait, lines.next(silence)).await {
            Ok(next) => Ok(next?),
            Err(_) => Ok(unwritten.pop_front()),
        }
    }

    /// Says how we do, on each change and now and then, `told` what was said already; until
    /// there is another certificate.
    async fn reporting(
        &self,
        host: &Host,
        (client, shown): (&Client, &Svid),
        mut told: Option<Report>,
    ) -> Result<(), Trouble> {
        let pace = &self.config.pace;
        let mut failures = 0;
        loop {
            if host.identity.material().svid.chain().first() != shown.chain().first() {
                return Ok(());
            }
            let leaving = host.drain.is_draining();
            if let Err(refused) = self.tell_control(host, client, &mut told).await? {
                failures += 1;
                sleep(self.pause(failures, &refused, None)).await;
                continue;
            }
            failures = 0;
            let changed = async {
                select! {
                    () = self.dirty.notified() => (),
                    () = host.changed.notified() => (),
                    () = host.drain.begun(), if !leaving => (),
                }
            };
            if timeout(pace.report, changed).await.is_err() {
                // Nothing changed, and control is to hear even so.
                told = None;
            } else {
                sleep(pace.settle).await;
            }
        }
    }

    /// Says how we do, unless that is what control was `told`; or why it does not take it,
    /// though the connection is good for more.
    async fn tell_control(
        &self,
        host: &Host,
        client: &Client,
        told: &mut Option<Report>,
    ) -> Result<Result<(), Trouble>, Trouble> {
        let report = self.report(host);
        if told.as_ref() == Some(&report) {
            return Ok(Ok(()));
        }
        match client.report(&report).await {
            Ok(()) => *told = Some(report),
            Err(error) if error.is_answer() && !error.is_about_certificate() => {
                tracing::debug!(%error, "report refused");
                return Ok(Err(error.into()));
            }
            Err(error) => return Err(self.doubted(error)),
        }
        Ok(Ok(()))
    }

    fn doubted(&self, error: client::Error) -> Trouble {
        let trouble = error.into();
        self.doubt(&trouble, true);
        trouble
    }

    /// What the policy in force is known by, to whom it is for: the digest of what control sent,
    /// put together from what is there of it. Nothing where none was accepted, or the files are
    /// gone; another one where either is not what it was.
    async fn in_force(&self, audience: String, host: &Host) -> Option<String> {
        let (number, folder) = (self.memory.lock().kept.generation, self.policy_folder());
        if number == 0 || host.policies.status().last_error.is_some() {
            return None;
        }
        let files = spawn_blocking(move || policy::read(&folder)).await.ok()?.ok()?;
        let payload = serde_json::to_vec(&wire::Generation { number, audience, files }).ok()?;
        Some(fingerprint(&payload))
    }

    /// Renews the certificate once, when it is time.
    async fn renewing(&self, host: &Host, client: &Client) -> Result<(), Trouble> {
        if self.config.source != Source::Control {
            return std::future::pending().await;
        }
        let mut failures = 0;
        loop {
            let left = self.renewal(host).saturating_sub((self.config.wall)());
            if !left.is_zero() {
                // Being asked to renew earlier ends the nap.
                let _woken = timeout(left.min(NAP_MAX), self.sooner.notified()).await.is_ok();
                continue;
            }
            let trouble = match self.renew(host, Some(client)).await {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            if matches!(&trouble, Trouble::Control(error) if !error.is_answer()) {
                return Err(trouble);
            }
            failures += 1;
            self.dirty.notify_one();
            sleep(self.pause(failures, &trouble, Some(host))).await;
        }
    }

    /// Renews the certificate and puts it in use.
    async fn renew(&self, host: &Host, client: Option<&Client>) -> Result<(), Trouble> {
        let before = host.identity.generation();
        let renewed = self.obtain(client).await.and_then(|()| {
            self.reload(host);
            // Without this, one that is never taken would be asked for again and again.
            if host.identity.generation() == before { Err(Trouble::NotTaken) } else { Ok(()) }
        });
        self.metrics.certificate_renewal(renewed.is_ok());
        let mut memory = self.memory.lock();
        memory.certificate_error = renewed.as_ref().err().map(Trouble::words);
        match &memory.certificate_error {
            None => memory.asked = None,
            Some(error) => tracing::warn!(%error, "certificate not renewed"),
        }
        drop(memory);
        self.tell(host);
        renewed
    }

    /// Has the process use what was written, and not when it happens to notice.
    fn reload(&self, host: &Host) {
        if let Some(event) = host.identity.reload((self.config.wall)()) {
            (host.on_identity)(&event);
        }
    }

    /// When to renew the certificate in use, since the Unix epoch: drawn once for each.
    fn renewal(&self, host: &Host) -> Duration {
        let (generation, now) = (host.identity.generation(), (self.config.wall)());
        let mut memory = self.memory.lock();
        let drawn = memory.renewal.filter(|(of, _)| *of == generation).map(|(_, at)| at);
        let regular = drawn.unwrap_or_else(|| {
            let svid = host.identity.material().svid;
            let life = Life { not_before: svid.not_before(), not_after: svid.not_after() };
            let at = life.renewal(memory.rng.random()).max(now + RENEWALS_APART);
            memory.renewal = Some((generation, at));
            at
        });
        memory.asked.map_or(regular, |asked| asked.min(regular))
    }

    /// Is asked to renew, unless the certificate is of `issuer` already.
    fn asked(&self, host: &Host, issuer: &str, within: u64) {
        if self.config.source != Source::Control || host.identity.material().issuer() == issuer {
            return;
        }
        let mut memory = self.memory.lock();
        let draw = memory.rng.random();
        let at = schedule::spread((self.config.wall)(), Duration::from_secs(within), draw);
        memory.asked = Some(memory.asked.map_or(at, |before| before.min(at)));
        self.sooner.notify_one();
    }

    /// Takes new roots. Those that cannot be used change nothing.
    fn bundle(&self, host: &Host, bundle: &wire::Bundle) -> Result<(), Trouble> {
        let trusted = self.trust(bundle);
        if matches!(trusted, Err(Trouble::Write(_))) {
            return trusted;
        }
        self.memory.lock().bundle_error = trusted.as_ref().err().map(Trouble::words);
        match trusted {
            Ok(()) => self.reload(host),
            Err(trouble) => {
                tracing::warn!(error = %trouble.words(), "new roots refused; the old ones stay");
            }
        }
        Ok(())
    }

    /// Takes a generation of policy. One that cannot be used changes nothing.
    async fn policy(&self, host: &Host, envelope: &Envelope) -> Result<(), Trouble> {
        let (control, material) = (self.named(), host.identity.material());
        let measure = Measure {
            roots: &material.roots,
            control: &control,
            own: material.svid.id(),
            last: self.memory.lock().kept.generation,
            now: (self.config.wall)(),
        };
        let generation = match measure.open(envelope) {
            Ok(generation) => generation,
            Err(error) => {
                tracing::warn!(%error, "policy of control refused; the old one stays");
                self.memory.lock().policy_error = Some(error.to_string());
                return Ok(());
            }
        };
        let wire::Generation { number, files, .. } = generation;
        let digest = digest(number, &files);
        {
            let mut memory = self.memory.lock();
            memory.received = memory.received.max(number);
            if memory.written == Some(digest) {
                return Ok(());
            }
        }
        let result = self.put_in_force(host, files).await?;
        let mut memory = self.memory.lock();
        memory.policy_error = result.err();
        memory.written = Some(digest);
        if memory.policy_error.is_none() {
            memory.kept.generation = number;
            self.metrics.control_generation(number);
            if let Err(error) = memory.kept.store(&self.config.state) {
                // What is not written down is to be sent again.
                memory.written = None;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Has the loader look through `files`, then writes them and has them loaded; or says
    /// what is wrong with them.
    async fn put_in_force(
        &self,
        host: &Host,
        files: BTreeMap<String, String>,
    ) -> Result<Result<(), String>, Trouble> {
        let (folder, now) = (self.policy_folder(), (self.config.wall)());
        let (policies, is_first) = (host.policies.clone(), self.is_new());
        let put = move || {
            if let Err(errors) = policies.check(&files) {
                let text = errors.to_string();
                return Ok((Err(text), Some(config::Event::Refused { errors })));
            }
            policy::write(&folder, &files, now)?;
            let (event, generation) = (policies.reload(), policies.generation());
            let refused = policies.status().last_error;
            // That the first policy is empty is worth knowing, too: it is waited for.
            let empty = config::Event::Accepted { generation, warnings: Vec::new() };
            let event = event.or_else(|| (is_first && refused.is_none()).then_some(empty));
            Ok::<_, Trouble>((refused.map_or(Ok(()), Err), event))
        };
        // Reading many documents takes longer than a health check should have to wait.
        let (result, event) = spawn_blocking(put).await.map_err(|_| Trouble::Stopped)??;
        if let Some(event) = event {
            (host.on_policy)(&event);
        }
        Ok(result)
    }

    /// How long to wait after `failures` in a row.
    pub(super) fn pause(&self, failures: u32, trouble: &Trouble, host: Option<&Host>) -> Duration {
        let now = (self.config.wall)();
        let left = host.filter(|_| self.config.source == Source::Control);
        let left = left.map(|it| it.identity.not_after().saturating_sub(now));
        let draw = self.memory.lock().rng.random();
        schedule::wait(self.config.pace.retry, failures, left, trouble.retry_after(), draw)
    }
}

/// Tells generations apart without keeping them.
fn digest(number: u64, files: &BTreeMap<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, files).hash(&mut hasher);
    hasher.finish()
}
