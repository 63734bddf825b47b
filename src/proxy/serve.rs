//! Serve: a client's connection, request by request, until either side ends it.
//!
//! A connection that has been idle for [`PARK`](super::idle::PARK) is parked: hyper's state is
//! given up and only the socket is kept, until its next byte. Most connections of a sidecar are
//! idle most of the time, and their memory is the sidecar's.

use std::{
    convert::Infallible,
    future::poll_fn,
    os::fd::AsRawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use http::{HeaderValue, StatusCode, header};
use hyper::{
    Request, Response,
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use super::{
    context::Worker,
    failure::Failure,
    handle::{Client, handle, prepare},
    idle::{Idle, Quiet},
    record::Tracked,
};
use crate::{
    drain,
    transport::{
        framing::HEAD_MAX,
        guarded::Guarded,
        stream::{Stream, Wire},
    },
};

/// How long a client that is in the middle of an upload is listened to after the last answer.
const LINGER: Duration = Duration::from_secs(2);

/// How long a parked connection is kept.
const PARKED_MAX: Duration = Duration::from_hours(1);

/// Streams a client of ours may have open.
const STREAMS: u32 = 256;

/// Streams a mesh peer may have open: it carries the requests of all its clients.
const MESH_STREAMS: u32 = 4096;

/// Resets a mesh peer may leave unread. It passes on those of all its clients, and must not
/// be cut off for what one of them does.
const MESH_RESETS: usize = 4096;

/// The longest list of headers taken.
const HEADERS_MAX: u32 = 64 * 1024;

/// Bytes of one upload that may be on their way before they are read.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes of all uploads of a connection that may be.
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

/// The same of a mesh peer: its clients share the connection, and the uploads of some that
/// the application does not read must not use up the room of the others'.
const MESH_CONNECTION_WINDOW: u32 = MESH_STREAMS * STREAM_WINDOW;

/// How often a silent HTTP/2 connection is asked whether its peer is there.
const PING: Duration = Duration::from_mins(1);

/// Asks a client to send its next request over another connection.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Serves HTTP/1 on `stream`. `rotated` tells of a new identity: a mesh peer is asked to
/// connect again, with the next answer, as one is over HTTP/2.
///
/// # Cancel safety
///
/// Requests in flight are cancelled.
pub async fn http1(client: Arc<Client>, mut stream: Stream, rotated: Option<watch::Receiver<u64>>) {
    // Boxed, so that a parked connection does not keep the room for an active one.
    while let Some(parked) = Box::pin(active(&client, stream, rotated.as_ref())).await {
        match parked_until_readable(&client, parked).await {
            Some(woken) => stream = Stream::Plain(woken),
            None => return,
        }
    }
}

/// Serves requests until the connection ends (`None`), or has been idle for [`PARK`](super::idle::PARK).
async fn active(
    client: &Arc<Client>,
    stream: Stream,
    rotated: Option<&watch::Receiver<u64>>,
) -> Option<Wire> {
    let parkable = !stream.is_tls();
    let socket = stream.wire().tcp().as_raw_fd();
    let service = {
        let client = Arc::clone(client);
        service_fn(move |request: Request<Incoming>| {
            let handled = handle(Arc::clone(&client), prepare(&client, request));
            let drain = client.worker.shared.drain.clone();
            let renewed = rotated.is_some_and(|it| it.has_changed().unwrap_or(false));
            async move {
                let mut response = handled.await;
                let leave = renewed || drain.is_parting();
                if leave && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(header::CONNECTION, CLOSE);
                }
                Ok::<Response<Tracked>, Infallible>(response)
            }
        })
    };
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(HEAD_MAX - 1)
        // How long a client that has ended its side is waited for is `idle`'s to say.
        .half_close(true)
        .auto_date_header(false)
        // One buffer and one write an answer. Not `pipeline_flush`: with it hyper takes all
        // of a body into that buffer, however slowly the client reads.
        .writev(false);
    let io = TokioIo::new(Guarded::new(stream, Arc::clone(&client.flags)));
    let mut serving = builder.serve_connection(io, service).with_upgrades();
    let mut draining = client.worker.shared.drain.notice();
    let mut told = false;
    let mut idle = Idle::new(socket);
    let ended = poll_fn(|cx| {
        let mut polled = Pin::new(&mut serving).poll(cx);
        if !told && draining.poll(cx) {
            told = true;
            Pin::new(&mut serving).graceful_shutdown();
            if polled.is_pending() {
                polled = Pin::new(&mut serving).poll(cx);
            }
        }
        match (polled, idle.poll(client, cx)) {
            (Poll::Ready(ended), _) => Poll::Ready(End::Closed(ended.err())),
            (Poll::Pending, Some(Quiet::Stalled | Quiet::Left)) => Poll::Ready(End::Closed(None)),
            (Poll::Pending, Some(Quiet::Between)) if parkable && !told => Poll::Ready(End::Parked),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await;
    if let End::Closed(error) = ended {
        count_refusal(client, error);
        if !client.flags.is_between()
            && let Some(parts) = serving.into_parts()
        {
            linger(parts.io.into_inner().into_inner()).await;
        }
        return None;
    }
    let parts = serving.into_parts()?;
    let Stream::Plain(wire) = parts.io.into_inner().into_inner() else { return None };
    let (tcp, held) = wire.into_parts();
    let mut seen = BytesMut::from(parts.read_buf);
    seen.unsplit(held);
    Some(Wire::new(tcp, seen))
}

/// Ends our side, and drops what still comes until the client ends its own or [`LINGER`].
///
/// A socket closed with unread bytes in it resets the connection, and takes the answer from a
/// client that has not read it yet (RFC 9112, section 9.6).
async fn linger(mut stream: Stream) {
    let dropping = async {
        stream.shutdown().await?;
        let mut dropped = vec![0; 16 * 1024];
        while stream.read(&mut dropped).await? > 0 {}
        std::io::Result::Ok(())
    };
    // However it ends, there is nobody to tell.
    let _ended = tokio::time::timeout(LINGER, dropping).await.is_ok();
}

/// How the serving of a connection ended.
enum End {
    Closed(Option<hyper::Error>),
    Parked,
}

/// Waits for a parked connection's next byte; `None` where there will be none.
async fn parked_until_readable(client: &Client, parked: Wire) -> Option<Wire> {
    if parked.has_held() {
        return Some(parked);
    }
    let drain = client.worker.shared.drain.clone();
    tokio::select! {
        biased;
        readable = parked.tcp().readable() => readable.is_ok().then_some(parked),
        () = drain.begun() => None,
        () = tokio::time::sleep(PARKED_MAX) => None,
    }
}

/// Counts a request that hyper answered, or the guard refused, by itself.
fn count_refusal(client: &Client, error: Option<hyper::Error>) {
    let failure = match error {
        Some(error) if error.is_parse_too_large() => Failure::HeadersTooLarge,
        Some(error) if error.is_parse() => Failure::BadRequest,
        _ if client.flags.is_refused() => Failure::BadRequest,
        _ => return,
    };
    let Worker { shared, direction, .. } = &*client.worker;
    shared.metrics.local_reply(*direction, "none", failure.label());
}

/// Serves HTTP/2 on `stream`. `rotated` tells of a new identity: a mesh peer is asked to
/// connect again, so that no connection outlives the trust it was made with.
///
/// # Cancel safety
///
/// Requests in flight are cancelled.
pub async fn http2(client: Arc<Client>, stream: Stream, mut rotated: watch::Receiver<u64>) {
    let mesh = stream.is_tls();
    let service = {
        let client = Arc::clone(&client);
        service_fn(move |request: Request<Incoming>| {
            let handled = handle(Arc::clone(&client), prepare(&client, request));
            async { Ok::<Response<Tracked>, Infallible>(handled.await) }
        })
    };
    let mut builder = http2::Builder::new(Tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(if mesh { MESH_STREAMS } else { STREAMS })
        .max_header_list_size(HEADERS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(if mesh {
            MESH_CONNECTION_WINDOW
        } else {
            CONNECTION_WINDOW
        })
        .keep_alive_interval(PING)
        .auto_date_header(false);
    if mesh {
        builder.max_pending_accept_reset_streams(MESH_RESETS);
        // Counted over a connection's whole life, which is that of all its peer's clients.
        builder.max_local_error_reset_streams(None);
    }
    let mut serving = builder.serve_connection(TokioIo::new(stream), service);
    let mut draining = client.worker.shared.drain.notice();
    let mut renewing = pin!(async move {
        // Without an identity there is nothing to wait for.
        if !mesh || rotated.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let mut told = false;
    let ended = poll_fn(|cx| {
        let leave = !told && (draining.poll(cx) || renewing.as_mut().poll(cx).is_ready());
        if leave {
            told = true;
            Pin::new(&mut serving).graceful_shutdown();
        }
        Pin::new(&mut serving).poll(cx)
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "http/2 connection failed");
        if is_protocol_error(&error) {
            let Worker { shared, direction, .. } = &*client.worker;
            shared.metrics.local_reply(*direction, "none", Failure::BadRequest.label());
        }
    }
}

/// Whether the client broke HTTP/2's rules, and was told so.
fn is_protocol_error(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|it| it.downcast_ref::<h2::Error>());
    source.is_some_and(|it| it.is_library() && it.is_go_away())
}

/// Runs the streams of a connection.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let _running = drain::spawn("h2 stream", stream);
    }
}
