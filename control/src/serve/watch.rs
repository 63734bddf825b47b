//! Watch: tells a sidecar what has changed, always and only the newest.
//!
//! Nothing is queued: at each change what is to be said is worked out anew from the state of
//! that moment, and one line is on its way at a time. So a slow reader skips what is old, and
//! one that takes none for [`super::Pace::stall`] is cut off with its whole connection.
//!
//! A stream begins with all there is, the bundle first: whoever has been away misses nothing.
//! It ends when the caller's certificate does, or when the roots no longer vouch for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use remora::{
    clock, drain,
    sync::wire::{Envelope, Message},
};
use remora_certs::spiffe_id::SpiffeId;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{self, MissedTickBehavior},
};

use super::{Control, Reason, auth::Peer, body::Body, tls};
use crate::{
    fleet::{Connected, Sender},
    issuing::Issuing,
};

/// Renewals that are asked for are spread so that so many come in a second.
const RENEWALS_PER_SECOND: usize = 20;

/// The longest that they are spread.
const SPREAD_MAX: u64 = 300;

/// A stream.
struct Watch {
    control: Arc<Control>,
    peer: Arc<Peer>,
    sender: Sender,
    lines: mpsc::Sender<Bytes>,
    connected: Connected,
    told: Told,
    _only: OwnedSemaphorePermit,
}

/// What was said last.
#[derive(Default)]
struct Told {
    bundle: u64,
    policy: Option<Arc<Envelope>>,
    renew: Option<String>,
}

/// Why a stream ends.
enum End {
    /// The reader has gone.
    Gone,
    /// For a reason of control's.
    Dropped(&'static str),
}

/// Begins a stream for `instance` of `id`, whose certificate ends at `ends`.
pub(super) fn open(
    control: &Arc<Control>,
    peer: &Arc<Peer>,
    (id, ends): (SpiffeId, Duration),
    instance: &str,
) -> Result<Body, Reason> {
    let only = Arc::clone(&peer.watching).try_acquire_owned().map_err(|_| Reason::Busy)?;
    let (instance, address) = (instance.to_owned(), peer.address);
    let sender = Sender { id, instance, peer: address, not_after: ends.as_secs() };
    let (lines, body) = mpsc::channel(1);
    let watch = Watch {
        connected: control.fleet.connected(&sender, clock::wall()).ok_or(Reason::FleetFull)?,
        control: Arc::clone(control),
        peer: Arc::clone(peer),
        sender,
        lines,
        told: Told::default(),
        _only: only,
    };
    drain::spawn("watch", watch.run());
    Ok(Body::Lines(body))
}

impl Watch {
    async fn run(mut self) {
        let End::Dropped(reason) = self.follow().await else { return };
        self.control.metrics.dropped.with_label_values(&[reason]).inc();
        tracing::info!(id = %self.sender.id, instance = %self.sender.instance, reason, "watch dropped");
    }

    async fn follow(&mut self) -> End {
        let control = Arc::clone(&self.control);
        let mut issuing = control.live.changes();
        let mut policy = control.publisher.changes();
        let mut services = self.connected.services();
        let mut heartbeat = time::interval(control.pace.heartbeat);
        // The first line is one anyway, and those that came late are not made up for.
        heartbeat.reset();
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(end) = self.tell().await {
                return end;
            }
            let living = tokio::select! {
                _ = issuing.changed() => self.vouched(),
                _ = policy.changed() => Ok(()),
                _ = services.changed() => Ok(()),
                _ = heartbeat.tick() => match self.vouched() {
                    Ok(()) => self.send(&Message::Heartbeat, "heartbeat").await,
                    ended => ended,
                },
                () = self.lines.closed() => Err(End::Gone),
                () = control.drain.begun() => Err(End::Gone),
            };
            if let Err(end) = living {
                return end;
            }
        }
    }

    /// Whether the caller may still be told anything.
    fn vouched(&self) -> Result<(), End> {
        let now = clock::wall();
        if self.sender.not_after <= now.as_secs() {
            return Err(End::Dropped("expired"));
        }
        let trusted = tls::verify(&self.control.live.get(), &self.peer.chain, now);
        trusted.map_err(|_| End::Dropped("untrusted"))
    }

    /// Says what has not been said yet.
    async fn tell(&mut self) -> Result<(), End> {
        let control = Arc::clone(&self.control);
        let issuing = control.live.get();
        if self.told.bundle != issuing.bundle.sequence {
            self.told.bundle = issuing.bundle.sequence;
            self.send(&Message::Bundle(issuing.bundle.clone()), "bundle").await?;
        }
        if let Some(policy) = self.policy(&issuing) {
            self.told.policy = Some(Arc::clone(&policy));
            self.send(&Message::Policy(Envelope::clone(&policy)), "policy").await?;
        }
        if let Some(issuer) =
            issuing.renew.clone().filter(|it| self.told.renew.as_ref() != Some(it))
        {
            self.told.renew = Some(issuer.clone());
            let sidecars = control.fleet.len() / RENEWALS_PER_SECOND;
            let within = u64::try_from(sidecars).unwrap_or(u64::MAX).clamp(1, SPREAD_MAX);
            self.send(&Message::Renew { issuer, within }, "renew").await?;
        }
        Ok(())
    }

    /// The policy, when it is another than was said.
    fn policy(&self, issuing: &Issuing) -> Option<Arc<Envelope>> {
        let Sender { id, instance, .. } = &self.sender;
        let services = self.control.fleet.services(id, instance);
        let envelope = self.control.publisher.envelope(id, instance, &services, &issuing.svid)?;
        let told = self.told.policy.as_ref();
        (!told.is_some_and(|it| Arc::ptr_eq(it, &envelope))).then_some(envelope)
    }

    async fn send(&self, message: &Message, kind: &str) -> Result<(), End> {
        let mut line = serde_json::to_vec(message).map_err(|_| End::Gone)?;
        line.push(b'\n');
        match self.lines.send_timeout(line.into(), self.control.pace.stall).await {
            Ok(()) => {
                self.control.metrics.messages.with_label_values(&[kind]).inc();
                Ok(())
            }
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                self.peer.kill.notify_one();
                Err(End::Dropped("slow"))
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(End::Gone),
        }
    }
}
