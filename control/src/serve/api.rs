//! API: which call is which, how large and how slow it may be, and how it is answered.
//!
//! The calls are those of `remora::sync::wire`.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use remora::{
    admin::respond,
    clock,
    identity::control::{self, Accepted},
    sync::{
        server::{Answer, Peer, Service, parameter},
        wire,
    },
};
use remora_certs::jwks;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, time::timeout};

use super::{Control, Reason, auth::Caller, certificates, watch};
use crate::publish;

/// What is sent is at most so large: a CSR, a report.
const BODY_MAX: usize = 64 * 1024;

/// A body comes within so long.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// A call is answered within so long, but for the lines of a watch.
const PATIENCE: Duration = Duration::from_secs(30);

/// After how many seconds to try again what control could not do.
const TRY_AGAIN: u64 = 5;

/// How often others are to look for a newer bundle.
const REFRESH: Duration = Duration::from_mins(5);

impl Service for Control {
    async fn accept(&self, tcp: TcpStream) -> io::Result<Accepted> {
        let issuing = self.live.get();
        control::accept(tcp, &issuing.svid, &issuing.roots).await
    }

    async fn answer(self: Arc<Self>, peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let caller = Caller { control: Arc::clone(&self), peer };
        let called = timeout(PATIENCE, Box::pin(call(caller, request))).await;
        let called = called.unwrap_or(Err(Reason::Timeout));
        let is_call = !matches!(called, Err(Reason::NoSuchCall));
        let call = path.strip_prefix("/v1/").filter(|_| is_call).unwrap_or("none");
        let answer = called.unwrap_or_else(|reason| refused(&self, &reason));
        self.metrics.requests.with_label_values(&[call, answer.status().as_str()]).inc();
        answer
    }

    fn admits(&self, address: IpAddr) -> bool {
        self.limits.connections.take(&address).is_ok()
    }

    fn counted(&self, result: &'static str) {
        self.metrics.handshakes.with_label_values(&[result]).inc();
    }
}

async fn call(caller: Caller, request: Request<Incoming>) -> Result<Answer, Reason> {
    let (control, ok) = (&*caller.control, StatusCode::OK);
    let (head, body) = request.into_parts();
    Ok(match (head.method.as_str(), head.uri.path()) {
        ("POST", wire::CERTIFICATES) => {
            let asked = read(body).await?;
            json(ok, &certificates::sign(&caller, &head.headers, &asked).await?)
        }
        ("GET", wire::WATCH) => {
            let certified = caller.sidecar()?;
            let instance = parameter(&head.uri, "instance").unwrap_or_default();
            let sender = caller.sender(certified, instance)?;
            let has = parameter(&head.uri, "generation").map(str::to_owned);
            let lines = watch::open(caller, sender, has)?;
            respond(ok, "application/x-ndjson", "").map(|_| Either::Right(lines))
        }
        ("POST", wire::REPORT) => {
            let certified = caller.sidecar()?;
            let report: wire::Report = read(body).await?;
            let sender = caller.sender(certified, &report.instance)?;
            control.fleet.reported(&sender, report)?;
            let mut answer = Response::new(Either::Left(Full::default()));
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        ("GET", wire::BUNDLE) => {
            control.limits.strangers.take(&caller.peer.address)?;
            let issuing = control.live.get();
            let bundle = &issuing.record.bundle;
            if parameter(&head.uri, "format") != Some("spiffe") {
                return Ok(json(ok, bundle));
            }
            let text = jwks::write(issuing.roots.roots(), bundle.sequence, REFRESH);
            let text = text.map_err(|it| Reason::SigningFailed(it.to_string()))?;
            respond(ok, "application/json", text).map(Either::Left)
        }
        ("GET", wire::SIDECARS) => json(ok, &caller.operator()?.sidecars()),
        ("GET", wire::POLICY) => json(ok, &caller.operator()?.publisher.status()),
        ("POST", wire::POLICY) => {
            let publisher = &caller.operator()?.publisher;
            match publisher.change(read(body).await?).await {
                Err(publish::Error::Store(error)) => return Err(error.into()),
                changed => json(ok, &changed.map_err(|it| Reason::Policy(it.to_string()))?),
            }
        }
        ("GET", wire::ROTATION) => {
            let Control { rotation, fleet, .. } = caller.operator()?;
            json(ok, &rotation.status(fleet, clock::wall()))
        }
        (_, wire::CERTIFICATES | wire::REPORT) => return Err(Reason::Method("POST")),
        (_, wire::WATCH | wire::BUNDLE | wire::SIDECARS | wire::ROTATION) => {
            return Err(Reason::Method("GET"));
        }
        (_, wire::POLICY) => return Err(Reason::Method("GET, POST")),
        _ => return Err(Reason::NoSuchCall),
    })
}

/// Reads a body of at most [`BODY_MAX`].
async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Reason> {
    let all = timeout(BODY_PATIENCE, Limited::new(body, BODY_MAX).collect()).await;
    let all = all.map_err(|_| Reason::Timeout)?.map_err(|it| {
        let is_large = it.is::<LengthLimitError>();
        if is_large { Reason::TooLarge(BODY_MAX) } else { Reason::Body(it.to_string()) }
    })?;
    serde_json::from_slice(&all.to_bytes()).map_err(|it| Reason::Body(it.to_string()))
}

fn refused(control: &Control, reason: &Reason) -> Answer {
    let (status, word, hint) = reason.row();
    control.metrics.refusals.with_label_values(&[word]).inc();
    control.metrics.store_failures.inc_by(matches!(reason, Reason::StoreFailed(_)).into());
    let (error, hint) = (reason.to_string(), hint.to_owned());
    let mut answer = json(status, &wire::Refusal { reason: word.to_owned(), error, hint });
    let (name, value) = match (status, reason) {
        (StatusCode::UNAUTHORIZED, _) => {
            (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        }
        (_, Reason::Method(methods)) => (header::ALLOW, HeaderValue::from_static(methods)),
        // Whole seconds, and none too early.
        (_, Reason::RateLimited(wait)) => (header::RETRY_AFTER, (wait.as_secs() + 1).into()),
        (StatusCode::SERVICE_UNAVAILABLE, _) => (header::RETRY_AFTER, TRY_AGAIN.into()),
        _ => return answer,
    };
    answer.headers_mut().insert(name, value);
    answer
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // The types of the protocol can always be written.
    let text = serde_json::to_vec(value).unwrap_or_default();
    respond(status, "application/json", text).map(Either::Left)
}
