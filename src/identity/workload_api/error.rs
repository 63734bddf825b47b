//! Errors: why an agent gives no SVID, and what to do about it.

use std::{io, path::PathBuf, time::Duration};

use remora_certs::{folder, spiffe_id::SpiffeId};

use crate::identity;

/// Why an agent gives no SVID that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody can be reached behind the socket.
    #[error("cannot reach the agent at `{path}`: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent took too long.
    #[error("the agent did not answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// It ended the stream, as it does when it stops.
    #[error("the agent ended the stream")]
    Ended,
    /// HTTP/2 failed.
    #[error("the connection to the agent failed: {0}")]
    Http(#[from] hyper::Error),
    /// What answered does not speak gRPC.
    #[error("what answers at the socket is no agent: HTTP status {0}")]
    Status(u16),
    /// The agent knows nobody like this process.
    #[error("the agent has no identity for this process: {0}")]
    Denied(String),
    /// The agent failed in another way.
    #[error("the agent answered with gRPC status {code}: {message}")]
    Grpc {
        /// The number of the status.
        code: u32,
        /// What it says.
        message: String,
    },
    /// An answer larger than any.
    #[error("the agent's answer has {0} bytes, and may have {max}", max = super::call::MESSAGE_MAX)]
    TooLarge(u32),
    /// Compressed, though we said that we do not understand that.
    #[error("the agent's answer is compressed")]
    Compressed,
    /// The answer is no message of the Workload API.
    #[error("the agent's answer cannot be read: {0}")]
    Message(prost::DecodeError),
    /// It holds no SVID.
    #[error("the agent's answer holds no SVID")]
    NoSvid,
    /// It leaves out what must be there.
    #[error("the agent's answer lacks `{0}`")]
    Missing(&'static str),
    /// It holds something else than certificates.
    #[error("`{0}` in the agent's answer is not one certificate after the other")]
    Certificates(&'static str),
    /// It names another than the certificate does.
    #[error("the agent says `{said}`, and its certificate `{is}`")]
    OtherId {
        /// In the answer.
        said: String,
        /// In the certificate.
        is: SpiffeId,
    },
    /// Identities made of it would be refused.
    #[error("the agent's SVID cannot be used: {0}")]
    Unusable(identity::Error),
    /// It cannot be written.
    #[error("cannot keep the agent's SVID: {0}")]
    Write(#[from] folder::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Socket { source, .. } => socket_hint(source.kind()),
            Self::Late(_) | Self::Ended | Self::Http(_) | Self::Grpc { .. } => {
                "look at the agent's log; it is asked again by itself"
            }
            Self::Status(_) | Self::Compressed | Self::Message(_) | Self::TooLarge(_) => {
                "`unix:` takes the socket of a SPIFFE Workload API, such as SPIRE's agent.sock"
            }
            Self::Denied(_) => {
                "register this workload: no entry's selectors (namespace, service account, \
                 user) match the sidecar's container; in SPIRE see `spire-server entry show`"
            }
            Self::NoSvid | Self::Missing(_) | Self::Certificates(_) | Self::OtherId { .. } => {
                "this is a bug of the agent: report it there"
            }
            Self::Unusable(error) => error.hint(),
            Self::Write(_) => "check that the state folder can be written and has space left",
        }
    }
}

fn socket_hint(kind: io::ErrorKind) -> &'static str {
    if kind == io::ErrorKind::NotFound {
        "mount the agent's socket into this container: the volume `csi.spiffe.io`, or the host's \
         folder of it"
    } else if kind == io::ErrorKind::PermissionDenied {
        "the socket must be writable by the sidecar's user"
    } else {
        "is the agent running on this node? it is asked again by itself"
    }
}
