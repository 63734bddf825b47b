//! Sync: keeps certificate and policy of this sidecar as control has them.
//!
//! What control sends becomes *files* in folders that are watched anyway: identity and
//! policy are read from there and nowhere else, so a sidecar starts and runs with control
//! gone, on the last good state. Nothing that control sends replaces anything before the
//! very code that will load it has found it good, and files change by one swap.
//!
//! | file below the state folder | what it holds |
//! |---|---|
//! | `identity/tls.crt`, `tls.key`, `ca.crt` | the certificate; the key was made here |
//! | `policy/*.yaml` | the newest generation of policy that was accepted |
//! | `sync.json` | the numbers of that generation and of the roots |
//!
//! One connection at a time carries all calls ([`wire`]). Whatever fails is tried again
//! after a wait that grows ([`schedule`]), while the sidecar goes on with what it has.

mod certificates;
pub mod client;
mod kept;
mod policy;
mod report;
pub mod schedule;
pub mod server;
mod session;
mod setup;
pub mod wire;
pub mod words;

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{SeedableRng as _, rngs::StdRng};
use remora_certs::{csr, folder};
use tokio::sync::Notify;

pub use self::setup::{
    Config, Host, Pace, Resolve, Resolving, Source, Target, Wall, host_name, wall,
};
use self::{certificates::Trouble, kept::Kept};
use crate::{clock, identity::Material, telemetry::Metrics};

/// Where the certificate is, below the state folder.
const IDENTITY: &str = "identity";
/// Where policy is, below the state folder.
const POLICY: &str = "policy";

