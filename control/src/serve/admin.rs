//! Admin: health and metrics, in plain HTTP, for the kubelet and Prometheus.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use remora::{clock, drain, transport::listen::accept};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use super::{Control, api::respond, body::Body};

/// All the life of a connection: a scrape that takes longer has failed already.
const LIFE: Duration = Duration::from_mins(1);

/// How long a head may take, and so the next request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at a time.
const CONNECTIONS_MAX: usize = 64;

/// Answers until it is dropped: a drain is watched to its end.
pub(super) async fn serve(control: Arc<Control>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let failed = |error: &io::Error| tracing::warn!(%error, "connection cannot be accepted");
    loop {
        let (stream, _) = accept(&listener, failed).await;
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let control = Arc::clone(&control);
        drain::spawn("admin connection", async move {
            let service = service_fn(|request: Request<Incoming>| {
                let control = Arc::clone(&control);
                async move { Ok::<_, Infallible>(answer(&control, &request)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _in_time = timeout(LIFE, connection).await.is_ok();
            drop(permit);
        });
    }
}

fn answer(control: &Control, request: &Request<Incoming>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    }
    match request.uri().path() {
        "/" => text(StatusCode::OK, "/health/live\n/health/ready\n/metrics\n"),
        "/health/live" => text(StatusCode::OK, "live\n"),
        "/health/ready" if control.drain.is_leaving() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "leaving\n")
        }
        "/health/ready" => match control.lacks(clock::wall()) {
            None => text(StatusCode::OK, "ready\n"),
            Some(lack) => text(StatusCode::SERVICE_UNAVAILABLE, lack),
        },
        "/metrics" => {
            control.measure();
            let page = control.metrics.page();
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page.into())
        }
        _ => text(StatusCode::NOT_FOUND, "not found, / has a list\n"),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", text.as_bytes().to_vec().into())
}
