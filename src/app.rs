//! App: the composition root, where settings become a running sidecar.
//!
//! Sockets are opened first: from then on the kernel holds connections and their first
//! bytes, whatever is still missing. Then identity and policy are read, and pingora's server
//! runs one service a worker and one for everything else until a signal ends it.

mod control;
mod events;
mod life;
mod listeners;
mod parts;
mod services;
mod shutdown;
mod waiting;

use std::{io, process::ExitCode, time::Duration};

use pingora_core::server::{Fds, RunArgs, Server, configuration::ServerConf};

use self::{
    control::Resolver,
    listeners::Sockets,
    parts::{Given, Parts},
    services::Background,
    shutdown::Shutdown,
};
use crate::{
    config::{Settings, settings},
    discovery, identity, sync,
    telemetry::{log, metrics::Metrics},
    transport::listen::raise_descriptors,
};

/// `EX_CONFIG` of sysexits.h: what the process was told can't work.
const EX_CONFIG: u8 = 78;

/// Why a sidecar can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log can't be written as asked.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The access log can't be written.
    #[error("cannot write the access log: {0}")]
    AccessLog(#[source] io::Error),
    /// A socket can't be opened.
    #[error(transparent)]
    Listen(#[from] listeners::Error),
    /// The certificate can't be used.
    #[error("cannot use the identity in `{folder}`: {source}\nhint: {}", source.hint())]
    Identity {
        /// Where it is.
        folder: String,
        /// Why not.
        source: identity::Error,
    },
    /// The state folder can't be used.
    #[error(transparent)]
    State(#[from] sync::Error),
    /// The state folder would keep a key on a disk.
    #[error(
        "the state folder `{0}` is on a disk, and a key on a disk outlives the pod\nhint: put it on a tmpfs: an emptyDir with `medium: Memory`, or a folder of /dev/shm"
    )]
    Disk(String),
    /// Nothing can be served while the certificate is waited for.
    #[error("cannot wait for the identity: {0}")]
    Wait(#[source] io::Error),
    /// There is nobody to take over from.
    #[error(
        "no listeners came over `{path}`: {source}\nhint: send SIGQUIT to the running sidecar, or start without `--upgrade`"
    )]
    Upgrade {
        /// Where they were expected.
        path: String,
        /// Why they did not come.
        source: io::Error,
    },
    /// Names can't be resolved.
    #[error(transparent)]
    Discovery(#[from] discovery::Error),
}

/// Runs the sidecar until a signal ends it.
pub fn run(settings: &Settings, err: &mut dyn io::Write) -> ExitCode {
    match start(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nobody to read it there is nothing more to do.
            let _told = writeln!(err, "error: {error}").is_ok();
            match error {
                Error::Listen(_) | Error::AccessLog(_) | Error::Wait(_) => ExitCode::FAILURE,
                Error::Log(_)
                | Error::State(_)
                | Error::Disk(_)
                | Error::Identity { .. }
                | Error::Upgrade { .. }
                | Error::Discovery(_) => ExitCode::from(EX_CONFIG),
            }
        }
    }
}

fn start(settings: &Settings) -> Result<(), Error> {
    let format = match settings.log_format {
        settings::LogFormat::Json => log::Format::Json,
        settings::LogFormat::Text => log::Format::Text,
    };
    log::init(format, &settings.log)?;
    raise_descriptors();
    let sockets = Sockets::open(settings, &inherited(settings)?)?;
    let mut server = server(settings);
    server.bootstrap();
    let metrics = Metrics::new();
    count_panics(&metrics);
    let resolver = Resolver::default();
    let sync = control::sync(settings, &sockets, &metrics, &resolver)?;
    let asked = sync.as_ref().map(|it| (it, &resolver));
    let identity = waiting::identity(settings, &sockets, &metrics, asked)?;
    let given = Given { metrics, identity, sync, resolver };
    let parts = Parts::new(settings, &sockets, given)?;
    parts.report(&sockets);
    for traffic in parts.traffic(settings, &sockets) {
        server.add_service(traffic);
    }
    let drain = parts.shared.drain.clone();
    let access_log = parts.shared.access_log.clone();
    let admin = sockets.admin.iter().map(|it| it.socket(None)).collect::<io::Result<Vec<_>>>();
    let listeners = sockets.admin.clone();
    server.add_service(Background { run: Some(parts.background(admin)), listeners });
    let (grace, lame_duck) = (settings.grace, settings.lame_duck);
    server.run(RunArgs { shutdown_signal: Box::new(Shutdown { drain, grace, lame_duck }) });
    access_log.flush(Duration::from_secs(1));
    Ok(())
}

/// pingora's server, told what concerns it.
fn server(settings: &Settings) -> Server {
    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        upgrade_sock: settings.upgrade_sock.display().to_string(),
        // After a hand-over the old process has this long for what it still holds.
        grace_period_seconds: Some(settings.grace.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    Server::new_with_opt_and_conf(None, conf)
}

/// The sockets of the process that runs already, where they are to be taken over: it sends
/// them when it gets SIGQUIT.
fn inherited(settings: &Settings) -> Result<Fds, Error> {
    let mut descriptors = Fds::new();
    if settings.upgrade {
        let path = settings.upgrade_sock.display().to_string();
        let received = descriptors.get_from_sock(path.as_str());
        received.map_err(|source| Error::Upgrade { path, source: source.into() })?;
    }
    Ok(descriptors)
}

/// Counts panics, and logs them as what they are: bugs.
fn count_panics(metrics: &Metrics) {
    let metrics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        metrics.panic();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic: please report this bug");
    }));
}
