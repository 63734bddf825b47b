//! Listeners: every socket the process accepts on, opened or taken over.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    sync::Arc,
};

use pingora_core::server::{Fds, ListenFds};

use crate::{
    config::{Settings, settings},
    transport::{inherit, listen},
};

/// Why the process can't listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{address}` for {purpose}: {source}\nhint: {hint}")]
pub struct Error {
    address: SocketAddr,
    purpose: &'static str,
    hint: &'static str,
    source: io::Error,
}

/// One address, and the socket that listens on it.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    /// What it was asked to be: the name under which a successor asks for it.
    pub asked: SocketAddr,
    /// What it is; another port where the one asked for was 0.
    pub actual: SocketAddr,
    /// What it is for.
    pub purpose: &'static str,
    socket: Arc<TcpListener>,
}

impl Listener {
    /// Listens on `address`, on the socket a predecessor handed over if there is one.
    ///
    /// # Errors
    ///
    /// Why it can't.
    pub(super) fn open(
        address: SocketAddr,
        purpose: &'static str,
        inherited: &Fds,
    ) -> Result<Self, Error> {
        let received = inherited.get(&address.to_string()).copied();
        let opened = match received {
            Some(descriptor) => Ok(inherit::listener(descriptor)),
            None => listen::bind(address),
        };
        let opened = opened.and_then(|it| Ok((it.local_addr()?, it)));
        let (actual, socket) = opened.map_err(|source| {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "any other error is one to choose around"
            )]
            let hint = match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "another process listens there; is a sidecar running already?"
                }
                io::ErrorKind::AddrNotAvailable => "the address is not one of this machine's",
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need a privilege; choose a higher one"
                }
                _ => "choose another address",
            };
            Error { address, purpose, hint, source }
        })?;
        let socket = Arc::new(socket);
        Ok(Self { asked: address, actual, purpose, socket })
    }

    /// A handle on the socket for one more thread that accepts on it; the process before
    /// this one keeps none, and the one after asks `descriptors` for it.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub(super) fn socket(&self, descriptors: Option<&ListenFds>) -> io::Result<TcpListener> {
        if let Some(descriptors) = descriptors {
            descriptors.lock().add(self.asked.to_string(), self.socket.as_raw_fd());
        }
        self.socket.try_clone()
    }
}

/// Every socket the process accepts on.
pub(super) struct Sockets {
    /// Callers of the application come here.
    pub(super) inbound: Vec<Listener>,
    /// The application comes here.
    pub(super) outbound: Vec<Listener>,
    /// And here, for one service each.
    pub(super) tunnels: Vec<(Listener, Arc<str>)>,
    /// Operators and Prometheus come here.
    pub(super) admin: Vec<Listener>,
}

impl Sockets {
    /// Opens them all, or takes them over.
    ///
    /// # Errors
    ///
    /// The first that cannot be opened.
    pub(super) fn open(settings: &Settings, inherited: &Fds) -> Result<Self, Error> {
        let open = |addresses: &[SocketAddr], purpose| -> Result<Vec<_>, Error> {
            let has_ipv4 = addresses.iter().any(SocketAddr::is_ipv4);
            let opened = addresses.iter().map(|it| Listener::open(*it, purpose, inherited));
            let kept = opened.filter(|it| match it {
                // A machine without IPv6 is served over IPv4.
                Err(error) if has_ipv4 && listen::is_no_ipv6(error.address, &error.source) => {
                    tracing::warn!(%error, "this machine has no IPv6");
                    false
                }
                Ok(_) | Err(_) => true,
            });
            kept.collect()
        };
        let tunnel = |it: &settings::TcpForward| -> Result<_, Error> {
            let name = if it.host.contains(':') {
                format!("[{}]:{}", it.host, it.port)
            } else {
                format!("{}:{}", it.host, it.port)
            };
            Ok((Listener::open(it.local, "tcp", inherited)?, name.into()))
        };
        Ok(Self {
            inbound: open(&settings.inbound, "inbound")?,
            outbound: open(&settings.outbound, "outbound")?,
            tunnels: settings.tcp.iter().map(tunnel).collect::<Result<_, Error>>()?,
            admin: open(&settings.admin, "admin")?,
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Listener> {
        let tunnels = self.tunnels.iter().map(|(it, _)| it);
        self.inbound.iter().chain(&self.outbound).chain(tunnels).chain(&self.admin)
    }
}
