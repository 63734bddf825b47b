//! Forward (step 8): one try of a request at one endpoint.
//!
//! The innermost service of the stack. Its future is boxed, once a try: what hyper sends
//! with has no name that a field could have.

use std::{
    future::ready,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body::Body as _;
use tower::Service;

use super::{
    context::{Call, Facts, Manner, Trail, Underway},
    core::{Leave, Permit},
    deadline,
    failure::{Failure, Side},
    hash, headers,
    judge::{self, Judged},
    plan::Plan,
    upgrade,
    upstream::{Connection, Upstream},
};
use crate::{
    clock,
    policy::{deadline::least, retry::Failed},
    resilience::{
        balancer::Outcome,
        service::{Ask, Kind, Refused},
    },
    transport::{
        body::{self, Body},
        h1::{self, Held},
        h2,
        pool::Link,
    },
};

/// Sends a request to an endpoint of one service.
#[derive(Clone, Debug)]
pub struct Forward {
    upstream: Arc<Upstream>,
}

/// A request for one try.
#[derive(Debug)]
pub struct Try {
    /// The request.
    pub call: Box<Call>,
    /// Where the try before failed.
    pub avoid: Option<SocketAddr>,
    /// Which try of its request it is.
    pub kind: Kind,
    /// Leave for it, where it needs one.
    pub leave: Option<Leave>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// A try with an answer.
#[derive(Debug)]
pub struct Tried {
    /// The response.
    pub response: Response<Body>,
    /// What it says about another try; `None` where there is no need for one.
    pub judged: Option<Judged>,
    /// Held until its body has ended.
    pub permit: Option<Permit>,
    /// What it took; the count of tries is the caller's.
    pub trail: Trail,
}

/// A try without one.
#[derive(Debug)]
pub struct Untried {
    /// What failed.
    pub failure: Failure,
    /// What that means for another try.
    pub how: Failed,
    /// The request, where none of it was sent.
    pub request: Option<Box<Call>>,
    /// What it took.
    pub trail: Trail,
}

impl Forward {
    /// Sends to the endpoints of `upstream`.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream }
    }

    /// Sends a try that begins `now`: a connection that was idle for too long by then is none.
    async fn send(
        self,
        mut call: Box<Call>,
        mut permit: Permit,
        now: Instant,
    ) -> Result<Tried, Untried> {
        let facts = call.facts;
        let address = permit.address;
        let mut trail = Trail { upstream: Some(address), ..Trail::default() };
        let (connection, link) = match self.upstream.pooled(address, &facts, now) {
            Some(pooled) => pooled,
            // Boxed: a dial is large and rare.
            None => match Box::pin(self.upstream.connection(address, &facts, now)).await {
                Ok(opened) => opened,
                Err(failure) => {
                    permit.outcome(Outcome::ConnectFailed);
                    let how = unsent(failure);
                    return Err(Untried { failure, how, request: Some(call), trail });
                }
            },
        };
        trail.mesh = link.is_mesh();
        let plan = Arc::clone(&call.plan);
        for_link(&mut call.request, &facts, link);
        let sent = match connection {
            Connection::H1(connection) => {
                if facts.manner == Manner::Expect {
                    Held::hold(&mut call.request);
                }
                let used = connection.used;
                let sent = connection.send(call.request, now).await;
                sent.map_err(|error| of_h1(error, (facts, plan), used, trail))
            }
            Connection::H2(connection) => {
                let (parts, body) = call.request.into_parts();
                let head = Request::from_parts(parts, ());
                let sent = connection.send(head, body).await;
                sent.map_err(|error| of_h2(error, (facts, plan), trail))
            }
            Connection::Raw(stream) => {
                let drain = self.upstream.shared.drain.clone();
                let how = (trail, facts, plan.timeouts.idle);
                let exchange = upgrade::exchange(stream, call.request, (permit, drain), how);
                return Box::pin(exchange).await;
            }
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                // RFC 9110, section 15.2.2: only where it was asked for.
                permit.outcome(Outcome::Failure);
                let (failure, how) = (Failure::Protocol, Failed::Reset);
                Err(Untried { failure, how, request: None, trail })
            }
            Ok(response) => {
                let (outcome, judged) = judge::response(&response, &facts, trail.mesh);
                permit.outcome(outcome);
                Ok(Tried { response, judged, permit: Some(permit), trail })
            }
            Err(untried) => {
                // A client that leaves or stops in its own upload says nothing about the upstream.
                let blameless = untried.failure.row().side == Side::Downstream;
                permit.outcome(if blameless { Outcome::Cancelled } else { Outcome::Failure });
                Err(untried)
            }
        }
    }
}

