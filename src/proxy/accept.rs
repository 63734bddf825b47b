//! Accept (steps 1 and 2): a new connection, until it is known what it speaks and for whom.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{net::TcpStream, sync::watch};

use super::{
    context::Worker,
    handle::Client,
    opaque::{self, Forwarded},
    proof,
    route::Parent,
    serve,
};
use crate::{
    clock,
    identity::Alpn,
    intercept::{is_from_proxy, original_dst},
    policy::Mtls,
    telemetry::metrics::Direction,
    transport::{
        detect::{Protocol, SILENCE, SILENCE_INBOUND, UNDECIDED, sniff},
        guarded::Flags,
        stream::{READ_AHEAD, Stream, Wire},
        tls::{self, Hello},
    },
};

/// How connections come to a listener.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Redirected by packet rules from where they were going.
    Captured,
    /// To this port on purpose; inbound for the application at this address.
    App(SocketAddr),
    /// To this port on purpose; outbound, and `Host` says where to.
    Proxy,
    /// To a port that leads to one service, whatever is spoken.
    Tunnel(Arc<str>),
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub tcp: TcpStream,
    /// Where from.
    pub peer: SocketAddr,
    /// How.
    pub entry: Entry,
    /// Tells of a new identity.
    pub rotated: watch::Receiver<u64>,
}

/// What is known of a connection before its first byte.
struct Arrival {
    worker: Arc<Worker>,
    peer: SocketAddr,
    original: Option<SocketAddr>,
    local: Option<Arc<Parent>>,
    tunnel: Option<Arc<str>>,
    port: u16,
}

/// Serves a connection until it ends.
///
/// # Cancel safety
///
/// The connection is closed.
pub async fn serve(worker: Arc<Worker>, accepted: Accepted) {
    let Accepted { tcp, peer, entry, mut rotated } = accepted;
    // A handshake is under way when this is asked next: a new identity must not be missed.
    rotated.mark_unchanged();
    let Some(arrival) = Arrival::new(Arc::clone(&worker), &tcp, peer, entry) else {
        tracing::debug!(%peer, "connection to a port of ours refused");
        return Box::pin(proof::show(&worker, tcp)).await;
    };
    arrival.detect(tcp, rotated).await;
}

impl Arrival {
    /// Where a connection was going; `None` where that is here.
    fn new(worker: Arc<Worker>, tcp: &TcpStream, peer: SocketAddr, entry: Entry) -> Option<Self> {
        let shared = Arc::clone(&worker.shared);
        let inbound = worker.direction == Direction::Inbound;
        let (original, tunnel) = match entry {
            Entry::Captured => {
                let original = original_dst(tcp, tcp.local_addr().ok()?).ok().flatten()?;
                // What comes in was for this pod; what goes out may be for another pod's port
                // of the same number.
                let port = |it: &SocketAddr| it.port() == original.port();
                let ours = shared.is_own(original) || inbound && shared.listeners.iter().any(port);
                if ours || is_from_proxy(peer.ip()) {
                    return None;
                }
                (Some(original), None)
            }
            Entry::App(app) => (Some(app), None),
            Entry::Proxy => (None, None),
            Entry::Tunnel(name) => (None, Some(name)),
        };
        let local = original.filter(|_| inbound).map(|it| worker.routes.local(&shared, it));
        let port = original.map_or(0, |it| it.port());
        Some(Self { worker, peer, original, local, tunnel, port })
    }

    async fn detect(self, mut tcp: TcpStream, rotated: watch::Receiver<u64>) {
        let snapshot = self.worker.shared.policies.current();
        let opaque_port = snapshot.workload.opaque_ports.contains(&self.port);
        let mut seen = BytesMut::new();
        let inbound = self.worker.direction == Direction::Inbound;
        let greets = self.original.is_some_and(|it| self.worker.greeters.has(it, clock::now()));
        if self.tunnel.is_some() || (!inbound && (opaque_port || greets)) {
            return self.opaque(Stream::Plain(Wire::new(tcp, seen)), None).await;
        }
        let silence = match self.original {
            // To our own port on purpose, where only HTTP leads anywhere: a pool's spare
            // connection.
            None => SPARE,
            // Where only mesh peers may come in there is nobody else to take a silent one for.
            Some(_) if inbound && snapshot.workload.mtls_of(self.port) == Mtls::Strict => UNDECIDED,
            Some(_) if inbound => SILENCE_INBOUND,
            Some(_) => SILENCE,
        };
        drop(snapshot);
        let Ok(mut protocol) = sniff(&mut tcp, &mut seen, silence).await else { return };
        if seen.is_empty() && self.original.is_some() {
            let stream = Stream::Plain(Wire::new(tcp, seen));
            let Some(woken) = self.opaque_if(stream, None, true).await else { return };
            (tcp, seen) = woken.into_parts();
            let Ok(known) = sniff(&mut tcp, &mut seen, SILENCE).await else { return };
            protocol = known;
        }
        // What is rare and large is boxed: an idle connection keeps the room of what is not.
        if protocol == Protocol::Tls && inbound {
            return match Box::pin(tls::hello(&mut tcp, &mut seen)).await {
                Ok(Hello::Mesh) => Box::pin(self.mesh(Wire::new(tcp, seen), rotated)).await,
                Ok(Hello::Foreign) => self.opaque(Stream::Plain(Wire::new(tcp, seen)), None).await,
                Err(_) => (),
            };
        }
        let stream = Stream::Plain(Wire::new(tcp, seen));
        match protocol {
            Protocol::Http1 if !opaque_port => self.http1(stream, None, None).await,
            Protocol::Http2 if !opaque_port => self.http2(stream, None, rotated).await,
            Protocol::Http1 | Protocol::Http2 | Protocol::Tls | Protocol::Opaque => {
                self.opaque(stream, None).await;
            }
        }
    }

