//! Upstream (steps 6 and 7): an endpoint, and a connection to it that may carry a request.
//!
//! Mesh TLS where the policy or the peer's manner says so. With `auto`, a peer that does
//! not speak it is remembered, and asked again on the side: no request waits for that. A
//! peer that claims a SPIFFE ID and can't prove it is never spoken to in plaintext.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::BytesMut;
use http::Version;

use super::{
    context::{Draw, Facts, Manner as RequestManner, Shared},
    dials::Dials,
    failure::Failure,
    manners::Manner,
    service::Service,
};
use crate::{
    clock, drain,
    identity::{Alpn, HandshakeFailure},
    policy::TlsMode,
    transport::{
        connect::{self, app_source, dial},
        h1::H1,
        h2::H2,
        pool::{Berth, Key, Link, Pool},
        stream::{READ_AHEAD, Stream, Wire},
        tls,
    },
};

/// One service as one worker reaches it.
#[derive(Debug)]
pub struct Upstream {
    /// The service.
    pub service: Arc<Service>,
    /// Connections to its endpoints.
    pub pool: Arc<Pool>,
    /// What the process shares.
    pub shared: Arc<Shared>,
    /// Chance.
    pub draw: Arc<Draw>,
    /// Dials of shared connections that are under way.
    dials: Arc<Dials<DialKey, Dialled>>,
}

/// Where a dial goes, and with which generation of our identity.
type DialKey = (Key, u64);

/// What came of the dial of a shared connection.
type Dialled = Result<H2, Failure>;

/// A connection that can carry a request now.
#[derive(Debug)]
pub enum Connection {
    /// For this request alone.
    H1(Box<H1>),
    /// Shared with others.
    H2(H2),
    /// For this exchange alone, never to be used again.
    Raw(Stream),
}

impl Upstream {
    /// The service as a worker reaches it, with no connections yet.
    pub fn new(service: Arc<Service>, shared: Arc<Shared>) -> Self {
        let draw = Arc::new(Draw::new(shared.draw.long()));
        Self { service, pool: Arc::default(), shared, draw, dials: Arc::default() }
    }

    /// A connection to `address` that is there already, and what is spoken on it.
    pub fn pooled(
        self: &Arc<Self>,
        address: SocketAddr,
        facts: &Facts,
        now: Instant,
    ) -> Option<(Connection, Link)> {
        let link = self.link(address, facts, now);
        let (key, generation) = ((address, link), self.generation(link));
        if link.is_h2() {
            return self.pool.share(key, generation).map(|it| (Connection::H2(it), link));
        }
        if facts.manner == RequestManner::Upgrade {
            return None;
        }
        self.pool.take(key, generation, now).map(|it| (Connection::H1(it), link))
    }

    /// A new connection to `address` for a request like this, and what is spoken on it.
    ///
    /// # Errors
    ///
    /// Why there is none; nothing of the request was sent.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dial of a shared connection goes on for the next request.
    pub async fn connection(
        self: &Arc<Self>,
        address: SocketAddr,
        facts: &Facts,
        now: Instant,
    ) -> Result<(Connection, Link), Failure> {
        let link = self.link(address, facts, now);
        match self.open((address, link), facts, now).await {
            // The peer spoke something else after all, and said so before anything was sent.
            Err(Failure::TlsHandshake) if self.falls_back(address, now) => {
                let link = self.link(address, facts, now);
                Ok((self.open((address, link), facts, now).await?, link))
            }
            opened => Ok((opened?, link)),
        }
    }

