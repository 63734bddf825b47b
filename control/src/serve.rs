//! Serve: certificates, policy and the state of both, to whoever proves who they are.
//!
//! One process holds it all together: sockets ([`server`]), calls ([`api`]), who may make
//! them and how often ([`auth`]), certificates and their audit log, and the watches. What may not
//! be lost is in the store; all else is worked out anew, so a server can be killed at any
//! moment and sidecars run on with what they have.

mod api;
pub(crate) mod audit;
pub(crate) mod auth;
mod certificates;
mod metrics;
mod reason;
#[cfg(test)]
mod tests;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use remora::{
    admin, clock,
    drain::{self, Drain},
    sync::{
        server,
        wire::{HEARTBEAT, Sidecars},
    },
    telemetry::Journal,
};
use tokio::{net::TcpListener, time::timeout};

use self::metrics::Metrics;
pub(crate) use self::reason::Reason;
use crate::{
    fleet::Fleet,
    issuing::{Error, Live, Names},
    publish::{self, Publisher},
    rotation::Rotation,
    store::Store,
};

/// Services of a sidecar that operators are shown.
const SERVICES_SHOWN: usize = 16;

/// What a server begins with.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    /// Whose authority to begin with, where the store has none.
    pub(crate) dir: Option<PathBuf>,
    /// The name of this replica in the store.
    pub(crate) replica: String,
    pub(crate) names: Names,
    pub(crate) audit: Journal,
    pub(crate) policy: publish::Settings,
    pub(crate) leaf_life: Duration,
}

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Of connections.
    pub(crate) peers: server::Pace,
    /// How often a watch says that it lives.
    pub(crate) heartbeat: Duration,
    /// How long a reader may take for a line.
    pub(crate) stall: Duration,
}

impl Pace {
    pub(crate) const DEFAULT: Self =
        Self { peers: server::Pace::DEFAULT, heartbeat: HEARTBEAT, stall: Duration::from_secs(20) };
}

/// What all calls share.
pub(crate) struct Control {
    pub(crate) store: Arc<Store>,
    pub(crate) live: Arc<Live>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rotation: Arc<Rotation>,
    pub(crate) drain: Drain,
    pub(crate) tokens: auth::Tokens,
    audit: Journal,
    limits: auth::Limits,
    metrics: Metrics,
    leaf_life: Duration,
    pace: Pace,
}

impl Control {
    /// Reads what there is. Join tokens only are taken, and limits and pace are the usual ones,
    /// unless that is changed before [`Control::start`].
    pub(crate) async fn load(parts: Parts) -> Result<Self, Error> {
        let (store, now) = (parts.store, clock::wall());
        let live = Box::pin(Live::load(&*store, parts.dir.as_deref(), parts.names, now)).await?;
        Ok(Self {
            fleet: Fleet::load(&*store, &parts.replica).await?,
            publisher: Publisher::load(Arc::clone(&store), parts.policy).await?,
            rotation: Rotation::new(Arc::clone(&store), Arc::clone(&live), parts.dir),
            store,
            live,
            drain: Drain::new(),
            tokens: None,
            audit: parts.audit,
            limits: auth::Limits::default(),
            metrics: Metrics::new(),
            leaf_life: parts.leaf_life,
            pace: Pace::DEFAULT,
        })
    }

    /// Serves from then on: the API on `listeners`, health and metrics on those of `admin`.
    pub(crate) fn start(self, listeners: Vec<TcpListener>, admin: Vec<TcpListener>) -> Arc<Self> {
        let control = Arc::new(self);
        server::start(listeners, &control, &control.drain, control.pace.peers);
        let asked = Arc::clone(&control);
        let answer = move |path: &str, _| metrics::answer(&asked, path);
        drain::spawn("admin", admin::serve(admin, answer));
        let fleet = Arc::clone(&control.fleet);
        let sidecars = move || fleet.all(clock::wall());
        drain::spawn("publisher", Arc::clone(&control.publisher).run(sidecars));
        control
    }

    /// Serves until the drain has begun and all is ended and written.
    pub(crate) async fn run(&self) {
        // The fleet ends with the drain, after its last write, and whatever drives with it.
        tokio::select! {
            () = self.fleet.run(&*self.store, &self.drain) => (),
            () = self.rotation.run(&self.fleet) => (),
        }
        // Connections that are left are dropped with the runtime.
        let _all_ended = timeout(server::GRACE, self.drain.idle()).await.is_ok();
        self.fleet.flush(&*self.store, clock::wall()).await;
    }

    /// All sidecars, and what they are to have.
    fn sidecars(&self) -> Sidecars {
        let issuing = self.live.get();
        let mut sidecars = self.fleet.all(clock::wall());
        // All services of a large mesh would not fit into an answer.
        for it in &mut sidecars {
            it.report.services.truncate(SERVICES_SHOWN);
        }
        Sidecars {
            generation: self.publisher.status().generation,
            issuer: issuing.record.signs.fingerprint.clone(),
            bundle: issuing.record.bundle.sequence,
            sidecars,
        }
    }
}
