//! TLS: control's side of each handshake, by the certificates and roots of that moment.
//!
//! TLS 1.3 only, the post-quantum hybrid first, and nothing is resumed. A client may have a
//! certificate; one that does not verify ends the handshake. Since connections outlive
//! changes of trust, each call verifies its caller's chain again: [`verify`].

use std::{sync::Arc, time::Duration};

use remora::clock;
use rustls::{
    Error, ServerConfig,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, kx_group},
    },
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
    version::TLS13,
};

use crate::issuing::Issuing;

/// What to accept a connection with at this moment.
pub(super) fn config(issuing: &Issuing) -> Result<Arc<ServerConfig>, Error> {
    let own = SingleCertAndKey::from(Arc::clone(issuing.svid.certified()));
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(Wall))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier(issuing)?)
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Whether the roots of this moment vouch for a chain, leaf first.
pub(super) fn verify(
    issuing: &Issuing,
    chain: &[CertificateDer<'_>],
    now: Duration,
) -> Result<(), Error> {
    let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let now = UnixTime::since_unix_epoch(now);
    verifier(issuing)?.verify_client_cert(leaf, rest, now).map(|_| ())
}

fn verifier(issuing: &Issuing) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let roots = Arc::clone(issuing.roots.store());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        // Clients know their one certificate.
        .clear_root_hint_subjects()
        .build();
    verifier.map_err(|it| Error::General(it.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// The project's own clock.
#[derive(Debug)]
struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::wall()))
    }
}