    /// A mesh peer: whoever it is, it has to prove it.
    async fn mesh(self, wire: Wire, rotated: watch::Receiver<u64>) {
        let shared = &self.worker.shared;
        let Some(identity) = &shared.identity else {
            // Not ours to terminate: the application may know what to do with it.
            return self.opaque(Stream::Plain(wire), None).await;
        };
        let wire = wire.reading_ahead(READ_AHEAD);
        let handshake = tls::accept(wire, identity.server_config()).await;
        let result = handshake.as_ref().map_or_else(|failure| failure.label(), |_| "ok");
        shared.metrics.handshake("server", result);
        match handshake {
            Err(failure) => {
                tracing::debug!(peer = %self.peer, reason = failure.label(), "mesh peer refused");
            }
            Ok(secured) => {
                let peer: Arc<str> = secured.peer.as_str().into();
                match secured.alpn {
                    Alpn::H2 => self.http2(secured.stream, Some(peer), rotated).await,
                    Alpn::Http1 => self.http1(secured.stream, Some(peer), Some(rotated)).await,
                    Alpn::Tcp => self.opaque(secured.stream, Some(peer)).await,
                }
            }
        }
    }

    async fn http1(
        self,
        stream: Stream,
        peer: Option<Arc<str>>,
        rotated: Option<watch::Receiver<u64>>,
    ) {
        let Self { worker, .. } = &self;
        let metrics = worker.shared.metrics.clone();
        let _open = metrics.connection(worker.direction, "http1", stream.is_tls());
        serve::http1(Arc::new(self.client(peer)), stream, rotated).await;
    }

    async fn http2(self, stream: Stream, peer: Option<Arc<str>>, rotated: watch::Receiver<u64>) {
        let Self { worker, .. } = &self;
        let metrics = worker.shared.metrics.clone();
        let _open = metrics.connection(worker.direction, "http2", stream.is_tls());
        Box::pin(serve::http2(Arc::new(self.client(peer)), stream, rotated)).await;
    }

    fn client(self, peer: Option<Arc<str>>) -> Client {
        Client {
            worker: self.worker,
            address: self.peer,
            peer,
            original: self.original,
            local: self.local,
            port: self.port,
            flags: Arc::<Flags>::default(),
            last: parking_lot::Mutex::default(),
            open: 0.into(),
            served: 0.into(),
        }
    }

    async fn opaque(self, stream: Stream, peer: Option<Arc<str>>) {
        // Nobody is given back who is not waited for.
        let _client = self.opaque_if(stream, peer, false).await;
    }

    /// Forwards bytes as they are; a client that is `silent`, and then speaks before the
    /// server does, is given back.
    async fn opaque_if(
        &self,
        stream: Stream,
        peer: Option<Arc<str>>,
        silent: bool,
    ) -> Option<Wire> {
        let shared = Arc::clone(&self.worker.shared);
        let strict = shared.policies.current().workload.mtls_of(self.port) == Mtls::Strict;
        let inbound = self.worker.direction == Direction::Inbound;
        if inbound && strict && peer.is_none() {
            shared.metrics.local_reply(Direction::Inbound, "none", "denied");
            tracing::debug!(peer = %self.peer, port = self.port, "plaintext connection denied");
            return None;
        }
        let parent = match (&self.local, &self.tunnel, self.original) {
            (Some(local), _, _) => Ok(Arc::clone(local)),
            (None, Some(name), _) => self.worker.routes.parent(&shared, name, None),
            (None, None, Some(original)) => {
                self.worker.routes.parent(&shared, &original.to_string(), Some(original))
            }
            (None, None, None) => {
                // Bytes that are no request, and nothing else says where they go.
                shared.metrics.local_reply(Direction::Outbound, "none", "bad_request");
                return None;
            }
        };
        let parent = parent.ok()?;
        let metrics = shared.metrics.clone();
        let _open = metrics.connection(self.worker.direction, "tcp", stream.is_tls());
        match Box::pin(opaque::forward(&self.worker, &parent, stream, silent)).await {
            Forwarded::ClientFirst(client) => Some(client),
            Forwarded::Ended(traffic) => {
                if let (Some(original), true) = (self.original, traffic.answered_first) {
                    self.worker.greeters.add(original, clock::now());
                }
                None
            }
        }
    }
}

/// How long a client of the proxy port may wait with its first request.
const SPARE: Duration = Duration::from_mins(5);

/// How long discovery may take for a connection that depends on it.
pub const RESOLUTION: Duration = Duration::from_secs(5);
