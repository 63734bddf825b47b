//! Server: takes the connections of sidecars and operators, as many and as long as is good for all.
//!
//! Whoever has proved nothing yet is worth little: a handshake has [`Pace::handshake`], and a
//! connection without a client certificate [`STRANGER`] for all it does. Handshakes, strangers
//! and sidecars have a room each, and neither one address can fill that of handshakes nor one
//! identity that of sidecars. What is open ends at a drain: `GOAWAY`, the streams' ends, then the
//! connection's, at the latest after [`GRACE`].
//!
//! The other end is [`super::client`]. Control serves by this, and so do its doubles in tests.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, header};
use http_body_util::{Either, Full};
use hyper::{
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use remora_certs::x509::id_of;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};

use crate::{
    drain::{self, Drain},
    identity::control::{Accepted, Chain, shown},
    transport::listen::accept,
};

/// All the life of a connection without a client certificate.
const STRANGER: Duration = Duration::from_mins(1);

/// How long open connections may take to end when the server leaves.
pub const GRACE: Duration = Duration::from_secs(5);

/// Handshakes at a time, some 8 KiB each: more than the rate of connections allows one address
/// within the time of a handshake.
const HANDSHAKES_MAX: usize = 4_096;

/// Connections without a client certificate.
pub const STRANGERS_MAX: usize = 1_024;

/// Connections with a client certificate: some 40 KiB each.
const CONNECTIONS_MAX: usize = 8_192;

/// Of those, the ones of one identity.
const SEATS_MAX: usize = 4_096;

/// A connection's calls at a time.
const STREAMS_MAX: u32 = 16;

/// Bytes of a request's head.
const HEAD_MAX: u32 = 16 * 1024;

/// Who serves, and what.
pub trait Service: Send + Sync + 'static {
    /// Completes the handshake of a connection, by what is shown and trusted at that moment.
    fn accept(&self, tcp: TcpStream) -> impl Future<Output = io::Result<Accepted>> + Send;

    /// Answers a call.
    fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Answer> + Send;

    /// Whether another connection from `address` is taken now.
    fn admits(&self, address: IpAddr) -> bool;

    /// Told what became of each connection: `ok` once it is one, `failed` or `timeout` where the
    /// handshake did, `refused` where it is not admitted or there is no room.
    fn counted(&self, result: &'static str);
}

/// An answer: whole, or line by line.
pub type Answer = Response<Either<Full<Bytes>, Lines>>;

/// The lines of a watch as they come, until the sender is dropped.
#[derive(Debug)]
pub struct Lines(pub mpsc::Receiver<Bytes>);

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: IpAddr,
    /// As the handshake took it, leaf first; empty for none.
    pub chain: Chain,
    /// Ends the connection at once.
    pub kill: Notify,
    /// For what a connection may have one of at a time: a watch.
    pub watching: Arc<tokio::sync::Mutex<()>>,
}

/// How long peers are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the first packet to the end of the handshake.
    pub handshake: Duration,
    /// How long a client may take for its first request, one of HTTP/1.1 for a head, and one
    /// of HTTP/2 for an answer to a ping.
    pub patience: Duration,
}

impl Pace {
    /// More than any round trip takes.
    pub const DEFAULT: Self =
        Self { handshake: Duration::from_secs(5), patience: Duration::from_secs(20) };
}

/// A service on its listeners.
struct Server<S> {
    service: Arc<S>,
    drain: Drain,
    pace: Pace,
    handshakes: Room,
    strangers: Room,
    known: Room,
}

/// Takes connections from now on, until the drain begins; those that are open hold it up.
pub fn start<S: Service>(listeners: Vec<TcpListener>, service: &Arc<S>, drain: &Drain, pace: Pace) {
    let server = Arc::new(Server {
        service: Arc::clone(service),
        drain: drain.clone(),
        pace,
        handshakes: Room::new(HANDSHAKES_MAX, HANDSHAKES_MAX),
        strangers: Room::new(STRANGERS_MAX, STRANGERS_MAX),
        known: Room::new(CONNECTIONS_MAX, SEATS_MAX),
    });
    for listener in listeners {
        drain::spawn("listener", Arc::clone(&server).listen(listener));
    }
}

