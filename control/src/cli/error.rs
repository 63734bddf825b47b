//! Errors: what a command says when it fails, and what to do next.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use remora::telemetry::{log, words};
use remora_certs::{
    authority::{self, Unfit},
    bundle, folder, jwks,
    spiffe_id::{ParseError, SpiffeId},
};

use super::rotate::Failure;
use crate::{client, duration::span, inspect, issuing, kubernetes, serve, store};

/// What is expected nearly everywhere.
const PEM: &str = "expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Authority(#[from] authority::Error),
    #[error("`{text}` is not a SPIFFE id: {reason}")]
    Id { text: String, reason: ParseError },
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{0}` has more than 1 MiB")]
    TooLarge(PathBuf),
    #[error("`{path}`{}{reason}", .reason.joint())]
    Inspect { path: PathBuf, reason: inspect::Error },
    #[error("`{path}`: {reason}")]
    Bundle { path: PathBuf, reason: bundle::Error },
    #[error("`{path}`: {reason}")]
    Jwks { path: PathBuf, reason: jwks::Error },
    #[error("{0}")]
    Log(log::Error),
    #[error("cannot use `{path}`")]
    State { path: PathBuf, source: io::Error },
    #[error("another server has `{0}`")]
    Served(PathBuf),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    #[error(transparent)]
    Serve(#[from] serve::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a join token for {}", span(*.0))]
    Ttl(Duration),
    #[error("`{0}` is reserved")]
    Reserved(SpiffeId),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
    #[error("a server signs with the authority in `{0}`")]
    InUse(PathBuf),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Issuing(#[from] issuing::Error),
    #[error(transparent)]
    Rotate(#[from] Failure),
    #[error("the documents are refused, and nothing was written\n{0}")]
    Policy(String),
    #[error("things that are not well: {0}")]
    Unwell(usize),
}

/// The input was wrong: sysexits(3).
pub(super) const EX_CONFIG: u8 = 78;

/// Prints an error with its causes in one line, then what to do.
pub(super) fn tell(error: &Error, err: &mut dyn Write) -> io::Result<()> {
    writeln!(err, "error: {}", words(error))?;
    error.hint().map_or(Ok(()), |hint| writeln!(err, "hint: {hint}"))
}

impl Error {
    /// Whether the input or the machine is at fault.
    pub(super) fn code(&self) -> u8 {
        let machine = matches!(
            self,
            Self::Read { .. }
                | Self::Output(_)
                | Self::State { .. }
                | Self::Served(_)
                | Self::Kubernetes(_)
                | Self::Serve(_)
                | Self::Store(_)
                | Self::Client(_)
                | Self::Issuing(_)
                | Self::Unwell(_)
                | Self::Rotate(Failure::GivenUp | Failure::Behind { .. })
                | Self::Authority(
                    authority::Error::Read { .. }
                        | authority::Error::Write(
                            folder::Error::Io { .. } | folder::Error::Read { .. }
                        )
                        | authority::Error::Sign(_)
                        | authority::Error::Random,
                )
        );
        if machine { 1 } else { EX_CONFIG }
    }

    /// What to do about it.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Authority(error) => return authority_hint(error),
            Self::Id { .. } => "the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
            Self::Read { .. } => "check the path and who may read it",
            Self::TooLarge(_) | Self::Inspect { .. } | Self::Bundle { .. } => PEM,
            Self::Jwks { .. } => "`--format pem` takes roots of any kind",
            Self::State { .. } | Self::Store(_) => {
                "check the path, the space left and who may write there"
            }
            Self::Log(_) => "a level such as `info`, or `module=level` separated by commas",
            Self::Served(_) => "stop it first, or talk to it: `remora-control status`",
            Self::Kubernetes(error) => error.hint(),
            Self::Serve(error) => error.hint()?,
            Self::Ttl(_) => "7 days at the most: make another when it is needed",
            Self::Reserved(_) => "control makes its own; operators use `--dir`, or `issue`",
            Self::InUse(_) => {
                "`init` another in another folder, then `remora-control rotate --prove --to FOLDER`"
            }
            Self::Client(error) => error.hint(),
            Self::Rotate(failure) => failure.hint(),
            Self::Issuing(_) => "`remora-control serve` must have run once for this authority",
            Self::Unwell(_) => "`remora-control status` shows all of it",
            // What they say has its own.
            Self::Policy(_) | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }
}

fn authority_hint(error: &authority::Error) -> Option<String> {
    use authority::Error as E;
    Some(match error {
        E::TrustDomain { .. } => "such as `cluster.local`".to_owned(),
        E::OtherTrustDomain { trust_domain, .. } => {
            format!("ids of this authority begin with `spiffe://{trust_domain}/`")
        }
        E::OtherId { id, .. } => format!("ask for `{id}`, or for no id at all"),
        E::NoPath(id) => format!("name a workload: `{id}/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"),
        E::Life(_) => "give a life such as `24h` or `365d`".to_owned(),
        E::LongerThanSigner { left, .. } => {
            format!("ask for at most {}, or make a new signer with `init`", span(*left))
        }
        E::IssuerEnded => "make a new authority with `remora-control init`".to_owned(),
        E::Read { .. } | E::Certificate { .. } | E::NoTrustDomain(_) | E::Key(_) => {
            "--dir takes a folder made by `remora-control init`, with all its files".to_owned()
        }
        E::Given { reason, .. } => unfit_hint(reason).to_owned(),
        E::Write(folder::Error::Exists(_)) => {
            "nothing was overwritten: choose another folder, or `--force` to replace them"
                .to_owned()
        }
        E::Write(folder::Error::NotALink(_)) => {
            "choose an empty folder, or remove the file: links into `..data` replace it".to_owned()
        }
        E::Write(_) => "check the path, the space left and who may write there".to_owned(),
        E::DnsName(_) | E::Sign(_) | E::Random => return None,
    })
}

fn unfit_hint(reason: &Unfit) -> &'static str {
    match reason {
        Unfit::Pem(_) | Unfit::Empty | Unfit::Unreadable { .. } => PEM,
        Unfit::Many(_) => "`--root` takes the file of one root",
        Unfit::NotCa(_) | Unfit::NoCertSign(_) => {
            "have one made that may sign: `isCA: true` in cert-manager, an intermediate in Vault"
        }
        Unfit::IsRoot(_) => "a root and its key are `--root` and `--root-key`",
        Unfit::NotRoot(_) => "an issuer and its key are `--issuer` and `--issuer-key`",
        Unfit::PathLength(_) => "have a root made whose path length is 1, or not limited",
        Unfit::NotYet { .. } => "wait, or check the clocks here and where it was made",
        Unfit::Ended { .. } => "have a new one made where this was made",
        Unfit::UriConstraint(_) => "have one made without; sidecars check the trust domain anyway",
        Unfit::OtherTrustDomain { .. } => "leave `--trust-domain` out, or name that one",
        Unfit::NoTrustDomain(_) => "name the trust domain with `--trust-domain`",
        Unfit::NoRoot(_) => "name its file with `--root`",
        Unfit::UnusableKey => "expected one key in PEM, of ECDSA, Ed25519 or RSA, not encrypted",
        Unfit::OtherKey(_) => "certificate and key must be of one pair",
        Unfit::Unvouched { .. } => "`remora-control inspect` shows what each certificate may",
    }
}
