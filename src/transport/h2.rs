//! HTTP/2 client connection: many requests at once, each driven by its own task.
//!
//! The `h2` crate is used directly: hyper's client puts a channel, a one-shot and a spawned
//! task between a request and its stream. A request without a body, or whose body is all
//! there, needs no task here; a longer upload gets one, so that it goes on while the answer
//! is being read.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client};
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::{
    body::{Body, Error},
    connect::expect_reader,
    stream::Stream,
};
use crate::drain;

/// Bytes of one answer that may be on their way before they are read.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes of all answers of a connection that may be: those of every stream a peer of ours
/// takes. Clients that do not read must not use up the room of those that do.
const CONNECTION_WINDOW: u32 = 4096 * STREAM_WINDOW;

/// The longest list of headers taken from an upstream.
const HEADERS_MAX: u32 = 64 * 1024;

/// How long a peer may take over the preface and settings.
const PATIENCE: Duration = Duration::from_secs(5);

/// A handle on a client connection; clones share it.
#[derive(Clone, Debug)]
pub struct H2 {
    send: client::SendRequest<Bytes>,
    state: Arc<State>,
    /// Which identity it was made with; 0 for plaintext.
    pub generation: u64,
}

#[derive(Debug, Default)]
struct State {
    streams: AtomicUsize,
    closed: AtomicBool,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub source: h2::Error,
    /// Whether the upstream's application can't have seen the request.
    pub unprocessed: bool,
    /// The request, when none of it was sent.
    pub unsent: Option<Box<Request<Body>>>,
    /// Whether it was given up because the client's upload stood still for too long.
    pub stalled: bool,
}

impl H2 {
    /// A connection over `stream`, made with the identity of `generation`.
    ///
    /// # Errors
    ///
    /// What went wrong in the handshake.
    pub async fn new(stream: Stream, generation: u64) -> Result<Self, h2::Error> {
        expect_reader(stream.wire().tcp());
        let handshake = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_concurrent_reset_streams(1024)
            .handshake(stream);
        let (send, driver) = match tokio::time::timeout(PATIENCE, handshake).await {
            Ok(made) => made?,
            Err(_) => return Err(Reason::SETTINGS_TIMEOUT.into()),
        };
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let _running = drain::spawn("h2 client", async move {
            // Each stream is told of the end itself.
            let _ended = driver.await.is_ok();
            shared.closed.store(true, Ordering::Relaxed);
        });
        Ok(Self { send, state, generation })
    }

    /// Whether the connection takes another stream now.
    pub fn has_room(&self) -> bool {
        self.state.streams.load(Ordering::Relaxed) < self.send.current_max_send_streams()
    }

    /// Whether the connection has ended, or is about to.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Relaxed)
    }

    /// Whether no stream is open.
    pub fn is_idle(&self) -> bool {
        self.state.streams.load(Ordering::Relaxed) == 0
    }

    /// Sends `head` and `body`, and waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// [`SendError`], which says whether it is safe to send again.
    ///
    /// # Cancel safety
    ///
    /// The stream is reset; the connection and its other streams go on.
    pub async fn send(&self, head: Request<()>, body: Body) -> Result<Response<Body>, SendError> {
        let mut send = self.send.clone();
        let open = Open::new(&self.state);
        if let Err(source) = poll_fn(|cx| send.poll_ready(cx)).await {
            self.state.closed.store(true, Ordering::Relaxed);
            let unsent = Some(Box::new(head.map(|()| body)));
            return Err(SendError { source, unprocessed: true, unsent, stalled: false });
        }
        let ended = body.is_end_stream();
        let (answer, stream) = match send.send_request(head, ended) {
            Ok(sent) => sent,
            Err(source) => {
                let unprocessed = !source.is_reset();
                return Err(SendError { source, unprocessed, unsent: None, stalled: false });
            }
        };
        drop(send);
        let upload = if ended { None } else { Upload::start(body, stream).await };
        let response = answer.await.map_err(|source| {
            if source.is_go_away() || source.is_io() {
                self.state.closed.store(true, Ordering::Relaxed);
            }
            let stalled = upload.as_ref().is_some_and(Uploading::has_stalled);
            SendError { unprocessed: is_unprocessed(&source), source, unsent: None, stalled }
        })?;
        let (head, stream) = response.into_parts();
        if stream.is_end_stream() && upload.is_none() {
            return Ok(Response::from_parts(head, Body::Empty));
        }
        let answer = Answer { stream, taken: 0, at: At::Data, _upload: upload, _open: open };
        Ok(Response::from_parts(head, Body::H2(answer)))
    }
}

/// Whether the peer says that it has not begun with the request.
///
/// RFC 9113, section 8.7: a stream above the last one of a GOAWAY, or one refused by
/// `REFUSED_STREAM`, "has not been processed".
fn is_unprocessed(error: &h2::Error) -> bool {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => true,
        Some(Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
        _ => false,
    }
}

