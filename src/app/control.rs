//! Control: the task that speaks with it, made from the settings.

use std::{
    fs::DirBuilder,
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{Error, listeners::Sockets, parts::seed};
use crate::{
    clock,
    config::{
        Settings,
        settings::{self, Control},
    },
    discovery::{self, Discovery, Target},
    identity::workload_api,
    resilience::backoff,
    sync::{self, Pace, Resolving, Source, Sync},
    telemetry::metrics::Metrics,
};

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Who resolves names at the moment: discovery belongs to a runtime, and the first one ends
/// when there is an identity.
pub(super) type Resolver = Arc<Mutex<Option<Discovery>>>;

/// The task that speaks with control, where the settings name one.
pub(super) fn sync(
    settings: &Settings,
    sockets: &Sockets,
    metrics: &Metrics,
    resolver: &Resolver,
) -> Result<Option<Sync>, Error> {
    let keeps_keys = match settings.identity {
        settings::Identity::Control | settings::Identity::Socket(_) => true,
        settings::Identity::None | settings::Identity::Dir(_) => false,
    };
    if keeps_keys {
        in_memory(&settings.state)?;
    }
    let Some(control) = &settings.control else { return Ok(None) };
    let source = match &settings.identity {
        settings::Identity::Control | settings::Identity::None => Source::Control,
        settings::Identity::Dir(folder) => Source::Folder(folder.clone()),
        settings::Identity::Socket(_) => Source::Folder(sync::identity_folder(&settings.state)),
    };
    let resolver = Arc::clone(resolver);
    let config = sync::Config {
        control: control.clone(),
        source,
        state: settings.state.clone(),
        instance: instance(control),
        inbound: sockets.inbound.first().map(|it| it.actual),
        resolve: Arc::new(move |host, port| resolve(&resolver, &host, port)),
        wall: sync::wall(),
        pace: Pace::default(),
        seed: seed(),
    };
    Ok(Some(Sync::new(config, metrics.clone())?))
}

/// Keeps what the Workload API at `socket` gives in `folder`, until dropped; `on_loss` is told
/// why it gives nothing.
pub(super) async fn follow_agent(
    socket: PathBuf,
    folder: PathBuf,
    on_loss: impl Fn(String) + Send + 'static,
) {
    let (mut random, (base, max)) = (StdRng::seed_from_u64(seed()), workload_api::RETRY);
    let wait = move |failures: u32| {
        let failures = u8::try_from(failures).unwrap_or(u8::MAX);
        backoff::Config { base, max }.wait(failures, random.random())
    };
    let on_event = move |event: &workload_api::Event| match event {
        workload_api::Event::Written { id, not_after } => {
            tracing::info!(%id, not_after = not_after.as_secs(), "identity given by the agent");
        }
        workload_api::Event::Lost { error } => {
            tracing::warn!(%error, "the agent gives no identity; the one there is stays");
            on_loss(error.to_string());
        }
        workload_api::Event::Restored => tracing::info!("the agent is back"),
    };
    workload_api::follow(socket, folder, wait, on_event).await;
}

/// The socket of the Workload API, where it is who we are given by.
pub(super) fn agent(settings: &Settings) -> Option<PathBuf> {
    match &settings.identity {
        settings::Identity::Socket(socket) => Some(socket.clone()),
        settings::Identity::None | settings::Identity::Dir(_) | settings::Identity::Control => None,
    }
}

/// Makes sure that `folder` is there, and on no disk.
fn in_memory(folder: &Path) -> Result<(), Error> {
    let failed = |source| sync::Error::State { path: folder.to_owned(), source };
    DirBuilder::new().mode(0o700).recursive(true).create(folder).map_err(failed)?;
    let found = statfs(folder).map_err(|errno| failed(errno.into()))?.filesystem_type();
    if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&found) {
        return Ok(());
    }
    Err(Error::Disk(folder.display().to_string()))
}

fn instance(control: &Control) -> String {
    control.instance.clone().unwrap_or_else(|| {
        let name = sync::host_name();
        let is_known = |it: &char| it.is_ascii_alphanumeric() || "-._".contains(*it);
        let name: String = name.chars().filter(is_known).collect();
        if name.is_empty() { "sidecar".to_owned() } else { name }
    })
}

/// The addresses of a host, as discovery finds them.
fn resolve(resolver: &Resolver, host: &str, port: u16) -> Resolving {
    let discovery = resolver.lock().clone();
    let target = Target::Host { name: host.into(), port };
    Box::pin(async move {
        let Some(discovery) = discovery else { return Ok(Vec::new()) };
        let watch = discovery.watch(target);
        let deadline = clock::now() + discovery::Timing::default().deadline;
        let resolved = watch.first(deadline).await;
        let addresses = resolved.endpoints.endpoints().iter().map(|it| it.address);
        let addresses: Vec<SocketAddr> = addresses.collect();
        match &resolved.state {
            discovery::State::Failed { error } => Err(io::Error::other(error.to_string())),
            discovery::State::NotFound => Err(io::Error::other("the name does not exist")),
            discovery::State::Pending => Err(io::ErrorKind::TimedOut.into()),
            discovery::State::Fresh | discovery::State::Stale { .. } => Ok(addresses),
        }
    })
}
