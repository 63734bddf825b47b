//! Errors: why a command failed, whose fault it is, and what to do next.

use std::{io, path::PathBuf};

use crate::{authority, bundle, folder, inspect, jwks, pem};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum Error {
    /// The authority cannot be made, read or used.
    Authority(#[from] authority::Error),
    /// A file cannot be read or written.
    Folder(#[from] folder::Error),
    /// A file holds no certificate.
    #[error("`{0}`{joint}{1}", joint = .1.joint())]
    Inspect(PathBuf, inspect::Error),
    /// A file is no trust bundle.
    #[error("`{0}`: {1}")]
    Bundle(PathBuf, bundle::Error),
    /// A trust bundle that cannot be federated.
    #[error("`{0}`: {1}")]
    Jwks(PathBuf, jwks::Error),
    /// Nothing can sign a new issuer.
    #[error("the key of the root is needed, to sign a new issuer with")]
    NoRootKey,
    /// An authority that cannot follow.
    #[error("the new issuer is of another trust domain: `{0}`")]
    OtherTrustDomain(String),
    /// Nobody takes what is said.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl Error {
    /// Whether the input is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Authority(error) => error.is_input(),
            Self::Folder(error) => error.is_input(),
            Self::Inspect(..)
            | Self::Bundle(..)
            | Self::Jwks(..)
            | Self::NoRootKey
            | Self::OtherTrustDomain(_) => true,
            Self::Output(_) => false,
        }
    }

    /// What to do about it, where anything can be done.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Authority(error) => return error.hint(),
            Self::Folder(error) => error.hint(),
            Self::Inspect(..) | Self::Bundle(..) => pem::HINT,
            Self::Jwks(..) => "`--format pem` takes roots of any kind",
            Self::NoRootKey => "name its file with `--root-key`, or make a new root: `--root`",
            Self::OtherTrustDomain(_) => "`init --trust-domain` makes one of the same",
            Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }
}
