//! TLS: the one shape of mesh TLS, and the configurations that rustls takes.
//!
//! TLS 1.3 only, X25519MLKEM768 first, and nothing is ever resumed: a resumed session skips
//! the verifiers and would outlive a change of trust. The provider is passed by hand; the
//! process-wide default is neither read nor set.
//!
//! # Sources
//!
//! - RFC 8446 (TLS 1.3): <https://www.rfc-editor.org/rfc/rfc8446>
//! - X25519MLKEM768: <https://datatracker.ietf.org/doc/draft-ietf-tls-ecdhe-mlkem/>

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    pki_types::UnixTime,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};

use super::{
    ALPN_H2, ALPN_HTTP1, ALPN_TCP, Alpn, Expected,
    svid::Live,
    verify::{ClientVerifier, ServerVerifier},
};
use crate::clock;

impl Alpn {
    /// The name on the wire.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::H2 => ALPN_H2,
            Self::Http1 => ALPN_HTTP1,
            Self::Tcp => ALPN_TCP,
        }
    }

    /// The protocol of a name on the wire, as both sides find it after a handshake.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::H2, Self::Http1, Self::Tcp].into_iter().find(|it| it.name() == name)
    }
}

/// What mesh TLS is made of.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        // AES-128 first: cheaper, and as strong as the P-256 signatures beside it.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // Recorded today, broken tomorrow: the post-quantum hybrid first. The others are for
        // peers of another build.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}

/// The configuration to accept with.
pub(super) fn server(
    live: &Arc<Live>,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(ClientVerifier::new(Arc::clone(live), provider));
    let resolver = Arc::new(Resolver(Arc::clone(live)));
    accepting(provider, verifier, resolver, &[ALPN_H2, ALPN_HTTP1, ALPN_TCP])
}

/// Accepts who passes `verifier`, as whom `resolver` says, to speak one of `protocols`.
pub(super) fn accepting(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_details(Arc::clone(provider), Arc::new(Wall));
    let mut config = builder
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The configuration to connect with, but for whom to expect and what to carry.
///
/// Expects nobody, so that one used by mistake fails closed.
pub(super) fn client(
    live: &Arc<Live>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, Error> {
    let verifier = ServerVerifier::new(Arc::clone(live), Expected::Ids(Arc::new([])), provider);
    let builder = ClientConfig::builder_with_details(Arc::clone(provider), Arc::new(Wall));
    let mut config = builder
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Resolver(Arc::clone(live))));
    config.resumption = Resumption::disabled();
    // The peer is told apart by its SPIFFE id; a name here would only leak what is called.
    config.enable_sni = false;
    Ok(config)
}

/// `template` for one expectation and one protocol.
pub(super) fn specialise(
    template: &ClientConfig,
    live: &Arc<Live>,
    expected: &Expected,
    alpn: Alpn,
) -> ClientConfig {
    let mut config = template.clone();
    let provider = template.crypto_provider();
    let verifier = ServerVerifier::new(Arc::clone(live), expected.clone(), provider);
    config.dangerous().set_certificate_verifier(Arc::new(verifier));
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config
}

/// Hands out the certificate of the moment, to either side.
#[derive(Debug)]
struct Resolver(Arc<Live>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.current().svid.certified()))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.current().svid.certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The project's own clock.
#[derive(Debug)]
struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::wall()))
    }
}
