//! Parts: what the process is made of, once its settings are known.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, watch};

use super::{
    Error,
    control::{self, Resolver},
    events::{on_identity, on_policy},
    life,
    listeners::{Listener, Sockets},
    services::{Traffic, describe},
};
use crate::{
    admin::{Admin, Condition, Health},
    config::{
        self, Policies, Settings,
        settings::{self, Mode},
        units::is_label,
    },
    discovery::{self, Discovery},
    drain::{self, Drain},
    identity::{self, Identity},
    proxy::{
        accept::Entry,
        context::{Draw, Greeters, Shared, Worker},
        guard::Guards,
        route::Routes,
    },
    sync::{self, Sync},
    telemetry::{
        access_log::{self, AccessLog},
        metrics::{Direction, Metrics},
    },
};

/// How long the first policy of control is waited for.
const FIRST_POLICY: Duration = Duration::from_secs(1);

/// What the process is made of.
pub(super) struct Parts {
    /// What workers share.
    pub(super) shared: Arc<Shared>,
    health: Health,
    driver: discovery::Driver,
    rotated: watch::Sender<u64>,
    sync: Option<Sync>,
    /// The Workload API, and where what it gives is kept.
    agent: Option<(PathBuf, PathBuf)>,
}

/// What was made before.
pub(super) struct Given {
    /// What is counted.
    pub(super) metrics: Metrics,
    /// Who we are.
    pub(super) identity: Option<Identity>,
    /// What speaks with control.
    pub(super) sync: Option<Sync>,
    /// What finds it.
    pub(super) resolver: Resolver,
}

impl Parts {
    /// Reads policy, and makes everything that does not need a runtime.
    pub(super) fn new(settings: &Settings, sockets: &Sockets, given: Given) -> Result<Self, Error> {
        let Given { metrics, identity, sync, resolver } = given;
        let id = identity.as_ref().map(Identity::id);
        let certified = id.as_ref().and_then(|it| it.namespace());
        let told = settings.namespace.as_deref();
        let namespace = told.or(certified).unwrap_or(config::selection::NAMESPACE);
        let context = config::Context {
            namespace: namespace.into(),
            service_account: id.as_ref().and_then(|it| it.service_account()).map(Into::into),
            zone: settings.zone.clone(),
        };
        let folder = sync.as_ref().map(Sync::policy_folder).or_else(|| settings.policy.clone());
        let (policies, refused) = Policies::load(folder.as_deref(), context);
        let draw = Draw::new(seed());
        let (discovery, driver) = discovery_of(settings, &metrics)?;
        *resolver.lock() = Some(discovery.clone());
        let logged = access_log_policy(settings.access_log);
        let access_log = AccessLog::new(logged, io::stdout(), metrics.clone());
        let needed = [Condition::Listeners, Condition::Identity, Condition::Policy];
        let health =
            Health::new(needed.into_iter().chain(sync.as_ref().map(|_| Condition::Control)));
        health.set(Condition::Listeners, Ok(()));
        health.set(Condition::Control, Ok(()));
        health.set(Condition::Identity, Ok(()));
        let policy = refused.as_ref().map_or(Ok(()), |it| Err(it.to_string()));
        health.set(Condition::Policy, policy);
        if let Some(identity) = &identity {
            metrics.certificate_not_after(identity.not_after());
        }
        metrics.policy_generation(policies.generation());
        if let Some(errors) = &refused {
            metrics.policy_reload(false);
            tracing::error!(%errors, "policy refused; running with defaults");
        }
        let rotated = watch::Sender::new(identity.as_ref().map_or(0, Identity::generation));
        let shared = Shared {
            identity,
            namespace: namespace.into(),
            policies,
            discovery,
            metrics,
            access_log: access_log.map_err(Error::AccessLog)?,
            drain: Drain::new(),
            listeners: sockets.all().map(|it| it.actual).collect(),
            seed: draw.long(),
            draw,
            captured: settings.mode == Mode::Capture,
            services: parking_lot::Mutex::default(),
            called: Arc::default(),
            guards: Guards::default(),
            traces: Arc::default(),
        };
        let agent = control::agent(settings);
        let agent = agent.map(|it| (it, sync::identity_folder(&settings.state)));
        Ok(Self { shared: Arc::new(shared), health, driver, rotated, sync, agent })
    }

    /// Says what is running.
    pub(super) fn report(&self, sockets: &Sockets) {
        let id = self.shared.identity.as_ref().map(|it| it.id().to_string());
        for listener in sockets.all() {
            tracing::info!(address = %listener.actual, purpose = listener.purpose, "listening");
        }
        tracing::info!(
            identity = id.as_deref().unwrap_or("none"),
            namespace = %self.shared.namespace,
            policy_generation = self.shared.policies.generation(),
            version = env!("CARGO_PKG_VERSION"),
            "ready to serve"
        );
    }

    /// The workers of both directions.
    pub(super) fn traffic(&self, settings: &Settings, sockets: &Sockets) -> Vec<Traffic> {
        let captured = self.shared.captured;
        let inbound = sockets.inbound.iter().map(|it| {
            (it.clone(), settings.app.filter(|_| !captured).map_or(Entry::Captured, Entry::App))
        });
        let proxy = if captured { Entry::Captured } else { Entry::Proxy };
        let outbound = sockets.outbound.iter().map(|it| (it.clone(), proxy.clone()));
        let tunnels =
            sockets.tunnels.iter().map(|(it, to)| (it.clone(), Entry::Tunnel(Arc::clone(to))));
        let outbound: Vec<_> = outbound.chain(tunnels).collect();
        let mut all = self.workers(settings, Direction::Inbound, &inbound.collect::<Vec<_>>());
        all.extend(self.workers(settings, Direction::Outbound, &outbound));
        all
    }