/// Counts a stream while it is open.
#[derive(Debug)]
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer. Dropping it before its end resets the stream.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
    /// Bytes handed out whose room in the window is not given back yet.
    taken: usize,
    at: At,
    _upload: Option<Uploading>,
    _open: Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    End,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.taken > 0 {
            // Asked for more: what was handed out has been passed on.
            let taken = std::mem::take(&mut this.taken);
            if let Err(error) = this.stream.flow_control().release_capacity(taken) {
                return Poll::Ready(Some(Err(Error::H2(error))));
            }
        }
        if this.at == At::Data {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.taken = data.len();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(this.broken(error))),
                None => this.at = At::Trailers,
            }
        }
        if this.at == At::Trailers {
            let trailers = ready!(this.stream.poll_trailers(cx));
            this.at = At::End;
            match trailers {
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => (),
                Err(error) => return Poll::Ready(Some(this.broken(error))),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.at == At::End || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Answer {
    fn broken(&mut self, error: h2::Error) -> Result<Frame<Bytes>, Error> {
        self.at = At::End;
        Err(Error::H2(error))
    }
}

/// A task that sends a body; dropping this ends it.
#[derive(Debug)]
struct Uploading {
    task: AbortHandle,
    stalled: Arc<AtomicBool>,
}

impl Uploading {
    /// Whether it ended because nothing came for too long.
    fn has_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a body as the peer makes room for it.
struct Upload {
    body: Body,
    stream: SendStream<Bytes>,
    /// Data that waits for room.
    held: Bytes,
    /// Where it says that nothing came for too long, once it has a task.
    stalled: Option<Arc<AtomicBool>>,
}

impl Upload {
    /// Sends what can be sent at once, and leaves the rest to a task.
    async fn start(body: Body, stream: SendStream<Bytes>) -> Option<Uploading> {
        let mut upload = Self { body, stream, held: Bytes::new(), stalled: None };
        let done = poll_fn(|cx| Poll::Ready(upload.poll(cx).is_ready())).await;
        if done {
            return None;
        }
        let stalled = Arc::default();
        upload.stalled = Some(Arc::clone(&stalled));
        let task = drain::spawn("h2 upload", async move { poll_fn(|cx| upload.poll(cx)).await });
        Some(Uploading { task: task.abort_handle(), stalled })
    }

    /// Ready when there is no more to send, for whatever reason: a reset is seen by the
    /// answer's half of the stream.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if !self.held.is_empty() {
                self.stream.reserve_capacity(self.held.len());
                let Some(Ok(room)) = ready!(self.stream.poll_capacity(cx)) else {
                    return Poll::Ready(());
                };
                let data = self.held.split_to(room.min(self.held.len()));
                let last = self.held.is_empty() && self.body.is_end_stream();
                if self.stream.send_data(data, last).is_err() || last {
                    return Poll::Ready(());
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let _sent = self.stream.send_trailers(trailers).is_ok();
                        return Poll::Ready(());
                    }
                },
                Some(Err(error)) => {
                    if let (Error::Idle, Some(stalled)) = (error, &self.stalled) {
                        stalled.store(true, Ordering::Relaxed);
                    }
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => {
                    let _sent = self.stream.send_data(Bytes::new(), true).is_ok();
                    return Poll::Ready(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::net::{TcpListener, TcpStream};

    use super::{super::stream::Wire, *};

    #[tokio::test]
    async fn answers_that_nobody_reads_do_not_hold_up_the_next() {
        let client = H2::new(serving(STREAM_WINDOW as usize).await, 0).await.unwrap();
        let mut unread = Vec::new();
        for _ in 0..16 {
            let mut answer = get(&client).await.into_body();
            // Its first byte is here; the rest of its window fills up behind it.
            unread.push((next(&mut answer).await, answer));
        }
        let mut answer = get(&client).await.into_body();
        let mut read = 0;
        while read < STREAM_WINDOW as usize {
            read += next(&mut answer).await;
        }
    }

    /// A server whose answers are so long.
    async fn serving(long: usize) -> Stream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let _running = drain::spawn("server", async move {
            let mut serving = h2::server::handshake(accepted).await.unwrap();
            while let Some(Ok((_, mut respond))) = serving.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(vec![0; long].into(), true).unwrap();
            }
        });
        Stream::Plain(Wire::new(tcp, BytesMut::new()))
    }

    async fn get(client: &H2) -> Response<Body> {
        let request = Request::get("http://a/").version(http::Version::HTTP_2).body(()).unwrap();
        within(client.send(request, Body::Empty)).await.unwrap()
    }

    async fn next(answer: &mut Body) -> usize {
        let frame = within(poll_fn(|cx| Pin::new(&mut *answer).poll_frame(cx))).await;
        frame.unwrap().unwrap().into_data().unwrap().len()
    }

    async fn within<T>(awaited: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), awaited).await.expect("held up")
    }
}
