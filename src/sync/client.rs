//! Client: one connection to control, and the calls on it.
//!
//! Every wait has an end and every answer a bound: control may be slow, wrong, or somebody
//! who only holds the line. Calls share the connection, since HTTP/2 lets them.

use std::{error::Error as StdError, io, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{Config, wire};
use crate::{
    drain,
    identity::control::{self as handshake, Terms},
    telemetry,
};

/// More addresses of one name are not tried at a time.
const ADDRESSES_MAX: usize = 4;

/// What is kept of what control says of itself.
const WORDS_MAX: usize = 500;

/// Why control did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("its name cannot be resolved")]
    Resolve(#[source] io::Error),
    #[error("its name has no address")]
    NoAddress,
    #[error("`{address}` cannot be reached")]
    Dial { address: SocketAddr, source: io::Error },
    #[error("the TLS handshake with `{address}` failed: {reason}")]
    Handshake { address: SocketAddr, reason: String },
    #[error("it did not answer in time")]
    Late,
    #[error("it has been silent for too long")]
    Silent,
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("it ended the watch")]
    Ended,
    #[error("it sent more than {} MiB at once", wire::BYTES_MAX >> 20)]
    TooMuch,
    #[error("it sent what cannot be read")]
    Malformed(#[source] serde_json::Error),
    #[error("the request cannot be written")]
    Request(#[source] http::Error),
    #[error("it refused: {error} (`{reason}`{}{hint})", if .hint.is_empty() { "" } else { "; " })]
    Refused {
        status: StatusCode,
        reason: String,
        error: String,
        hint: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// How long control asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the connection may be good for another call.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Malformed(_) | Self::TooMuch)
    }

    /// Whether it is the certificate we showed that was refused.
    pub(super) fn is_about_certificate(&self) -> bool {
        if let Self::Refused { status, .. } = self {
            return [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(status);
        }
        // In TLS 1.3 a certificate is refused after the client's handshake, by an alert. What
        // comes through HTTP/2 of rustls' error is its text.
        matches!(self, Self::Http(error) if words(error).contains("received fatal alert"))
    }
}

/// What an error says, and all that led to it.
pub(super) fn words(error: &dyn StdError) -> String {
    let mut text = telemetry::words(error);
    // rustls says where to read more about an end without a farewell.
    let end = text.find(": https://docs.rs/").unwrap_or(text.len());
    text.truncate(end);
    text
}

/// A connection to control; dropping it ends it and all calls on it.
#[derive(Debug)]
pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    authority: String,
    answer: Duration,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The lines of a watch.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    read: BytesMut,
    /// How much of what was read has no end of a line in it.
    looked: usize,
}

impl Client {
    /// Connects, and makes sure that it is control.
    pub(super) async fn connect(config: &Config, terms: &Terms) -> Result<Self, Error> {
        let control = &config.control;
        let resolving = (config.resolve)(control.host.clone(), control.port);
        let resolved = timeout(config.pace.answer, resolving).await.map_err(|_| Error::Late)?;
        let mut failed = Error::NoAddress;
        for address in resolved.map_err(Error::Resolve)?.into_iter().take(ADDRESSES_MAX) {
            match Box::pin(Self::connect_to(address, config, terms)).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(
        address: SocketAddr,
        config: &Config,
        terms: &Terms,
    ) -> Result<Self, Error> {
        let (control, pace) = (&config.control, &config.pace);
        let dialled = timeout(pace.dial, TcpStream::connect(address)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tcp = dialled.map_err(|source| Error::Dial { address, source })?;
        // A socket that refuses the option still carries bytes.
        let _tuned = tcp.set_nodelay(true).is_ok();
        let secured = timeout(pace.dial, terms.connect(tcp, &control.host)).await;
        let secured = secured.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = secured
            .map_err(|error| Error::Handshake { address, reason: handshake::words(&error) })?;
        let handshake = http2::Builder::new(Tasks)
            .timer(TokioTimer::new())
            .keep_alive_interval(wire::HEARTBEAT)
            .keep_alive_timeout(pace.dial)
            .handshake(TokioIo::new(stream));
        let (sender, connection) =
            timeout(pace.dial, Box::pin(handshake)).await.map_err(|_| Error::Late)??;
        let driver = drain::spawn("control connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to control ended");
            }
        });
        let host = if control.host.contains(':') {
            format!("[{}]", control.host)
        } else {
            control.host.clone()
        };
        let authority = format!("{host}:{}", control.port);
        Ok(Self { sender, driver, authority, answer: pace.answer })
    }

    /// Asks for a certificate, proved by `token` or else by the certificate shown.
    pub(super) async fn certificate(
        &self,
        request: &wire::SigningRequest,
        token: Option<HeaderValue>,
    ) -> Result<wire::Signed, Error> {
        let mut call = self.call(Method::POST, wire::CERTIFICATES, Some(request))?;
        if let Some(token) = token {
            call.headers_mut().insert(header::AUTHORIZATION, token);
        }
        timeout(self.answer, async { decoded(self.send(call).await?).await })
            .await
            .map_err(|_| Error::Late)?
    }

    /// Says how the sidecar does.
    pub(super) async fn report(&self, report: &wire::Report) -> Result<(), Error> {
        let call = self.call(Method::POST, wire::REPORT, Some(report))?;
        let answer = timeout(self.answer, self.send(call)).await;
        answer.map_err(|_| Error::Late)?.map(drop)
    }

    /// Begins to wait for news.
    pub(super) async fn watch(&self, instance: &str) -> Result<Lines, Error> {
        let path = format!("{}?instance={instance}", wire::WATCH);
        let call = self.call(Method::GET, &path, None::<&()>)?;
        let answer = timeout(self.answer, self.send(call)).await.map_err(|_| Error::Late)??;
        Ok(Lines { body: answer.into_body(), read: BytesMut::new(), looked: 0 })
    }

    fn call<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&T>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let json = body.map(serde_json::to_vec).transpose().map_err(Error::Malformed)?;
        let uri = format!("https://{}{path}", self.authority);
        let call = Request::builder().method(method).uri(uri);
        let call = call.header(header::CONTENT_TYPE, "application/json");
        call.body(Full::from(json.unwrap_or_default())).map_err(Error::Request)
    }

    /// Sends a call; an answer that is not a success is an error.
    async fn send(&self, call: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let answer = sender.send_request(call).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(refused(answer).await) }
    }
}