/// Why the task cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be used.
    #[error("cannot use the state folder `{path}`: {source}")]
    State {
        /// Which file or folder of it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The task that speaks with control.
#[derive(Debug)]
pub struct Sync {
    config: Config,
    metrics: Metrics,
    memory: Mutex<Memory>,
    /// Told when there may be something to report.
    dirty: Notify,
    /// Told when a certificate is to be renewed earlier.
    sooner: Notify,
}

/// What the parts of the task know of each other.
#[derive(Debug)]
struct Memory {
    /// What outlives the process.
    kept: Kept,
    /// The number of the newest generation of policy.
    received: u64,
    /// What tells it from others of that number, once it was looked through.
    written: Option<u64>,
    /// Why the newest policy is not in force.
    policy_error: Option<String>,
    /// Why the newest roots are not in use.
    bundle_error: Option<String>,
    /// Why the certificate was not renewed.
    certificate_error: Option<String>,
    /// Why something could not be written down.
    state_error: Option<String>,
    /// A request for a certificate that was not answered.
    pending: Option<csr::Request>,
    /// Whether the token is to prove who we are, and not the certificate.
    by_token: bool,
    /// When to renew the certificate of a generation.
    renewal: Option<(u64, Duration)>,
    /// When control wants it renewed.
    asked: Option<Duration>,
    /// Whether control is connected, and why not.
    standing: Option<Result<(), String>>,
    rng: StdRng,
}

impl Sync {
    /// A task that has done nothing but open its state folder.
    ///
    /// # Errors
    ///
    /// When that folder cannot be used.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, Error> {
        open(&config)?;
        let kept = Kept::load(&config.state)?;
        metrics.control_connected(false);
        metrics.control_generation(kept.generation);
        let memory = Memory {
            received: kept.generation,
            kept,
            written: None,
            policy_error: None,
            bundle_error: None,
            certificate_error: None,
            state_error: None,
            pending: None,
            by_token: false,
            renewal: None,
            asked: None,
            standing: None,
            rng: StdRng::seed_from_u64(config.seed),
        };
        let memory = Mutex::new(memory);
        Ok(Self { config, metrics, memory, dirty: Notify::new(), sooner: Notify::new() })
    }

    /// Where the certificate is read from.
    pub fn identity_folder(&self) -> PathBuf {
        match &self.config.source {
            Source::Control => identity_folder(&self.config.state),
            Source::Folder(folder) => folder.clone(),
        }
    }

    /// Where policy is read from.
    pub fn policy_folder(&self) -> PathBuf {
        policy_folder(&self.config.state)
    }

    /// Whether control has never sent policy that was accepted: what is in force is nobody's
    /// wish.
    pub fn is_new(&self) -> bool {
        self.memory.lock().kept.generation == 0
    }

    /// Asks for a certificate until there is one in [`Sync::identity_folder`]; `on_failure`
    /// is told why there is none yet. Returns at once when control does not write it.
    ///
    /// # Cancel safety
    ///
    /// Safe: files are swapped in whole or not at all.
    pub async fn join(&self, on_failure: impl Fn(&str) + Send) {
        if self.config.source != Source::Control {
            return;
        }
        let mut failures = 0;
        while Material::load(&self.identity_folder(), (self.config.wall)()).is_err() {
            let obtained = Box::pin(self.obtain(None)).await;
            self.metrics.certificate_renewal(obtained.is_ok());
            let Err(trouble) = obtained else { return };
            on_failure(&trouble.words());
            failures += 1;
            tokio::time::sleep(self.pause(failures, &trouble, None)).await;
        }
    }

    /// Follows control until dropped.
    ///
    /// # Cancel safety
    ///
    /// As [`Sync::join`].
    pub async fn run(self, host: Host) {
        let mut failures = 0;
        loop {
            let began = clock::now();
            let ended = Box::pin(self.session(&host)).await;
            let trouble = match ended {
                // There is another certificate, which control is to see.
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            let was_connected = self.disconnected(&trouble);
            self.tell(&host);
            let lasted = self.config.pace.retry.0 <= began.elapsed();
            failures = match (was_connected, lasted) {
                (true, true) => 1,
                // It is there; but if it always ends at once, all of us would keep it busy.
                (true, false) => 2,
                (false, _) => failures + 1,
            };
            tokio::time::sleep(self.pause(failures, &trouble, Some(&host))).await;
        }
    }

    /// Notes that control is connected.
    fn connected(&self, host: &Host) {
        self.metrics.control_connected(true);
        if self.memory.lock().standing.replace(Ok(())) != Some(Ok(())) {
            tracing::info!(control = %self.config.control.host, "control is connected");
        }
        self.tell(host);
    }

    /// Tells the process what is wrong, if anything is.
    fn tell(&self, host: &Host) {
        let memory = self.memory.lock();
        let apart = memory.standing.as_ref().and_then(|it| it.as_ref().err());
        let apart = apart.map(|it| format!("control is not connected: {it}"));
        let trouble = apart.or_else(|| memory.error());
        drop(memory);
        (host.on_trouble)(trouble);
    }

    /// Notes why control is not connected, and says whether it was; what is known is not
    /// logged again.
    fn disconnected(&self, trouble: &Trouble) -> bool {
        self.metrics.control_connected(false);
        let words = trouble.words();
        let standing = Err(words.clone());
        let before = self.memory.lock().standing.replace(standing.clone());
        let was_connected = before == Some(Ok(()));
        if before != Some(standing) {
            let control = &self.config.control.host;
            tracing::warn!(%control, error = %words, "control is not connected");
        }
        was_connected
    }
}

/// Makes the folders that are not there, for nobody else to look into. Those below the state
/// folder, which others may be able to write to, must be ours: who made them could have put
/// roots there.
fn open(config: &Config) -> Result<(), Error> {
    let state = &config.state;
    let make = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
    let private = |path: PathBuf| {
        let ours = make(&path).and_then(|()| {
            if fs::symlink_metadata(&path)?.is_symlink() {
                return Err(io::Error::other("it is a link, and should be a folder"));
            }
            // Only the owner may.
            fs::set_permissions(&path, Permissions::from_mode(0o700))
        });
        ours.map_err(|source| Error::State { path, source })
    };
    make(state).map_err(|source| Error::State { path: state.clone(), source })?;
    if config.source == Source::Control {
        private(identity_folder(state))?;
    }
    let policy = policy_folder(state);
    private(policy.clone())?;
    folder::clear(&policy).map_err(|source| Error::State { path: policy, source })
}

/// Where the certificate is in a state folder.
pub fn identity_folder(state: &Path) -> PathBuf {
    state.join(IDENTITY)
}

/// Where policy is in a state folder.
pub fn policy_folder(state: &Path) -> PathBuf {
    state.join(POLICY)
}

#[cfg(test)]
mod tests;
