//! Certificates: signs a key for who proved to be whom, remembered and written down first.
//!
//! The order is what makes it safe. The CSR is judged before a join token is spent; the fleet
//! remembers the sidecar before the issuer of that moment is looked up (a rotation that has
//! not seen it cannot have gone on); the audit line is written before the answer.

use hyper::HeaderMap;
use remora::{
    clock,
    sync::wire::{Signed, SigningRequest, is_reserved},
};
use remora_certs::csr;

use super::{
    Reason,
    audit::Line,
    auth::{Caller, Proof},
};

/// Characters of an error in an audit line: strangers write it, as often as they are let.
const ERROR_MAX: usize = 200;

/// Signs, or says why not; both leave an audit line.
pub(super) async fn sign(
    caller: &Caller,
    headers: &HeaderMap,
    request: &SigningRequest,
) -> Result<Signed, Reason> {
    let address = caller.peer.address.to_string();
    let mut line = Line { event: "issued", caller: address, proof: "none", ..Line::default() };
    let result = judged(caller, headers, request, &mut line).await;
    if let Err(reason) = &result {
        if let Reason::RateLimited(_) = reason {
            // Counted, and as often as anybody likes.
            return result;
        }
        (line.event, line.reason) = ("refused", Some(reason.row().1));
        line.error = Some(reason.to_string().chars().take(ERROR_MAX).collect());
    }
    let written = caller.control.audit.write(&line, clock::wall());
    let written = written.inspect_err(|error| tracing::error!(%error, "audit line not written"));
    let signed = result?;
    written.map_err(|it| Reason::StoreFailed(format!("audit log: {it}")))?;
    Ok(signed)
}

async fn judged(
    caller: &Caller,
    headers: &HeaderMap,
    request: &SigningRequest,
    line: &mut Line,
) -> Result<Signed, Reason> {
    let control = &*caller.control;
    let (id, proof) = caller.prove(headers).await?;
    line.id = Some(id.to_string());
    (line.proof, line.token) = match &proof {
        Proof::Certificate => ("certificate", None),
        Proof::Join(token) => ("join_token", Some(token.name.clone())),
        Proof::ServiceAccount(_) => ("service_account", None),
    };
    control.limits.certificates.take(&id)?;
    let (now, live) = (clock::wall(), control.live.get());
    let ends = live.authority.not_after().min(now + control.leaf_life);
    let sender = caller.sender((id, ends), &request.instance)?;
    line.instance.clone_from(&sender.instance);
    if let Proof::ServiceAccount(Some(pod)) = &proof
        && *pod != sender.instance
    {
        return Err(Reason::OtherPod(pod.escape_debug().to_string()));
    }
    let asked = csr::read(&request.csr).map_err(|it| Reason::Csr(it.to_string()))?;
    let id = &sender.id;
    if id.trust_domain() != live.authority.trust_domain() || id.path().is_empty() {
        return Err(Reason::ForeignId(id.to_string()));
    }
    if let Some(other) = asked.id().filter(|it| *it != id) {
        return Err(Reason::OtherId(other.to_string(), id.to_string()));
    }
    if is_reserved(id.path()) {
        return Err(Reason::ReservedId(id.to_string()));
    }
    if let Proof::Join(token) = proof {
        token.bind(&*control.store, &asked.key_digest()).await?;
    }
    control.fleet.issued(&sender).await?;
    let issuing = control.live.follow(&*control.store, now).await;
    let issuing = issuing.map_err(|it| Reason::StoreFailed(it.to_string()))?;
    // From here on nothing waits: what is signed is written down and answered.
    let life = ends.min(issuing.authority.not_after()).saturating_sub(now);
    let leaf = issuing.authority.sign(&asked, id, life, now);
    let leaf = leaf.map_err(|it| Reason::SigningFailed(it.to_string()))?;
    let not_after = leaf.not_after.as_secs();
    (line.serial, line.not_after) = (Some(leaf.serial), Some(not_after));
    control.metrics.certificates.with_label_values(&[line.proof]).inc();
    Ok(Signed { chain: leaf.chain, bundle: issuing.record.bundle.clone(), not_after })
}
