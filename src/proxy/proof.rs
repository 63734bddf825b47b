//! Proof: who hits the inbound listener itself is shown our certificate, and nothing else.
//!
//! In capture mode connections come here by packet rules, on their way to the application.
//! One that was meant for the listener's own port leads nowhere, and is not forwarded. But
//! control makes sure by such a connection which certificate this sidecar *serves*: so a
//! mesh peer gets its handshake, the greeting of HTTP/2, and a farewell. The other side of it is
//! [`identity::proof`](crate::identity::proof).
//!
//! # Sources
//!
//! - RFC 9113, sections 6.5 (SETTINGS) and 6.8 (GOAWAY):
//!   <https://www.rfc-editor.org/rfc/rfc9113#section-6.5>

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::context::Worker;
use crate::{
    identity::Alpn,
    telemetry::metrics::Direction,
    transport::{
        stream::Wire,
        tls::{self, Hello},
    },
};

/// An empty SETTINGS frame, and a GOAWAY frame: no stream was taken, and nothing is wrong.
const WORDS: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// How long the peer may take to read them and leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Shows a mesh peer our certificate; anybody else nothing.
///
/// # Cancel safety
///
/// The connection is closed.
pub(super) async fn show(worker: &Worker, mut tcp: TcpStream) {
    let shared = &worker.shared;
    let Some(identity) =
        shared.identity.as_ref().filter(|_| worker.direction == Direction::Inbound)
    else {
        return;
    };
    let mut seen = BytesMut::new();
    if !matches!(tls::hello(&mut tcp, &mut seen).await, Ok(Hello::Mesh)) {
        return;
    }
    let handshake = tls::accept(Wire::new(tcp, seen), identity.server_config()).await;
    let result = handshake.as_ref().map_or_else(|failure| failure.label(), |_| "ok");
    shared.metrics.handshake("server", result);
    let Ok(mut secured) = handshake else { return };
    if secured.alpn != Alpn::H2 {
        return;
    }
    let farewell = async {
        secured.stream.write_all(WORDS).await?;
        secured.stream.shutdown().await?;
        // A connection that is closed with bytes unread is reset, and what was said is lost.
        let mut rest = [0; 256];
        while secured.stream.read(&mut rest).await? != 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _left = timeout(FAREWELL, farewell).await.is_ok();
}
