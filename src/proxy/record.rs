//! Record (steps 3 and 10): a request from its beginning to its settled end.
//!
//! Exactly one end is counted and logged: a complete response, one that broke off, or a
//! client that left. It is settled when the response's body has ended, before its last
//! bytes can be seen by the client, or when everything is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, uri};
use http_body::{Body as _, Frame, SizeHint};

use super::{
    context::{Trail, Worker},
    core::Permit,
    failure::Failure,
    guard::Pass,
    handle::Open,
    headers::REQUEST_ID,
    judge,
    plan::Plan,
    traces::Guard,
};
use crate::{
    clock,
    drain::InFlight,
    resilience::balancer::Outcome,
    telemetry::access_log::Entry,
    transport::body::{self, Body, Count, Patience},
};

/// A request that has not ended.
#[derive(Debug)]
pub struct Record {
    /// Who handles it.
    pub worker: Arc<Worker>,
    /// Which rule it follows.
    pub plan: Arc<Plan>,
    /// What it is for.
    pub service: Arc<str>,
    /// What was asked.
    pub method: Method,
    /// For what.
    pub uri: Uri,
    /// In what version.
    pub version: Version,
    /// Its name in every log.
    pub request_id: Option<HeaderValue>,
    /// Who asked, verified.
    pub peer: Option<Arc<str>>,
    /// Whether it is a gRPC call.
    pub grpc: bool,
    /// On which connection.
    pub open: Open,
    /// When its head had been read.
    pub started: Instant,
    /// What it took.
    pub trail: Trail,
    /// The answer's status, once there is one.
    pub status: Option<StatusCode>,
    /// Why Remora answered itself, here or at the peer, or why the answer broke off.
    pub failure: Option<Failure>,
    /// Bytes of the request's body.
    pub bytes_in: Count,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Held until the answer's body has ended.
    pub permit: Option<Permit>,
    /// What the workload took it on by.
    pub pass: Pass,
    /// Its place among the traces, where a mesh peer sent it.
    pub trace: Option<Guard>,
    /// Holds a drain up.
    pub in_flight: InFlight,
}

impl Record {
    /// Counts and logs the end: of a response, if there was one.
    pub(super) fn settle(&mut self) {
        let elapsed = clock::now().saturating_duration_since(self.started);
        match self.status {
            Some(status) => self.plan.metrics.finished(status.as_u16(), elapsed),
            None => self.plan.metrics.cancelled(),
        }
        let status = self.status.map_or(0, |it| it.as_u16());
        let reason = self.failure.map(Failure::label);
        let log = &self.worker.shared.access_log;
        if !log.wants(status, reason, self.worker.draw.next()) {
            return;
        }
        let host = self.uri.authority().map_or("", |it| it.as_str());
        log.log(&Entry {
            time: clock::wall(),
            direction: self.worker.direction,
            method: self.method.as_str(),
            authority: host,
            path: self.uri.path(),
            protocol: protocol(self.version),
            status,
            reason,
            route: &self.plan.route,
            service: &self.service,
            upstream: self.trail.upstream,
            attempts: u32::from(self.trail.tries),
            duration: elapsed,
            peer: self.peer.as_deref(),
            request_id: self.request_id.as_ref().and_then(|it| it.to_str().ok()).unwrap_or(""),
            bytes_in: self.bytes_in.bytes(),
            bytes_out: self.bytes_out,
            tls: self.peer.is_some() || self.trail.mesh,
        });
    }
}

/// Logs a request that was refused before it had a record.
pub(super) fn refused<B>(worker: &Worker, request: &Request<B>, service: &str, failure: Failure) {
    let (status, reason) = (failure.row().status.as_u16(), Some(failure.label()));
    let log = &worker.shared.access_log;
    if !log.wants(status, reason, worker.draw.next()) {
        return;
    }
    let host = request.headers().get(header::HOST).and_then(|it| it.to_str().ok());
    let id = request.headers().get(&REQUEST_ID).and_then(|it| it.to_str().ok());
    log.log(&Entry {
        time: clock::wall(),
        direction: worker.direction,
        method: request.method().as_str(),
        authority: request.uri().authority().map(uri::Authority::as_str).or(host).unwrap_or(""),
        path: request.uri().path(),
        protocol: protocol(request.version()),
        status,
        reason,
        route: "none",
        service,
        upstream: None,
        attempts: 0,
        duration: Duration::ZERO,
        peer: None,
        request_id: id.unwrap_or(""),
        bytes_in: 0,
        bytes_out: 0,
        tls: false,
    });
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// The body of a response, which settles its request's record at its end.
#[derive(Debug)]
pub struct Tracked {
    body: Body,
    patience: Patience,
    record: Option<Box<Record>>,
    /// Whether its next frame had to be waited for.
    waited: bool,
}

impl Tracked {
    /// A body whose end is the end of `record`.
    pub fn new(body: Body, idle: Option<Duration>, record: Box<Record>) -> Self {
        let (patience, record) = (Patience::new(idle), Some(record));
        let mut tracked = Self { body, patience, record, waited: false };
        if tracked.body.is_end_stream() {
            tracked.settle();
        }
        tracked
    }

    /// A body of a response to a request that has no record.
    pub fn unrecorded(body: Body) -> Self {
        Self { body, patience: Patience::new(None), record: None, waited: false }
    }

    fn settle(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.settle();
        }
    }

    /// The head is here and the body takes its time: the endpoint does not hang.
    #[cold]
    fn waits(&mut self) {
        self.waited = true;
        if let Some(permit) = self.record.as_mut().and_then(|it| it.permit.as_mut()) {
            permit.answered();
        }
    }

    fn trailers(&mut self, fields: &HeaderMap) {
        let Some(record) = self.record.as_mut().filter(|it| it.grpc) else { return };
        if let (Some(permit), Some(outcome)) = (&mut record.permit, judge::trailers(fields)) {
            permit.outcome(outcome);
        }
    }

    fn broke_off(&mut self, error: &body::Error) {
        let Some(record) = &mut self.record else { return };
        record.failure = Some(match error {
            body::Error::Idle => Failure::IdleTimeout,
            body::Error::Client(_)
            | body::Error::H1(_)
            | body::Error::H2(_)
            | body::Error::Replaced => Failure::Reset,
        });
        if let Some(permit) = &mut record.permit {
            permit.outcome(Outcome::Failure);
        }
        tracing::debug!(%error, service = %record.service, "response broke off");
        self.settle();
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let Some(record) = &mut self.record else { return };
        // The client left: an outcome, not a failure of the endpoint.
        record.status = None;
        if let Some(permit) = &mut record.permit {
            permit.left();
        }
        self.settle();
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if polled.is_pending() && !this.waited {
            this.waits();
        }
        let frame = ready!(this.patience.with(cx, polled, || Some(Err(body::Error::Idle))));
        match &frame {
            None => this.settle(),
            Some(Err(error)) => this.broke_off(error),
            Some(Ok(frame)) => {
                if let (Some(record), Some(data)) = (&mut this.record, frame.data_ref()) {
                    record.bytes_out += data.len() as u64;
                } else if let Some(fields) = frame.trailers_ref() {
                    this.trailers(fields);
                }
                if this.body.is_end_stream() {
                    this.settle();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
