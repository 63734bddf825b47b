//! Bad peers: TLS clients and servers with certificates that no sidecar would load.

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use remora::clock;
use remora_certs::authority::{ISSUER_CERTIFICATE, ISSUER_KEY};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName as Name, Error, ServerConfig,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::{pods::Mesh, tcp::connect};

/// A certificate with its chain, and the key.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Certificate {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Certificate {
    /// Signed by the issuer of `mesh`, for `uris`, with what `mistake` makes of it.
    pub(crate) fn of(
        mesh: &Mesh,
        uris: &[&str],
        mistake: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let read = |name| fs::read_to_string(mesh.authority().join(name)).unwrap();
        let (key, pem) = (KeyPair::from_pem(&read(ISSUER_KEY)).unwrap(), read(ISSUER_CERTIFICATE));
        let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        let (mut params, key) = (params(uris), KeyPair::generate().unwrap());
        mistake(&mut params);
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self::new(vec![leaf, CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()], &key)
    }

    /// Vouched for by nobody but itself.
    pub(crate) fn self_signed(uris: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::new(vec![params(uris).self_signed(&key).unwrap().der().clone()], &key)
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        Self { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }
}

/// Makes a certificate one that ended yesterday.
pub(crate) fn ended(params: &mut CertificateParams) {
    let day = Duration::from_hours(24);
    let now = OffsetDateTime::UNIX_EPOCH + clock::wall();
    let before = |it: Duration| now - it;
    (params.not_before, params.not_after) = (before(2 * day), before(day));
}

fn params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        uris.iter().map(|it| SanType::URI((*it).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Dials `to` for `protocol` with `certificate`, or without one, whoever answers.
pub(crate) async fn dial(
    to: SocketAddr,
    protocol: &str,
    certificate: Option<Certificate>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let builder =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        Some(it) => builder.with_client_auth_cert(it.chain, it.key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from("orders.shop").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, connect(to).await?).await
}

/// Dials, asks for `/who` over HTTP/1.1, and reads what comes; an error where nothing does.
pub(crate) async fn ask(
    to: SocketAddr,
    protocol: &str,
    certificate: Option<Certificate>,
) -> io::Result<String> {
    let mut stream = dial(to, protocol, certificate).await?;
    stream
        .write_all(b"GET /who HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    String::from_utf8(answer).map_err(io::Error::other)
}

/// Serves one connection as a mesh peer with `certificate`, and returns the bytes that
/// came before the handshake, then those that came in plaintext after it.
pub(crate) async fn accept(stream: TcpStream, certificate: Certificate) -> io::Result<Vec<u8>> {
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(certificate.chain, certificate.key)
        .unwrap();
    config.alpn_protocols =
        ["remora-h2", "remora-http/1.1", "remora-tcp"].map(|it| it.as_bytes().to_vec()).to_vec();
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await?;
    Ok(received)
}

/// Lets anybody in.
#[derive(Debug)]
struct Anybody;

fn schemes() -> Vec<SignatureScheme> {
    rustls::crypto::aws_lc_rs::default_provider()
        .signature_verification_algorithms
        .supported_schemes()
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[Name] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
