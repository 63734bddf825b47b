//! Body: the bytes of a message on their way through, one type whatever carried them.
//!
//! Nothing is collected: a frame is asked for when the other side has room for it, which
//! is what makes back-pressure work and memory bounded.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{h1, h2, replay};

/// A message's body.
#[derive(Debug, Default)]
pub enum Body {
    /// No bytes at all.
    #[default]
    Empty,
    /// All of it, made here.
    Full(Bytes),
    /// What a client sends us.
    Client(Upload),
    /// An answer whose connection is driven elsewhere.
    Upstream(Incoming),
    /// A client's bytes that wait until the upstream asks for them.
    Held(Box<h1::Held>),
    /// A client's bytes that may be sent again.
    Replayed(replay::View),
    /// An answer over HTTP/1.
    H1(h1::Answer),
    /// An answer over HTTP/2.
    H2(h2::Answer),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client went away or broke its framing.
    #[error("the client's body broke off")]
    Client(#[source] hyper::Error),
    /// The upstream did, over HTTP/1.
    #[error("the upstream's body broke off")]
    H1(#[source] hyper::Error),
    /// The upstream did, over HTTP/2.
    #[error("the upstream reset the stream")]
    H2(#[source] ::h2::Error),
    /// Another try sends it now.
    #[error("the body is being sent again elsewhere")]
    Replaced,
    /// Nothing came for longer than the policy allows.
    #[error("the body was idle for too long")]
    Idle,
}

/// What a client sends us, frame by frame in time.
#[derive(Debug)]
pub struct Upload {
    incoming: Incoming,
    patience: Patience,
    read: Arc<AtomicU64>,
}

/// How many bytes of an upload have been read so far; of a request without a body, none.
#[derive(Clone, Debug, Default)]
pub struct Count(Option<Arc<AtomicU64>>);

impl Count {
    /// The bytes.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |it| it.load(Ordering::Relaxed))
    }
}

impl Body {
    /// The body of a client's request, whose frames are at most `idle` apart.
    pub fn from_client(incoming: Incoming, idle: Option<Duration>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Client(Upload { incoming, patience: Patience::new(idle), read: Arc::default() })
    }

    /// How many bytes of it will have been read, where a client sends them.
    pub fn count(&self) -> Count {
        match self {
            Self::Client(upload) => Count(Some(Arc::clone(&upload.read))),
            Self::Empty
            | Self::Full(_)
            | Self::Upstream(_)
            | Self::Held(_)
            | Self::H1(_)
            | Self::H2(_)
            | Self::Replayed(_) => Count::default(),
        }
    }

    /// The body of an answer whose connection is driven elsewhere.
    pub fn from_upstream(incoming: Incoming) -> Self {
        Self::Upstream(incoming)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            this.read.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        let polled = polled.map(|it| it.map(|it| it.map_err(Error::Client)));
        this.patience.with(cx, polled, || Some(Err(Error::Idle)))
    }
}

/// How long the next frame of a body may take; no timer runs while frames come.
#[derive(Debug)]
pub struct Patience {
    idle: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Patience of `idle` for each frame; endless where there is none.
    pub fn new(idle: Option<Duration>) -> Self {
        Self { idle, timer: None }
    }

    /// `polled`, or `expired()` where it has been pending for too long.
    pub fn with<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<T>,
        expired: impl FnOnce() -> T,
    ) -> Poll<T> {
        let (Poll::Pending, Some(idle)) = (&polled, self.idle) else {
            self.timer = None;
            return polled;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        timer.as_mut().poll(cx).map(|()| expired())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => {
                let Self::Full(bytes) = std::mem::take(this) else { return Poll::Ready(None) };
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Client(upload) => Pin::new(upload).poll_frame(cx),
            Self::Upstream(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|it| it.map(|it| it.map_err(Error::H1)))
            }
            Self::Held(held) => Pin::new(held).poll_frame(cx),
            Self::Replayed(view) => Pin::new(view).poll_frame(cx),
            Self::H1(answer) => Pin::new(answer).poll_frame(cx),
            Self::H2(answer) => Pin::new(answer).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Client(upload) => upload.incoming.is_end_stream(),
            Self::Upstream(incoming) => incoming.is_end_stream(),
            Self::Held(held) => held.is_end_stream(),
            Self::Replayed(view) => view.is_end_stream(),
            Self::H1(answer) => answer.is_end_stream(),
            Self::H2(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Client(upload) => upload.incoming.size_hint(),
            Self::Upstream(incoming) => incoming.size_hint(),
            Self::Held(held) => held.size_hint(),
            Self::Replayed(view) => view.size_hint(),
            Self::H1(answer) => answer.size_hint(),
            Self::H2(answer) => answer.size_hint(),
        }
    }
}
