//! Replay: a request's body that can be sent again, while it is being sent.
//!
//! The frames go to the first try as they come, and a copy of the first [`KEPT_MAX`] bytes
//! is kept: references to the same buffers, so that nothing is copied. A longer body is
//! not held up or refused, it merely can't be sent again any more.
//!
//! Each try has a [`View`] of the body: what was kept first, then what is still to come.
//! There is one that lives. One of an earlier try breaks off, so that a try given up late
//! can't take frames from the one that replaced it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::{Body, Error};

/// Bytes of one body that are kept: it is multiplied by all requests under way.
pub const KEPT_MAX: usize = 64 * 1024;

/// Frames of one body that are kept: however short one is, it can hold on to all of the
/// buffer that it was read into.
const FRAMES_MAX: usize = 64;

/// A body that can be sent again, until this is dropped.
#[derive(Debug)]
pub struct Replay(Arc<Mutex<State>>);

/// The body of one try.
#[derive(Debug)]
pub struct View {
    state: Arc<Mutex<State>>,
    number: u32,
}

#[derive(Debug)]
struct State {
    original: Body,
    /// Whether the original says how long it is.
    exact: bool,
    origin: Origin,
    /// Whether another view may be asked for.
    wanted: bool,
    /// What came so far, from the first frame on, while that is kept.
    kept: Option<Kept>,
    /// Which view lives.
    live: u32,
    /// How many of the kept frames that has taken.
    taken: usize,
    /// Who waits for the next frame.
    waiting: Option<Waker>,
}

/// How far the original is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It may have more.
    Flows,
    /// Its last frame was taken from it.
    Ended,
    /// The client went away.
    Broken,
}

#[derive(Debug, Default)]
struct Kept {
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
}

impl Replay {
    /// Makes `body` the first view of one that can be sent again.
    ///
    /// `None`, and the body as it was, where there is none to send, or one that says of
    /// itself that it is too long.
    pub fn keep(body: &mut Body) -> Option<Self> {
        let hint = body.size_hint();
        if body.is_end_stream() || (KEPT_MAX as u64) < hint.lower() {
            return None;
        }
        let state = State {
            exact: hint.exact().is_some(),
            original: std::mem::take(body),
            origin: Origin::Flows,
            wanted: true,
            kept: Some(Kept::default()),
            live: 0,
            taken: 0,
            waiting: None,
        };
        let state = Arc::new(Mutex::new(state));
        *body = Body::Replayed(View { state: Arc::clone(&state), number: 0 });
        Some(Self(state))
    }

    /// The body for another try, from its first byte on; `None` where it is not at hand.
    /// The views before it break off.
    pub fn body(&self) -> Option<Body> {
        let mut state = self.0.lock();
        if !state.is_at_hand() {
            return None;
        }
        state.live += 1;
        state.taken = 0;
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        Some(Body::Replayed(View { state: Arc::clone(&self.0), number: state.live }))
    }

    /// Whether the body can be sent from its first byte on.
    pub fn is_at_hand(&self) -> bool {
        self.0.lock().is_at_hand()
    }

    /// Whether no try has been given any of the body.
    pub fn is_untouched(&self) -> bool {
        let state = self.0.lock();
        let none = state.kept.as_ref().is_some_and(|it| it.frames() == 0);
        none && state.origin == Origin::Flows
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.wanted = false;
        state.forget();
    }
}

impl State {
    fn is_at_hand(&self) -> bool {
        self.kept.is_some() && self.origin != Origin::Broken
    }

    /// Frames that the live view has still to take before those to come.
    fn behind(&self) -> usize {
        self.kept.as_ref().map_or(0, |it| it.frames() - self.taken)
    }

    /// Drops what was kept once nobody wants it.
    fn forget(&mut self) {
        if !self.wanted && self.behind() == 0 {
            self.kept = None;
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if 0 < self.behind() {
            let frame = self.kept.as_ref().and_then(|it| it.frame(self.taken));
            self.taken += 1;
            self.forget();
            return Poll::Ready(frame.map(Ok));
        }
        if self.origin == Origin::Ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.original).poll_frame(cx);
        if polled.is_pending() {
            match &mut self.waiting {
                Some(waiting) => waiting.clone_from(cx.waker()),
                None => self.waiting = Some(cx.waker().clone()),
            }
        }
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => self.keep(frame),
            Some(Err(_)) => self.origin = Origin::Broken,
            None => self.origin = Origin::Ended,
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if frame.is_trailers() {
            self.origin = Origin::Ended;
        }
        let Some(kept) = &mut self.kept else { return };
        if kept.push(frame) {
            self.taken += 1;
        } else {
            self.kept = None;
        }
    }
}

impl Kept {
    /// Keeps one frame more, if there is room.
    fn push(&mut self, frame: &Frame<Bytes>) -> bool {
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            if KEPT_MAX < self.bytes || self.data.len() == FRAMES_MAX {
                return false;
            }
            self.data.push(data.clone());
        } else {
            self.trailers = frame.trailers_ref().cloned();
        }
        true
    }

    fn frames(&self) -> usize {
        self.data.len() + usize::from(self.trailers.is_some())
    }

    fn frame(&self, at: usize) -> Option<Frame<Bytes>> {
        match self.data.get(at) {
            Some(data) => Some(Frame::data(data.clone())),
            None => self.trailers.clone().map(Frame::trailers),
        }
    }
}

impl http_body::Body for View {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.state.lock();
        if state.live != self.number {
            return Poll::Ready(Some(Err(Error::Replaced)));
        }
        state.next(cx)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.lock();
        let ended = state.origin == Origin::Ended || state.original.is_end_stream();
        state.live == self.number && ended && state.behind() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let replayed = state.kept.as_ref().map_or(0, |it| it.bytes_from(state.taken));
        if state.exact
            && let Some(left) = state.original.size_hint().exact()
        {
            return SizeHint::with_exact(replayed + left);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(replayed);
        hint
    }
}

impl Kept {
    /// Bytes of the frames from `at` on.
    fn bytes_from(&self, at: usize) -> u64 {
        self.data.iter().skip(at).map(|it| it.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests;
