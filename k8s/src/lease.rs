//! Lease: at most one replica leads, and soon another one when it is gone.
//!
//! The leader writes the Lease anew every [`RENEW`]. Another replica takes it when it has
//! seen no write for as long as the lease says it lasts: by its own monotonic clock and from
//! when it saw the last one, so that clocks that differ do no harm. The leader counts from
//! before it sent its last successful write, and leads for [`LEAD`] only; so it has stopped when
//! another begins. Where it has not, since its process was frozen in between, the
//! compare-and-swap of objects refuses what it writes.
//!
//! # Sources
//!
//! - client-go's `leaderelection`: the same rules, and the same periods.
//!   <https://pkg.go.dev/k8s.io/client-go/tools/leaderelection>

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use remora::{clock, drain::Drain};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Cluster, Error, write};

/// How long a lease lasts.
pub(super) const LIFE: Duration = Duration::from_secs(15);

/// How long a leader leads after a write.
pub(super) const LEAD: Duration = Duration::from_secs(10);

/// How often a leader writes.
const RENEW: Duration = Duration::from_secs(5);

/// How often others look, and a leader that could not write tries again.
const LOOK: Duration = Duration::from_secs(2);

/// A lease as this replica saw it, and when it was first seen at this version.
pub(super) type Seen = (Lease, Instant);

/// The lease as it is now, `before` being how it was seen last.
fn see(lease: Lease, before: Option<Seen>, now: Instant) -> Seen {
    let version = |it: &Lease| it.metadata.resource_version.clone();
    let same = before.filter(|(it, _)| version(it) == version(&lease));
    (lease, same.map_or(now, |(_, since)| since))
}

/// Whether `me` may write it at `now`: it is its own, nobody's, or nobody's any more.
fn is_open_to(me: &str, (lease, since): &Seen, now: Instant) -> bool {
    let Some(spec) = &lease.spec else { return true };
    let seconds = spec.lease_duration_seconds.and_then(|it| u64::try_from(it).ok());
    let ends = *since + seconds.map_or(LIFE, Duration::from_secs);
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    holder.is_empty() || holder == me || ends <= now
}

impl Cluster {
    /// Stands for election by the Lease `name` until the drain begins, and then gives it back.
    pub async fn stand(self: Arc<Self>, name: &'static str, drain: Drain) {
        let _a_shutdown_waits = drain.in_flight();
        let (mut seen, mut led, mut failing) = (None, false, false);
        loop {
            let result = self.step(name, &mut seen).await;
            if let Err(error) = &result
                && !failing
            {
                warn!(%error, "cannot read or write the lease of the leader");
            }
            failing = result.is_err();
            let leads = self.leads();
            if leads != led {
                info!(leads, replica = self.replica, "the leader has changed");
                led = leads;
            }
            let pause = if leads && !failing { RENEW } else { LOOK };
            tokio::select! {
                () = sleep(pause) => {}
                () = drain.begun() => break,
            }
        }
        self.release(seen).await;
    }

    /// Looks at the lease, and writes it where that is due.
    pub(super) async fn step(&self, name: &str, seen: &mut Option<Seen>) -> Result<(), Error> {
        let api = self.api();
        let lease = self.once(api.get_opt(name)).await?.unwrap_or_default();
        // Before it is sent: others count from when they have seen it.
        let asked = clock::now();
        let before = seen.take();
        let lease = seen.insert(see(lease, before, asked));
        if !is_open_to(&self.replica, lease, asked) {
            self.leading.send_replace(None);
            return Ok(());
        }
        match self.once(write(&api, &held(lease.0.clone(), name, &self.replica))).await {
            Ok(written) => {
                *lease = (written, asked);
                self.leading.send_replace(Some(asked + LEAD));
                Ok(())
            }
            // Another one was faster, and is seen at the next look.
            Err(error) if error.is(409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives back the lease that was written last, unless another has it by now.
    pub(super) async fn release(&self, seen: Option<Seen>) {
        let was_leading = self.leading.send_replace(None).is_some();
        if let Some((mut lease, _)) = seen.filter(|_| was_leading) {
            lease.spec.get_or_insert_default().holder_identity = None;
            // Where it fails, others wait for as long as the lease lasts.
            let _released = self.once(write(&self.api(), &lease)).await.is_ok();
        }
    }
}

/// The lease, held by `me` from now on. Times are for people to read, and for no decision.
fn held(mut lease: Lease, name: &str, me: &str) -> Lease {
    lease.metadata.name = Some(name.to_owned());
    let spec = lease.spec.get_or_insert_default();
    let micros = i64::try_from(clock::wall().as_micros()).unwrap_or_default();
    spec.renew_time = Timestamp::from_microsecond(micros).ok().map(MicroTime);
    spec.lease_duration_seconds = i32::try_from(LIFE.as_secs()).ok();
    if spec.holder_identity.as_deref() != Some(me) {
        spec.holder_identity = Some(me.to_owned());
        spec.acquire_time = spec.renew_time.clone();
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    lease
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;

    use super::*;

    #[test]
    fn a_lease_is_renewed_by_its_holder_and_waited_for_by_others() {
        let start = clock::now();
        let lease = seen("b", Some("one"), None, start);
        assert!(is_open_to("one", &lease, start));
        assert!(!is_open_to("two", &lease, start));
        let nearly = LIFE.saturating_sub(Duration::from_millis(1));
        assert!(!is_open_to("two", &lease, start + nearly));
        assert!(is_open_to("two", &lease, start + LIFE));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let start = clock::now();
        for holder in [None, Some("")] {
            assert!(is_open_to("two", &seen("b", holder, None, start), start));
        }
    }

    #[test]
    fn a_lease_lasts_from_when_its_last_change_was_seen_whatever_it_says() {
        let start = clock::now();
        let first = seen("a", Some("one"), None, start);
        let same = seen("a", Some("one"), Some(first.clone()), start + LIFE);
        assert!(is_open_to("two", &same, start + LIFE));
        let renewed = seen("b", Some("one"), Some(first), start + LIFE);
        assert!(!is_open_to("two", &renewed, start + LIFE));
    }

    #[test]
    fn a_leader_stops_before_another_may_begin() {
        // The latest moment at which it leads, from before its write was sent, against the
        // earliest one at which another takes over, from after it was.
        assert!(LEAD < LIFE);
        // A try may fail in between.
        assert!(RENEW + LOOK < LEAD);
    }

    #[test]
    fn a_new_holder_is_a_new_term() {
        let first = held(Lease::default(), "lease", "one");
        let terms = |it: &Lease| it.spec.as_ref().and_then(|it| it.lease_transitions);
        let acquired = |it: &Lease| it.spec.as_ref().and_then(|it| it.acquire_time.clone());
        let again = held(first.clone(), "lease", "one");
        assert_eq!((terms(&again), acquired(&again)), (terms(&first), acquired(&first)));
        assert_eq!(terms(&held(again, "lease", "two")), Some(2));
    }

    fn seen(version: &str, holder: Option<&str>, before: Option<Seen>, now: Instant) -> Seen {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(15),
            // Another's clock, far ahead.
            renew_time: Some(MicroTime(Timestamp::MAX)),
            ..LeaseSpec::default()
        });
        see(lease, before, now)
    }
}
