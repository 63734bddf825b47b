//! Serve: certificates, policy and the state of both, to whoever proves who they are.
//!
//! One process holds it all together: sockets ([`listen`]), calls ([`api`]), who may make
//! them ([`auth`], [`limits`]), certificates and their audit log, and the watches. What may not
//! be lost is in the store; all else is worked out anew, so a server can be killed at any
//! moment and sidecars run on with what they have.

mod admin;
mod api;
pub(crate) mod audit;
pub(crate) mod auth;
mod body;
mod certificates;
pub(crate) mod limits;
mod listen;
mod metrics;
mod reason;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use remora::{
    clock,
    drain::{self, Drain},
    sync::wire::{HEARTBEAT, Sidecar, Sidecars},
    transport::listen::bind,
};
use tokio::{
    net::TcpListener,
    time::{self, timeout},
};

pub(crate) use self::reason::Reason;
use self::{
    audit::Audit,
    auth::Tokens,
    limits::{Limits, Rates},
    listen::Door,
    metrics::Metrics,
};
use crate::{
    fleet::Fleet,
    issuing::{self, Issuing, Live, Names},
    publish::{self, Publisher},
    rotation::Rotation,
    store::{self, Store},
    token,
};

/// Services of a sidecar that operators are shown.
const SERVICES_SHOWN: usize = 16;

/// How often tokens that ended are removed.
const SWEEP: Duration = Duration::from_hours(1);

/// What a kernel without IPv6 says to an address of it; see socket(2).
const EAFNOSUPPORT: i32 = 97;

/// What a server is made of.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    /// Whose authority to begin with, where the store has none.
    pub(crate) dir: Option<PathBuf>,
    /// The name of this replica in the store.
    pub(crate) replica: String,
    pub(crate) policy: publish::Settings,
    pub(crate) tokens: Tokens,
    pub(crate) audit: Audit,
    pub(crate) settings: Settings,
}

/// How it serves.
pub(crate) struct Settings {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) admin: Vec<SocketAddr>,
    pub(crate) names: Names,
    pub(crate) leaf_life: Duration,
    pub(crate) rates: Rates,
    pub(crate) pace: Pace,
}

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From the first packet to the end of the handshake.
    pub(crate) handshake: Duration,
    /// How long a client may take for its first request, one of HTTP/1.1 for a head, and one
    /// of HTTP/2 for an answer to a ping.
    pub(crate) patience: Duration,
    /// How often a watch says that it lives.
    pub(crate) heartbeat: Duration,
    /// How long a reader may take for a line.
    pub(crate) stall: Duration,
}

impl Pace {
    pub(crate) const DEFAULT: Self = Self {
        handshake: Duration::from_secs(5),
        patience: Duration::from_secs(20),
        heartbeat: HEARTBEAT,
        stall: Duration::from_secs(20),
    };
}

/// What all calls share.
pub(crate) struct Control {
    pub(crate) store: Arc<Store>,
    pub(crate) live: Arc<Live>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rotation: Arc<Rotation>,
    pub(crate) drain: Drain,
    tokens: Tokens,
    limits: Limits,
    audit: Audit,
    metrics: Metrics,
    leaf_life: Duration,
    pace: Pace,
}

/// Why a server does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot listen at `{address}`")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Issuing(#[from] issuing::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl Error {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Listen { .. } => Some("name another with `--listen` or `--admin`"),
            Self::Issuing(_) => Some("--dir takes a folder made by `remora-control init`"),
            Self::Store(_) => Some("check the path, the space left and who may write there"),
            Self::Tls(_) | Self::Metrics(_) => None,
        }
    }
}

/// A server that listens, and does nothing yet.
pub(crate) struct Server {
    control: Arc<Control>,
    door: Arc<Door>,
    listeners: Vec<TcpListener>,
    admin: Vec<TcpListener>,
}

impl Server {
    /// Reads what there is, and listens.
    pub(crate) async fn start(parts: Parts, drain: Drain) -> Result<Self, Error> {
        let Parts { store, settings, .. } = parts;
        let listeners = open(&settings.listen)?;
        let admin = open(&settings.admin)?;
        let now = clock::wall();
        let issuing = Issuing::load(&store, parts.dir.as_deref(), now).await?;
        let live = Live::new(issuing, settings.names, now)?;
        // Were it wrong, each handshake would fail.
        tls::config(&live.get())?;
        let control = Arc::new(Control {
            fleet: Fleet::load(&store, &parts.replica).await?,
            publisher: Publisher::load(Arc::clone(&store), parts.policy).await?,
            rotation: Rotation::new(Arc::clone(&store), Arc::clone(&live), parts.dir),
            store,
            live,
            drain,
            tokens: parts.tokens,
            limits: Limits::new(&settings.rates, clock::now()),
            audit: parts.audit,
            metrics: Metrics::new()?,
            leaf_life: settings.leaf_life,
            pace: settings.pace,
        });
        let door = Door::new(Arc::clone(&control));
        Ok(Self { control, door, listeners, admin })
    }