impl Service<Try> for Forward {
    type Response = Tried;
    type Error = Untried;
    type Future = Trying;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Untried>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Try) -> Self::Future {
        let now = match attempt.kind {
            Kind::First => attempt.call.facts.started,
            Kind::Again | Kind::Granted => clock::now(),
        };
        match self.pick(&attempt, now) {
            Ok(permit) => self.try_at(permit, attempt, now),
            Err(Refused::Full) if attempt.kind == Kind::First => {
                Trying { upstream: None, sending: Box::pin(self.clone().in_turn(attempt)) }
            }
            Err(refused) => {
                let refused = Err(attempt.refused(refused));
                Trying { upstream: None, sending: Box::pin(ready(refused)) }
            }
        }
    }
}

impl Forward {
    fn pick(&self, attempt: &Try, now: Instant) -> Result<Permit, Refused> {
        let Upstream { service, draw, .. } = &*self.upstream;
        let core = service.refreshed(now);
        hash::with_key(&attempt.call, &service.policy, |key| core.pick(attempt.ask(now, key), draw))
    }

    /// Waits for its turn, and sends.
    async fn in_turn(self, mut attempt: Try) -> Result<Tried, Untried> {
        let facts = &attempt.call.facts;
        let end = facts.timeout.map(|it| facts.started + it);
        let core = &self.upstream.service.core;
        // Borrowed as if to be changed: a body may be sent to another thread, not shared.
        let (this, waiting) = (&self, &mut attempt);
        let picked = core.in_turn(end, move |now| this.pick(waiting, now)).await;
        match picked {
            Ok(permit) => self.try_at(permit, attempt, clock::now()).await,
            Err(refused) => Err(attempt.refused(refused)),
        }
    }

    fn try_at(&self, mut permit: Permit, attempt: Try, now: Instant) -> Trying {
        let Try { call, leave, timeout, .. } = attempt;
        if let Some(leave) = leave {
            leave.taken();
        }
        let facts = &call.facts;
        let address = Some(permit.address);
        let whole = facts.timeout.map(|it| facts.started + it);
        let one = timeout.map(|it| now + it);
        permit.deadline = least(one, whole);
        permit.callers = permit.deadline != one && facts.late == Failure::DeadlineExpired;
        let sending = self.clone().send(call, permit, now);
        let Some(deadline) = one else {
            return Trying { upstream: address, sending: Box::pin(sending) };
        };
        let sending = Box::pin(sending);
        let bounded = async move {
            if let Ok(sent) = tokio::time::timeout_at(deadline.into(), sending).await {
                return sent;
            }
            let trail = Trail { upstream: address, ..Trail::default() };
            let (failure, how) = (Failure::TryTimeout, Failed::TryTimeout);
            Err(Untried { failure, how, request: None, trail })
        };
        Trying { upstream: address, sending: Box::pin(bounded) }
    }
}

impl Try {
    fn ask<'a>(&self, now: Instant, key: Option<&'a [u8]>) -> Ask<'a> {
        Ask { now, kind: self.kind, route: self.call.plan.id, avoid: self.avoid, key }
    }

    /// What comes of it when there is nowhere to send it.
    fn refused(self, refused: Refused) -> Untried {
        let trail = Trail::default();
        // What this process refuses itself would be refused again.
        let how = Failed::Final;
        Untried { failure: refused.into(), how, request: Some(self.call), trail }
    }
}

/// A try on its way.
pub struct Trying {
    /// Where to.
    upstream: Option<SocketAddr>,
    sending: Pin<Box<dyn Future<Output = Result<Tried, Untried>> + Send>>,
}

impl Future for Trying {
    type Output = Result<Tried, Untried>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.sending.as_mut().poll(cx)
    }
}

impl Underway for Trying {
    fn trail(&self) -> Trail {
        Trail { upstream: self.upstream, ..Trail::default() }
    }
}

