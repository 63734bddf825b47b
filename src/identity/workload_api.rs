//! Workload API: the SVID that an agent of SPIFFE gives this process, as files.
//!
//! The agent (SPIRE's, say) knows who we are by looking at the process behind the socket,
//! makes the key itself, and sends a new SVID well before the old one ends. What it sends
//! is written into a folder that [`super::Identity`] watches, by one swap, once the very
//! code that will read it has found it good. So a sidecar goes on with the last good SVID
//! while the agent is gone, over its own restart too, and no code but this knows of agents.
//!
//! | what the agent does | what happens |
//! |---|---|
//! | sends an SVID, at once or later | it is written, unless it is the one in the folder |
//! | sends several | the first counts: the standard's default; hints are not looked at |
//! | sends roots of foreign trust domains | they are passed over: peers are of our own |
//! | is not there, goes away, says nothing | asked again, after a wait that grows |
//! | denies (`PermissionDenied`), even after giving one | the same: the last good is kept |
//!
//! To go on after a denial is a choice. The standard would have us cease; but an agent
//! denies, too, while it has not heard of its registrations yet, and an SVID lives for an
//! hour: whoever is to be cut off is so by its end.
//!
//! What the connection carries is bounded, and so is every wait: for a first answer and for
//! the rest of one that has begun by a deadline, for the next one by the pings of HTTP/2.
//!
//! # Sources
//!
//! - SPIFFE Workload API, sections 4 and 5, and Workload Endpoint, sections 4 and 6:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>
//! - gRPC over HTTP/2: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

mod answer;
mod call;
mod error;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use remora_certs::{
    folder::{self, File},
    spiffe_id::SpiffeId,
};
use tokio::time;

pub use self::error::Error;
use self::{answer::Files, call::Call};
use crate::clock;

/// Bound of the wait before a second try, and the most it grows to: as SPIFFE's own
/// libraries have it.
pub const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What [`follow`] tells its caller; each is one change of state.
#[derive(Clone, Debug)]
pub enum Event {
    /// An SVID that is new to the folder is in it.
    Written {
        /// Whose it is.
        id: SpiffeId,
        /// When its leaf ends, since the Unix epoch.
        not_after: Duration,
    },
    /// The agent gives nothing usable; what is in the folder stays.
    Lost {
        /// Why.
        error: Arc<Error>,
    },
    /// The agent is back, with the SVID that is in the folder.
    Restored,
}

/// How long an agent may take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// To accept a connection.
    connect: Duration,
    /// To answer, and to send the rest of an answer.
    answer: Duration,
    /// How often to ask a connection that says nothing whether it lives: servers of Go end
    /// connections that ask more often than every five minutes.
    ping: Duration,
}

const PACE: Pace = Pace {
    connect: Duration::from_secs(5),
    answer: Duration::from_secs(15),
    ping: Duration::from_mins(6),
};

/// Keeps the SVID that the agent behind `socket` gives in `folder`, until dropped.
///
/// `wait` says how long to wait after so many failures in a row, from 1; [`RETRY`] has
/// bounds for it. Makes the folder at once, so that it can be watched.
///
/// # Cancel safety
///
/// Safe: files change by one swap.
pub async fn follow(
    socket: PathBuf,
    folder: PathBuf,
    wait: impl FnMut(u32) -> Duration + Send,
    on_event: impl Fn(&Event) + Send,
) {
    let follower = Follower { socket, folder, pace: PACE, on_event, in_folder: None, lost: None };
    follower.run(wait).await;
}

struct Follower<F> {
    socket: PathBuf,
    folder: PathBuf,
    pace: Pace,
    on_event: F,
    /// What was written, to tell whether an SVID is another one.
    in_folder: Option<u64>,
    /// Why nothing usable comes, as it was told.
    lost: Option<String>,
}

impl<F: Fn(&Event) + Send> Follower<F> {
    async fn run(mut self, mut wait: impl FnMut(u32) -> Duration + Send) {
        let mut failures = 0;
        loop {
            let error = match make(&self.folder) {
                Ok(()) => Box::pin(self.session(&mut failures)).await,
                Err(error) => error.into(),
            };
            self.lose(error);
            failures += 1;
            time::sleep(wait(failures)).await;
        }
    }

    /// Takes what one call gives until it ends, which it does with an error only.
    async fn session(&mut self, failures: &mut u32) -> Error {
        let mut call = match Call::begin(&self.socket, self.pace).await {
            Ok(call) => call,
            Err(error) => return error,
        };
        let mut deadline = Some(self.pace.answer);
        loop {
            let taken = match call.next(deadline.take()).await {
                Ok(message) => self.take(&message),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                return error;
            }
            *failures = 0;
        }
    }

    /// Writes what an answer holds, unless it is there already.
    fn take(&mut self, message: &[u8]) -> Result<(), Error> {
        let now = clock::wall();
        let files = Files::of(message, now)?;
        if self.in_folder == Some(files.fingerprint) {
            if self.lost.take().is_some() {
                (self.on_event)(&Event::Restored);
            }
            return Ok(());
        }
        let [chain, key, roots] = &files.contents;
        let file = |name, content, secret| File { name, content, secret };
        let set = [
            file("tls.crt", chain, false),
            file("tls.key", key, true),
            file("ca.crt", roots, false),
        ];
        folder::replace(&self.folder, &set, now)?;
        self.in_folder = Some(files.fingerprint);
        self.lost = None;
        (self.on_event)(&Event::Written { id: files.id, not_after: files.not_after });
        Ok(())
    }

    /// Tells of a failure when it begins, and when it becomes another.
    fn lose(&mut self, error: Error) {
        let text = error.to_string();
        if self.lost.as_ref() != Some(&text) {
            self.lost = Some(text);
            (self.on_event)(&Event::Lost { error: Arc::new(error) });
        }
    }
}

fn make(folder: &Path) -> Result<(), folder::Error> {
    folder::create_dir(folder, 0o755, true)
}
