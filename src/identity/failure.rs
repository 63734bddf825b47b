//! Handshake failure: why a handshake was refused, as a closed set.
//!
//! One value answers three questions: which metric label to count, what to tell an
//! operator, and whether a caller in `auto` mode may speak plaintext instead. The last
//! must be narrow: a peer that *claims* a SPIFFE id and is wrong about it, or that refused
//! ours, is never spoken to in plaintext; only one that shows it is no mesh peer is.
//!
//! Our own refusals travel through rustls as values and come out here unchanged. What the
//! peer refused arrives as an alert, which says less: see [`HandshakeFailure::of`].
//!
//! # Sources
//!
//! - RFC 8446, section 6.2 (alerts): <https://www.rfc-editor.org/rfc/rfc8446#section-6.2>

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError};

use super::verify::Refusal;

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The client presented no certificate.
    NoCertificate,
    /// The SPIFFE id is of another trust domain.
    WrongTrustDomain,
    /// The SPIFFE id is not one of those expected.
    WrongIdentity,
    /// A certificate of the chain has ended.
    Expired,
    /// A certificate of the chain has not begun.
    NotYetValid,
    /// The chain does not end in our roots, or is not a chain at all; self-signed, too.
    UnknownIssuer,
    /// Of our roots, but without exactly one valid SPIFFE id.
    BadSpiffeId,
    /// The peer does not speak mesh TLS, or its certificate is none of our roots' and
    /// claims no SPIFFE id.
    NotMesh,
    /// TLS went wrong in another way.
    Protocol,
    /// It took too long.
    Timeout,
    /// The connection ended first.
    Closed,
}

/// What a peer's alert about our own side means.
const ALERTS: [(AlertDescription, HandshakeFailure); 13] = [
    (AlertDescription::CloseNotify, HandshakeFailure::Closed),
    (AlertDescription::CertificateRequired, HandshakeFailure::NoCertificate),
    (AlertDescription::NoCertificate, HandshakeFailure::NoCertificate),
    (AlertDescription::CertificateExpired, HandshakeFailure::Expired),
    (AlertDescription::UnknownCA, HandshakeFailure::UnknownIssuer),
    // rustls says this of a chain whose signatures do not fit.
    (AlertDescription::DecryptError, HandshakeFailure::UnknownIssuer),
    // rustls says this of every refusal of our own kind: trust domain, SPIFFE id.
    (AlertDescription::CertificateUnknown, HandshakeFailure::WrongIdentity),
    (AlertDescription::AccessDenied, HandshakeFailure::WrongIdentity),
    (AlertDescription::BadCertificate, HandshakeFailure::BadSpiffeId),
    // A mesh peer has the version, the groups and the protocols we offer.
    (AlertDescription::ProtocolVersion, HandshakeFailure::NotMesh),
    (AlertDescription::HandshakeFailure, HandshakeFailure::NotMesh),
    (AlertDescription::NoApplicationProtocol, HandshakeFailure::NotMesh),
    (AlertDescription::UnrecognisedName, HandshakeFailure::NotMesh),
];

impl HandshakeFailure {
    /// The metric label of a handshake that succeeded.
    pub const OK: &'static str = "ok";

