//! Watch: tells a sidecar what has changed, always and only the newest.
//!
//! Nothing is queued: at each change what is to be said is worked out anew from the state of
//! that moment, and one line is on its way at a time. So a slow reader skips what is old, and
//! one that takes none for [`super::Pace::stall`] is cut off with its whole connection.
//!
//! A stream begins with all there is, the bundle first: whoever has been away misses nothing.
//! It ends when the caller's certificate does, or when the roots no longer vouch for it.
//!
//! Only the policy that a sidecar says it has is passed over at the beginning, by what is in
//! it and not by its number: which documents are a workload's depends on the services that the
//! fleet's record of it names, too. Where that is of now, equal payloads mean that nothing is
//! lacking, whatever was lost on the way before. Where it is not, because it was restored or
//! another replica has the newer one, what is compared may be of other services than the
//! sidecar calls; so a sidecar reports before it watches. Should that report be lost, the next
//! one tells of other services, and those are a change as any other.

use std::sync::Arc;

use bytes::Bytes;
use remora::{
    clock, drain,
    sync::{server::Lines, wire::Message},
};
use remora_certs::x509::fingerprint;
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::{self, MissedTickBehavior},
};

use super::{Reason, auth::Caller};
use crate::fleet::{Connected, Sender};

/// Renewals that are asked for are spread so that so many come in a second.
const RENEWALS_PER_SECOND: u64 = 20;

/// The longest that they are spread.
const SPREAD_MAX: u64 = 300;

/// Why a stream ends: for a reason of control's, or because one of the two has gone.
type End = Option<&'static str>;

/// A stream.
struct Watch {
    caller: Caller,
    sender: Sender,
    lines: mpsc::Sender<Bytes>,
}

/// Begins a stream for `sender`, which `has` policy of that digest.
pub(super) fn open(caller: Caller, sender: Sender, has: Option<String>) -> Result<Lines, Reason> {
    let only = Arc::clone(&caller.peer.watching).try_lock_owned().map_err(|_| Reason::Busy)?;
    let connected = caller.control.fleet.connected(&sender)?;
    let (lines, body) = mpsc::channel(1);
    let watch = Watch { caller, sender, lines };
    drain::spawn("watch", async move {
        let _only = only;
        if let Err(Some(reason)) = watch.follow(connected, has).await {
            let Sender { id, instance, .. } = &watch.sender;
            watch.caller.control.metrics.dropped.with_label_values(&[reason]).inc();
            tracing::info!(%id, instance, reason, "watch dropped");
        }
    });
    Ok(Lines(body))
}

impl Watch {
    async fn follow(&self, mut connected: Connected, mut has: Option<String>) -> Result<(), End> {
        let (control, Sender { id, instance, .. }) = (&self.caller.control, &self.sender);
        let (mut moments, mut policies) = (control.live.changes(), control.publisher.changes());
        let mut heartbeat = time::interval(control.pace.heartbeat);
        // The first line is one anyway, and those that came late are not made up for.
        heartbeat.reset();
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The call was let in by an earlier moment than those that are told of from here on.
        self.vouched()?;
        // What was said last.
        let (mut bundle, mut policy, mut renew) = (0, None, None);
        loop {
            let issuing = control.live.get();
            if bundle != issuing.record.bundle.sequence {
                bundle = issuing.record.bundle.sequence;
                self.send(&Message::Bundle(issuing.record.bundle.clone())).await?;
            }
            let services = connected.borrow_and_update().clone();
            let envelope = control.publisher.envelope(id, instance, &services, &issuing.svid);
            if let Some(envelope) = envelope.filter(|it| policy.as_ref() != Some(it)) {
                if has.take().is_none_or(|it| it != fingerprint(envelope.payload.as_bytes())) {
                    self.send(&Message::Policy((*envelope).clone())).await?;
                }
                policy = Some(envelope);
            }
            let asked = issuing.record.renew().map(str::to_owned);
            if renew != asked
                && let Some(issuer) = asked.clone()
            {
                let sidecars = control.fleet.len() as u64;
                let within = (sidecars / RENEWALS_PER_SECOND).clamp(1, SPREAD_MAX);
                self.send(&Message::Renew { issuer, within }).await?;
            }
            renew = asked;
            drop(issuing);
            tokio::select! {
                _ = moments.changed() => self.vouched()?,
                _ = policies.changed() => (),
                _ = connected.changed() => (),
                _ = heartbeat.tick() => {
                    self.vouched()?;
                    self.send(&Message::Heartbeat).await?;
                }
                () = self.lines.closed() => return Err(None),
                () = control.drain.begun() => return Err(None),
            }
        }
    }

    /// Whether the caller may still be told anything. Only time and another moment change that:
    /// a thousand watches need not verify a thousand chains to pass on new policy.
    fn vouched(&self) -> Result<(), End> {
        if self.sender.not_after <= clock::wall().as_secs() {
            return Err(Some("expired"));
        }
        self.caller.certified().map(drop).map_err(|_| Some("untrusted"))
    }

    async fn send(&self, message: &Message) -> Result<(), End> {
        let Caller { control, peer } = &self.caller;
        let mut line = serde_json::to_vec(message).map_err(|_| None)?;
        line.push(b'\n');
        match self.lines.send_timeout(line.into(), control.pace.stall).await {
            Ok(()) => control.metrics.messages.with_label_values(&[message.kind()]).inc(),
            Err(SendTimeoutError::Closed(_)) => return Err(None),
            Err(SendTimeoutError::Timeout(_)) => {
                peer.kill.notify_one();
                return Err(Some("slow"));
            }
        }
        Ok(())
    }
}
