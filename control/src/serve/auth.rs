//! Auth: who calls, and what proves it.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use hyper::{HeaderMap, header};
use remora::{clock, sync::wire};
use remora_certs::{
    spiffe_id::SpiffeId,
    x509::{Facts, id_of},
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, Semaphore};

use super::{Control, Reason, tls};
use crate::{
    kubernetes::{Cluster, Refused},
    token,
};

/// Longer than any service-account token.
const TOKEN_MAX: usize = 16 * 1024;

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// As the handshake took it, leaf first; empty for none.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Whether it has asked for anything yet.
    pub(crate) asked: AtomicBool,
    /// Ends the connection at once.
    pub(crate) kill: Notify,
    /// A connection has one watch.
    pub(crate) watching: Arc<Semaphore>,
}

/// Who calls.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) id: SpiffeId,
    pub(crate) proof: Proof,
}

/// What proves it.
#[derive(Debug)]
pub(crate) enum Proof {
    /// A certificate of the mesh; when it ends.
    Certificate(Duration),
    /// A join token.
    Join(token::Valid),
    /// A service-account token; of which pod.
    ServiceAccount(Option<String>),
}

/// Who answers for service-account tokens.
#[derive(Debug)]
pub(crate) enum Tokens {
    /// Nobody: only join tokens are taken.
    None,
    /// The API server, of tokens for the audience.
    Kubernetes(Arc<Cluster>, String),
}

impl Tokens {
    /// Whose service-account token it is.
    async fn service_account(&self, token: &str, trust_domain: &str) -> Result<Caller, Reason> {
        let Self::Kubernetes(cluster, audience) = self else { return Err(Reason::TokenKind) };
        let account = Box::pin(cluster.review(token, audience)).await.map_err(|it| match it {
            Refused::Token(why) => Reason::TokenRefused(why),
            Refused::Unasked(why) => Reason::ReviewFailed(why),
        })?;
        let id = SpiffeId::workload(trust_domain, &account.namespace, &account.name);
        let id = id.map_err(|it| Reason::TokenRefused(it.to_string()))?;
        Ok(Caller { id, proof: Proof::ServiceAccount(account.pod) })
    }
}

impl Peer {
    pub(crate) fn new(address: IpAddr, chain: Vec<CertificateDer<'static>>) -> Self {
        let watching = Arc::new(Semaphore::new(1));
        Self { address, chain, asked: AtomicBool::new(false), kill: Notify::new(), watching }
    }

    /// Who the certificate of the connection says that it is, by the roots of now; `None`
    /// where there is no certificate.
    pub(crate) fn certified(&self, control: &Control) -> Result<Option<Caller>, Reason> {
        let Some(leaf) = self.chain.first() else { return Ok(None) };
        let refused = |it: &dyn std::fmt::Display| Reason::Certificate(it.to_string());
        tls::verify(&control.live.get(), &self.chain, clock::wall()).map_err(|it| refused(&it))?;
        let id = id_of(leaf).map_err(|it| refused(&it))?;
        let ends = Facts::of(leaf).map_err(|it| refused(&it))?.not_after;
        if id.trust_domain() != control.live.get().authority.trust_domain() {
            return Err(Reason::ForeignId(id.to_string()));
        }
        Ok(Some(Caller { id, proof: Proof::Certificate(ends) }))
    }

    /// A sidecar, by its certificate, that may call now; and when the certificate ends.
    pub(crate) fn sidecar(&self, control: &Control) -> Result<(SpiffeId, Duration), Reason> {
        let caller = self.certified(control)?;
        let Some(Caller { id, proof: Proof::Certificate(ends) }) = caller else {
            return Err(Reason::Unproved);
        };
        control.limits.calls.take(&id)?;
        Ok((id, ends))
    }

    /// An operator, by the certificate.
    pub(crate) fn operator(&self, control: &Control) -> Result<(), Reason> {
        let (id, _) = self.sidecar(control)?;
        let is_operator = id.path() == wire::OPERATOR_PATH;
        if is_operator { Ok(()) } else { Err(Reason::NotOperator(id.to_string())) }
    }

    /// Who asks for a certificate: by the one there is, or by a token.
    pub(crate) async fn prove(
        &self,
        control: &Control,
        headers: &HeaderMap,
    ) -> Result<Caller, Reason> {
        if let Some(caller) = self.certified(control)? {
            return Ok(caller);
        }
        control.limits.strangers.take(&self.address)?;
        let token = bearer(headers).ok_or(Reason::Unproved)?;
        if token.starts_with(token::PREFIX) {
            let valid = token::find(&control.store, token, clock::wall()).await?;
            return Ok(Caller { id: valid.id.clone(), proof: Proof::Join(valid) });
        }
        let issuing = control.live.get();
        control.tokens.service_account(token, issuing.authority.trust_domain()).await
    }
}

impl Proof {
    /// As metrics and the audit log have it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate",
            Self::Join(_) => "join_token",
            Self::ServiceAccount(_) => "service_account",
        }
    }
}

//= https://www.rfc-editor.org/rfc/rfc9110#section-11.1
//# It uses a case-insensitive token to identify the authentication scheme
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_MAX;
    (fits && !token.is_empty()).then_some(token)
}
