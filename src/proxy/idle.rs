//! Idle: what a client's HTTP/1 connection does while nothing happens on it.
//!
//! Looked at every [`PARK`], and at no other time: a connection may be between requests (and
//! be parked), in the middle of a head it does not finish, or left by a client that still
//! waits for an answer as far as TCP can tell. A client may end its side after its request
//! and read on (half-close), or may have gone: both look the same. It is answered if the
//! answer comes soon.

use std::{os::fd::RawFd, pin::Pin, sync::atomic::Ordering, task::Context, time::Duration};

use tokio::time::Sleep;

use super::handle::Client;
use crate::transport::stream::has_ended;

/// After how long without a request a connection is parked: between once and twice this.
pub(super) const PARK: Duration = Duration::from_millis(500);

/// How long a client may take over one head.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client that has ended its side and takes no bytes is still waited for.
const FAREWELL: Duration = Duration::from_secs(2);

/// What there is to do about a connection on which nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It is between two requests.
    Between,
    /// Its client does not finish a head.
    Stalled,
    /// Its client ended its side a while ago, and has no answer yet.
    Left,
}

/// Looks every now and then at what a connection does, and otherwise costs nothing.
#[derive(Debug)]
pub(super) struct Idle {
    socket: RawFd,
    timer: Pin<Box<Sleep>>,
    asked: bool,
    served: usize,
    stalled: Duration,
    left: Duration,
}

impl Idle {
    /// Looks at the connection of `socket`, which has to stay open for as long.
    pub(super) fn new(socket: RawFd) -> Self {
        let timer = Box::pin(tokio::time::sleep(PARK));
        let (stalled, left) = (Duration::ZERO, Duration::ZERO);
        Self { socket, timer, asked: false, served: usize::MAX, stalled, left }
    }

    /// What there is to do, if anything; wakes the task when it is time to ask again.
    pub(super) fn poll(&mut self, client: &Client, cx: &mut Context<'_>) -> Option<Quiet> {
        let served = client.served.load(Ordering::Relaxed);
        let open = client.open.load(Ordering::Relaxed) > 0;
        let busy = open || served != self.served;
        if std::mem::replace(&mut self.asked, true) && busy && !self.timer.is_elapsed() {
            // The timer keeps this task's waker: it need not be told again.
            return None;
        }
        let mut quiet = None;
        while self.timer.as_mut().poll(cx).is_ready() {
            self.timer.set(tokio::time::sleep(PARK));
            self.served = served;
            let between = client.flags.is_between();
            // The end of an answer may wait for a slow reader: that is not the head's fault.
            let stalls = !busy && !between && !client.flags.is_blocked();
            self.stalled = if stalls { self.stalled + PARK } else { Duration::ZERO };
            // hyper, which honours half-closes, does not read while a request is open.
            let waits = open && !client.flags.has_moved();
            self.left =
                if waits && has_ended(self.socket) { self.left + PARK } else { Duration::ZERO };
            if !busy && between {
                quiet = Some(Quiet::Between);
            } else if self.stalled >= HEAD_PATIENCE {
                quiet = Some(Quiet::Stalled);
            } else if self.left >= FAREWELL {
                quiet = Some(Quiet::Left);
            }
        }
        quiet
    }
}
