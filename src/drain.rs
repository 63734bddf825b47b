//! Drain: every task is named and counted, and a shutdown waits for the work in hand.
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
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Context,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

/// Tasks that are running, of all names.
static TASKS: AtomicUsize = AtomicUsize::new(0);

/// Spawns `future` on the current runtime, counted until it ends.
///
/// `name` says what the task is for in a debugger and in panics.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let _ = name;
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    tokio::spawn(async move {
        let _counted = Counted::new(&TASKS);
        future.await
    })
}

/// How many tasks are running.
pub fn tasks() -> usize {
    TASKS.load(Ordering::Relaxed)
}

struct Counted(&'static AtomicUsize);

impl Counted {
    fn new(count: &'static AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
    in_flight: AtomicUsize,
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
                in_flight: AtomicUsize::new(0),
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
        self.state.in_flight.fetch_add(1, Ordering::AcqRel);
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

    /// How many pieces of work are in flight.
    pub fn count(&self) -> usize {
        self.state.in_flight.load(Ordering::Acquire)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.state.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
    async fn a_drain_begins_once_and_for_all() {
        let drain = Drain::new();
        assert!(!drain.is_draining());
        drain.clone().begin();
        drain.begin();
        drain.begun().await;
        assert!(drain.is_draining());
    }
}