    /// An opaque connection to `address`, and whether it is under mesh TLS.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub async fn opaque(self: &Arc<Self>, address: SocketAddr) -> Result<(Stream, bool), Failure> {
        let now = clock::now();
        if self.speaks_mesh(address, now) {
            match self.dial(address, Some(Alpn::Tcp)).await {
                Err(Failure::TlsHandshake) if self.falls_back(address, now) => (),
                dialled => return Ok((dialled?, true)),
            }
        }
        Ok((self.dial(address, None).await?, false))
    }

    async fn open(
        self: &Arc<Self>,
        key: Key,
        facts: &Facts,
        now: Instant,
    ) -> Result<Connection, Failure> {
        let (address, link) = key;
        let generation = self.generation(link);
        if link.is_h2() {
            return self.dial_shared(key, generation).await.map(Connection::H2);
        }
        let alpn = link.is_mesh().then_some(Alpn::Http1);
        if facts.manner == RequestManner::Upgrade {
            return self.dial(address, alpn).await.map(Connection::Raw);
        }
        let stream = self.dial(address, alpn).await?;
        let home = Arc::new(Berth { pool: Arc::clone(&self.pool), key });
        let made = H1::new(stream, generation, home, now).await;
        made.map(|it| Connection::H1(Box::new(it))).map_err(|_| Failure::Protocol)
    }

    /// The generation of identity that connections of `link` have to be of.
    pub fn generation(&self, link: Link) -> u64 {
        if link.is_mesh() { self.shared.identity_generation() } else { 0 }
    }

    fn link(self: &Arc<Self>, address: SocketAddr, facts: &Facts, now: Instant) -> Link {
        let own = facts.manner != RequestManner::Plain;
        let h2 = facts.version == Version::HTTP_2;
        match (self.speaks_mesh(address, now), own, h2) {
            (true, true, _) => Link::MeshH1,
            (true, false, _) => Link::MeshH2,
            (false, _, true) => Link::PlainH2,
            (false, _, false) => Link::PlainH1,
        }
    }

    /// Whether to speak mesh TLS to `address`, as far as is known.
    fn speaks_mesh(self: &Arc<Self>, address: SocketAddr, now: Instant) -> bool {
        if self.shared.identity.is_none() {
            // Strict without an identity fails at the dial, with a reason.
            return self.service.tls_mode() == TlsMode::Strict;
        }
        match self.service.tls_mode() {
            TlsMode::Off => false,
            TlsMode::Strict => true,
            TlsMode::Auto => match self.service.manner(address, now) {
                Manner::Unknown | Manner::Mesh => true,
                Manner::Plaintext { .. } => false,
                Manner::PlaintextOnceMore => {
                    self.ask_again(address);
                    false
                }
            },
        }
    }

    /// Whether a failed handshake with `address` may be followed by plaintext.
    fn falls_back(&self, address: SocketAddr, now: Instant) -> bool {
        self.service.tls_mode() == TlsMode::Auto
            && matches!(self.service.manner(address, now), Manner::Plaintext { .. })
    }

    /// Dials a connection for many requests, once for all that wait for one.
    async fn dial_shared(self: &Arc<Self>, key: Key, generation: u64) -> Result<H2, Failure> {
        let upstream = Arc::clone(self);
        let dial = async move || {
            let made = upstream.dial_h2(key, generation).await;
            if let Ok(made) = &made {
                upstream.pool.add(key, made.clone());
            }
            made
        };
        // The dialling task can only have panicked.
        self.dials.join((key, generation), dial).await.unwrap_or(Err(Failure::Internal))
    }

    async fn dial_h2(&self, (address, link): Key, generation: u64) -> Dialled {
        let stream = self.dial(address, link.is_mesh().then_some(Alpn::H2)).await?;
        H2::new(stream, generation).await.map_err(|error| {
            tracing::debug!(%address, %error, "http/2 handshake failed");
            Failure::Protocol
        })
    }

    /// Dials `address`, under mesh TLS where an ALPN says for what.
    async fn dial(&self, address: SocketAddr, alpn: Option<Alpn>) -> Result<Stream, Failure> {
        if self.shared.is_own(address) {
            return Err(Failure::NoRoute);
        }
        // Before the dial: a peer that has accepted waits for our first word.
        let secure = match (alpn, &self.shared.identity) {
            (None, _) => None,
            (Some(_), None) => return Err(Failure::TlsIdentity),
            (Some(alpn), Some(it)) => Some((alpn, it.client_config(&self.service.expected, alpn))),
        };
        let patience = self.service.policy.timeouts.connect;
        let begun = clock::now();
        let captured_app = self.service.local && self.shared.captured;
        let source = captured_app.then(|| app_source(address));
        let tcp = dial(address, source, patience).await.map_err(|error| {
            self.service.refresh();
            tracing::debug!(error = %error, "dial failed");
            match error {
                connect::Error::Timeout(_) => Failure::ConnectTimeout,
                connect::Error::Refused(_) | connect::Error::Unreachable { .. } => {
                    Failure::ConnectRefused
                }
            }
        })?;
        if self.shared.has_reached_itself(&tcp) {
            return Err(Failure::NoRoute);
        }
        let wire = Wire::new(tcp, BytesMut::new());
        let Some((alpn, config)) = secure else { return Ok(Stream::Plain(wire)) };
        let wire = if alpn == Alpn::H2 { wire.reading_ahead(READ_AHEAD) } else { wire };
        let left = patience.saturating_sub(clock::now().saturating_duration_since(begun));
        self.secure(wire, address, (alpn, config), left).await
    }

    async fn secure(
        &self,
        wire: Wire,
        address: SocketAddr,
        (alpn, config): (Alpn, tls::Config),
        patience: std::time::Duration,
    ) -> Result<Stream, Failure> {
        let begun = clock::now();
        // Boxed: a handshake is large and rare.
        let handshake = Box::pin(tls::connect(wire, config, patience)).await;
        let result = handshake.as_ref().map_or_else(|failure| failure.label(), |_| "ok");
        self.shared.metrics.handshake("client", result);
        let failure = match handshake {
            Ok(secured) if secured.alpn == alpn => {
                self.service.learn(address, true, clock::now());
                return Ok(secured.stream);
            }
            Ok(_) => HandshakeFailure::NotMesh,
            Err(failure) => failure,
        };
        tracing::debug!(%address, reason = failure.label(), "mesh handshake failed");
        if !is_plaintext_peer(failure) {
            return Err(refused(failure));
        }
        // Silence may be a mesh peer that is busy: it does not undo what the peer has proved.
        let proved = self.service.manner(address, begun) == Manner::Mesh;
        if self.service.tls_mode() == TlsMode::Auto
            && (failure == HandshakeFailure::NotMesh || !proved)
        {
            self.service.learn(address, false, clock::now());
        }
        Err(Failure::TlsHandshake)
    }

    /// Asks a peer that spoke plaintext whether it speaks mesh TLS by now.
    fn ask_again(self: &Arc<Self>, address: SocketAddr) {
        let upstream = Arc::clone(self);
        let _running = drain::spawn("ask again", async move {
            // What comes of it is learnt on the way.
            let _asked = upstream.dial(address, Some(Alpn::H2)).await.is_ok();
        });
    }
}

/// What a refused handshake is to the request.
fn refused(failure: HandshakeFailure) -> Failure {
    match failure {
        HandshakeFailure::NoCertificate
        | HandshakeFailure::WrongTrustDomain
        | HandshakeFailure::WrongIdentity
        | HandshakeFailure::Expired
        | HandshakeFailure::NotYetValid
        | HandshakeFailure::UnknownIssuer
        | HandshakeFailure::BadSpiffeId => Failure::TlsIdentity,
        HandshakeFailure::NotMesh
        | HandshakeFailure::Protocol
        | HandshakeFailure::Timeout
        | HandshakeFailure::Closed => Failure::TlsHandshake,
    }
}

/// Whether a handshake failed because the peer does not speak mesh TLS at all.
fn is_plaintext_peer(failure: HandshakeFailure) -> bool {
    matches!(
        failure,
        HandshakeFailure::NotMesh | HandshakeFailure::Closed | HandshakeFailure::Timeout
    )
}