impl<S: Service> Server<S> {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let failed = |error: &_| tracing::warn!(%error, "connection cannot be accepted");
            let (tcp, peer) = tokio::select! {
                accepted = accept(&listener, failed) => accepted,
                () = self.drain.begun() => return,
            };
            let address = peer.ip().to_canonical();
            let seat = || self.handshakes.take(&address.to_string());
            let Some(seat) = self.service.admits(address).then(seat).flatten() else {
                self.service.counted("refused");
                continue;
            };
            let connection = Arc::clone(&self).connection(tcp, address, seat);
            drain::spawn("connection", Box::pin(connection));
        }
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, address: IpAddr, handshake: Seat) {
        let accepted = Box::pin(self.service.accept(tcp));
        let stream = match timeout(self.pace.handshake, accepted).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "handshake failed");
                return self.service.counted("failed");
            }
            Err(_late) => return self.service.counted("timeout"),
        };
        let chain = shown(&stream);
        let id = chain.first().map(|it| id_of(it).map(|it| it.to_string()).unwrap_or_default());
        let (seat, life) = match id {
            Some(id) => (self.known.take(&id), Duration::MAX),
            None => (self.strangers.take(&handshake), STRANGER),
        };
        let Some(_seat) = seat else { return self.service.counted("refused") };
        drop(handshake);
        self.service.counted("ok");
        let (kill, watching) = Default::default();
        let peer = Arc::new(Peer { address, chain, kill, watching });
        let _in_time = timeout(life, Box::pin(self.talk(stream, peer))).await.is_ok();
    }

    async fn talk(&self, stream: Accepted, peer: Arc<Peer>) {
        let _in_flight = self.drain.in_flight();
        let asked = Notify::new();
        let service = service_fn(|request| {
            asked.notify_one();
            let answer = Arc::clone(&self.service).answer(Arc::clone(&peer), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let silence = async {
            if timeout(self.pace.patience, asked.notified()).await.is_ok() {
                pending::<()>().await;
            }
        };
        let builder = builder(self.pace.patience);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = peer.kill.notified() => Ok(()),
            () = silence => Ok(()),
            () = self.drain.begun() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer.address, %error, "connection failed");
        }
    }
}

fn builder(patience: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX)
        .max_send_buf_size(64 * 1024)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .keep_alive_interval(patience)
        .keep_alive_timeout(patience);
    builder
}

/// The token that a request is to be proved by.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    //= https://www.rfc-editor.org/rfc/rfc9110#section-11.1
    //# It uses a case-insensitive token to identify the authentication scheme
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|it| scheme.eq_ignore_ascii_case("bearer") && !it.is_empty())
}

/// The value of a parameter of a query, as it stands there.
pub fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').filter_map(|it| it.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// So many connections at a time, and so many of those of one peer.
#[derive(Debug)]
struct Room {
    most: usize,
    each: usize,
    seats: Mutex<Vec<Seat>>,
}

/// A connection of the peer of this name, counted until it is dropped.
type Seat = Arc<str>;

impl Room {
    fn new(most: usize, each: usize) -> Self {
        Self { most, each, seats: Mutex::default() }
    }

    /// `None` where there are as many as may be, or as many of `peer`.
    fn take(&self, peer: &str) -> Option<Seat> {
        let mut seats = self.seats.lock();
        // A look at thousands is nothing beside a handshake.
        seats.retain(|it| 1 < Arc::strong_count(it));
        let own = seats.iter().filter(|it| ***it == *peer).count();
        let seat = (seats.len() < self.most && own < self.each).then(|| Seat::from(peer))?;
        seats.push(Arc::clone(&seat));
        Some(seat)
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|it| it.map(|it| Ok(Frame::data(it))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_its_seats_and_gives_them_back() {
        let room = Room::new(CONNECTIONS_MAX, SEATS_MAX);
        let take = |name: &str| room.take(name);
        let mut all: Vec<_> = (0..SEATS_MAX).map(|_| take("web").unwrap()).collect();
        assert!(take("web").is_none());
        assert!(take("orders").is_some());
        all.pop();
        assert!(take("web").is_some());
        drop(all);
        assert!(take("web").is_some());
        assert_eq!(room.seats.lock().len(), 1);
    }

    #[test]
    fn all_identities_together_have_no_more_than_the_room_has() {
        let room = Room::new(3, 2);
        let all = ["web", "web", "orders"].map(|it| room.take(it).unwrap());
        assert!(room.take("billing").is_none());
        drop(all);
        assert!(room.take("billing").is_some());
    }
}
