//! Spare: a copy of a request, for those that may be sent more than once.
//!
//! The head is copied at once; of a body what has been read of it is kept, up to a bound,
//! while it goes on to the first try.

use std::sync::Arc;

use http::{HeaderName, Request};
use hyper::upgrade::OnUpgrade;

use super::context::{Call, Facts, Manner};
use crate::{
    policy::retry::{self, Methods},
    proxy::plan::Plan,
    transport::{body::Body, replay::Replay},
};

/// What a client gives its request so that two of it do what one does.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A copy of a request.
#[derive(Debug)]
pub struct Spare {
    head: Box<Request<()>>,
    body: Option<Replay>,
}

/// What of `call` decides whether it may be sent twice.
pub fn what(call: &Call) -> retry::Request {
    let (request, policy) = (&call.request, &call.plan.retries);
    let method = Methods::of(request.method().as_str());
    let asked = policy.idempotency_key && !policy.methods.has(method);
    let idempotency_key = asked && request.headers().contains_key(&IDEMPOTENCY_KEY);
    retry::Request { method, idempotency_key, retried: call.facts.retried }
}

impl Spare {
    /// A copy of `call`, and from then on its body is kept as it is read; `None` where that
    /// can't be. Any request may be sent once more when it was not begun with.
    ///
    /// It costs an allocation or three a request; it is what makes a retry possible.
    pub fn of(call: &mut Call) -> Option<Self> {
        let body = if http_body::Body::is_end_stream(call.request.body()) {
            None
        } else if call.facts.manner == Manner::Plain {
            Some(Replay::keep(call.request.body_mut())?)
        } else {
            // It waits for a word of the first upstream.
            return None;
        };
        Some(Self { head: Box::new(copied(&call.request)), body })
    }

    /// Whether the request can be sent again, body included.
    pub fn is_at_hand(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::is_at_hand)
    }

    /// Whether the request has a body.
    pub fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the request has a body of which nothing has been given away.
    pub fn is_untouched(&self) -> bool {
        self.body.as_ref().is_some_and(Replay::is_untouched)
    }

    /// The request once more, unless it is gone. Where it has a body, a call from before
    /// loses it.
    pub fn call(&self, facts: Facts, plan: &Arc<Plan>) -> Option<Box<Call>> {
        let body = match &self.body {
            None => Body::Empty,
            Some(body) => body.body()?,
        };
        let request = copied(&self.head).map(|()| body);
        Some(Box::new(Call { request, facts, plan: Arc::clone(plan) }))
    }
}

fn copied<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    // Without it a connection that switches has nobody at this end.
    if let Some(switching) = request.extensions().get::<OnUpgrade>() {
        copy.extensions_mut().insert(switching.clone());
    }
    copy
}
