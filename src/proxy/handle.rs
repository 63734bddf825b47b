//! Handle: one request on one connection, through the ten steps.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, Uri, Version, uri};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tower::Service as _;

use super::{
    admit,
    begin::{Authority, Begun, begin},
    context::{Answer, Call, Facts, Refusal, Trail, Worker},
    deadline,
    failure::Failure,
    guard::Pass,
    headers::{self, Seen},
    plan::Plan,
    record::{self, Record, Tracked},
    reply,
    route::{Choice, Destination, Parent},
};
use crate::{
    clock,
    telemetry::metrics::Direction,
    transport::{body::Body, guarded::Flags},
};

/// The service of a request that was not understood.
const NO_SERVICE: &str = "none";

/// How long a name that was never looked up may take to be.
const RESOLUTION: Duration = Duration::from_secs(5);

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    /// Who handles it.
    pub worker: Arc<Worker>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Who it is, verified.
    pub peer: Option<Arc<str>>,
    /// Where it was going before packet rules brought it here.
    pub original: Option<SocketAddr>,
    /// The application it is for, where there is no other choice.
    pub local: Option<Arc<Parent>>,
    /// The port that policy speaks of.
    pub port: u16,
    /// What its stream shares.
    pub flags: Arc<Flags>,
    /// What its last request led to.
    pub last: Mutex<Option<(Authority, Arc<Parent>)>>,
    /// Requests without a complete response.
    pub open: AtomicUsize,
    /// Requests there have been.
    pub served: AtomicUsize,
}

/// A request whose way is known.
#[derive(Debug)]
pub struct Prepared {
    call: Box<Call>,
    destination: Arc<Destination>,
    record: Box<Record>,
}

/// Steps 3 to 5, which never wait: a request that may be sent, or the response that says
/// why not.
///
/// # Errors
///
/// The response.
pub fn prepare(
    client: &Arc<Client>,
    mut request: Request<Incoming>,
) -> Result<Prepared, Box<Response<Tracked>>> {
    let now = clock::now();
    let draw = &client.worker.draw;
    let random = [draw.long() | 1, draw.long(), draw.long() | 1];
    let seen = Seen::of(request.headers());
    let grpc = reply::is_grpc(request.headers(), seen);
    let refuse = |request: &Request<Incoming>, failure, service: &str| {
        record::refused(&client.worker, request, service, failure);
        Box::new(client.refuse(failure, grpc, service))
    };
    let at = (client.address.ip(), now);
    let trace = deadline::trace_of(client, request.headers(), seen);
    let mut begun = begin(&mut request, (seen, grpc), (client.peer.is_some(), random), at)
        .map_err(|failure| refuse(&request, failure, NO_SERVICE))?;
    let parent =
        client.parent(&begun.authority).map_err(|failure| refuse(&request, failure, NO_SERVICE))?;
    let choice = admit::admit(client)
        .and_then(|()| parent.choose(request.uri().path(), draw.next()))
        .map_err(|failure| refuse(&request, failure, &parent.label))?;
    deadline::bound(&mut begun, client, &choice, trace)
        .map_err(|failure| refuse(&request, failure, &parent.label))?;
    let pass = admit::take_on(client, &parent, &request, &begun.facts).map_err(|denied| {
        let mut response = refuse(&request, denied.failure, &parent.label);
        denied.tell(response.headers_mut(), grpc);
        response
    })?;
    let mut prepared = client.prepared(request, begun, &parent, choice);
    prepared.record.pass = pass;
    prepared.record.trace = deadline::open(client, &prepared.call.facts, trace);
    Ok(prepared)
}

