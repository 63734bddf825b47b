//! Call: `FetchX509SVID` over a unix socket, as much of gRPC as it takes.

use std::{path::Path, time::Duration};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Request, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use remora_certs::folder::Content;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use super::{Error, Pace};
use crate::drain;

/// The most a message may hold, as implementations of gRPC have it by default.
pub(super) const MESSAGE_MAX: u32 = 4 << 20;

/// The most of an agent's own words that is passed on.
const WORDS_MAX: usize = 300;

/// What comes before a message: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

/// The status of a call that has nothing to answer with.
const PERMISSION_DENIED: u32 = 7;

const METHOD: &str = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";

//= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_Endpoint.md#4-transport
//# To mitigate this, all Workload Endpoint clients MUST include a static gRPC metadata key
//# with each call.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// A call that goes on; dropping it ends its connection.
pub(super) struct Call {
    body: Incoming,
    /// What was received and not yet asked for.
    rest: Bytes,
    pace: Pace,
    _driver: Driver,
}

/// The task that runs a connection; dropping it ends both.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Call {
    /// Connects and calls.
    pub(super) async fn begin(socket: &Path, pace: Pace) -> Result<Self, Error> {
        let late = |_| Error::Late(pace.connect);
        let failed = |source| Error::Socket { path: socket.to_owned(), source };
        let connecting = UnixStream::connect(socket);
        let stream = timeout(pace.connect, connecting).await.map_err(late)?.map_err(failed)?;
        let handshake = http2::Builder::new(Tasks)
            .timer(TokioTimer::new())
            .keep_alive_interval(pace.ping)
            .keep_alive_timeout(pace.answer)
            .handshake(TokioIo::new(stream));
        let handshake = timeout(pace.connect, Box::pin(handshake)).await.map_err(late)?;
        let (mut sender, connection) = handshake?;
        let driver = Driver(drain::spawn("workload api connection", async move {
            // The call is told of it, too.
            let _ended = connection.await.is_ok();
        }));
        let answer = timeout(pace.answer, sender.send_request(request())).await;
        let (head, body) = answer.map_err(|_| Error::Late(pace.answer))??.into_parts();
        let call = Self { body, rest: Bytes::new(), pace, _driver: driver };
        if head.status != StatusCode::OK {
            return Err(Error::Status(head.status.as_u16()));
        }
        // A failure may come without a body, and then its status with the head.
        match head.headers.get("grpc-status") {
            Some(_) => Err(failure(&head.headers)),
            None => Ok(call),
        }
    }

    /// The next message; a first one by a `deadline`, and each whole once it has begun.
    pub(super) async fn next(&mut self, deadline: Option<Duration>) -> Result<Content, Error> {
        let answer = self.pace.answer;
        let late = |_| Error::Late(answer);
        let prefix = match deadline {
            Some(deadline) => timeout(deadline, self.take(PREFIX)).await.map_err(late)??,
            None => self.take(PREFIX).await?,
        };
        let [compressed, length @ ..] = &prefix[..] else { return Err(Error::Ended) };
        let length = length.iter().fold(0, |sum, it| (sum << 8) | u32::from(*it));
        if *compressed != 0 {
            return Err(Error::Compressed);
        }
        if MESSAGE_MAX < length {
            return Err(Error::TooLarge(length));
        }
        let rest = self.take(usize::try_from(length).unwrap_or(usize::MAX));
        timeout(answer, rest).await.map_err(late)?
    }

    /// The next so many bytes.
    async fn take(&mut self, length: usize) -> Result<Content, Error> {
        // Sized at once: a buffer that grows leaves copies of a key behind.
        let mut taken = Content::new(Vec::with_capacity(length));
        while taken.len() < length {
            if self.rest.is_empty() {
                self.rest = self.receive().await?;
            }
            let part = self.rest.split_to(self.rest.len().min(length - taken.len()));
            taken.extend_from_slice(&part);
        }
        Ok(taken)
    }

    async fn receive(&mut self) -> Result<Bytes, Error> {
        let frame = self.body.frame().await.ok_or(Error::Ended)??;
        match frame.into_data() {
            Ok(data) => Ok(data),
            Err(frame) => Err(frame.trailers_ref().map_or(Error::Ended, failure)),
        }
    }
}

/// The call, with the empty message it takes.
fn request() -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(Bytes::from_static(&[0; PREFIX])));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(METHOD);
    let headers = request.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/grpc"),
        (header::TE, "trailers"),
        (header::USER_AGENT, concat!("remora/", env!("CARGO_PKG_VERSION"))),
        (header::HeaderName::from_static(SECURITY_HEADER), "true"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    request
}

/// What the trailers of a call say about how it ended.
fn failure(trailers: &HeaderMap) -> Error {
    let text = |name| trailers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let code = text("grpc-status").parse().unwrap_or(2);
    let words: String = decoded(text("grpc-message")).chars().take(WORDS_MAX).collect();
    let message = words.escape_debug().to_string();
    match code {
        0 => Error::Ended,
        PERMISSION_DENIED => Error::Denied(message),
        _ => Error::Grpc { code, message },
    }
}

/// A message of a status, which has `%` and two digits for what a header cannot hold.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|it| std::str::from_utf8(it).ok());
        let byte = digits.filter(|_| *first == b'%').and_then(|it| u8::from_str_radix(it, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = after;
        rest.advance(if byte.is_some() { 2 } else { 0 });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs what the connection needs beside itself.
#[derive(Clone, Copy, Debug)]
struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let _running = drain::spawn("workload api stream", task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_as_the_standard_has_it() {
        let request = request();
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        assert_eq!(request.headers()["workload.spiffe.io"], "true");
        assert_eq!(request.headers()["te"], "trailers");
    }

    #[test]
    fn words_of_the_agent_are_decoded_and_bounded() {
        for (text, plain) in [("a%20b", "a b"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("", "")] {
            assert_eq!(decoded(text), plain);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "7".parse().unwrap());
        trailers.insert("grpc-message", "%0A".repeat(5000).parse().unwrap());
        let Error::Denied(words) = failure(&trailers) else { panic!() };
        assert_eq!(words, "\\n".repeat(300));
    }
}
