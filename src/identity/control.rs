//! Control: the TLS of a connection to control, on either side of it.
//!
//! TLS 1.3, and the same shape as between sidecars. Control's chain must end in the roots
//! in use, or in those that were given at the start where the former do not know it: after
//! a rotation that this sidecar slept through, the operator's roots are the way back. Its
//! SPIFFE id must be control's, whatever host name it was reached by.
//!
//! Control's side is [`accept`]. A client may have a certificate; one that does not verify
//! ends the handshake. Since connections outlive changes of trust, control has each call's
//! chain checked again, by [`verify_client`].

use std::{fmt, io, sync::Arc, time::Duration};

use remora_certs::{
    bundle::Bundle,
    spiffe_id::SpiffeId,
    svid::Svid,
    x509::{Facts, IdError, id_of},
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{tls, verify::Refusal};

/// The time since the Unix epoch.
type Wall = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A connection to control.
pub type Stream = client::TlsStream<TcpStream>;

/// A connection that control has taken.
pub type Accepted = server::TlsStream<TcpStream>;

/// What a client showed of itself, leaf first; empty for nothing.
pub type Chain = Vec<CertificateDer<'static>>;

/// Control's SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// This one.
    Id(SpiffeId),
    /// The one with this path, in the trust domain of the roots that vouch for it.
    Path(&'static str),
}

/// How control is known, and what it is shown.
#[derive(Clone)]
pub struct Terms {
    /// Who vouches for it: the first that know its issuer decide.
    pub roots: Vec<Bundle>,
    /// Who it is.
    pub named: Named,
    /// What it is shown; nothing while there is no certificate.
    pub svid: Option<Svid>,
    /// Which time it is.
    pub wall: Wall,
}

impl Terms {
    /// Completes a handshake with control, which was looked up as `host`, for HTTP/2.
    ///
    /// # Errors
    ///
    /// When it is not control, or not reached. Whether it lets us in shows only in what it
    /// answers.
    ///
    /// # Cancel safety
    ///
    /// Safe: the connection is closed.
    pub async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<Stream> {
        let config = self.config().map_err(io::Error::other)?;
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) => tcp.peer_addr()?.ip().into(),
        };
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("it does not speak HTTP/2"));
        }
        Ok(stream)
    }

    fn config(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(tls::provider());
        let algorithms = provider.signature_verification_algorithms;
        let own = self.svid.as_ref().map(|it| it.id().trust_domain().to_owned());
        let roots = self.roots.clone();
        let verifier = Verifier { roots, named: self.named.clone(), own, algorithms };
        let clock = Arc::new(Clock(Arc::clone(&self.wall)));
        let builder = ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.svid {
            Some(svid) => {
                let shown = SingleCertAndKey::from(svid.certified().as_ref().clone());
                builder.with_client_cert_resolver(Arc::new(shown))
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl Named {
    /// Whether `id` is control, for whom `roots` vouch and whose trust domain is `own` as
    /// far as that is known.
    pub fn is(&self, id: &SpiffeId, roots: &Bundle, own: Option<&str>) -> bool {
        match self {
            Self::Id(named) => id == named,
            Self::Path(path) => {
                let domain = own.map(str::to_owned).or_else(|| trust_domain(roots));
                id.path() == *path && domain.is_none_or(|it| it == id.trust_domain())
            }
        }
    }
}

/// Completes a handshake with somebody who may have a certificate; then it is one that
/// `roots` vouch for. HTTP/2 or 1.1.
///
/// # Errors
///
/// When it does not verify, or they are gone.
///
/// # Cancel safety
///
/// Safe: the connection is closed.
pub async fn accept(tcp: TcpStream, svid: &Svid, roots: &Bundle) -> io::Result<Accepted> {
    let verifier = clients(roots).map_err(io::Error::other)?;
    let own = Arc::new(SingleCertAndKey::from(Arc::clone(svid.certified())));
    let provider = Arc::new(tls::provider());
    let config = tls::accepting(&provider, verifier, own, &[b"h2", b"http/1.1"]);
    let config = config.map_err(io::Error::other)?;
    TlsAcceptor::from(Arc::new(config)).accept(tcp).await
}

/// What the client showed that has been let in.
pub fn shown(stream: &Accepted) -> Chain {
    stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
}

/// Why a client's certificate does not say who it is.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    /// The roots do not vouch for it.
    #[error(transparent)]
    Chain(#[from] Error),
    /// There is no SPIFFE id of a workload in it.
    #[error(transparent)]
    Leaf(#[from] IdError),
}

/// Who a client is by its chain, leaf first, for which `roots` are to vouch at `now`; and when
/// the leaf ends.
///
/// # Errors
///
/// When they do not, or it says nothing.
pub fn verify_client(
    roots: &Bundle,
    chain: &[CertificateDer<'_>],
    now: Duration,
) -> Result<(SpiffeId, Duration), Unproved> {
    let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    clients(roots)?.verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(now))?;
    Ok((id_of(leaf)?, Facts::of(leaf)?.not_after))
}

/// Takes a client without a certificate, or one of `roots`.
fn clients(roots: &Bundle) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let (roots, provider) = (Arc::clone(roots.store()), Arc::new(tls::provider()));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
        .allow_unauthenticated()
        // Clients know their one certificate.
        .clear_root_hint_subjects()
        .build();
    verifier.map_err(|error| Error::General(error.to_string()))
}

/// Why a handshake failed, in words.
pub fn words(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    let Some(Error::InvalidCertificate(reason)) = tls else { return error.to_string() };
    if let CertificateError::Other(other) = reason
        && let Some(refusal) = other.0.downcast_ref::<Refusal>()
    {
        return refusal.to_string();
    }
    if matches!(reason, CertificateError::UnknownIssuer | CertificateError::BadSignature) {
        return "our roots do not vouch for it".to_owned();
    }
    format!("its certificate is not valid: {reason}")
}

/// Of the certificate that signed the one control showed, if it showed both.
pub fn issuer(stream: &Stream) -> Option<Facts> {
    Facts::of(stream.get_ref().1.peer_certificates()?.get(1)?).ok()
}

/// The trust domain that roots are made for; imported ones may not say it.
fn trust_domain(roots: &Bundle) -> Option<String> {
    let facts = Facts::of(roots.roots().first()?).ok()?;
    let id: SpiffeId = facts.names.iter().find_map(|it| it.strip_prefix("URI:"))?.parse().ok()?;
    Some(id.trust_domain().to_owned())
}

/// Makes sure that a server is control.
#[derive(Debug)]
struct Verifier {
    roots: Vec<Bundle>,
    named: Named,
    own: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let mut last = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for roots in &self.roots {
            let store = roots.store();
            match verify_server_cert_signed_by_trust_anchor(
                &parsed,
                store,
                intermediates,
                now,
                algorithms,
            ) {
                Ok(()) => {
                    let id = id_of(leaf).map_err(Refusal::Id)?;
                    return if self.named.is(&id, roots, self.own.as_deref()) {
                        Ok(ServerCertVerified::assertion())
                    } else {
                        Err(Refusal::Identity { id }.into())
                    };
                }
                Err(error) if is_stranger(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
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

/// Whether roots do not know who signed a certificate: others may.
fn is_stranger(error: &Error) -> bool {
    // A signature fits badly when a stranger's root has the name of ours.
    use CertificateError::{BadSignature, UnknownIssuer};
    matches!(error, Error::InvalidCertificate(UnknownIssuer | BadSignature))
}

/// The time as it was given.
struct Clock(Wall);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0()))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("named", &self.named).finish_non_exhaustive()
    }
}