    fn workers(
        &self,
        settings: &Settings,
        direction: Direction,
        listeners: &[(Listener, Entry)],
    ) -> Vec<Traffic> {
        for (listener, entry) in listeners {
            let (address, kind) = describe(listener, entry);
            tracing::debug!(%address, kind, direction = direction.as_str(), "accepting");
        }
        let room = Arc::new(Semaphore::new(settings.max_connections));
        let threads = if listeners.is_empty() { 0 } else { settings.threads };
        let worker = |number| Traffic {
            name: format!("{}-{number}", direction.as_str()),
            worker: Arc::new(Worker {
                shared: Arc::clone(&self.shared),
                direction,
                routes: Routes::default(),
                draw: Draw::new(self.shared.draw.long()),
                greeters: Greeters::default(),
            }),
            listeners: listeners.to_vec(),
            room: Arc::clone(&room),
            rotated: self.rotated.subscribe(),
        };
        (0..threads).map(worker).collect()
    }

    /// Everything that is not traffic, until the process ends.
    pub(super) async fn background(self, admin: io::Result<Vec<std::net::TcpListener>>) {
        let Self { shared, health, driver, rotated, sync, agent } = self;
        let _resolving = drain::spawn("discovery", driver.run());
        if let Some((socket, folder)) = agent {
            drop(drain::spawn("workload api", control::follow_agent(socket, folder, |_| ())));
        }
        let (metrics, told) = (shared.metrics.clone(), health.clone());
        let on_policy = Arc::new(move |event: &config::Event| on_policy(event, &metrics, &told));
        if let Some(identity) = shared.identity.clone() {
            let life = life::follow(identity.clone(), health.clone(), rotated.subscribe());
            let _living = drain::spawn("certificate", life);
            let (metrics, called) = (shared.metrics.clone(), Arc::clone(&shared.called));
            let told = health.clone();
            let on_identity = Arc::new(move |event: &identity::Event| {
                on_identity(event, &metrics, &told, &rotated);
                called.notify_one();
            });
            if let Some(sync) = sync {
                if sync.is_new() {
                    drop(drain::spawn("first policy", first_policy(health.clone())));
                }
                let (services, told) = (Arc::clone(&shared), health.clone());
                let host = sync::Host {
                    identity: identity.clone(),
                    policies: shared.policies.clone(),
                    drain: shared.drain.clone(),
                    services: Arc::new(move || called_by(&services)),
                    changed: Arc::clone(&shared.called),
                    on_identity: Arc::clone(&on_identity) as _,
                    on_trouble: Arc::new(move |it| told.note(Condition::Control, it)),
                    on_policy: Arc::clone(&on_policy) as _,
                };
                let _speaking = drain::spawn("control", sync.run(host));
            }
            let _watching =
                drain::spawn("identity", identity.watch(move |event| on_identity(event)));
        }
        let _watching =
            drain::spawn("policy", shared.policies.clone().watch(move |event| on_policy(event)));
        let admin_of = Admin::new(shared.metrics.clone(), health, shared.drain.clone());
        let served = match admin {
            Ok(listeners) => admin_of.serve(listeners).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::error!(%error, "admin is not served");
        }
        std::future::pending::<()>().await;
    }
}

/// Gives control a moment to send the first policy before there is traffic: until then the
/// defaults are in force, which deny nobody. Without control, or policy, they are what is
/// wanted.
async fn first_policy(health: Health) {
    health.set(Condition::Policy, Err("waiting for the first policy of control".to_owned()));
    tokio::time::sleep(FIRST_POLICY).await;
    health.set(Condition::Policy, Ok(()));
}

/// Discovery as the settings want it.
pub(super) fn discovery_of(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<(Discovery, discovery::Driver), discovery::Error> {
    let dns = discovery::Config {
        nameservers: (!settings.dns.is_empty()).then(|| settings.dns.clone()),
        seed: seed(),
        ..discovery::Config::default()
    };
    Discovery::new(&dns, metrics.clone())
}

/// The services of the mesh that the application calls, as `name.namespace`.
fn called_by(shared: &Shared) -> Vec<String> {
    let services = shared.services.lock();
    let used = services.iter().filter(|(key, it)| !key.local && it.strong_count() != 0);
    let names = used.map(|(key, _)| &key.name);
    let named = names.filter(|it| is_label(&it.name) && is_label(&it.namespace));
    named.map(|it| format!("{}.{}", it.name, it.namespace)).collect()
}

fn access_log_policy(asked: settings::AccessLog) -> access_log::Policy {
    match asked {
        settings::AccessLog::Off => access_log::Policy::Off,
        settings::AccessLog::Failures => access_log::Policy::Failures,
        settings::AccessLog::All => access_log::Policy::All,
        settings::AccessLog::Sampled { per_ten_thousand } => {
            access_log::Policy::Ratio(u32::from(per_ten_thousand) * 100)
        }
    }
}

/// A number nobody can foresee, from the operating system.
pub(super) fn seed() -> u64 {
    use rand::TryRng as _;
    rand::rngs::SysRng.try_next_u64().unwrap_or_else(|_| {
        u64::try_from(crate::clock::wall().as_nanos() & u128::from(u64::MAX)).unwrap_or(1)
    })
}
