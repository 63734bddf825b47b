//! Listen: takes connections, as many and as long as is good for all.
//!
//! Whoever has proved nothing yet is worth little: a handshake has [`super::Pace::handshake`], and
//! a connection without a client certificate [`STRANGER`] for all it does. Handshakes, strangers
//! and sidecars have a room each, and neither one address can fill that of handshakes nor one
//! identity that of sidecars. What is open ends at a drain: `GOAWAY`, the streams' ends, then the
//! connection's, at the latest after [`GRACE`].

use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    io,
    net::IpAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use remora::{drain, transport::listen::accept};
use remora_certs::{spiffe_id::SpiffeId, x509::id_of};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Control, api, auth::Peer, tls};

/// All the life of a connection without a client certificate.
const STRANGER: Duration = Duration::from_mins(1);

/// How long open connections may take to end when the server leaves.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Handshakes at a time, some 8 KiB each: more than the rate of connections allows one address
/// within the time of a handshake.
const HANDSHAKES_MAX: usize = 4_096;

/// Connections without a client certificate.
pub(super) const STRANGERS_MAX: usize = 1_024;

/// Connections with a client certificate: some 40 KiB each.
const CONNECTIONS_MAX: usize = 8_192;

/// Of those, the ones of one identity.
const SEATS_MAX: usize = 4_096;

/// A connection's calls at a time.
const STREAMS_MAX: u32 = 16;

/// Bytes of a request's head.
const HEAD_MAX: u32 = 16 * 1024;

/// What all connections share.
pub(super) struct Door {
    control: Arc<Control>,
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    known: Arc<Semaphore>,
    /// How many connections each identity has.
    seats: Mutex<HashMap<SpiffeId, usize>>,
}

/// A connection of an identity, counted until it is dropped.
struct Seat<'a> {
    seats: &'a Mutex<HashMap<SpiffeId, usize>>,
    id: SpiffeId,
}

impl Door {
    pub(super) fn new(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self {
            control,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            known: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            seats: Mutex::default(),
        })
    }

    /// Takes connections until the drain begins.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let failed = |error: &io::Error| tracing::warn!(%error, "connection cannot be accepted");
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(&listener, failed) => accepted,
                () = self.control.drain.begun() => return,
            };
            self.admit(stream, peer.ip().to_canonical());
        }
    }

    /// Begins the handshake, where there is room for one more.
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let allowed = self.control.limits.connections.take(&peer);
        let permit = Arc::clone(&self.handshakes).try_acquire_owned();
        let (Ok(()), Ok(permit)) = (allowed, permit) else {
            return self.count("refused");
        };
        let connection = Arc::clone(self).connection(stream, peer, permit);
        drain::spawn("connection", Box::pin(connection));
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: IpAddr,
        handshake: OwnedSemaphorePermit,
    ) {
        let accepted = async {
            let config = tls::config(&self.control.live.get()).map_err(io::Error::other)?;
            TlsAcceptor::from(config).accept(stream).await
        };
        let stream = match timeout(self.control.pace.handshake, Box::pin(accepted)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "handshake failed");
                return self.count("failed");
            }
            Err(_late) => return self.count("timeout"),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Arc::new(Peer::new(peer, chain.to_vec()));
        let (room, life) = if peer.chain.is_empty() {
            (&self.strangers, STRANGER)
        } else {
            (&self.known, Duration::MAX)
        };
        let id = peer.chain.first().and_then(|it| id_of(it).ok());
        let seat = id.map_or(Some(None), |id| Seat::take(&self.seats, id).map(Some));
        let (Ok(_permit), Some(_seat)) = (Arc::clone(room).try_acquire_owned(), seat) else {
            return self.count("refused");
        };
        drop(handshake);
        self.count("ok");
        let _in_time = timeout(life, Box::pin(self.talk(stream, peer))).await.is_ok();
    }

    async fn talk(&self, stream: TlsStream<TcpStream>, peer: Arc<Peer>) {
        let _in_flight = self.control.drain.in_flight();
        let service = service_fn(|request| {
            peer.asked.store(true, Ordering::Relaxed);
            let answer = api::answer(Arc::clone(&self.control), Arc::clone(&peer), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let builder = builder(self.control.pace.patience);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = peer.kill.notified() => Ok(()),
            () = silence(&peer, self.control.pace.patience) => Ok(()),
            () = self.control.drain.begun() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer.address, %error, "connection failed");
        }
    }

    fn count(&self, result: &str) {
        self.control.metrics.handshakes.with_label_values(&[result]).inc();
    }
}

impl<'a> Seat<'a> {
    /// `None` where the identity has as many as it may.
    fn take(seats: &'a Mutex<HashMap<SpiffeId, usize>>, id: SpiffeId) -> Option<Self> {
        let mut taken = seats.lock();
        let count = taken.entry(id.clone()).or_default();
        (*count < SEATS_MAX).then(|| *count += 1)?;
        drop(taken);
        Some(Self { seats, id })
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.id);
            }
        }
    }
}

/// Ends when a connection has not asked for anything in time.
async fn silence(peer: &Peer, patience: Duration) {
    sleep(patience).await;
    if peer.asked.load(Ordering::Relaxed) {
        pending::<()>().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_its_seats_and_gives_them_back() {
        let seats = Mutex::default();
        let take = |name: &str| {
            let id = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
            Seat::take(&seats, id)
        };
        let mut all: Vec<_> = (0..SEATS_MAX).map(|_| take("web").unwrap()).collect();
        assert!(take("web").is_none());
        assert!(take("orders").is_some());
        all.pop();
        assert!(take("web").is_some());
        drop(all);
        assert!(seats.lock().is_empty());
    }
}
