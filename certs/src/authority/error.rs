//! Errors: why an authority cannot be made, read or used.

use std::{io, path::PathBuf, time::Duration};

use crate::{
    bundle,
    duration::span,
    folder, pem,
    spiffe_id::{ParseError, SpiffeId},
    svid,
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
    /// The id asked for is none.
    #[error("`{text}` is not a SPIFFE id: {reason}")]
    Id {
        /// What was given, or what its parts would make.
        text: String,
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
    /// What was signed is of no use.
    #[error("its own certificate: {0}")]
    Own(#[from] svid::Error),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

impl Error {
    /// Whether the input is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        if let Self::Write(error) = self {
            return error.is_input();
        }
        !matches!(self, Self::Read { .. } | Self::Own(_) | Self::Sign(_) | Self::Random)
    }

    /// What to do about it, where anything can be done.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::OtherTrustDomain { trust_domain, .. } => {
                return Some(format!(
                    "ids of this authority begin with `spiffe://{trust_domain}/`"
                ));
            }
            Self::OtherId { id, .. } => {
                return Some(format!("ask for `{id}`, or for no id at all"));
            }
            Self::NoPath(id) => {
                return Some(format!("name a workload: `{id}/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"));
            }
            Self::LongerThanSigner { left, .. } => {
                let left = span(*left);
                return Some(format!("ask for at most {left}, or make a new signer with `init`"));
            }
            Self::TrustDomain { .. } => "such as `cluster.local`",
            Self::Id { .. } => "the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
            Self::Life(_) => "give a life such as `24h` or `365d`",
            Self::IssuerEnded => "make a new authority with `remora-control init`",
            Self::Read { .. }
            | Self::Certificate { .. }
            | Self::NoTrustDomain(_)
            | Self::Key(_) => {
                "--dir takes a folder made by `remora-control init`, with all its files"
            }
            Self::Given { reason, .. } => reason.hint(),
            Self::Write(error) => error.hint(),
            Self::DnsName(_) | Self::Own(_) | Self::Sign(_) | Self::Random => return None,
        };
        Some(hint.to_owned())
    }
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

impl Unfit {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pem(_) | Self::Empty | Self::Unreadable { .. } => pem::HINT,
            Self::Many(_) => "`--root` takes the file of one root",
            Self::NotCa(_) | Self::NoCertSign(_) => {
                "have one made that may sign: `isCA: true` in cert-manager, an intermediate in Vault"
            }
            Self::IsRoot(_) => "a root and its key are `--root` and `--root-key`",
            Self::NotRoot(_) => "an issuer and its key are `--issuer` and `--issuer-key`",
            Self::PathLength(_) => "have a root made whose path length is 1, or not limited",
            Self::NotYet { .. } => "wait, or check the clocks here and where it was made",
            Self::Ended { .. } => "have a new one made where this was made",
            Self::UriConstraint(_) => {
                "have one made without; sidecars check the trust domain anyway"
            }
            Self::OtherTrustDomain { .. } => "leave `--trust-domain` out, or name that one",
            Self::NoTrustDomain(_) => "name the trust domain with `--trust-domain`",
            Self::NoRoot(_) => "name its file with `--root`",
            Self::UnusableKey => "expected one key in PEM, of ECDSA, Ed25519 or RSA, not encrypted",
            Self::OtherKey(_) => "certificate and key must be of one pair",
            Self::Unvouched { .. } => "`remora-control inspect` shows what each certificate may",
        }
    }
}
