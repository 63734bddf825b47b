//! Deadline: a call has its answer's head in time, or fails.
//!
//! The time ends at the head, tries and dials included; what comes after is bounded by the
//! idle time of the body.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{Layer, Service};

use super::{
    context::{Answer, Call, Refusal, Underway},
    failure::Failure,
};

/// Bounds the calls of the service below by [`Facts::timeout`](super::context::Facts).
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

/// A service whose calls end in time.
#[derive(Clone, Debug)]
pub struct Deadline<S>(S);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

impl<S> Service<Box<Call>> for Deadline<S>
where
    S: Service<Box<Call>, Response = Answer, Error = Refusal>,
    S::Future: Underway,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Bounded<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Box<Call>) -> Self::Future {
        let timer = call.facts.timeout.map(tokio::time::sleep);
        Bounded { inner: self.0.call(call), timer }
    }
}

pin_project! {
    /// A call with an end.
    #[derive(Debug)]
    pub struct Bounded<F> {
        #[pin]
        inner: F,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<F> Future for Bounded<F>
where
    F: Future<Output = Result<Answer, Refusal>> + Underway,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(answered) = this.inner.as_mut().poll(cx) {
            return Poll::Ready(answered);
        }
        let expired = this.timer.as_pin_mut().is_some_and(|it| it.poll(cx).is_ready());
        if !expired {
            return Poll::Pending;
        }
        let trail = this.inner.trail();
        Poll::Ready(Err(Refusal { failure: Failure::RequestTimeout, trail }))
    }
}
