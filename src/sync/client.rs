//! Client: one connection to control, and the calls on it.
//!
//! Every wait has an end and every answer a bound: control may be slow, wrong, or somebody
//! who only holds the line. Calls share the connection, since HTTP/2 lets them. Sidecars call
//! control by it, and so do its operators.

mod error;

use std::{io, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use remora_certs::x509::Facts;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

pub use self::error::{Error, words};
use super::{Target, wire};
use crate::{
    drain,
    identity::control::{self as handshake, Terms},
};

/// More addresses of one name are not tried at a time.
const ADDRESSES_MAX: usize = 4;

/// What is kept of what control says of itself.
const WORDS_MAX: usize = 500;

/// A connection to control; dropping it ends it and all calls on it.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    authority: String,
    answer: Duration,
    issuer: Option<Facts>,
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
    ///
    /// # Errors
    ///
    /// When none of its first few addresses has it.
    ///
    /// # Cancel safety
    ///
    /// Safe: the connection is closed.
    pub async fn connect(target: &Target, terms: &Terms) -> Result<Self, Error> {
        let resolving = (target.resolve)(target.host.clone(), target.port);
        let resolved = timeout(target.pace.answer, resolving).await.map_err(|_| Error::Late)?;
        let mut failed = Error::NoAddress;
        for address in resolved.map_err(Error::Resolve)?.into_iter().take(ADDRESSES_MAX) {
            match Box::pin(Self::connect_to(address, target, terms)).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(
        address: SocketAddr,
        target: &Target,
        terms: &Terms,
    ) -> Result<Self, Error> {
        let Target { host, port, pace, .. } = target;
        let dialled = timeout(pace.dial, TcpStream::connect(address)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tcp = dialled.map_err(|source| Error::Dial { address, source })?;
        // A socket that refuses the option still carries bytes.
        let _tuned = tcp.set_nodelay(true).is_ok();
        let secured = timeout(pace.dial, terms.connect(tcp, host)).await;
        let secured = secured.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = secured
            .map_err(|error| Error::Handshake { address, reason: handshake::words(&error) })?;
        let issuer = handshake::issuer(&stream);
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
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authority = format!("{host}:{port}");
        Ok(Self { sender, driver, authority, answer: pace.answer, issuer })
    }

    /// Of the certificate that signed control's, if it showed one beside its own.
    pub fn issuer(&self) -> Option<&Facts> {
        self.issuer.as_ref()
    }

    /// What is at `path`.
    ///
    /// # Errors
    ///
    /// When control has no answer, or another one.
    ///
    /// # Cancel safety
    ///
    /// Safe: the call is given up.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.decoded(self.call(Method::GET, path, None::<&()>)?).await
    }

    /// What comes of sending `body` to `path`.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    ///
    /// # Cancel safety
    ///
    /// The call is given up; control may have done it.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.decoded(self.call(Method::POST, path, Some(body))?).await
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
        self.decoded(call).await
    }

    /// Says how the sidecar does.
    pub(super) async fn report(&self, report: &wire::Report) -> Result<(), Error> {
        let call = self.call(Method::POST, wire::REPORT, Some(report))?;
        let answer = timeout(self.answer, self.send(call)).await;
        answer.map_err(|_| Error::Late)?.map(drop)
    }

    /// Begins to wait for news. The policy whose payload has the digest `has` need not be sent.
    pub(super) async fn watch(&self, instance: &str, has: Option<&str>) -> Result<Lines, Error> {
        let mut path = format!("{}?instance={instance}", wire::WATCH);
        if let Some(has) = has {
            path = format!("{path}&generation={has}");
        }
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

    /// Sends a call, for what is in the answer.
    async fn decoded<T: DeserializeOwned>(&self, call: Request<Full<Bytes>>) -> Result<T, Error> {
        let answered = async { collected(self.send(call).await?).await };
        let body = timeout(self.answer, answered).await.map_err(|_| Error::Late)??;
        serde_json::from_slice(&body).map_err(Error::Malformed)
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
            error: format!("{status}, without a word"),
            hint: "check that it is a control of this version".to_owned(),
        });
    let [reason, error, hint] =
        [reason, error, hint].map(|it| it.chars().take(WORDS_MAX).collect());
    Error::Refused { status, refusal: wire::Refusal { reason, error, hint }, retry_after }
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
