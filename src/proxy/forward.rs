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
};

use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body::Body as _;
use tower::Service;

use super::{
    context::{Call, Facts, Manner, Trail, Underway},
    failure::Failure,
    headers,
    service::Permit,
    upgrade,
    upstream::{Connection, Upstream},
};
use crate::{
    clock,
    telemetry::metrics::Attempt,
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
}

/// A try with an answer.
#[derive(Debug)]
pub struct Tried {
    /// The response.
    pub response: Response<Body>,
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
    /// The request, where it is at hand still.
    pub request: Option<Box<Call>>,
    /// Whether the application can't have seen any of it.
    pub unseen: bool,
    /// What it took.
    pub trail: Trail,
}

impl Forward {
    /// Sends to the endpoints of `upstream`.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream }
    }

    async fn send(self, mut call: Box<Call>, mut permit: Permit) -> Result<Tried, Untried> {
        let facts = call.facts;
        let now = facts.started;
        let address = permit.address;
        let mut trail = Trail { upstream: Some(address), ..Trail::default() };
        let (connection, link) = match self.upstream.pooled(address, &facts, now) {
            Some(pooled) => pooled,
            // Boxed: a dial is large and rare.
            None => match Box::pin(self.upstream.connection(address, &facts, now)).await {
                Ok(opened) => opened,
                Err(failure) => {
                    permit.outcome(Attempt::ConnectFailed);
                    return Err(Untried { failure, request: Some(call), unseen: true, trail });
                }
            },
        };
        trail.mesh = link.is_mesh();
        for_link(&mut call.request, &facts, link);
        let sent = match connection {
            Connection::H1(connection) => {
                if facts.manner == Manner::Expect {
                    Held::hold(&mut call.request);
                }
                let used = connection.used;
                let sent = connection.send(call.request, now).await;
                sent.map_err(|error| of_h1(error, facts, used, trail))
            }
            Connection::H2(connection) => {
                let (parts, body) = call.request.into_parts();
                let head = Request::from_parts(parts, ());
                let sent = connection.send(head, body).await;
                sent.map_err(|error| of_h2(error, facts, trail))
            }
            Connection::Raw(stream) => {
                let drain = self.upstream.shared.drain.clone();
                let exchange = upgrade::exchange(stream, call.request, (permit, drain), trail);
                return Box::pin(exchange).await;
            }
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                // RFC 9110, section 15.2.2: only where it was asked for.
                permit.outcome(Attempt::Failure);
                let failure = Failure::Protocol;
                Err(Untried { failure, request: None, unseen: false, trail })
            }
            Ok(response) => {
                let failed = response.status().is_server_error();
                permit.outcome(if failed { Attempt::Failure } else { Attempt::Success });
                Ok(Tried { response, permit: Some(permit), trail })
            }
            Err(untried) => {
                // A client that leaves in its own upload says nothing about the upstream.
                let blameless = untried.failure == Failure::BadRequest;
                permit.outcome(if blameless { Attempt::Cancelled } else { Attempt::Failure });
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
        let Try { call, avoid } = attempt;
        let (facts, upstream) = (call.facts, &self.upstream);
        let Some(mut permit) = upstream.service.pick(facts.started, &upstream.draw, avoid) else {
            let (failure, trail) = (Failure::NoEndpoints, Trail::default());
            let untried = Untried { failure, request: Some(call), unseen: true, trail };
            return Trying { upstream: None, sending: Box::pin(ready(Err(untried))) };
        };
        let address = Some(permit.address);
        let whole = facts.timeout.map(|it| facts.started + it);
        let one = facts.try_timeout.map(|it| clock::now() + it);
        permit.deadline = one.map_or(whole, |one| Some(whole.map_or(one, |it| it.min(one))));
        let sending = self.clone().send(call, permit);
        let Some(deadline) = one else {
            return Trying { upstream: address, sending: Box::pin(sending) };
        };
        let sending = Box::pin(sending);
        let bounded = async move {
            if let Ok(sent) = tokio::time::timeout_at(deadline.into(), sending).await {
                return sent;
            }
            let trail = Trail { upstream: address, ..Trail::default() };
            Err(Untried { failure: Failure::TryTimeout, request: None, unseen: false, trail })
        };
        Trying { upstream: address, sending: Box::pin(bounded) }
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

fn of_h1(error: h1::SendError, facts: Facts, used: bool, trail: Trail) -> Untried {
    let h1::SendError { source, unsent } = error;
    tracing::debug!(error = %source, reused = used, "no answer over http/1");
    let cause = std::error::Error::source(&source).and_then(|it| it.downcast_ref());
    let failure = match cause {
        Some(body::Error::Client(_)) => Failure::BadRequest,
        _ if source.is_parse() => Failure::Protocol,
        _ => Failure::Reset,
    };
    let unseen = unsent.is_some();
    let request = unsent.map(|request| Box::new(Call { request: *request, facts }));
    Untried { failure, request, unseen, trail }
}

fn of_h2(error: h2::SendError, facts: Facts, trail: Trail) -> Untried {
    let h2::SendError { source, unprocessed, unsent } = error;
    tracing::debug!(error = %source, unprocessed, "no answer over http/2");
    let reset = source.is_reset() || source.is_io() || source.is_go_away();
    let failure = match source.reason() {
        // The client's upload broke off, and so we cancelled what was sent of it.
        Some(::h2::Reason::CANCEL) if !source.is_remote() => Failure::BadRequest,
        _ if reset => Failure::Reset,
        _ => Failure::Protocol,
    };
    let request = unsent.map(|request| Box::new(Call { request: *request, facts }));
    Untried { failure, request, unseen: unprocessed, trail }
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
        Facts {
            version: Version::HTTP_11,
            manner: Manner::Plain,
            idempotent: true,
            grpc: false,
            started: clock::now(),
            timeout: None,
            try_timeout: None,
            idle: None,
        }
    }
}
