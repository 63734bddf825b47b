//! Admin: what the kubelet and Prometheus ask for, on a port and a runtime of its own.
//!
//! | path | answer |
//! |---|---|
//! | `/health/live` | 200 while the process answers at all |
//! | `/health/ready` | 200, or 503 with what is missing; 503 from the start of a drain |
//! | `/health/startup` | 200 once it has been ready, also when it is not any more |
//! | `/metrics` | the metrics page |
//! | `/debug/…` | to loopback peers only |
//!
//! Nobody who connects can hurt another: a head has 5 s to arrive and 16 KiB of room, a
//! connection lives for a minute, and when all [`CONNECTIONS_MAX`] are taken the oldest one
//! is closed, so that a crowd of slow scrapers cannot lock the kubelet out.

pub mod health;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};

use crate::{
    drain::{self, Drain},
    telemetry::Metrics,
};
pub use health::{Condition, Health};

/// Connections at a time: some probes, a scraper or two, and a person.
pub const CONNECTIONS_MAX: usize = 32;

/// Bytes a head may have.
const HEAD_MAX: usize = 16 * 1_024;

/// How long to wait when nothing can be accepted, which is when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "remora\n\n/health/live\n/health/ready\n/health/startup\n/metrics\n";

/// What is answered.
pub type Page = Response<Full<Bytes>>;

/// The admin server.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Metrics,
    health: Health,
    drain: Drain,
    patience: Patience,
}

/// How long a peer is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For a head, and so for the next request of an idle connection.
    head: Duration,
    /// For all a connection does.
    lifetime: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Longer than any round trip, and short for somebody who wants to fill the table.
            head: Duration::from_secs(5),
            // A scrape that takes longer has failed already.
            lifetime: Duration::from_mins(1),
        }
    }
}

impl Admin {
    /// A server that shows these.
    pub fn new(metrics: Metrics, health: Health, drain: Drain) -> Self {
        Self { metrics, health, drain, patience: Patience::default() }
    }

    /// Serves on `listeners` until it is dropped. A drain does not end it: the kubelet and
    /// Prometheus ask to the last.
    ///
    /// # Errors
    ///
    /// When a listener cannot be used by the runtime.
    ///
    /// # Cancel safety
    ///
    /// Connections that are open end within a minute.
    pub async fn serve(self, listeners: Vec<StdListener>) -> io::Result<()> {
        let listen = |it: StdListener| {
            it.set_nonblocking(true)?;
            TcpListener::from_std(it)
        };
        let listeners = listeners.into_iter().map(listen).collect::<io::Result<Vec<_>>>()?;
        let patience = self.patience;
        serve_within(patience, listeners, move |path, peer| self.answer(path, peer)).await;
        Ok(())
    }

    /// The response to a request for `path`.
    fn answer(&self, path: &str, peer: SocketAddr) -> Page {
        match path {
            "/" => text(StatusCode::OK, INDEX),
            "/health/live" => text(StatusCode::OK, "live\n"),
            "/health/ready" => self.ready(),
            "/health/startup" => self.startup(),
            "/metrics" => {
                let mut page = Vec::new();
                self.metrics.render(&mut page);
                metrics(page)
            }
            path if path.starts_with("/debug/") && !peer.ip().to_canonical().is_loopback() => {
                text(StatusCode::FORBIDDEN, "ask from inside the pod\n")
            }
            _ => not_found(),
        }
    }

    fn ready(&self) -> Page {
        let report = self.health.report(self.drain.is_leaving());
        let status =
            if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        respond(status, "application/json", report.to_json())
    }

    fn startup(&self) -> Page {
        if self.health.has_started() {
            text(StatusCode::OK, "started\n")
        } else {
            let report = self.health.report(false);
            respond(StatusCode::SERVICE_UNAVAILABLE, "application/json", report.to_json())
        }
    }
}

/// Answers each GET and HEAD on `listeners` by its path and the peer's address, as
/// [`Admin::serve`] does, for a program with pages of its own.
///
/// # Cancel safety
///
/// Connections that are open end within a minute.
pub async fn serve<A>(listeners: Vec<TcpListener>, answer: A)
where
    A: Fn(&str, SocketAddr) -> Page + Clone + Send + Sync + 'static,
{
    serve_within(Patience::default(), listeners, answer).await;
}

async fn serve_within<A>(patience: Patience, listeners: Vec<TcpListener>, answer: A)
where
    A: Fn(&str, SocketAddr) -> Page + Clone + Send + Sync + 'static,
{
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let (stream, peer) = match accept(&listeners).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin connection cannot be accepted");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|it| !it.is_finished());
        if CONNECTIONS_MAX <= connections.len()
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let serve = connection(patience, (stream, peer), answer.clone());
        connections.push_back(drain::spawn("admin connection", serve));
    }
}

async fn connection(
    patience: Patience,
    (stream, peer): (TcpStream, SocketAddr),
    answer: impl Fn(&str, SocketAddr) -> Page,
) {
    let service = service_fn(|request: Request<_>| {
        // HEAD is a GET of which hyper leaves the body out.
        let response = if matches!(*request.method(), Method::GET | Method::HEAD) {
            answer(request.uri().path(), peer)
        } else {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        };
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match time::timeout(patience.lifetime, connection).await {
        Ok(Ok(())) | Err(_) => (),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "admin connection failed"),
    }
}

/// A connection from any of `listeners`.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let mut ready = listeners.iter().map(|it| it.poll_accept(cx));
        ready.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// A page of plain text.
pub fn text(status: StatusCode, body: &'static str) -> Page {
    respond(status, "text/plain; charset=utf-8", body)
}

/// The page that Prometheus reads, in its text format.
pub fn metrics(page: Vec<u8>) -> Page {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}

/// The page of a path that there is not.
pub fn not_found() -> Page {
    text(StatusCode::NOT_FOUND, "not found, / has a list\n")
}

/// A page of any type, which nobody is to keep.
pub fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
