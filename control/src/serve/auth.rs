//! Auth: who calls, what proves it, and how often each may ask.
//!
//! The last is exact, by the sidecar's own rate limiter. Before anything is proved the caller is
//! its address; then it is its SPIFFE id, which all pods of a service account share: a whole
//! Deployment may start at once.

use std::{hash::RandomState, sync::Arc, time::Duration};

use hyper::HeaderMap;
use parking_lot::Mutex;
use remora::{
    clock,
    identity::control::verify_client,
    resilience::rate::{Buckets, KEYS_MAX, Rate},
    sync::{
        server::{Peer, bearer},
        wire,
    },
};
use remora_certs::spiffe_id::SpiffeId;

use super::{Control, Reason};
use crate::{
    fleet::Sender,
    kubernetes::{Cluster, Refused},
    token,
};

/// Who makes a call, and to whom.
pub(crate) struct Caller {
    pub(crate) control: Arc<Control>,
    pub(crate) peer: Arc<Peer>,
}

/// Whose a certificate is, and when it ends.
pub(crate) type Certified = (SpiffeId, Duration);

/// What proves who asks for a certificate.
#[derive(Debug)]
pub(crate) enum Proof {
    /// A certificate of the mesh.
    Certificate,
    /// A join token.
    Join(token::Valid),
    /// A service-account token; of which pod.
    ServiceAccount(Option<String>),
}

/// Who answers for service-account tokens, and for which audience they are to be made. Without
/// that, only join tokens are taken.
pub(crate) type Tokens = Option<(Arc<Cluster>, String)>;

/// What each may ask, and has asked.
#[derive(Debug)]
pub(crate) struct Limits {
    /// TLS connections from one address.
    pub(crate) connections: Limit,
    /// Calls without a client certificate from one address.
    pub(crate) strangers: Limit,
    /// Certificates for one id.
    pub(crate) certificates: Limit,
    /// Other calls of one id.
    pub(crate) calls: Limit,
}

/// One rate, for each caller on its own.
#[derive(Debug)]
pub(crate) struct Limit(Mutex<Buckets>);

impl Caller {
    /// Who the certificate of the connection says that it is, by the roots of now.
    pub(crate) fn certified(&self) -> Result<Certified, Reason> {
        if self.peer.chain.is_empty() {
            return Err(Reason::Unproved);
        }
        let issuing = self.control.live.get();
        let (id, ends) = verify_client(&issuing.roots, &self.peer.chain, clock::wall())
            .map_err(|it| Reason::Certificate(it.to_string()))?;
        if id.trust_domain() != issuing.authority.trust_domain() {
            return Err(Reason::ForeignId(id.to_string()));
        }
        Ok((id, ends))
    }

    /// A sidecar, by its certificate, that may call now.
    pub(crate) fn sidecar(&self) -> Result<Certified, Reason> {
        let caller = self.certified()?;
        self.control.limits.calls.take(&caller.0)?;
        Ok(caller)
    }

    /// What an operator may see and change; the certificate tells one.
    pub(crate) fn operator(&self) -> Result<&Control, Reason> {
        let (id, _) = self.sidecar()?;
        let is_operator = id.path() == wire::OPERATOR_PATH;
        if is_operator { Ok(&self.control) } else { Err(Reason::NotOperator(id.to_string())) }
    }

    /// Who asks for a certificate: by the one there is, or by a token.
    pub(crate) async fn prove(&self, headers: &HeaderMap) -> Result<(SpiffeId, Proof), Reason> {
        if !self.peer.chain.is_empty() {
            return Ok((self.certified()?.0, Proof::Certificate));
        }
        self.control.limits.strangers.take(&self.peer.address)?;
        let token = bearer(headers).ok_or(Reason::Unproved)?;
        if token.starts_with(token::PREFIX) {
            let valid = token::find(&*self.control.store, token, clock::wall()).await?;
            return Ok((valid.id.clone(), Proof::Join(valid)));
        }
        let (cluster, audience) = self.control.tokens.as_ref().ok_or(Reason::TokenKind)?;
        let account = Box::pin(cluster.review(token, audience)).await.map_err(|it| match it {
            Refused::Token(why) => Reason::TokenRefused(why),
            Refused::Unasked(why) => Reason::ReviewFailed(why),
        })?;
        let issuing = self.control.live.get();
        let trust_domain = issuing.authority.trust_domain();
        let id = SpiffeId::workload(trust_domain, &account.namespace, &account.name);
        let id = id.map_err(|it| Reason::TokenRefused(it.to_string()))?;
        Ok((id, Proof::ServiceAccount(account.pod)))
    }

    /// The sidecar `instance` of `id`.
    pub(crate) fn sender(&self, (id, ends): Certified, instance: &str) -> Result<Sender, Reason> {
        if !wire::is_instance(instance) {
            return Err(Reason::Instance);
        }
        let (peer, seen) = (self.peer.address, clock::wall().as_secs());
        Ok(Sender { id, instance: instance.to_owned(), peer, seen, not_after: ends.as_secs() })
    }
}

impl Default for Limits {
    /// Enough for 1,000 pods of one service account that start at once, behind one address.
    fn default() -> Self {
        let a_second = |requests, burst| Rate { requests, per: Duration::from_secs(1), burst };
        Self {
            connections: Limit::new(a_second(500, 1_500)),
            strangers: Limit::new(a_second(50, 1_000)),
            certificates: Limit::new(a_second(50, 1_000)),
            calls: Limit::new(a_second(500, 5_000)),
        }
    }
}

impl Limit {
    pub(crate) fn new(rate: Rate) -> Self {
        Self(Mutex::new(Buckets::new(rate, KEYS_MAX, RandomState::new(), clock::now())))
    }

    /// Charges `caller` for one more, or says how long to wait.
    pub(crate) fn take(&self, caller: &impl ToString) -> Result<(), Reason> {
        let decision = self.0.lock().take(caller.to_string().as_bytes(), clock::now());
        if decision.allowed { Ok(()) } else { Err(Reason::RateLimited(decision.retry_after)) }
    }
}
