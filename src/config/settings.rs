//! Settings: what this process was told at its start, complete and consistent.
//!
//! Flags and `REMORA_*` variables are read here and nowhere else. Whatever is missing or
//! does not fit is reported together, each with a hint, so that a pod is corrected once.
//! The values keep no trace of how they were given: nothing later parses text.

mod flags;
mod resolve;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use flags::Flags;
use remora_certs::spiffe_id::SpiffeId;
pub use resolve::Errors;

/// What this process was told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where callers of the application reach this process; empty is off.
    pub inbound: Vec<SocketAddr>,
    /// Where the application reaches this process; empty is off.
    pub outbound: Vec<SocketAddr>,
    /// Where health, metrics and debug pages are served; empty is off.
    pub admin: Vec<SocketAddr>,
    /// The application behind the inbound listener; always there in explicit mode with an
    /// inbound listener, never in capture mode.
    pub app: Option<SocketAddr>,
    /// Local ports that lead to one service each.
    pub tcp: Vec<TcpForward>,
    /// How connections get here.
    pub mode: Mode,
    /// Where this workload's certificate comes from.
    pub identity: Identity,
    /// Who sends policy, and certificates where [`Settings::identity`] says so; nobody
    /// where it is missing.
    pub control: Option<Control>,
    /// The folder of what control and the Workload API send.
    pub state: PathBuf,
    /// The folder of policy documents; never there together with [`Settings::control`].
    pub policy: Option<PathBuf>,
    /// Overrides the namespace of the certificate.
    pub namespace: Option<String>,
    /// The zone of this workload; where there is none, no endpoint is near or far.
    pub zone: Option<String>,
    /// DNS servers; empty is those of `/etc/resolv.conf`.
    pub dns: Vec<SocketAddr>,
    /// The longest a shutdown takes.
    pub grace: Duration,
    /// How long connections are still accepted after the shutdown has begun; less than
    /// [`Settings::grace`].
    pub lame_duck: Duration,
    /// Threads of each direction, `1..=64`.
    pub threads: usize,
    /// Connections of each direction, `1..=1_000_000`.
    pub max_connections: usize,
    /// Which requests are logged.
    pub access_log: AccessLog,
    /// A level, or a filter by target: `info,remora::proxy=debug`.
    pub log: String,
    /// How a log line is written.
    pub log_format: LogFormat,
    /// Whether to take over the listeners of the process that runs already.
    pub upgrade: bool,
    /// The socket over which listeners are handed over.
    pub upgrade_sock: PathBuf,
}

/// A local port that leads to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpForward {
    /// Where the application connects to.
    pub local: SocketAddr,
    /// The service's host name or address.
    pub host: String,
    /// The service's port.
    pub port: u16,
}

/// How connections get here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By packet rules; the original destination says where they were going.
    Capture,
    /// On purpose; `Host` or the local port says where they are going.
    Explicit,
}

/// Where this workload's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nowhere: this process has no name and speaks no mesh TLS.
    None,
    /// A folder with `tls.crt`, `tls.key` and `ca.crt`.
    Dir(PathBuf),
    /// Control, which is there then.
    Control,
    /// The SPIFFE Workload API, at this socket.
    Socket(PathBuf),
}

/// Who sends policy and certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// A host name or an IP address, without brackets.
    pub host: String,
    /// The port of its API.
    pub port: u16,
    /// The file of what proves who we are as long as there is no certificate.
    pub token: Option<PathBuf>,
    /// The file of the roots to know it by as long as there are no others.
    pub roots: Option<PathBuf>,
    /// Its SPIFFE id; `None` for the usual one of our trust domain.
    pub id: Option<SpiffeId>,
    /// What tells this process from others of the same workload; `None` for the name of
    /// the machine, which is the pod's.
    pub instance: Option<String>,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that failed.
    Failures,
    /// Every one.
    All,
    /// Those that failed, and so many of ten thousand others.
    Sampled {
        /// `1..=9_999`.
        per_ten_thousand: u16,
    },
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person's eyes.
    Text,
}
