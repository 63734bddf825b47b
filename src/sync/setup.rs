//! Setup: what the task is told, and the process it works for.

use std::{fmt, fs, io, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use http::{Uri, uri::Scheme};
use tokio::sync::Notify;

use super::{client, wire};
use crate::{
    clock,
    config::{self, Policies, settings::Control},
    drain::Drain,
    identity::{self, Identity},
};

/// The name of this machine, and in Kubernetes of the pod; empty where there is none.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Who writes the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Control, by way of this task.
    Control,
    /// Somebody else, into this folder.
    Folder(PathBuf),
}

/// Finds the addresses of a host name.
pub type Resolve = Arc<dyn Fn(String, u16) -> Resolving + Send + Sync>;
/// The addresses of a host name, as soon as they are known.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
/// The wall-clock time since the Unix epoch.
pub type Wall = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Where control is, how it is found, and how long it may take.
#[derive(Clone)]
pub struct Target {
    /// A host name or an IP address, without brackets.
    pub host: String,
    /// The port of its API.
    pub port: u16,
    /// How the host name is resolved.
    pub resolve: Resolve,
    /// How long things may take.
    pub pace: Pace,
}

impl Target {
    /// The one at an `https` URL.
    ///
    /// # Errors
    ///
    /// When `url` is none.
    pub fn at(url: &str, resolve: Resolve) -> Result<Self, client::Error> {
        let url: Uri = url.parse().map_err(|_| client::Error::Url)?;
        let host = url.host().filter(|_| url.scheme() == Some(&Scheme::HTTPS));
        let host = host.ok_or(client::Error::Url)?.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port_u16().unwrap_or(443), resolve, pace: Pace::default() })
    }
}

/// What the task is told at its start.
#[derive(Clone)]
pub struct Config {
    /// Where control is and how it is known.
    pub control: Control,
    /// Who writes the certificate.
    pub source: Source,
    /// The state folder; made if it is not there.
    pub state: PathBuf,
    /// What tells this process from others of the same workload.
    pub instance: String,
    /// Where callers of the application reach this process.
    pub inbound: Option<SocketAddr>,
    /// How host names are resolved.
    pub resolve: Resolve,
    /// Which time it is.
    pub wall: Wall,
    /// How long things may take.
    pub pace: Pace,
    /// Where chance begins.
    pub seed: u64,
}

/// How long things may take, and how often they are done.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For an address to accept a connection, and for a TLS handshake.
    pub dial: Duration,
    /// For the answer to a call.
    pub answer: Duration,
    /// Without a word on a watch, before it is given up.
    pub silence: Duration,
    /// Between two reports when nothing changes.
    pub report: Duration,
    /// How long changes are collected for a report.
    pub settle: Duration,
    /// Bound of the wait after a first failure, and the most it grows to.
    pub retry: (Duration, Duration),
}

/// The process around, which uses what control sends.
#[derive(Clone)]
pub struct Host {
    /// Its certificate.
    pub identity: Identity,
    /// Its policy, of [`super::Sync::policy_folder`].
    pub policies: Policies,
    /// Whether it is about to end.
    pub drain: Drain,
    /// The services its application calls, as `name.namespace`.
    pub services: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Told when there is another one, or another certificate.
    pub changed: Arc<Notify>,
    /// Told what came of a new certificate.
    pub on_identity: Arc<dyn Fn(&identity::Event) + Send + Sync>,
    /// Told what is wrong between us and control, and when nothing is any more.
    pub on_trouble: Arc<dyn Fn(Option<String>) + Send + Sync>,
    /// Told what came of a new policy.
    pub on_policy: Arc<dyn Fn(&config::Event) + Send + Sync>,
}

/// The clock of this machine.
pub fn wall() -> Wall {
    Arc::new(clock::wall)
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            // Three heartbeats, and what the last may be late.
            silence: wire::HEARTBEAT * 3 + Duration::from_secs(2),
            report: Duration::from_secs(30),
            settle: Duration::from_millis(50),
            retry: (Duration::from_secs(1), Duration::from_mins(1)),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("control", &self.control)
            .field("source", &self.source)
            .field("state", &self.state)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        f.debug_struct("Target").field("host", host).field("port", port).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_at_an_https_url_and_no_other() {
        let at = |url| {
            let target = Target::at(url, Arc::new(|_, _| Box::pin(async { Ok(Vec::new()) })));
            target.ok().map(|it| (it.host, it.port))
        };
        for (url, host, port) in [
            ("https://127.0.0.1:15030", "127.0.0.1", 15_030),
            ("https://[::1]:15030/", "::1", 15_030),
            ("https://control.example", "control.example", 443),
        ] {
            assert_eq!(at(url), Some((host.to_owned(), port)), "{url}");
        }
        for url in ["", "127.0.0.1:15030", "http://127.0.0.1:15030", "/v1", "https://a b"] {
            assert_eq!(at(url), None, "{url}");
        }
    }
}
