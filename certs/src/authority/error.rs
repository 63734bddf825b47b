//! Errors: why an authority cannot be made, read or used.

use std::{io, path::PathBuf, time::Duration};

use crate::{
    bundle, folder, pem,
    spiffe_id::{ParseError, SpiffeId},
};

/// Why an authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trust domain's name is not one.
    #[error("`{name}` is not a trust domain: {reason}")]
    TrustDomain {
        /// The name.
        name: String,
        /// Why.
        reason: ParseError,
    },
    /// The id is of another trust domain.
    #[error("`{id}` is not in the trust domain `{trust_domain}` of this authority")]
    OtherTrustDomain {
        /// The id asked for.
        id: SpiffeId,
        /// What the authority signs for.
        trust_domain: String,
    },
    /// A request names somebody else than it is signed for.
    #[error("the request is for `{asked}`, and the caller is `{id}`")]
    OtherId {
        /// The id in the request.
        asked: SpiffeId,
        /// The caller's.
        id: SpiffeId,
    },
    /// The id names no workload.
    #[error("`{0}` names a trust domain, not a workload in it")]
    NoPath(SpiffeId),
    /// A life of nothing, or beyond what a certificate can say.
    #[error("a certificate cannot live {} seconds", .0.as_secs())]
    Life(Duration),
    /// A certificate must end before the one that signs it.
    #[error("a life of {} seconds is longer than the {} the signing certificate has left", asked.as_secs(), left.as_secs())]
    LongerThanSigner {
        /// What was asked for.
        asked: Duration,
        /// What is left of the signing certificate.
        left: Duration,
    },
    /// The issuer's certificate has ended.
    #[error("the issuer's certificate has ended")]
    IssuerEnded,
    /// A host name that no certificate can carry.
    #[error("`{0}` is not a host name")]
    DnsName(String),
    /// A file of the authority cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root's or issuer's certificate is damaged.
    #[error("`{path}` is not an authority's certificate: {reason}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: bundle::Error,
    },
    /// The issuer's certificate names no trust domain.
    #[error("`{0}` does not carry the SPIFFE id of a trust domain")]
    NoTrustDomain(PathBuf),
    /// The issuer's key is damaged or another's.
    #[error("`{0}` is not the key of the issuer's certificate")]
    Key(PathBuf),
    /// A certificate or key that was made elsewhere does not do.
    #[error("`{path}`: {reason}")]
    Given {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: Unfit,
    },
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] folder::Error),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Why a certificate or key that was made elsewhere does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not PEM.
    #[error("{0}")]
    Pem(pem::Error),
    /// It holds no certificate.
    #[error("no certificate in it")]
    Empty,
    /// A block that is no X.509 certificate.
    #[error("line {line}: not a readable X.509 certificate")]
    Unreadable {
        /// Where it begins.
        line: usize,
    },
    /// Several where there must be one.
    #[error("{0} certificates in it, expected the root's alone")]
    Many(usize),
    /// It may not sign certificates.
    #[error("`{0}` is not a signing certificate")]
    NotCa(String),
    /// It is one, but its key may not be used for that.
    #[error("the key usage of `{0}` lacks `keyCertSign`")]
    NoCertSign(String),
    /// It vouches for itself, where one was expected that a root vouches for.
    #[error("`{0}` is a root, not an issuer below one")]
    IsRoot(String),
    /// Something else vouches for it, where a root was expected.
    #[error("`{0}` is an issuer, not a root")]
    NotRoot(String),
    /// It may sign workloads, and no issuer.
    #[error("`{0}` has a path length of 0, which allows no issuer below it")]
    PathLength(String),
    /// Its life has not begun.
    #[error("`{subject}` is not valid for another {} seconds", .left.as_secs())]
    NotYet {
        /// Its subject.
        subject: String,
        /// For how long.
        left: Duration,
    },
    /// Its life is over.
    #[error("`{subject}` ended {} seconds ago", .ago.as_secs())]
    Ended {
        /// Its subject.
        subject: String,
        /// Since when.
        ago: Duration,
    },
    /// rustls, so every sidecar, refuses what is below it.
    #[error("`{0}` has a name constraint on URIs, and sidecars refuse all certificates below one")]
    UriConstraint(String),
    /// It is of another trust domain than was asked for.
    #[error("`{subject}` is of the trust domain `{named}`, not `{asked}`")]
    OtherTrustDomain {
        /// Its subject.
        subject: String,
        /// The one it names.
        named: String,
        /// The one asked for.
        asked: String,
    },
    /// Nothing says which trust domain it is to sign for.
    #[error("`{0}` does not carry the SPIFFE id of a trust domain")]
    NoTrustDomain(String),
    /// No root was given, and none is in the chain.
    #[error("the root that vouches for `{0}` is missing")]
    NoRoot(String),
    /// The key is unusable.
    #[error("not one private key that can be read, or it is encrypted or of an unsupported kind")]
    UnusableKey,
    /// The key is another certificate's.
    #[error("not the key of `{0}`")]
    OtherKey(String),
    /// A verifier does not accept what is signed below it.
    #[error("a sidecar would refuse certificates below `{subject}`: {reason}")]
    Unvouched {
        /// Its subject.
        subject: String,
        /// What the verifier said.
        reason: String,
    },
}
