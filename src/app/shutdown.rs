//! Shutdown: from the signal to the last request.
//!
//! SIGTERM: not ready at once, so that no new caller is sent here; accept for the lame-duck
//! time, because callers learn late; then answer with `Connection: close` and GOAWAY, and
//! leave when nothing is in flight, or [`MARGIN`] before the grace ends. SIGINT leaves at
//! once. SIGQUIT hands the listeners to a successor.

use std::time::Duration;

use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};

use crate::drain::Drain;

/// How long before the grace ends the process leaves by itself: being killed loses the logs.
const MARGIN: Duration = Duration::from_secs(5);

/// How long nothing must be in flight nor begin: a caller's next request may be on its way.
const SETTLE: Duration = Duration::from_millis(250);

/// Waits for a signal, and for what follows from it.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// What is in flight.
    pub drain: Drain,
    /// The longest all of it takes.
    pub grace: Duration,
    /// How long connections are still accepted.
    pub lame_duck: Duration,
}

impl Shutdown {
    async fn terminate(&self) {
        tracing::info!(in_flight = self.drain.count(), "draining");
        self.drain.announce();
        tokio::time::sleep(self.lame_duck).await;
        self.drain.begin();
        let left = self.grace.saturating_sub(self.lame_duck).saturating_sub(MARGIN);
        let quiet = self.drain.settled(SETTLE);
        let drained = tokio::time::timeout(left.max(SETTLE * 2), quiet).await.is_ok();
        tracing::info!(drained, in_flight = self.drain.count(), "leaving");
    }
}

#[async_trait::async_trait]
impl ShutdownSignalWatch for Shutdown {
    async fn recv(&self) -> ShutdownSignal {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
        );
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut quit)) = signals else {
            tracing::error!("signals cannot be watched; leaving");
            return ShutdownSignal::FastShutdown;
        };
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            _ = quit.recv() => {
                self.drain.part();
                return ShutdownSignal::GracefulUpgrade;
            }
        }
        // A second signal means now.
        tokio::select! {
            () = self.terminate() => (),
            _ = interrupt.recv() => (),
        }
        ShutdownSignal::FastShutdown
    }
}
