//! Verify: whom a handshake lets in, on either side, by the roots of this very moment.
//!
//! rustls checks names of hosts; a mesh has none. Both verifiers here check the chain with
//! rustls' own code and then the SPIFFE id. They read the SVID in use at each handshake, so
//! that a root taken out of the bundle vouches for nobody from the next handshake on.
//!
//! Order matters to what is reported. The chain comes first, since what an unvouched-for
//! certificate says means nothing; but one that fails *and* claims no SPIFFE id is a
//! stranger's (the application's own TLS, say), not a wrong peer of ours.
//!
//! # Sources
//!
//! - X509-SVID, section 5:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#5-validation>

use std::sync::Arc;

use remora_certs::{
    spiffe_id::SpiffeId,
    x509::{IdError, claims_spiffe, id_of},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{Expected, HandshakeFailure, svid::Live};

/// Why a certificate of a sound chain is refused; carried through rustls as a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("`{id}` is not of our trust domain `{ours}`")]
    TrustDomain { id: SpiffeId, ours: String },
    #[error("`{id}` is not expected here")]
    Identity { id: SpiffeId },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("the peer's certificate is not of this mesh")]
    NotMesh,
}

impl Refusal {
    pub(super) fn failure(&self) -> HandshakeFailure {
        match self {
            Self::TrustDomain { .. } => HandshakeFailure::WrongTrustDomain,
            Self::Identity { .. } => HandshakeFailure::WrongIdentity,
            Self::Id(_) => HandshakeFailure::BadSpiffeId,
            Self::NotMesh => HandshakeFailure::NotMesh,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let other = OtherError(Arc::new(refusal));
        Self::InvalidCertificate(CertificateError::Other(other))
    }
}

impl Expected {
    /// Whether `id`, already known to be of our trust domain, may answer.
    fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::AnyInTrustDomain => true,
            Self::Namespace(namespace) => id.namespace() == Some(&**namespace),
            Self::Ids(ids) => ids.iter().any(|it| **it == *id.as_str()),
        }
    }
}

/// The SPIFFE id of a leaf whose chain was found to be `chain`.
fn judge(
    leaf: &CertificateDer<'_>,
    chain: Result<(), Error>,
    ours: &str,
) -> Result<SpiffeId, Error> {
    if let Err(error) = chain {
        return Err(if claims_spiffe(leaf) { error } else { Refusal::NotMesh.into() });
    }
    let id = id_of(leaf).map_err(Refusal::Id)?;
    if id.trust_domain() == ours {
        Ok(id)
    } else {
        Err(Refusal::TrustDomain { id, ours: ours.to_owned() }.into())
    }
}

/// The client's side: makes sure of the server.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    live: Arc<Live>,
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(live: Arc<Live>, expected: Expected, provider: &CryptoProvider) -> Self {
        Self { live, expected, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let current = self.live.current();
        let (roots, algorithms) = (current.roots.store(), self.algorithms.all);
        let chain = ParsedCertificate::try_from(leaf).and_then(|leaf| {
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
        });
        let id = judge(leaf, chain, current.svid.id().trust_domain())?;
        if self.expected.allows(&id) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Refusal::Identity { id }.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server's side: makes sure of the client. Who may call what is a matter of policy,
/// which reads the proved id later.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    live: Arc<Live>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    pub(super) fn new(live: Arc<Live>, provider: &CryptoProvider) -> Self {
        Self { live, algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// None: they would be those of one moment, and a mesh client has one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let current = self.live.current();
        let chain = current.clients.verify_client_cert(leaf, intermediates, now).map(|_| ());
        judge(leaf, chain, current.svid.id().trust_domain())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_match_whole_names_only() {
        let orders = SpiffeId::workload("td", "shop", "orders").unwrap();
        let other = "spiffe://td/ns/shop/sa/orders/extra".parse().unwrap();
        let ids = |ids: &[&str]| Expected::Ids(ids.iter().map(|it| Arc::from(*it)).collect());
        for (expected, allowed) in [
            (Expected::AnyInTrustDomain, true),
            (Expected::Namespace("shop".into()), true),
            (Expected::Namespace("sho".into()), false),
            (Expected::Namespace("".into()), false),
            (ids(&["spiffe://td/ns/shop/sa/web", "spiffe://td/ns/shop/sa/orders"]), true),
            (ids(&["spiffe://td/ns/shop/sa/order"]), false),
            (ids(&["spiffe://td/ns/shop/sa/orders/extra"]), false),
            (ids(&[]), false),
        ] {
            assert_eq!(expected.allows(&orders), allowed, "{expected:?}");
        }
        assert!(!Expected::Namespace("shop".into()).allows(&other));
    }
}
