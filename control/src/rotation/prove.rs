//! Prove: a live handshake with a sidecar's inbound listener, as its peers make one.
//!
//! What a sidecar says of itself is not what it serves. So control connects to it, by mesh
//! TLS and with its own certificate, and trusts nothing but the new issuer: a leaf of any
//! other ends the handshake. The first bytes of the answer are waited for, since they alone
//! show that the sidecar took control's certificate, which is of the new issuer, too.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use remora::{
    drain,
    identity::{self, ALPN_H2, Expected, HandshakeFailure},
    sync::wire::Sidecar,
};
use remora_certs::{bundle::Bundle, pem};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time,
};
use tokio_rustls::TlsConnector;

use super::Proofs;
use crate::issuing::Issuing;

/// A sidecar that does not answer for so long is tried again in the next round.
const DEADLINE: Duration = Duration::from_secs(5);

/// Handshakes at a time: sockets, and some 10 ms of CPU a second's worth each.
const AT_A_TIME: usize = 32;

/// What a client of HTTP/2 begins with: the preface, and settings that change nothing.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// Tries every one of `sidecars`, and says what came of it.
pub(super) async fn prove(issuing: &Issuing, sidecars: &[&Sidecar]) -> Proofs {
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut tasks = Vec::with_capacity(sidecars.len());
    for it in sidecars {
        let name = (it.id.clone(), it.report.instance.clone());
        let aim = aim(issuing, it);
        let permits = Arc::clone(&permits);
        tasks.push(drain::spawn("prove", async move {
            let _permit = permits.acquire_owned().await;
            let proof = match aim {
                // It has no listener, so that nobody is ever served its certificate.
                Ok(None) => Ok(()),
                Ok(Some((address, config))) => time::timeout(DEADLINE, shake(address, config))
                    .await
                    .unwrap_or_else(|_| Err(format!("no handshake with {address} within 5 s"))),
                Err(reason) => Err(reason),
            };
            (name, proof)
        }));
    }
    let mut proofs = Proofs::new();
    for task in tasks {
        proofs.extend(task.await);
    }
    proofs
}

/// Where to connect to, and whom to expect there.
fn aim(issuing: &Issuing, it: &Sidecar) -> Result<Option<(SocketAddr, ClientConfig)>, String> {
    let Some(inbound) = it.report.inbound else { return Ok(None) };
    let address = address(it.peer, inbound)?;
    let expected = Expected::Ids([it.id.as_str().into()].into());
    let roots = issuer_alone(issuing).ok_or("the issuer's certificate is damaged")?;
    let config = identity::client_config(issuing.svid.clone(), roots, &expected, ALPN_H2);
    config.map(|it| Some((address, it))).map_err(|it| it.to_string())
}

/// Where the connection comes from, at the port of the listener.
///
/// A sidecar names its listener itself: it must not have control connect to anything else.
fn address(peer: Option<IpAddr>, inbound: SocketAddr) -> Result<SocketAddr, String> {
    match peer {
        Some(peer) if peer.is_loopback() || !inbound.ip().is_loopback() => {
            Ok(SocketAddr::new(peer, inbound.port()))
        }
        Some(peer) => Err(format!("its listener is {inbound}, which {peer} does not show")),
        None => Err("no connection of it has been seen yet".to_owned()),
    }
}

/// Trusts the issuer and nothing above it.
fn issuer_alone(issuing: &Issuing) -> Option<Bundle> {
    let pem = issuing.authority.to_pem();
    let first = pem::blocks(pem.issuer.as_bytes()).ok()?.first()?.to_pem();
    Bundle::from_pem(first.as_bytes()).ok()
}

async fn shake(address: SocketAddr, config: ClientConfig) -> Result<(), String> {
    let said = |error: io::Error| {
        let failure = HandshakeFailure::of(&error);
        if failure == HandshakeFailure::UnknownIssuer {
            format!("{address} serves a certificate of another issuer, or trusts not ours")
        } else if failure == HandshakeFailure::WrongIdentity {
            format!("{address} is another workload")
        } else {
            format!("no handshake with {address}: {error}")
        }
    };
    let refused = |error| format!("no connection to {address}: {error}");
    let tcp = TcpStream::connect(address).await.map_err(refused)?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(said)?;
    if tls.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(format!("{address} does not speak `remora-h2`"));
    }
    tls.write_all(HELLO).await.map_err(said)?;
    let mut first = [0; 1];
    tls.read_exact(&mut first).await.map_err(said)?;
    // What is left to say is of no use to either side.
    let _closed = tls.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests;
