//! Lease: at most one replica leads, and soon another one when it is gone.
//!
//! The leader writes the Lease anew every [`RENEW`]. Another replica takes it when it has
//! seen no write for as long as the lease says it lasts: by its own monotonic clock and from
//! when it saw the last one, so that clocks that differ do no harm. The leader counts from
//! before it sent its last successful write, and leads for [`LEAD`] only; so it has stopped when
//! another begins. Where it has not, since its process was frozen in between, the store's
//! compare-and-swap refuses what it writes.
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
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use remora::{clock, drain::Drain};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Cluster, Unserved};

/// The Lease's name.
const NAME: &str = "remora-control";

/// How long a lease lasts.
pub(super) const LIFE: Duration = Duration::from_secs(15);

/// How long a leader leads after a write.
pub(super) const LEAD: Duration = Duration::from_secs(10);

/// How often a leader writes.
const RENEW: Duration = Duration::from_secs(5);

/// How often others look, and a leader that could not write tries again.
const LOOK: Duration = Duration::from_secs(2);

/// A lease as this replica saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    version: Option<String>,
    holder: Option<String>,
    life: Duration,
    /// When it was first seen at this version.
    pub(super) since: Instant,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It is ours: write it anew.
    Renew,
    /// It is nobody's any more.
    Take,
    /// It is another's.
    Wait,
}

/// What `me` does about a lease at `now`.
fn decide(lease: &Seen, me: &str, now: Instant) -> Decision {
    match lease.holder.as_deref() {
        Some(holder) if holder == me => Decision::Renew,
        Some(_) if now < lease.since + lease.life => Decision::Wait,
        Some(_) | None => Decision::Take,
    }
}

impl Seen {
    /// The lease as it is now, `before` being how it was seen last.
    fn of(lease: &Lease, before: Option<Self>, now: Instant) -> Self {
        let version = lease.metadata.resource_version.clone();
        let since = before.filter(|it| it.version == version).map_or(now, |it| it.since);
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|it| u64::try_from(it).ok());
        Self {
            version,
            holder: spec.holder_identity.filter(|it| !it.is_empty()),
            life: seconds.map_or(LIFE, Duration::from_secs),
            since,
        }
    }
}

/// Stands for election until the drain begins, and then gives the lease back.
pub(super) async fn stand(cluster: Arc<Cluster>, drain: Drain) {
    let (mut seen, mut led, mut failing) = (None, false, false);
    loop {
        let result = step(&cluster, &mut seen).await;
        if let Err(error) = &result
            && !failing
        {
            warn!(%error, "cannot read or write the lease of the leader");
        }
        failing = result.is_err();
        let leads = cluster.leads();
        if leads != led {
            info!(leads, replica = cluster.replica, "the leader has changed");
            led = leads;
        }
        let pause = if leads && !failing { RENEW } else { LOOK };
        tokio::select! {
            () = sleep(pause) => {}
            () = drain.begun() => break,
        }
    }
    if cluster.leading.send_replace(None).is_some() {
        // Where it fails, others wait for as long as the lease lasts.
        let _released = release(&cluster).await.is_ok();
    }
}

pub(super) async fn step(cluster: &Cluster, seen: &mut Option<Seen>) -> Result<(), Unserved> {
    let api: Api<Lease> = cluster.api();
    let lease = match cluster.once(api.get(NAME)).await {
        Ok(it) => Some(it),
        Err(error) if error.is(404) => None,
        Err(error) => return Err(error),
    };
    // Before it is sent: others count from when they have seen it.
    let asked = clock::now();
    let written = match lease {
        None => {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let new = held(Lease { metadata, spec: None }, &cluster.replica);
            cluster.once(api.create(&PostParams::default(), &new)).await
        }
        Some(lease) => {
            let now = Seen::of(&lease, seen.take(), asked);
            let decision = decide(&now, &cluster.replica, asked);
            *seen = Some(now);
            if decision == Decision::Wait {
                cluster.leading.send_replace(None);
                return Ok(());
            }
            let new = held(lease, &cluster.replica);
            cluster.once(api.replace(NAME, &PostParams::default(), &new)).await
        }
    };
    match written {
        Ok(_) => {
            cluster.leading.send_replace(Some(asked + LEAD));
            Ok(())
        }
        // Another one was faster, and is seen at the next look.
        Err(error) if error.is(409) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn release(cluster: &Cluster) -> Result<(), Unserved> {
    let api: Api<Lease> = cluster.api();
    let mut lease = cluster.once(api.get(NAME)).await?;
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.take().as_ref() == Some(&cluster.replica) {
        cluster.once(api.replace(NAME, &PostParams::default(), &lease)).await?;
    }
    Ok(())
}

/// The lease, held by `me` from now on.
fn held(lease: Lease, me: &str) -> Lease {
    let micros = i64::try_from(clock::wall().as_micros()).unwrap_or_default();
    // Times are for people to read, and for no decision.
    let now = Timestamp::from_microsecond(micros).ok().map(MicroTime);
    let old = lease.spec.unwrap_or_default();
    let stays = old.holder_identity.as_deref() == Some(me);
    let terms = old.lease_transitions.unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
        acquire_time: if stays { old.acquire_time } else { now.clone() },
        renew_time: now,
        lease_transitions: Some(if stays { terms } else { terms.saturating_add(1) }),
        ..LeaseSpec::default()
    };
    Lease { spec: Some(spec), ..lease }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_by_its_holder_and_waited_for_by_others() {
        let start = clock::now();
        let lease = seen("b", Some("one"), None, start);
        assert_eq!(decide(&lease, "one", start), Decision::Renew);
        assert_eq!(decide(&lease, "two", start), Decision::Wait);
        let nearly = LIFE.saturating_sub(Duration::from_millis(1));
        assert_eq!(decide(&lease, "two", start + nearly), Decision::Wait);
        assert_eq!(decide(&lease, "two", start + LIFE), Decision::Take);
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let start = clock::now();
        for holder in [None, Some("")] {
            assert_eq!(decide(&seen("b", holder, None, start), "two", start), Decision::Take);
        }
    }

    #[test]
    fn a_lease_lasts_from_when_its_last_change_was_seen_whatever_it_says() {
        let start = clock::now();
        let first = seen("a", Some("one"), None, start);
        let same = seen("a", Some("one"), Some(first.clone()), start + LIFE);
        assert_eq!(decide(&same, "two", start + LIFE), Decision::Take);
        let renewed = seen("b", Some("one"), Some(first), start + LIFE);
        assert_eq!(decide(&renewed, "two", start + LIFE), Decision::Wait);
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
        let first = held(Lease::default(), "one");
        let terms = |it: &Lease| it.spec.as_ref().and_then(|it| it.lease_transitions);
        let acquired = |it: &Lease| it.spec.as_ref().and_then(|it| it.acquire_time.clone());
        let again = held(first.clone(), "one");
        assert_eq!((terms(&again), acquired(&again)), (terms(&first), acquired(&first)));
        assert_eq!(terms(&held(again, "two")), Some(2));
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
        Seen::of(&lease, before, now)
    }
}
