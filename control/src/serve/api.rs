//! API: which call is which, how large and how slow it may be, and how it is answered.
//!
//! The calls are those of `remora::sync::wire`.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use remora::{clock, sync::wire};
use remora_certs::jwks;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    Control, Reason,
    auth::Peer,
    body::Body,
    certificates::{self, check_instance},
    watch,
};
use crate::{fleet::Sender, publish};

/// What a sidecar sends is at most so large: a CSR, a report.
const SMALL_MAX: usize = 64 * 1024;

/// A body comes within so long.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// A call is answered within so long, but for the lines of a watch.
const PATIENCE: Duration = Duration::from_secs(30);

/// After how many seconds to try again what control could not do.
const TRY_AGAIN: u64 = 5;

/// How often others are to look for a newer bundle.
const REFRESH: Duration = Duration::from_mins(5);

/// The call and its methods, for metrics and `Allow`.
fn call_of(path: &str) -> (&'static str, &'static [Method]) {
    match path {
        wire::CERTIFICATES => ("certificates", &[Method::POST]),
        wire::WATCH => ("watch", &[Method::GET]),
        wire::REPORT => ("report", &[Method::POST]),
        wire::BUNDLE => ("bundle", &[Method::GET]),
        wire::SIDECARS => ("sidecars", &[Method::GET]),
        wire::POLICY => ("policy", &[Method::GET, Method::POST]),
        wire::ROTATION => ("rotation", &[Method::GET]),
        _ => ("none", &[]),
    }
}

/// Answers a request, whatever it is.
pub(super) async fn answer(
    control: Arc<Control>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (call, methods) = call_of(request.uri().path());
    let called = Box::pin(call_it(&control, &peer, request, methods));
    let answered = timeout(PATIENCE, called).await;
    let response = match answered.unwrap_or(Err(Reason::Timeout)) {
        Ok(response) => response,
        Err(reason) => refused(&control, &reason, methods),
    };
    control.metrics.requests.with_label_values(&[call, response.status().as_str()]).inc();
    response
}

async fn call_it(
    control: &Arc<Control>,
    peer: &Arc<Peer>,
    request: Request<Incoming>,
    methods: &[Method],
) -> Result<Response<Body>, Reason> {
    if methods.is_empty() {
        return Err(Reason::NoSuchCall);
    }
    if !methods.contains(request.method()) {
        return Err(Reason::Method);
    }
    let posts = request.method() == Method::POST;
    match request.uri().path() {
        wire::CERTIFICATES => {
            let headers = request.headers().clone();
            let body = body(request, SMALL_MAX).await?;
            json(&certificates::sign(control, peer, &headers, &body).await?)
        }
        wire::WATCH => {
            let caller = peer.sidecar(control)?;
            let instance = parameter(&request, "instance").ok_or(Reason::Instance)?;
            check_instance(instance)?;
            let lines = watch::open(control, peer, caller, instance)?;
            Ok(respond(StatusCode::OK, "application/x-ndjson", lines))
        }
        wire::REPORT => report(control, peer, request).await,
        wire::BUNDLE => bundle(control, peer, &request),
        wire::SIDECARS => {
            peer.operator(control)?;
            json(&control.sidecars())
        }
        wire::POLICY if posts => {
            peer.operator(control)?;
            let change = body(request, wire::BYTES_MAX).await?;
            let changed = control.publisher.change(change).await;
            json(&changed.map_err(|it| match it {
                publish::Error::Store(error) => Reason::StoreFailed(error.to_string()),
                publish::Error::NotKept(_)
                | publish::Error::NoneBefore
                | publish::Error::Unusable { .. } => Reason::Policy(it.to_string()),
            })?)
        }
        wire::POLICY => {
            peer.operator(control)?;
            json(&control.publisher.status())
        }
        _ => {
            peer.operator(control)?;
            json(&control.rotation.status(&control.fleet, clock::wall()))
        }
    }
}

async fn report(
    control: &Control,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Body>, Reason> {
    let (id, ends) = peer.sidecar(control)?;
    let report: wire::Report = body(request, SMALL_MAX).await?;
    check_instance(&report.instance)?;
    let instance = report.instance.clone();
    control.publisher.higher(report.policy.received.max(report.policy.accepted));
    let sender = Sender { id, instance, peer: peer.address, not_after: ends.as_secs() };
    control.fleet.reported(&sender, report, clock::wall()).ok_or(Reason::FleetFull)?;
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn bundle(
    control: &Control,
    peer: &Peer,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Reason> {
    control.limits.strangers.take(&peer.address)?;
    let issuing = control.live.get();
    if parameter(request, "format") != Some("spiffe") {
        return json(&issuing.bundle);
    }
    let text = jwks::write(issuing.roots.roots(), issuing.bundle.sequence, REFRESH)
        .map_err(|it| Reason::SigningFailed(it.to_string()))?;
    Ok(respond(StatusCode::OK, "application/json", text.into_bytes().into()))
}

/// The value of a parameter of the query, as it stands there.
fn parameter<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|it| it.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// Reads a body of at most `most` bytes.
async fn body<T: DeserializeOwned>(request: Request<Incoming>, most: usize) -> Result<T, Reason> {
    let all = Limited::new(request.into_body(), most).collect();
    let all = timeout(BODY_PATIENCE, all).await.map_err(|_| Reason::Timeout)?;
    let all = all.map_err(|it| match it.downcast::<LengthLimitError>() {
        Ok(_) => Reason::TooLarge(most),
        Err(other) => Reason::Body(other.to_string()),
    })?;
    serde_json::from_slice(&all.to_bytes()).map_err(|it| Reason::Body(it.to_string()))
}

fn json(value: &impl Serialize) -> Result<Response<Body>, Reason> {
    let text = serde_json::to_vec(value).map_err(|it| Reason::StoreFailed(it.to_string()))?;
    Ok(respond(StatusCode::OK, "application/json", text.into()))
}

fn refused(control: &Control, reason: &Reason, methods: &[Method]) -> Response<Body> {
    control.metrics.refusals.with_label_values(&[reason.word()]).inc();
    if let Reason::StoreFailed(_) = reason {
        control.metrics.store_failures.inc();
    }
    let text = serde_json::to_vec(&reason.refusal()).unwrap_or_default();
    let mut response = respond(reason.status(), "application/json", text.into());
    // Whole seconds, and none too early.
    let wait = if let Reason::RateLimited(wait) = reason {
        wait.as_secs() + u64::from(wait.subsec_nanos() != 0)
    } else {
        TRY_AGAIN
    };
    let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let told = match reason.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Some((header::RETRY_AFTER, HeaderValue::from(wait)))
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            HeaderValue::from_str(&allowed).ok().map(|it| (header::ALLOW, it))
        }
        StatusCode::UNAUTHORIZED => {
            Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
        }
        _ => None,
    };
    response.headers_mut().extend(told);
    response
}

pub(super) fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
