//! App: the composition root, where settings become a running sidecar.
//!
//! Sockets are opened first: from then on the kernel holds connections and their first
//! bytes, whatever is still missing. Then identity and policy are read, and pingora's server
//! runs one service a worker and one for everything else until a signal ends it.

mod events;
mod listeners;
mod parts;
mod services;
mod shutdown;

use std::{io, path::Path, process::ExitCode, time::Duration};

use pingora_core::server::{Fds, RunArgs, Server, configuration::ServerConf};

use self::{listeners::Sockets, parts::Parts, services::Background, shutdown::Shutdown};
use crate::{
    admin::{Admin, Condition, Health},
    config::{Settings, settings},
    discovery,
    drain::{self, Drain},
    identity::{self, Identity},
    telemetry::{log, metrics::Metrics},
};

/// How often files that are not there yet are looked for.
const NOT_YET: Duration = Duration::from_millis(250);

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
    let sockets = Sockets::open(settings, &inherited(settings)?)?;
    let mut server = server(settings);
    server.bootstrap();
    let metrics = Metrics::new();
    count_panics(&metrics);
    let identity = match &settings.identity {
        settings::Identity::None => None,
        settings::Identity::Dir(folder) => Some(identity_in(folder, &sockets, &metrics)?),
    };
    let parts = Parts::new(settings, &sockets, metrics, identity)?;
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

/// The identity in `folder`, waited for while its files are not there yet: admin says so
/// meanwhile, and the kernel holds the connections of everybody else.
fn identity_in(folder: &Path, sockets: &Sockets, metrics: &Metrics) -> Result<Identity, Error> {
    let missing = match identity_if_there(folder)? {
        Ok(identity) => return Ok(identity),
        Err(missing) => missing,
    };
    tracing::warn!(error = %missing, "waiting for the identity");
    let health = Health::new([Condition::Listeners, Condition::Identity, Condition::Policy]);
    health.set(Condition::Listeners, Ok(()));
    health.set(Condition::Identity, Err(missing.to_string()));
    let admin = Admin::new(metrics.clone(), health, Drain::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Wait)?.block_on(async {
        let listeners = sockets.admin.iter().map(|it| it.socket(None)).collect::<io::Result<_>>();
        let _serving = drain::spawn("admin", admin.serve(listeners.map_err(Error::Wait)?));
        loop {
            tokio::time::sleep(NOT_YET).await;
            if let Ok(identity) = identity_if_there(folder)? {
                return Ok(identity);
            }
        }
    })
}

/// The identity in `folder`, or which of its files are not there yet.
fn identity_if_there(folder: &Path) -> Result<Result<Identity, identity::Error>, Error> {
    match Identity::from_folder(folder) {
        Ok(identity) => Ok(Ok(identity)),
        Err(error @ identity::Error::Files(_)) if folder.is_dir() => Ok(Err(error)),
        Err(source) => Err(Error::Identity { folder: folder.display().to_string(), source }),
    }
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
