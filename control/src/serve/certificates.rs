//! Certificates: signs a key for who proved to be whom, remembered and written down first.
//!
//! The order is what makes it safe. The CSR is judged before a join token is spent; the fleet
//! remembers the sidecar before the issuer of that moment is looked up (a rotation that has
//! not seen it cannot have gone on); the audit line is written before the answer.

use std::time::Duration;

use hyper::HeaderMap;
use remora::{
    clock,
    sync::wire::{INSTANCE_MAX, Signed, SigningRequest},
};
use remora_certs::{csr, spiffe_id::SpiffeId};

use super::{
    Control, Reason,
    audit::Line,
    auth::{Caller, Peer, Proof},
};
use crate::{
    fleet::{Sender, Unrecorded},
    token::is_reserved,
};

/// Characters of an error in an audit line: strangers write it, as often as they are let.
const ERROR_MAX: usize = 200;

/// Signs, or says why not; both leave an audit line.
pub(super) async fn sign(
    control: &Control,
    peer: &Peer,
    headers: &HeaderMap,
    request: &SigningRequest,
) -> Result<Signed, Reason> {
    let mut line = Line { caller: Some(peer.address), proof: "none", ..Line::default() };
    let result = judged(control, (peer, headers), request, &mut line).await;
    let now = clock::wall();
    match &result {
        Ok(_) => line.event = "issued",
        // Counted, and as often as anybody likes.
        Err(Reason::RateLimited(_)) => return result,
        Err(reason) => {
            line.event = "refused";
            line.reason = Some(reason.word());
            line.error = Some(reason.to_string().chars().take(ERROR_MAX).collect());
        }
    }
    if let Err(error) = control.audit.write(&line, now) {
        tracing::error!(%error, "audit line not written");
        return result.and_then(|_| Err(Reason::StoreFailed(format!("audit log: {error}"))));
    }
    result
}

async fn judged(
    control: &Control,
    (peer, headers): (&Peer, &HeaderMap),
    request: &SigningRequest,
    line: &mut Line,
) -> Result<Signed, Reason> {
    let caller = peer.prove(control, headers).await?;
    line.proof = caller.proof.word();
    line.id = Some(caller.id.to_string());
    if let Proof::Join(token) = &caller.proof {
        line.token = Some(token.name.clone());
    }
    control.limits.certificates.take(&caller.id)?;
    check_instance(&request.instance)?;
    line.instance.clone_from(&request.instance);
    if let Proof::ServiceAccount(Some(pod)) = &caller.proof
        && *pod != request.instance
    {
        return Err(Reason::OtherPod(pod.clone()));
    }
    let asked = csr::read(&request.csr).map_err(|it| Reason::Csr(it.to_string()))?;
    check_id(control, &caller.id, asked.id())?;
    let Caller { id, proof } = caller;
    let word = proof.word();
    if let Proof::Join(token) = proof {
        token.bind(&control.store, &asked.key_digest()).await?;
    }
    let now = clock::wall();
    let life = |ends: Duration| control.leaf_life.min(ends.saturating_sub(now));
    let ends = now + life(control.live.get().authority.not_after());
    let sender = Sender {
        id,
        instance: request.instance.clone(),
        peer: peer.address,
        not_after: ends.as_secs(),
    };
    control.fleet.issued(&sender, now).await.map_err(|it| match it {
        Unrecorded::Full => Reason::FleetFull,
        Unrecorded::Store(why) => Reason::StoreFailed(why),
    })?;
    let issuing = control.live.latest(&control.store, now).await;
    let issuing = issuing.map_err(|it| Reason::StoreFailed(it.to_string()))?;
    // From here on nothing waits: what is signed is written down and answered.
    let life = (ends.saturating_sub(now)).min(life(issuing.authority.not_after()));
    let leaf = issuing
        .authority
        .sign(&asked, &sender.id, life, now)
        .map_err(|it| Reason::SigningFailed(it.to_string()))?;
    line.serial = Some(leaf.serial);
    line.not_after = Some(leaf.not_after.as_secs());
    control.metrics.certificates.with_label_values(&[word]).inc();
    let bundle = issuing.bundle.clone();
    Ok(Signed { chain: leaf.chain, bundle, not_after: leaf.not_after.as_secs() })
}

/// Whether it could be a pod's name: it stands in logs and on terminals.
pub(super) fn check_instance(name: &str) -> Result<(), Reason> {
    let fits = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    let is_name = (1..=INSTANCE_MAX).contains(&name.len()) && name.bytes().all(fits);
    if is_name { Ok(()) } else { Err(Reason::Instance) }
}

fn check_id(control: &Control, id: &SpiffeId, asked: Option<&SpiffeId>) -> Result<(), Reason> {
    if id.trust_domain() != control.live.get().authority.trust_domain() || id.path().is_empty() {
        return Err(Reason::ForeignId(id.to_string()));
    }
    if let Some(asked) = asked.filter(|it| *it != id) {
        return Err(Reason::OtherId { proved: id.to_string(), asked: asked.to_string() });
    }
    if is_reserved(id) { Err(Reason::ReservedId(id.to_string())) } else { Ok(()) }
}