impl std::fmt::Debug for Trying {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trying").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// Makes of a request what is written on a link. It may be written on another one later.
fn for_link(request: &mut Request<Body>, facts: &Facts, link: Link) {
    *request.version_mut() = if link.is_h2() { Version::HTTP_2 } else { Version::HTTP_11 };
    deadline::tell(request.headers_mut(), facts, link.is_mesh());
    if link.is_mesh() && facts.version != Version::HTTP_2 {
        let version = if facts.version == Version::HTTP_10 { "1.0" } else { "1.1" };
        request.headers_mut().insert(headers::HTTP, HeaderValue::from_static(version));
    }
    if link.is_h2() {
        request.headers_mut().remove(header::TRANSFER_ENCODING);
        let host = request.headers_mut().remove(header::HOST);
        if request.uri().authority().is_none() {
            // It was to be sent over HTTP/1 before.
            let name = host.and_then(|it| uri::Authority::from_maybe_shared(it).ok());
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            (parts.authority, parts.scheme) = (name, Some(uri::Scheme::HTTP));
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        }
        return;
    }
    // hyper takes a GET of unknown length for one without a body.
    let (body, fields) = (request.body(), request.headers());
    if !body.is_end_stream()
        && body.size_hint().exact().is_none()
        && !fields.contains_key(header::CONTENT_LENGTH)
    {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
    }
    // RFC 9112, section 3.2.1: to anything but a proxy, the target is a path.
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if !request.headers().contains_key(header::HOST)
        && let Some(host) = parts.authority
        && let Ok(host) = HeaderValue::from_str(host.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut path = uri::Parts::default();
    path.path_and_query = parts.path_and_query;
    *request.uri_mut() = Uri::from_parts(path).unwrap_or_default();
}

/// What a failure to connect means for another try.
fn unsent(failure: Failure) -> Failed {
    if failure.row().retryable { Failed::Unsent } else { Failed::Final }
}

fn of_h1(
    error: h1::SendError,
    (facts, plan): (Facts, Arc<Plan>),
    used: bool,
    trail: Trail,
) -> Untried {
    let h1::SendError { source, unsent } = error;
    tracing::debug!(error = %source, reused = used, "no answer over http/1");
    let cause = std::error::Error::source(&source).and_then(|it| it.downcast_ref());
    let (failure, how) = match cause {
        Some(body::Error::Client(_)) => (Failure::BadRequest, Failed::Final),
        Some(body::Error::Idle) => (Failure::UploadIdle, Failed::Final),
        _ if unsent.is_some() => (Failure::Reset, Failed::Unsent),
        _ if source.is_parse() => (Failure::Protocol, Failed::Reset),
        _ if used => (Failure::Reset, Failed::ReusedReset),
        _ => (Failure::Reset, Failed::Reset),
    };
    let request = unsent.map(|request| Box::new(Call { request: *request, facts, plan }));
    Untried { failure, how, request, trail }
}

fn of_h2(error: h2::SendError, (facts, plan): (Facts, Arc<Plan>), trail: Trail) -> Untried {
    let h2::SendError { source, unprocessed, unsent, stalled } = error;
    tracing::debug!(error = %source, unprocessed, "no answer over http/2");
    let reset = source.is_reset() || source.is_io() || source.is_go_away();
    let (failure, how) = match source.reason() {
        _ if stalled => (Failure::UploadIdle, Failed::Final),
        // The client's upload broke off, and so we cancelled what was sent of it.
        Some(::h2::Reason::CANCEL) if !source.is_remote() => (Failure::BadRequest, Failed::Final),
        _ if unsent.is_some() => (Failure::Reset, Failed::Unsent),
        _ if unprocessed => (Failure::Reset, Failed::Unprocessed),
        _ if reset => (Failure::Reset, Failed::Reset),
        _ => (Failure::Protocol, Failed::Reset),
    };
    let request = unsent.map(|request| Box::new(Call { request: *request, facts, plan }));
    Untried { failure, how, request, trail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_request_meant_for_http_1_can_be_sent_over_http_2_instead() {
        let mut request = Request::get("http://orders:80/x?y").body(Body::Empty).unwrap();
        let facts = facts();
        for_link(&mut request, &facts, Link::PlainH1);
        assert_eq!(request.uri(), "/x?y");
        assert_eq!(request.headers()[header::HOST], "orders:80");
        for_link(&mut request, &facts, Link::MeshH2);
        assert_eq!(request.uri(), "http://orders:80/x?y");
        assert!(!request.headers().contains_key(header::HOST));
        for_link(&mut request, &facts, Link::PlainH1);
        assert_eq!(request.headers()[header::HOST], "orders:80");
    }

    #[test]
    fn a_target_without_a_path_is_the_root() {
        let mut request = Request::get("http://orders").body(Body::Empty).unwrap();
        for_link(&mut request, &facts(), Link::PlainH1);
        assert_eq!(request.uri().to_string(), "/");
    }

    fn facts() -> Facts {
        Facts::new(Version::HTTP_11, [127, 0, 0, 1].into(), clock::now())
    }
}
