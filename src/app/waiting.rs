//! Waiting: what happens before there is an identity.
//!
//! Admin says what is missing, control or the Workload API is asked, and the kernel holds
//! the connections of everybody else. Where a person has to mend a certificate's files the
//! process ends and says so; what control or an agent writes, it writes again.

use std::{io, path::Path, time::Duration};

use parking_lot::Mutex;

use super::{
    Error,
    control::{self, Resolver},
    listeners::Sockets,
    parts::discovery_of,
};
use crate::{
    admin::{Admin, Condition, Health},
    config::{Settings, settings},
    drain::{self, Drain},
    identity::{self, Identity},
    sync::{Sync, identity_folder},
    telemetry::metrics::Metrics,
};

/// How often files that are not there yet are looked for.
const NOT_YET: Duration = Duration::from_millis(250);

/// The identity the settings ask for, waited for while it is not there yet.
pub(super) fn identity(
    settings: &Settings,
    sockets: &Sockets,
    metrics: &Metrics,
    sync: Option<(&Sync, &Resolver)>,
) -> Result<Option<Identity>, Error> {
    let state = identity_folder(&settings.state);
    let folder = match &settings.identity {
        settings::Identity::None => return Ok(None),
        settings::Identity::Dir(folder) => folder,
        settings::Identity::Control | settings::Identity::Socket(_) => &state,
    };
    let missing = match if_there(folder, settings)? {
        Ok(identity) => return Ok(Some(identity)),
        Err(missing) => missing,
    };
    tracing::warn!(error = %missing, "waiting for the identity");
    let health = Health::new([Condition::Listeners, Condition::Identity, Condition::Policy]);
    health.set(Condition::Listeners, Ok(()));
    health.set(Condition::Identity, Err(missing.to_string()));
    let admin = Admin::new(metrics.clone(), health.clone(), Drain::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Wait)?.block_on(async {
        let listeners = sockets.admin.iter().map(|it| it.socket(None)).collect::<io::Result<_>>();
        let _serving = drain::spawn("admin", admin.serve(listeners.map_err(Error::Wait)?));
        if let Some((sync, resolver)) = sync {
            let (discovery, driver) = discovery_of(settings, metrics)?;
            *resolver.lock() = Some(discovery);
            let _resolving = drain::spawn("discovery", driver.run());
            join(sync, settings, &health).await;
        }
        let agent = control::agent(settings);
        let _asking = agent.map(|socket| {
            let waiting = format!("waiting for the agent at {}", socket.display());
            let on_loss = move |reason| {
                health.set(Condition::Identity, Err(format!("{waiting}: {reason}")));
            };
            drain::spawn("workload api", control::follow_agent(socket, folder.clone(), on_loss))
        });
        loop {
            if let Ok(identity) = if_there(folder, settings)? {
                return Ok(Some(identity));
            }
            tokio::time::sleep(NOT_YET).await;
        }
    })
}

/// Has control issue a certificate, and says why it has not yet.
async fn join(sync: &Sync, settings: &Settings, health: &Health) {
    let Some(control) = &settings.control else { return };
    let said = Mutex::new(String::new());
    sync.join(|reason| {
        let waiting = format!("waiting for control at {}:{}: {reason}", control.host, control.port);
        let mut said = said.lock();
        if *said != waiting {
            tracing::warn!(error = %waiting, "no identity yet");
            waiting.clone_into(&mut said);
        }
        health.set(Condition::Identity, Err(waiting));
    })
    .await;
}

/// The identity in `folder`, or why it is not there yet.
fn if_there(
    folder: &Path,
    settings: &Settings,
) -> Result<Result<Identity, identity::Error>, Error> {
    let is_written_again = match settings.identity {
        settings::Identity::Control | settings::Identity::Socket(_) => true,
        settings::Identity::Dir(_) | settings::Identity::None => false,
    };
    match Identity::from_folder(folder) {
        Ok(identity) => Ok(Ok(identity)),
        Err(error) if is_written_again => Ok(Err(error)),
        Err(error @ identity::Error::Files(_)) if folder.is_dir() => Ok(Err(error)),
        Err(source) => Err(Error::Identity { folder: folder.display().to_string(), source }),
    }
}
