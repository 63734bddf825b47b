//! Proof: a live handshake shows whose leaf a sidecar serves, and of which issuer.
//!
//! What a sidecar says of itself is not what it serves. So whoever must know connects to its
//! inbound listener as its peers do, by mesh TLS, and trusts nothing but the issuer of the
//! certificate it shows itself: a leaf of any other ends the handshake. The first bytes of the
//! answer are waited for, since they alone show that the sidecar took our certificate, too.
//!
//! The other side of it is [`proxy::proof`](crate::proxy).
//!
//! # Sources
//!
//! - RFC 9113, section 3.4 (the preface): <https://www.rfc-editor.org/rfc/rfc9113#section-3.4>

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use remora_certs::{bundle::Bundle, pem, svid::Svid};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{ALPN_H2, Expected, HandshakeFailure, client_config};

/// Several times what a handshake takes; who is slower may be asked again.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a client of HTTP/2 begins with: the preface, and settings that change nothing.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// Why nothing was proved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Our certificate comes without that of its issuer.
    #[error("the issuer's certificate is damaged")]
    NoIssuer,
    /// rustls cannot be set up.
    #[error(transparent)]
    Tls(#[from] super::Error),
    /// Nobody took the connection.
    #[error("no connection to {0}: {1}")]
    Unreached(SocketAddr, io::Error),
    /// It did not begin, or not go on.
    #[error("no handshake with {0} within 5 s")]
    Late(SocketAddr),
    /// Either side's leaf is of an issuer that the other does not trust.
    #[error("{0} serves a certificate of another issuer, or trusts not ours")]
    OtherIssuer(SocketAddr),
    /// The leaf is of another SPIFFE id.
    #[error("{0} is another workload")]
    OtherWorkload(SocketAddr),
    /// It speaks TLS, and is no sidecar.
    #[error("{0} does not speak `remora-h2`")]
    NotMesh(SocketAddr),
    /// Anything else that TLS may say.
    #[error("no handshake with {0}: {1}")]
    Refused(SocketAddr, io::Error),
}

/// Shows that `address` serves a leaf of the workload `id`, by the issuer of `svid`, and takes
/// `svid`; in 5 seconds at most.
///
/// # Errors
///
/// When it does not, or not now.
///
/// # Cancel safety
///
/// Safe: the connection is closed.
pub async fn prove(address: SocketAddr, id: &str, svid: &Svid) -> Result<(), Error> {
    let issuer = svid.chain().get(1).ok_or(Error::NoIssuer)?;
    let issuer = Bundle::from_pem(pem::encode(pem::CERTIFICATE, issuer).as_bytes());
    let expected = Expected::Ids([id.into()].into());
    let issuer = issuer.map_err(|_| Error::NoIssuer)?;
    let config = client_config(svid.clone(), issuer, &expected, ALPN_H2)?;
    let shaken = timeout(DEADLINE, Box::pin(shake(address, config))).await;
    shaken.unwrap_or(Err(Error::Late(address)))
}

async fn shake(address: SocketAddr, config: ClientConfig) -> Result<(), Error> {
    let said = |error: io::Error| {
        let failure = HandshakeFailure::of(&error);
        if failure == HandshakeFailure::UnknownIssuer {
            Error::OtherIssuer(address)
        } else if failure == HandshakeFailure::WrongIdentity {
            Error::OtherWorkload(address)
        } else {
            Error::Refused(address, error)
        }
    };
    let unreached = |error| Error::Unreached(address, error);
    let tcp = TcpStream::connect(address).await.map_err(unreached)?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(said)?;
    if tls.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(Error::NotMesh(address));
    }
    tls.write_all(HELLO).await.map_err(said)?;
    let mut first = [0; 1];
    tls.read_exact(&mut first).await.map_err(said)?;
    // What is left to say is of no use to either side.
    let _closed = tls.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use remora_certs::authority::{self, Authority, Leaf, Plan};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{clock, drain, identity::Identity};

    const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";
    const HOUR: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn a_leaf_of_the_same_issuer_is_shown_by_a_handshake() {
        let (old, new) = (Issuer::new(), Issuer::new());
        let sidecar = new.serve(&[&old, &new]).await;
        prove(sidecar, ORDERS, &new.own()).await.unwrap();
    }

    #[tokio::test]
    async fn a_leaf_of_another_issuer_is_none() {
        let (old, new) = (Issuer::new(), Issuer::new());
        let sidecar = old.serve(&[&old, &new]).await;
        let error = prove(sidecar, ORDERS, &new.own()).await.unwrap_err();
        assert!(error.to_string().contains("a certificate of another issuer"), "{error}");
    }

    #[tokio::test]
    async fn one_that_does_not_trust_the_issuer_is_found_out() {
        let (old, new) = (Issuer::new(), Issuer::new());
        // Its roots must vouch for its own leaf, so it is one of an unrelated issuer.
        let sidecar = old.serve(&[&old]).await;
        prove(sidecar, ORDERS, &new.own()).await.unwrap_err();
    }

    #[tokio::test]
    async fn another_workload_at_the_address_is_found_out() {
        let issuer = Issuer::new();
        let sidecar = issuer.serve(&[&issuer]).await;
        let payments = "spiffe://td/ns/shop/sa/payments";
        let error = prove(sidecar, payments, &issuer.own()).await.unwrap_err();
        assert!(error.to_string().ends_with("is another workload"), "{error}");
    }

    #[tokio::test]
    async fn nobody_listening_is_said_with_the_address() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = prove(free, ORDERS, &Issuer::new().own()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("no connection to {free}")), "{error}");
    }

    /// An issuer, and its folder.
    struct Issuer {
        dir: tempfile::TempDir,
        authority: Authority,
    }

    impl Issuer {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let plan = Plan { trust_domain: "td", root_life: HOUR * 24, issuer_life: HOUR * 24 };
            let authority = authority::create(dir.path(), &plan, clock::wall()).unwrap();
            Self { dir, authority }
        }

        /// What whoever asks shows.
        fn own(&self) -> Svid {
            let issued = self.issue("spiffe://td/ns/remora/sa/control");
            Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap()
        }

        fn issue(&self, id: &str) -> authority::Issued {
            let id = id.parse().unwrap();
            let leaf = Leaf { id: &id, life: HOUR, dns_names: &[], addresses: &[] };
            self.authority.issue(&leaf, clock::wall()).unwrap()
        }

        /// The listener of a sidecar with a leaf of this issuer.
        async fn serve(&self, trusts: &[&Self]) -> SocketAddr {
            let folder = self.dir.path().join("orders");
            let mut issued = self.issue(ORDERS);
            issued.roots = trusts.iter().map(|it| it.authority.root_pem()).collect();
            issued.write(&folder, clock::wall()).unwrap();
            let identity = Identity::from_folder(&folder).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            drain::spawn("listener", async move {
                let acceptor = TlsAcceptor::from(identity.server_config());
                let (tcp, _) = listener.accept().await.unwrap();
                // A handshake may fail: that is what some tests are about.
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut preface = [0; 24];
                let _read = tls.read_exact(&mut preface).await;
                let _written = tls.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
                let _rest = tls.read(&mut preface).await;
            });
            address
        }
    }
}