impl Lines {
    /// The next message; nothing for one that is not understood, and so of a later version.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read is kept.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Option<wire::Message>, Error> {
        let line = timeout(silence, self.line()).await.map_err(|_| Error::Silent)??;
        match serde_json::from_slice(&line) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                tracing::debug!(%error, "message of control not understood");
                Ok(None)
            }
        }
    }

    async fn line(&mut self) -> Result<Bytes, Error> {
        loop {
            let end = memchr::memchr(b'\n', self.read.get(self.looked..).unwrap_or_default());
            if let Some(end) = end {
                let line = self.read.split_to(self.looked + end + 1).freeze();
                self.looked = 0;
                return Ok(line);
            }
            self.looked = self.read.len();
            if wire::BYTES_MAX < self.looked {
                return Err(Error::TooMuch);
            }
            let frame = self.body.frame().await.ok_or(Error::Ended)??;
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}

async fn decoded<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, Error> {
    let body = collected(answer).await?;
    serde_json::from_slice(&body).map_err(Error::Malformed)
}

async fn collected(answer: Response<Incoming>) -> Result<Bytes, Error> {
    match Limited::new(answer.into_body(), wire::BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => Error::Http(*error),
            Err(_) => Error::TooMuch,
        }),
    }
}

/// What an answer that is not a success says.
async fn refused(answer: Response<Incoming>) -> Error {
    let status = answer.status();
    let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok());
    let retry_after = seconds.and_then(|it| it.parse().ok()).map(Duration::from_secs);
    let body = collected(answer).await.unwrap_or_default();
    let wire::Refusal { reason, error, hint } =
        serde_json::from_slice(&body).unwrap_or_else(|_| wire::Refusal {
            reason: status.as_u16().to_string(),
            error: "without a word".to_owned(),
            hint: String::new(),
        });
    let [reason, error, hint] =
        [reason, error, hint].map(|it| it.chars().take(WORDS_MAX).collect());
    Error::Refused { status, reason, error, hint, retry_after }
}

/// Runs what a connection needs beside itself.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let _running = drain::spawn("control stream", task);
    }
}