/// Steps 6 to 10; there is always a response.
///
/// # Cancel safety
///
/// The request is cancelled, and counted so.
pub async fn handle(
    client: Arc<Client>,
    prepared: Result<Prepared, Box<Response<Tracked>>>,
) -> Response<Tracked> {
    let Prepared { call, destination, record } = match prepared {
        Ok(prepared) => prepared,
        Err(response) => return *response,
    };
    let (facts, guard) = (call.facts, Unanswered(Some(record)));
    if destination.upstream.service.is_pending() {
        let patience = facts.timeout.map_or(RESOLUTION, |it| it.min(RESOLUTION));
        destination.upstream.service.resolved(patience).await;
    }
    let answered = destination.stack.clone().call(call).await;
    let Some(record) = guard.answered() else {
        return client.refuse(Failure::Internal, false, NO_SERVICE);
    };
    match answered {
        Ok(answer) => client.answer(answer, &facts, record),
        Err(refusal) => client.fail(refusal, &facts, record),
    }
}

impl Client {
    /// What a name leads to; the answer for the name asked for last is at hand.
    fn parent(&self, authority: &Authority) -> Result<Arc<Parent>, Failure> {
        let shared = &self.worker.shared;
        if let Some(local) = &self.local {
            if local.is_current(shared) {
                return Ok(Arc::clone(local));
            }
            let Some(address) = self.original else { return Ok(Arc::clone(local)) };
            return Ok(self.worker.routes.local(shared, address));
        }
        if let Some((name, parent)) = &*self.last.lock()
            && name == authority
            && parent.is_current(shared)
        {
            return Ok(Arc::clone(parent));
        }
        let original = self.original.map(|it| it.to_string());
        let name = match (authority.as_str().ok_or(Failure::BadRequest)?, &original) {
            ("", Some(original)) => original,
            ("", None) => return Err(Failure::NoRoute),
            (name, _) => name,
        };
        let parent = self.worker.routes.parent(shared, name, self.original)?;
        *self.last.lock() = Some((authority.clone(), Arc::clone(&parent)));
        Ok(parent)
    }

    /// Everything that is known of a request before it is sent.
    fn prepared(
        self: &Arc<Self>,
        request: Request<Incoming>,
        begun: Begun,
        parent: &Parent,
        choice: Choice,
    ) -> Prepared {
        let call = self.call(request, begun, parent, &choice.plan);
        let head = &call.request;
        let record = Box::new(Record {
            worker: Arc::clone(&self.worker),
            plan: choice.plan,
            service: Arc::clone(&parent.label),
            method: head.method().clone(),
            uri: head.uri().clone(),
            version: call.facts.version,
            request_id: head.headers().get(&headers::REQUEST_ID).cloned(),
            peer: self.peer.clone(),
            grpc: call.facts.grpc,
            open: Open::new(self),
            started: call.facts.started,
            trail: Trail::default(),
            status: None,
            failure: None,
            bytes_in: head.body().count(),
            bytes_out: 0,
            permit: None,
            pass: Pass::default(),
            trace: None,
            in_flight: self.worker.shared.drain.in_flight(),
        });
        Prepared { call, destination: choice.destination, record }
    }

    /// The response to a call that came to nothing.
    fn fail(&self, refusal: Refusal, facts: &Facts, mut record: Box<Record>) -> Response<Tracked> {
        let Refusal { failure, trail } = refusal;
        let metrics = &self.worker.shared.metrics;
        metrics.local_reply(self.worker.direction, &record.service, failure.label());
        (record.failure, record.trail) = (Some(failure), trail);
        record.status = Some(failure.row().status);
        let mut response = reply::failed(failure, facts.grpc);
        record.pass.failed(failure, response.headers_mut());
        deadline::answered(&record, facts, response.headers_mut());
        response.map(|body| Tracked::new(body, None, record))
    }

