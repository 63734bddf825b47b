//! Life: readiness says in time that the certificate is about to end.
//!
//! A certificate that should have been renewed is worth a note, and the pod goes on. One
//! that is about to end takes the pod out of service *before* handshakes fail, so that
//! callers are elsewhere by then ([`Nearness`] has the numbers).

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    admin::{Condition, Health},
    clock,
    identity::Identity,
    sync::schedule::{Life, Nearness},
};

/// The longest sleep before the clock is looked at again: it may have been set.
const NAP_MAX: Duration = Duration::from_secs(30);

/// Says how near the end of the certificate is, until dropped. `rotated` tells of new ones.
pub(super) async fn follow(identity: Identity, health: Health, mut rotated: watch::Receiver<u64>) {
    let mut before = Nearness::Far;
    loop {
        let (svid, now) = (identity.material().svid, clock::wall());
        let life = Life { not_before: svid.not_before(), not_after: svid.not_after() };
        let left = svid.not_after().saturating_sub(now).as_secs();
        let nearness = life.nearness(now);
        let said = match nearness {
            Nearness::Far => None,
            Nearness::Near => Some(format!("the certificate ends in {left} s and is not renewed")),
            Nearness::Ending => Some(format!("the certificate ends within {} s", left + 1)),
        };
        let holds = said.clone().filter(|_| nearness == Nearness::Ending).map_or(Ok(()), Err);
        health.set(Condition::Identity, holds);
        if nearness != before {
            if let Some(reason) = &said {
                tracing::warn!(reason, "certificate not renewed in time");
            }
            before = nearness;
        }
        let refused = identity.last_error().map(|it| it.to_string());
        health.note(Condition::Identity, refused.or(said));
        let nap = life.nearer(now).map_or(NAP_MAX, |it| it.saturating_sub(now).min(NAP_MAX));
        if let Ok(Err(_)) = timeout(nap, rotated.changed()).await {
            // Nobody tells of new ones any more.
            sleep(nap).await;
        }
    }
}
