//! Drain: every task is named, and a shutdown waits for the work in hand.
//!
//! A process says first that it is going to leave ([`Drain::announce`]), so that no new
//! callers are sent here, and begins to drain later ([`Drain::begin`]). From then on listeners answer
//! `Connection: close` and GOAWAY, and the process leaves when nothing is in flight
//! ([`Drain::idle`]) or its grace ends.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

/// The bits of [`State::work`] that count what is in flight.
const IN_FLIGHT: u64 = u32::MAX as u64;

/// What one more piece of work adds to it.
const ONE_MORE: u64 = (1 << 32) + 1;

/// Spawns `future` on the current runtime.
///
/// `name` says what the task is for, where it is started. What a shutdown has to wait for
/// holds an [`InFlight`].
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let _ = name;
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    tokio::spawn(future)
}

/// The state of the shutdown, shared by everything that must know.
#[derive(Clone, Debug)]
pub struct Drain {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    announced: AtomicBool,
    parting: AtomicBool,
    /// What `begun` holds, to be read without its lock.
    draining: AtomicBool,
    begun: watch::Sender<bool>,
    /// Pieces of work: those in flight in the lower half, all there were in the upper one.
    work: AtomicU64,
    /// Told when the last piece of work has gone.
    idle: Notify,
}

/// Waits for a drain to begin, for a task that is polled often for other reasons.
pub struct Notice {
    drain: Drain,
    begun: Pin<Box<dyn Future<Output = ()> + Send>>,
    asked: bool,
}

impl Notice {
    /// Whether the drain has begun; wakes the task when it does. To be asked by one task.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if std::mem::replace(&mut self.asked, true) && !self.drain.is_draining() {
            return false;
        }
        self.begun.as_mut().poll(cx).is_ready()
    }
}

impl std::fmt::Debug for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notice").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// One piece of work that a drain waits for. Dropping it ends it.
#[derive(Debug)]
pub struct InFlight {
    state: Arc<State>,
}

impl Drain {
    /// A process that is not draining and does nothing yet.
    #[expect(clippy::new_without_default, reason = "a process has one, made on purpose")]
    pub fn new() -> Self {
        Self {
            state: Arc::new(State {
                announced: AtomicBool::new(false),
                parting: AtomicBool::new(false),
                draining: AtomicBool::new(false),
                begun: watch::Sender::new(false),
                work: AtomicU64::new(0),
                idle: Notify::new(),
            }),
        }
    }

    /// Asks clients to go elsewhere with their next request, while this process still takes
    /// one that comes: a connection that is closed when it looks idle may have a request on
    /// its way.
    pub fn part(&self) {
        self.state.parting.store(true, Ordering::Release);
    }

    /// Whether clients are to go elsewhere with their next request.
    pub fn is_parting(&self) -> bool {
        self.state.parting.load(Ordering::Acquire)
    }

    /// Says that the process is going to leave, and asks clients to.
    pub fn announce(&self) {
        self.part();
        self.state.announced.store(true, Ordering::Release);
    }

    /// Whether the process is going to leave.
    pub fn is_leaving(&self) -> bool {
        self.state.announced.load(Ordering::Acquire) || self.is_draining()
    }

    /// Begins the drain; later calls change nothing.
    pub fn begin(&self) {
        self.state.draining.store(true, Ordering::Release);
        self.state.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Acquire)
    }

    /// Resolves when the drain begins.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn begun(&self) {
        // The sender lives in `self`, so the wait ends only with the value.
        let _ended = self.state.begun.subscribe().wait_for(|begun| *begun).await.is_ok();
    }

    /// A wait for the drain's beginning that costs next to nothing to ask again.
    pub fn notice(&self) -> Notice {
        let drain = self.clone();
        Notice {
            drain: self.clone(),
            begun: Box::pin(async move { drain.begun().await }),
            asked: false,
        }
    }

    /// Registers one piece of work.
    pub fn in_flight(&self) -> InFlight {
        // It wraps: only whether it has changed is ever asked.
        self.state.work.fetch_add(ONE_MORE, Ordering::AcqRel);
        InFlight { state: Arc::clone(&self.state) }
    }

    /// Resolves when no work is in flight.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn idle(&self) {
        loop {
            let mut told = std::pin::pin!(self.state.idle.notified());
            // Registered before the count is read, or a last drop between the two is missed.
            told.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            told.await;
        }
    }

    /// Resolves when no work has been in flight, nor begun, for as long as `settle`.
    ///
    /// Work that has just ended may not have told its client yet, and a client that has not
    /// been told to leave yet may have more of it on its way.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost.
    pub async fn settled(&self, settle: Duration) {
        loop {
            self.idle().await;
            let before = self.state.work.load(Ordering::Acquire);
            tokio::time::sleep(settle).await;
            if before & IN_FLIGHT == 0 && self.state.work.load(Ordering::Acquire) == before {
                return;
            }
        }
    }

    /// How many pieces of work are in flight.
    pub fn count(&self) -> u64 {
        self.state.work.load(Ordering::Acquire) & IN_FLIGHT
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.state.work.fetch_sub(1, Ordering::AcqRel) & IN_FLIGHT == 1 {
            self.state.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn idle_waits_for_the_last_piece_of_work() {
        let drain = Drain::new();
        let (first, second) = (drain.in_flight(), drain.in_flight());
        drop(first);
        let waiting = tokio::time::timeout(Duration::from_millis(5), drain.idle());
        assert!(waiting.await.is_err());
        drop(second);
        drain.idle().await;
    }

    #[tokio::test]
    async fn what_ends_and_begins_again_is_not_settled() {
        const SETTLE: Duration = Duration::from_millis(50);
        let drain = Drain::new();
        let working = async {
            let mut now_and_then = tokio::time::interval(SETTLE / 5);
            for _ in 0..10 {
                now_and_then.tick().await;
                drop(drain.in_flight());
            }
            clock::now()
        };
        let settled = async {
            drain.settled(SETTLE).await;
            clock::now()
        };
        let (ended, settled) = tokio::join!(working, settled);
        assert!(SETTLE <= settled - ended, "{:?}", settled.checked_duration_since(ended));
    }

    #[tokio::test]
    async fn a_drain_begins_once_and_for_all() {
        let drain = Drain::new();
        assert!(!drain.is_draining());
        drain.clone().begin();
        drain.begin();
        drain.begun().await;
        assert!(drain.is_draining());
    }
}
