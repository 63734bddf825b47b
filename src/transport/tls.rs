//! Mesh TLS on a connection: who may come in, and whom we reached.
//!
//! Mesh TLS is told from the application's own by ALPN alone. A client hello without one
//! of our protocols is none of our business: its bytes go to the application untouched.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::{ClientConfig, ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::stream::{Stream, Wire};
use crate::{
    clock,
    identity::{ALPN_H2, ALPN_HTTP1, ALPN_TCP, Alpn, HandshakeFailure, SpiffeId, peer_id},
};

/// How long a client may take to complete a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// A hello that fills this is not a hello.
const HELLO_MAX: usize = 32 * 1024;

/// Whom a handshake has to reach, and for what.
pub type Config = Arc<ClientConfig>;

/// What a client hello asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Mesh TLS.
    Mesh,
    /// TLS of the application's own, or bytes that only look like TLS.
    Foreign,
}

/// A completed handshake.
#[derive(Debug)]
pub struct Secured {
    /// What to speak through.
    pub stream: Stream,
    /// What was agreed to be spoken.
    pub alpn: Alpn,
    /// Who is at the other end, verified.
    pub peer: SpiffeId,
}

/// Reads the client's hello into `seen`, and says what it asks for.
///
/// # Errors
///
/// That of a read; a client that does not finish its hello in time is a time-out.
///
/// # Cancel safety
///
/// Safe: what was read is in `seen`.
pub async fn hello(tcp: &mut TcpStream, seen: &mut BytesMut) -> io::Result<Hello> {
    let reading = async {
        let (mut acceptor, mut fed) = (Acceptor::default(), 0);
        loop {
            let mut rest = &seen[fed..];
            while !rest.is_empty() {
                if acceptor.read_tls(&mut rest).is_err() {
                    return Ok(Hello::Foreign);
                }
            }
            fed = seen.len();
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let ours = |it: &[u8]| [ALPN_H2, ALPN_HTTP1, ALPN_TCP].contains(&it);
                    let hello = accepted.client_hello();
                    let mesh = hello.alpn().is_some_and(|mut it| it.any(ours));
                    return Ok(if mesh { Hello::Mesh } else { Hello::Foreign });
                }
                Ok(None) if seen.len() >= HELLO_MAX => return Ok(Hello::Foreign),
                Ok(None) => (),
                Err(_) => return Ok(Hello::Foreign),
            }
            if tcp.read_buf(seen).await? == 0 {
                return Ok(Hello::Foreign);
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not finish its hello"))
    })
}

/// Completes the handshake of a mesh peer that dialled us.
///
/// # Errors
///
/// Why the peer was refused; it has been told, as far as TLS tells.
///
/// # Cancel safety
///
/// Safe: the connection is closed.
pub async fn accept(wire: Wire, config: Arc<ServerConfig>) -> Result<Secured, HandshakeFailure> {
    let handshake = TlsAcceptor::from(config).accept(wire);
    let stream = within(PATIENCE, handshake).await?;
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().and_then(alpn_of).ok_or(HandshakeFailure::Protocol)?;
    let peer = peer_id(session.peer_certificates()).ok_or(HandshakeFailure::NoCertificate)?;
    Ok(Secured { stream: Stream::Accepted(Box::new(stream)), alpn, peer })
}

/// Completes a handshake with the peer that was dialled, within `patience`.
///
/// # Errors
///
/// Why the peer is not the one that was asked for, or not a mesh peer at all.
///
/// # Cancel safety
///
/// Safe: the connection is closed.
pub async fn connect(
    wire: Wire,
    config: Config,
    patience: Duration,
) -> Result<Secured, HandshakeFailure> {
    let begun = clock::now();
    let host = wire.tcp().peer_addr().map_err(|_| HandshakeFailure::Closed)?.ip().into();
    let mut stream = within(patience, TlsConnector::from(config).connect(host, wire)).await?;
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().and_then(alpn_of).ok_or(HandshakeFailure::NotMesh)?;
    let peer = peer_id(session.peer_certificates()).ok_or(HandshakeFailure::NoCertificate)?;
    if alpn == Alpn::H2 {
        let left = patience.saturating_sub(begun.elapsed());
        welcome(&mut stream, left).await?;
    }
    Ok(Secured { stream: Stream::Dialled(Box::new(stream)), alpn, peer })
}

/// Waits for the first word of a server that speaks first, which says that it let us in.
///
/// In TLS 1.3 the client is done before the server has seen its certificate (RFC 8446,
/// section 2), so a refusal would come to light as a reset of the first request.
async fn welcome(
    stream: &mut client::TlsStream<Wire>,
    patience: Duration,
) -> Result<(), HandshakeFailure> {
    match within(patience, async { stream.fill_buf().await.map(<[u8]>::is_empty) }).await {
        Ok(false) => Ok(()),
        // Whoever has proved an identity is not taken for somebody who speaks plaintext.
        Ok(true)
        | Err(HandshakeFailure::Closed | HandshakeFailure::NotMesh | HandshakeFailure::Timeout) => {
            Err(HandshakeFailure::Protocol)
        }
        Err(failure) => Err(failure),
    }
}

async fn within<T>(
    patience: Duration,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, HandshakeFailure> {
    match tokio::time::timeout(patience, handshake).await {
        Err(_) => Err(HandshakeFailure::Timeout),
        Ok(Err(error)) => Err(HandshakeFailure::of(&error)),
        Ok(Ok(stream)) => Ok(stream),
    }
}

fn alpn_of(protocol: &[u8]) -> Option<Alpn> {
    [(ALPN_H2, Alpn::H2), (ALPN_HTTP1, Alpn::Http1), (ALPN_TCP, Alpn::Tcp)]
        .into_iter()
        .find_map(|(name, alpn)| (name == protocol).then_some(alpn))
}