    /// Every failure, for a metric that shows zeros.
    pub const ALL: [Self; 11] = [
        Self::NoCertificate,
        Self::WrongTrustDomain,
        Self::WrongIdentity,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownIssuer,
        Self::BadSpiffeId,
        Self::NotMesh,
        Self::Protocol,
        Self::Timeout,
        Self::Closed,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongIdentity => "wrong_identity",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::BadSpiffeId => "bad_spiffe_id",
            Self::NotMesh => "not_mesh",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
        }
    }

    /// Reads the reason out of what tokio-rustls returned, on either side.
    ///
    /// With TLS 1.3 a client learns that its own certificate was refused only from the
    /// alert that its *first read* returns: pass that error here, too. An alert cannot tell
    /// expired from not yet valid (both `expired`), nor a wrong trust domain or SPIFFE id
    /// from a wrong identity (all `wrong_identity`); the side that refused knows.
    pub fn of(error: &io::Error) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = error.get_ref().map(|it| it as _);
        while let Some(inner) = cause {
            if let Some(tls) = inner.downcast_ref::<Error>() {
                return Self::of_tls(tls);
            }
            // An `io::Error` does not name what it wraps as its source.
            let wrapped = inner.downcast_ref::<io::Error>().map(io::Error::get_ref);
            cause = wrapped.map_or_else(|| inner.source(), |it| it.map(|it| it as _));
        }
        if error.kind() == io::ErrorKind::TimedOut { Self::Timeout } else { Self::Closed }
    }

    fn of_tls(error: &Error) -> Self {
        if let Error::InvalidCertificate(error) = error {
            Self::of_certificate(error)
        } else if let Error::AlertReceived(alert) = error {
            ALERTS.iter().find(|(it, _)| it == alert).map_or(Self::Protocol, |(_, it)| *it)
        } else if matches!(error, Error::NoCertificatesPresented) {
            Self::NoCertificate
        } else if not_tls(error) {
            Self::NotMesh
        } else {
            Self::Protocol
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;
        if let E::Other(OtherError(other)) = error {
            // What rustls passes on of its own here are broken chains.
            let refusal = other.downcast_ref::<Refusal>();
            refusal.map_or(Self::UnknownIssuer, Refusal::failure)
        } else if matches!(error, E::Expired | E::ExpiredContext { .. }) {
            Self::Expired
        } else if matches!(error, E::NotValidYet | E::NotValidYetContext { .. }) {
            Self::NotYetValid
        } else if matches!(error, E::UnknownIssuer | E::BadSignature) {
            // A signature fits badly when a stranger's root has the name of ours.
            Self::UnknownIssuer
        } else {
            Self::Protocol
        }
    }
}

/// Whether the peer's bytes were no TLS at all, or a TLS no mesh peer speaks.
fn not_tls(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
        ) | Error::PeerIncompatible(_)
            | Error::NoApplicationProtocol
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_distinct_words() {
        let labels: BTreeSet<_> = HandshakeFailure::ALL.iter().map(|it| it.label()).collect();
        assert_eq!(labels.len(), HandshakeFailure::ALL.len());
        assert!(labels.iter().all(|it| it.bytes().all(|it| it == b'_' || it.is_ascii_lowercase())));
        assert!(!labels.contains(HandshakeFailure::OK));
    }

    #[test]
    fn a_reason_is_found_however_deep_it_is_wrapped() {
        let error = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let inner = io::Error::new(io::ErrorKind::InvalidData, error);
        let outer = io::Error::other(inner);
        assert_eq!(HandshakeFailure::of(&outer), HandshakeFailure::UnknownIssuer);
    }

    #[test]
    fn errors_of_the_connection_are_timeouts_or_ends() {
        for (kind, failure) in [
            (io::ErrorKind::TimedOut, HandshakeFailure::Timeout),
            (io::ErrorKind::UnexpectedEof, HandshakeFailure::Closed),
            (io::ErrorKind::ConnectionReset, HandshakeFailure::Closed),
            (io::ErrorKind::BrokenPipe, HandshakeFailure::Closed),
        ] {
            assert_eq!(HandshakeFailure::of(&kind.into()), failure);
        }
    }

    #[test]
    fn alerts_mean_what_the_peer_found_wrong_with_us() {
        for (alert, failure) in [
            (AlertDescription::CertificateRequired, HandshakeFailure::NoCertificate),
            (AlertDescription::CertificateExpired, HandshakeFailure::Expired),
            (AlertDescription::UnknownCA, HandshakeFailure::UnknownIssuer),
            (AlertDescription::NoApplicationProtocol, HandshakeFailure::NotMesh),
            (AlertDescription::InternalError, HandshakeFailure::Protocol),
            (AlertDescription::Unknown(200), HandshakeFailure::Protocol),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(alert));
            assert_eq!(HandshakeFailure::of(&error), failure, "{alert:?}");
        }
    }
}