    /// The call that a request becomes.
    fn call(
        &self,
        request: Request<Incoming>,
        begun: Begun,
        parent: &Parent,
        plan: &Arc<Plan>,
    ) -> Box<Call> {
        let Begun { facts, authority, .. } = begun;
        let (mut head, body) = request.into_parts();
        let name = match authority {
            Authority::Target(name) => Some(name),
            Authority::Host(_) | Authority::None if parent.authority.is_some() => {
                parent.authority.clone()
            }
            Authority::Host(value) => uri::Authority::from_maybe_shared(value).ok(),
            Authority::None => None,
        };
        let name = name.or_else(|| self.original.and_then(|it| it.to_string().parse().ok()));
        let mut parts = uri::Parts::default();
        parts.path_and_query = std::mem::take(&mut head.uri).into_parts().path_and_query;
        parts.authority = Some(name.unwrap_or_else(|| uri::Authority::from_static("localhost")));
        parts.scheme = Some(uri::Scheme::HTTP);
        head.uri = Uri::from_parts(parts).unwrap_or_default();
        if self.worker.direction == Direction::Inbound {
            headers::forwarded(&mut head.headers, self.address.ip());
            if let Some(peer) = &self.peer
                && let Ok(peer) = http::HeaderValue::from_str(peer)
            {
                head.headers.insert(headers::PEER, peer);
            }
        }
        let body = Body::from_client(body, facts.idle);
        let request = Request::from_parts(head, body);
        Box::new(Call { request, facts, plan: Arc::clone(plan) })
    }

    /// The upstream's response as the client gets it.
    fn answer(&self, answer: Answer, facts: &Facts, mut record: Box<Record>) -> Response<Tracked> {
        let Answer { mut response, permit, trail } = answer;
        let status = response.status();
        // RFC 9110, section 2.5: an intermediary answers in its own version. hyper also tells
        // an HTTP/1.0 client by it that the connection is kept.
        *response.version_mut() = Version::HTTP_11;
        let fields = response.headers_mut();
        let seen = Seen::of(fields);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.flags.release();
        } else if seen.connection || seen.hop_by_hop {
            headers::strip_hop_by_hop(fields, seen);
        }
        // What a mesh peer says of itself is passed on; what an application says is not.
        if seen.ours && trail.mesh {
            fields.remove(headers::RETRY);
            let reason = fields.get(&headers::REASON);
            record.failure = reason.and_then(|it| Failure::from_label(it.as_bytes()));
        } else if seen.ours {
            headers::strip_ours(fields);
        }
        record.pass.answered(fields, facts.started);
        (record.status, record.trail, record.permit) = (Some(status), trail, permit);
        deadline::answered(&record, facts, fields);
        let stream = facts.grpc || seen.content_type && is_event_stream(&response);
        let idle = facts.idle.filter(|_| !stream);
        response.map(|body| Tracked::new(body, idle, record))
    }

    /// The response to a request that came to nothing before it had a route.
    fn refuse(&self, failure: Failure, grpc: bool, service: &str) -> Response<Tracked> {
        let Worker { shared, direction, .. } = &*self.worker;
        shared.metrics.local_reply(*direction, service, failure.label());
        shared
            .metrics
            .route(*direction, service, "default")
            .finished(failure.row().status.as_u16(), Duration::ZERO);
        let mut response = reply::failed(failure, grpc).map(Tracked::unrecorded);
        if failure == Failure::BadRequest {
            // What follows a request that is not understood can't be understood either.
            let close = http::HeaderValue::from_static("close");
            response.headers_mut().insert(http::header::CONNECTION, close);
        }
        response
    }
}

/// Counts a request as open on its connection until dropped.
#[derive(Debug)]
pub struct Open(Arc<Client>);

impl Open {
    fn new(client: &Arc<Client>) -> Self {
        client.served.fetch_add(1, Ordering::Relaxed);
        client.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(client))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Settles a record whose call was dropped: the client left before there was an answer.
struct Unanswered(Option<Box<Record>>);

impl Unanswered {
    /// There is an answer.
    fn answered(mut self) -> Option<Box<Record>> {
        self.0.take()
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(record) = &mut self.0 {
            record.settle();
        }
    }
}

fn is_event_stream<B>(response: &Response<B>) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|it| it.as_bytes().starts_with(b"text/event-stream"))
}