    /// The trust domain it serves.
    pub(crate) fn trust_domain(&self) -> String {
        self.control.live.get().authority.trust_domain().to_owned()
    }

    /// What signs now, for whoever follows it.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.control.live)
    }

    /// Where it listens: the API, and health and metrics.
    pub(crate) fn addresses(&self) -> [Vec<SocketAddr>; 2] {
        [&self.listeners, &self.admin]
            .map(|all| all.iter().filter_map(|it| it.local_addr().ok()).collect())
    }

    /// Serves until the drain has begun and all is ended and written.
    pub(crate) async fn run(self) {
        let Self { control, door, listeners, admin } = self;
        for listener in admin {
            drain::spawn("admin", admin::serve(Arc::clone(&control), listener));
        }
        for listener in listeners {
            drain::spawn("listener", Arc::clone(&door).serve(listener));
        }
        let fleet = Arc::clone(&control.fleet);
        let sidecars = move || fleet.all(clock::wall());
        drain::spawn("publisher", Arc::clone(&control.publisher).run(sidecars));
        drain::spawn("rotation", rotate(Arc::clone(&control)));
        drain::spawn("token sweep", sweep(Arc::clone(&control)));
        // Ends with the drain, after its last write.
        control.fleet.run(&control.store, &control.drain).await;
        // Connections that are left are dropped with the runtime.
        let _all_ended = timeout(listen::GRACE, control.drain.idle()).await.is_ok();
        control.fleet.flush(&control.store, clock::wall()).await;
    }
}

impl Control {
    /// All sidecars, and what they are to have.
    fn sidecars(&self) -> Sidecars {
        let issuing = self.live.get();
        Sidecars {
            generation: self.publisher.status().generation,
            issuer: issuing.issuer.clone(),
            bundle: issuing.bundle.sequence,
            sidecars: self.fleet.all(clock::wall()).into_iter().map(short).collect(),
        }
    }

    /// What keeps it from serving well.
    fn lacks(&self, now: Duration) -> Option<&'static str> {
        let issuing = self.live.get();
        if issuing.authority.not_after() <= now {
            return Some("the issuer has ended: `remora-control rotate` makes a new one\n");
        }
        (issuing.svid.not_after() <= now).then_some("control's own certificate has ended\n")
    }

    /// Sets the gauges.
    fn measure(&self) {
        let (metrics, sidecars) = (&self.metrics, self.sidecars());
        let whole = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        let connected = sidecars.sidecars.iter().filter(|it| it.connected).count();
        let states = [("connected", connected), ("away", sidecars.sidecars.len() - connected)];
        for (state, count) in states {
            metrics.sidecars.with_label_values(&[state]).set(whole(count as u64));
        }
        metrics.connections.set(whole(self.drain.count()));
        metrics.generation.set(whole(sidecars.generation));
        metrics.bundle.set(whole(sidecars.bundle));
        let issuing = self.live.get();
        metrics.issuer_ends.set(whole(issuing.authority.not_after().as_secs()));
        metrics.own_ends.set(whole(issuing.svid.not_after().as_secs()));
        metrics.leader.set(i64::from(self.store.leads()));
    }
}

/// With the first few services only: all of them, of a large mesh, would not fit into an answer.
fn short(mut sidecar: Sidecar) -> Sidecar {
    sidecar.report.services.truncate(SERVICES_SHOWN);
    sidecar
}

async fn rotate(control: Arc<Control>) {
    control.rotation.run(&control.fleet, &control.drain).await;
}

async fn sweep(control: Arc<Control>) {
    let mut sweep = time::interval(SWEEP);
    loop {
        sweep.tick().await;
        if control.store.leads()
            && let Err(error) = token::sweep(&control.store, clock::wall()).await
        {
            tracing::warn!(%error, "ended tokens not removed");
        }
    }
}

fn open(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match bind(address).and_then(TcpListener::from_std) {
            Ok(it) => listeners.push(it),
            Err(error) if !listeners.is_empty() && error.raw_os_error() == Some(EAFNOSUPPORT) => {
                tracing::info!(%address, "no IPv6 here");
            }
            Err(source) => return Err(Error::Listen { address, source }),
        }
    }
    Ok(listeners)
}
