//! Identity: who this sidecar is, and how it makes sure who its peers are.
//!
//! An [`Identity`] holds the current SVID (certificate chain, key, trust roots) behind one
//! atomic pointer. Everything that rotates is read through that pointer when a handshake
//! needs it, so a rotation needs no new listener, no new TLS configuration and no restart:
//! the next handshake uses the new certificate and the new roots. Files that are damaged,
//! half-written or out of date never replace a good SVID.
//!
//! What a completed handshake guarantees, on either side: TLS 1.3 with mutual certificates;
//! the peer's chain ends in the current roots and is valid now; its leaf carries exactly one
//! URI, a valid SPIFFE id of our trust domain; and, on the client's side, the id is one of
//! those [`Expected`]. A refused handshake says why in a closed set, [`HandshakeFailure`].
//!
//! # Sources
//!
//! - X509-SVID: <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>
//! - SPIFFE-ID: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>

pub mod control;
mod failure;
pub mod material;
pub mod proof;
mod source;
mod svid;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod verify;
pub mod workload_api;

use std::{path::Path, sync::Arc, time::Duration};

pub use remora_certs::spiffe_id::SpiffeId;
use remora_certs::{bundle::Bundle, svid::Svid};
use rustls::pki_types::CertificateDer;

pub use self::{failure::HandshakeFailure, material::Material, source::Error};
use crate::clock;

/// HTTP between sidecars, many requests on one connection.
pub const ALPN_H2: &[u8] = b"remora-h2";
/// HTTP between sidecars that keeps its own connection: upgrades, HTTP/1.0.
pub const ALPN_HTTP1: &[u8] = b"remora-http/1.1";
/// Opaque bytes between sidecars.
pub const ALPN_TCP: &[u8] = b"remora-tcp";

/// Which protocol a mesh connection is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// [`ALPN_H2`].
    H2,
    /// [`ALPN_HTTP1`].
    Http1,
    /// [`ALPN_TCP`].
    Tcp,
}

/// Who may answer a connection we open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Any SPIFFE id of our trust domain.
    AnyInTrustDomain,
    /// Any workload of this Kubernetes namespace.
    Namespace(Arc<str>),
    /// One of these SPIFFE ids. An empty set matches nobody.
    Ids(Arc<[Arc<str>]>),
}

/// What [`Identity::watch`] tells its caller; each is one change of state, not one read.
#[derive(Clone, Debug)]
pub enum Event {
    /// New files are in use.
    Rotated {
        /// The number of the SVID now in use.
        generation: u64,
        /// When its leaf ends, since the Unix epoch.
        not_after: Duration,
    },
    /// The files changed to something unusable; the SVID in use stays.
    Refused {
        /// Why.
        error: Arc<Error>,
    },
    /// The refused files gave way to the very SVID in use.
    Restored,
}

/// The sidecar's identity: a cheap handle, the same state behind every clone.
#[derive(Clone, Debug)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: source::Folder,
    store: svid::Store,
}

impl Identity {
    /// Loads `tls.crt`, `tls.key` and `ca.crt` from `dir`, as generation 1.
    ///
    /// Nothing watches the folder until [`Identity::watch`] runs.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, the three do not belong together, or the leaf is
    /// not valid now. [`Error::hint`] says what to do.
    pub fn from_folder(dir: &Path) -> Result<Self, Error> {
        let (folder, store) = source::Folder::open(dir, clock::wall())?;
        Ok(Self { inner: Arc::new(Inner { folder, store }) })
    }

    /// Follows the folder until dropped, telling `on_event` of each change of state.
    ///
    /// Begins by reading the folder, so that nothing written since
    /// [`Identity::from_folder`] is missed.
    ///
    /// # Cancel safety
    ///
    /// Safe: a rotation is one pointer swap.
    pub async fn watch(self, on_event: impl Fn(&Event) + Send + 'static) {
        self.inner.folder.follow(&self.inner.store, on_event).await;
    }

    /// Reads the folder now, for who has just written it; nothing where it is as it was.
    ///
    /// What it returns is not told to [`Identity::watch`]'s caller as well.
    pub fn reload(&self, now: Duration) -> Option<Event> {
        self.inner.folder.reload(&self.inner.store, now)
    }

    /// The SVID in use, and the roots.
    pub fn material(&self) -> Material {
        let current = self.inner.store.current();
        Material { svid: current.svid.clone(), roots: current.roots.clone() }
    }

    /// The SPIFFE id of the SVID in use.
    pub fn id(&self) -> SpiffeId {
        self.inner.store.current().svid.id().clone()
    }

    /// The number of the SVID in use: 1, and one more with each rotation.
    pub fn generation(&self) -> u64 {
        self.inner.store.current().generation
    }

    /// When the leaf in use ends, since the Unix epoch.
    pub fn not_after(&self) -> Duration {
        self.inner.store.current().svid.not_after()
    }

    /// Why the newest files are not in use; nothing when they are.
    pub fn last_error(&self) -> Option<Arc<Error>> {
        self.inner.folder.last_error()
    }

    /// The TLS configuration to open a mesh connection with.
    ///
    /// One per `(expected, alpn)`, made once: certificate and roots are read through the
    /// handle at each handshake, so it outlives rotations. Allocation-free after the first.
    ///
    /// After the handshake check that the ALPN protocol *is* the one asked for: a server
    /// that names none is let through by TLS.
    pub fn client_config(&self, expected: &Expected, alpn: Alpn) -> Arc<rustls::ClientConfig> {
        self.inner.store.client_config(expected, alpn)
    }

    /// The TLS configuration to accept mesh connections with: any of the three protocols,
    /// a client certificate required. The same for the life of the process.
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        self.inner.store.server_config()
    }
}

/// The TLS configuration to open a connection with as whoever `svid` is, by `roots`, and to
/// speak `protocol`: for a caller that has no folder to follow, such as [`proof`].
///
/// As with [`Identity::client_config`], the protocol is to be checked after the handshake.
///
/// # Errors
///
/// When rustls cannot be set up.
pub fn client_config(
    svid: Svid,
    roots: Bundle,
    expected: &Expected,
    protocol: &[u8],
) -> Result<rustls::ClientConfig, Error> {
    let current = source::of_parts(svid, roots)?;
    let store = svid::Store::new(current)?;
    let mut config = (*store.client_config(expected, Alpn::H2)).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

/// The SPIFFE id a peer proved, from the certificates of a completed handshake.
///
/// It says nothing about certificates that no handshake verified.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Option<SpiffeId> {
    remora_certs::x509::id_of(certificates?.first()?).ok()
}
