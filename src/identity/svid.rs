//! SVID store: the one in use, its trust roots, and the TLS configurations that read them.
//!
//! Readers take one atomic load and never wait for a rotation; a handshake in progress
//! keeps the SVID it loaded.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use parking_lot::RwLock;
use remora_certs::{bundle::Bundle, svid::Svid};
use rustls::{ClientConfig, ServerConfig, server::danger::ClientCertVerifier};

use super::{Alpn, Error, Expected, tls};

/// More expectations than services a pod calls. Beyond it the cache starts anew: a
/// configuration costs a microsecond to make, a leak costs the pod.
const EXPECTATIONS_MAX: usize = 1024;

/// An SVID in use.
pub(super) struct Current {
    /// 1 for the first, and one more with each rotation.
    pub(super) generation: u64,
    pub(super) svid: Svid,
    pub(super) roots: Bundle,
    /// rustls' own check of a client's chain against `roots`.
    pub(super) clients: Arc<dyn ClientCertVerifier>,
}

/// The pointer that a rotation moves.
#[derive(Debug)]
pub(super) struct Live(ArcSwap<Current>);

/// The pointer and all that is made once and reads through it.
#[derive(Debug)]
pub(super) struct Store {
    live: Arc<Live>,
    template: ClientConfig,
    server: Arc<ServerConfig>,
    clients: RwLock<HashMap<Expected, PerAlpn>>,
}

/// Client configurations by [`Alpn`].
type PerAlpn = [Option<Arc<ClientConfig>>; 3];

impl Live {
    pub(super) fn current(&self) -> Guard<Arc<Current>> {
        self.0.load()
    }
}

impl Store {
    pub(super) fn new(first: Current) -> Result<Self, Error> {
        let live = Arc::new(Live(ArcSwap::from_pointee(first)));
        let provider = Arc::new(tls::provider());
        let template = tls::client(&live, &provider).map_err(Error::Tls)?;
        let server = Arc::new(tls::server(&live, &provider).map_err(Error::Tls)?);
        Ok(Self { live, template, server, clients: RwLock::default() })
    }

    pub(super) fn current(&self) -> Guard<Arc<Current>> {
        self.live.current()
    }

    /// Puts `next` in use from the next handshake on.
    pub(super) fn rotate(&self, next: Current) {
        self.live.0.store(Arc::new(next));
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn client_config(&self, expected: &Expected, alpn: Alpn) -> Arc<ClientConfig> {
        let slot = alpn as usize;
        if let Some(known) = self.clients.read().get(expected).and_then(|it| it[slot].as_ref()) {
            return Arc::clone(known);
        }
        let made = Arc::new(tls::specialise(&self.template, &self.live, expected, alpn));
        let mut clients = self.clients.write();
        if EXPECTATIONS_MAX <= clients.len() && !clients.contains_key(expected) {
            clients.clear();
        }
        // Another thread may have been first; then theirs is the one to share.
        let known = &mut clients.entry(expected.clone()).or_default()[slot];
        Arc::clone(known.get_or_insert(made))
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("generation", &self.generation)
            .field("svid", &self.svid)
            .finish_non_exhaustive()
    }
}
