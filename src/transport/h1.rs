//! HTTP/1 client connection: one request at a time, driven by the task that sent it.
//!
//! hyper splits a client connection into a handle and a driver that is usually spawned.
//! Here both are polled by the request's own task: no wake-up between two tasks for each
//! request, no task for each idle connection. An idle connection is not polled; whether
//! its peer has closed it is asked when it is about to be used ([`H1::is_usable`]).

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::{
    body::{Body, Error},
    stream::Stream,
};
use crate::drain;

/// How long an idle connection is kept until the upstream says how long it keeps one: less
/// than what servers commonly do, so that a request hardly ever meets a connection that is
/// just being closed.
pub const IDLE: Duration = Duration::from_secs(3);

/// The longest response head taken from an upstream.
const HEAD_MAX: usize = 128 * 1024;

/// The longest a request with an expectation waits for the upstream's word.
const EXPECTATION: Duration = Duration::from_secs(1);

/// Takes connections back that can carry another request.
pub trait Home: Send + Sync + std::fmt::Debug {
    /// Takes `connection` back.
    fn put(&self, connection: Box<H1>);
}

/// A client connection.
#[derive(Debug)]
pub struct H1 {
    send: SendRequest<Body>,
    driver: Pin<Box<Connection<TokioIo<Stream>, Body>>>,
    /// Until when it may idle, once it does.
    pub idle_until: Instant,
    idle: Duration,
    /// Whether it has carried a request before.
    pub used: bool,
    /// Which identity it was made with; 0 for plaintext.
    pub generation: u64,
    /// Where it goes when it can carry another request.
    home: Arc<dyn Home>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub source: hyper::Error,
    /// The request, when none of it was sent.
    pub unsent: Option<Box<Request<Body>>>,
}

impl H1 {
    /// A connection over `stream`, made with the identity of `generation`. It goes to `home`
    /// whenever an answer's body has ended and it can carry another request.
    ///
    /// # Errors
    ///
    /// None in practice: HTTP/1 has no handshake.
    pub async fn new(
        mut stream: Stream,
        generation: u64,
        home: Arc<dyn Home>,
        now: Instant,
    ) -> hyper::Result<Self> {
        // RFC 9112, section 9.5: an upstream may answer an upload early, and close.
        if let Stream::Plain(wire) = &mut stream {
            wire.forgive();
        }
        let (send, driver) =
            Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await?;
        let driver = Box::pin(driver);
        Ok(Self { send, driver, idle_until: now, idle: IDLE, used: false, generation, home })
    }

    /// Whether the connection can carry a request: still open, as far as is known here.
    pub fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut cx).is_pending() && self.send.is_ready()
    }

    /// Sends `request` and waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// [`SendError`], with the request where the upstream can't have seen any of it.
    ///
    /// # Cancel safety
    ///
    /// The connection is closed; the upstream may have seen the request.
    pub async fn send(
        mut self: Box<Self>,
        request: Request<Body>,
        now: Instant,
    ) -> Result<Response<Body>, SendError> {
        let Self { send, driver, .. } = &mut *self;
        let mut answer = std::pin::pin!(send.try_send_request(request));
        let answered = poll_fn(|cx| {
            // The driver's end is told to the other half, so its own result says no more.
            let ended = driver.as_mut().poll(cx).is_ready();
            let answered = answer.as_mut().poll(cx);
            if ended && answered.is_pending() { answer.as_mut().poll(cx) } else { answered }
        });
        let response = answered.await.map_err(|mut error| SendError {
            unsent: error.take_message().map(Box::new),
            source: error.into_error(),
        })?;
        self.used = true;
        self.learn(&response);
        self.idle_until = now + self.idle;
        let (head, incoming) = response.into_parts();
        let mut answer = Answer { incoming, carrier: Some(self) };
        if answer.is_end_stream() {
            poll_fn(|cx| {
                answer.settle(cx);
                Poll::Ready(())
            })
            .await;
            return Ok(Response::from_parts(head, Body::Empty));
        }
        Ok(Response::from_parts(head, Body::H1(answer)))
    }

    /// Learns how long the upstream keeps an idle connection: four fifths of what it says
    /// (RFC 2068, section 19.7.1; `Keep-Alive: timeout=SECONDS`).
    fn learn<B>(&mut self, response: &Response<B>) {
        let Some(value) = response.headers().get("keep-alive") else { return };
        let seconds = value.to_str().ok().and_then(|it| {
            it.split(',').find_map(|it| it.trim().strip_prefix("timeout=")?.parse::<u32>().ok())
        });
        if let Some(seconds) = seconds {
            self.idle = Duration::from_secs(u64::from(seconds.min(600))) * 4 / 5;
        }
    }
}

/// The body of an answer, which drives the connection it comes from.
#[derive(Debug)]
pub struct Answer {
    incoming: Incoming,
    carrier: Option<Box<H1>>,
}

impl Answer {
    /// Gives the connection back if it can carry another request, or else closes it.
    fn settle(&mut self, cx: &mut Context<'_>) {
        let Some(mut connection) = self.carrier.take() else { return };
        let ready = connection.send.is_ready();
        if ready || connection.driver.as_mut().poll(cx).is_pending() && connection.send.is_ready() {
            let home = Arc::clone(&connection.home);
            home.put(connection);
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.carrier
            && connection.driver.as_mut().poll(cx).is_ready()
        {
            self.carrier = None;
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending() {
            this.drive(cx);
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Ready(Some(Err(_))) => this.carrier = None,
            Poll::Ready(None) => this.settle(cx),
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.settle(cx),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => (),
        }
        polled.map(|it| it.map(|it| it.map_err(Error::H1)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A request's body that the upstream has to ask for (RFC 9110, section 10.1.1).
///
/// It begins to flow when the upstream sends 100, or after [`EXPECTATION`]: a server that
/// does not know expectations must not hang the request.
pub struct Held {
    body: Body,
    asked: Pin<Box<dyn Future<Output = ()> + Send>>,
    open: bool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("body", &self.body)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Holds the body of `request` until its upstream asks for it.
    pub fn hold(request: &mut Request<Body>) {
        let (tell, mut told) = watch::channel(false);
        let body = std::mem::take(request.body_mut());
        let asked = Box::pin(async move {
            let asked = told.wait_for(|asked| *asked);
            let _asked_or_not = tokio::time::timeout(EXPECTATION, asked).await.is_ok();
        });
        *request.body_mut() = Body::Held(Box::new(Self { body, asked, open: false }));
        hyper::ext::on_informational(request, move |response| {
            if response.status() == http::StatusCode::CONTINUE {
                tell.send_replace(true);
            }
        });
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if !this.open {
            std::task::ready!(this.asked.as_mut().poll(cx));
            this.open = true;
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sends a request that may switch protocols, on a connection of its own.
///
/// The driver runs in a task, because the connection outlives the exchange.
///
/// # Errors
///
/// As [`H1::send`].
///
/// # Cancel safety
///
/// As [`H1::send`].
pub async fn send_switching(
    stream: Stream,
    request: Request<Body>,
) -> Result<Response<Incoming>, SendError> {
    let made = Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut send, driver) = match made {
        Ok(made) => made,
        Err(source) => return Err(SendError { source, unsent: Some(Box::new(request)) }),
    };
    let _running = drain::spawn("h1 upgrade", async move {
        // Its end is seen by whoever holds the upgraded stream.
        let _ended = driver.with_upgrades().await.is_ok();
    });
    send.try_send_request(request).await.map_err(|mut error| SendError {
        unsent: error.take_message().map(Box::new),
        source: error.into_error(),
    })
}
