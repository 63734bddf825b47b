//! Errors: what a command says when it fails, and what to do next.

use std::{io, net::SocketAddr, path::PathBuf};

use remora::{identity, sync::client, telemetry};
use remora_certs::{cli as ca, spiffe_id::SpiffeId};

use crate::{issuing, kubernetes, store};

/// Why a command failed; what to do about it is in [`Error::advice`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) enum Error {
    Ca(#[from] ca::Error),
    Store(#[from] store::Error),
    Issuing(#[from] issuing::Error),
    Kubernetes(#[from] kubernetes::Error),
    /// There is nothing to make an operator of the caller.
    Operator(issuing::Error),
    /// The authority of an operator is out of reach.
    Cluster(kubernetes::Error),
    #[error("no identity of an operator in `{0}`: {1}")]
    Identity(PathBuf, identity::Error),
    #[error("{}", .1.of(.0))]
    Call(String, Box<client::Error>),
    #[error("an identity is not enough to begin or to abort a rotation")]
    NoStore,
    #[error("the issuer in `{0}` signs already")]
    Same(PathBuf),
    #[error("the rotation has gone too far to give it up")]
    TooFar,
    #[error("no rotation is under way")]
    NoRotation,
    #[error("the rotation was given up meanwhile")]
    GivenUp,
    #[error("{0} of {1} sidecars are behind, at `{2}`")]
    Behind(usize, usize, String),
    #[error("{0}")]
    Log(telemetry::log::Error),
    #[error("cannot listen at `{0}`: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("cannot use `{0}`")]
    State(PathBuf, #[source] io::Error),
    #[error("another server has `{0}`")]
    Served(PathBuf),
    #[error("a server signs with the authority in `{0}`")]
    InUse(PathBuf),
    #[error("a join token for {0}")]
    Ttl(String),
    #[error("`{0}` is reserved")]
    Reserved(SpiffeId),
    #[error("the documents are refused, and nothing was written\n{0}")]
    Policy(String),
    #[error("things that are not well: {0}")]
    Unwell(usize),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// The input was wrong: sysexits(3).
pub(super) const EX_CONFIG: u8 = 78;

impl Error {
    /// Prints it with its causes in one line, then what to do; gives the exit code.
    pub(super) fn tell(&self, err: &mut dyn io::Write) -> u8 {
        let (is_input, hint) = self.advice();
        let hint = if hint.is_empty() { hint } else { format!("hint: {hint}\n") };
        // Where the error stream is gone, the exit code still tells.
        let _told = write!(err, "error: {}\n{hint}", telemetry::words(self)).is_ok();
        if is_input { EX_CONFIG } else { 1 }
    }

    /// Whether the input is at fault, rather than the machine, and what to do.
    fn advice(&self) -> (bool, String) {
        let (is_input, hint) = match self {
            Self::Ca(it) => return (it.is_input(), it.hint().unwrap_or_default()),
            Self::Store(_) | Self::Issuing(issuing::Error::Store(_)) | Self::State(..) => {
                (false, "check the path, the space left and who may write there")
            }
            Self::Issuing(issuing::Error::None) => {
                (false, "`remora-control serve` must have run once for this authority")
            }
            Self::Issuing(_) => (false, "--dir takes a folder made by `remora-control init`"),
            Self::Kubernetes(it) => (false, it.hint),
            Self::Operator(issuing::Error::None) => (
                false,
                "`remora-control serve` takes over what `init` made, and must have run once",
            ),
            Self::Operator(_) | Self::Cluster(_) => (
                false,
                "--dir takes the folder that `serve` was given, or --kubernetes its cluster",
            ),
            Self::Identity(..) => (
                false,
                "--identity takes what `remora-control issue --id spiffe://TRUST-DOMAIN/ns/remora\
                 /sa/operator --out FOLDER` wrote",
            ),
            Self::Call(_, it) => (false, it.hint()),
            Self::NoStore => (true, "name the authority with `--dir` or `--kubernetes`"),
            Self::Same(_) => (true, "have `init` make another in another folder"),
            Self::TooFar => (true, "certificates of the new issuer are in use: let it go on"),
            Self::NoRotation => (true, "`remora-control status` shows what there is"),
            Self::GivenUp => (false, "somebody ran `rotate --abort`"),
            Self::Behind(..) => (
                false,
                "the server goes on with it: `remora-control rotate --prove` again watches on, and \
                 `--without INSTANCE` leaves out a pod that was killed",
            ),
            Self::Log(_) => (true, "a level such as `info`, or `module=level` separated by commas"),
            Self::Listen(..) => (false, "name another with `--listen` or `--admin`"),
            Self::Served(_) => (false, "stop it first, or talk to it: `remora-control status`"),
            Self::InUse(_) => (
                true,
                "`init` another in another folder, then `remora-control rotate --prove --to FOLDER`",
            ),
            Self::Ttl(_) => (true, "7 days at the most: make another when it is needed"),
            Self::Reserved(_) => (true, "control makes its own; operators use `--dir`, or `issue`"),
            Self::Policy(_) => (true, ""),
            Self::Unwell(_) => (false, "`remora-control status` shows all of it"),
            Self::Output(_) => (false, ""),
        };
        (is_input, hint.to_owned())
    }
}
