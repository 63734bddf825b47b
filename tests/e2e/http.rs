//! HTTP: an application that does what a path tells it to, and a client that hides nothing.
//!
//! | path | answer |
//! |---|---|
//! | `/status/N` | status N |
//! | `/echo` | the body as it comes, trailers included |
//! | `/who` | JSON: name of the host, method, target, version and headers it saw |
//! | `/slow?ms=N` | 200 after N milliseconds |
//! | `/never` | nothing |
//! | `/bytes/N` | N bytes, in pieces |
//! | `/cut/N` | N bytes of more that were promised, and an end of the connection |
//! | `/trailers` | a body and the trailer `x-checksum` |
//! | any, with `Upgrade: echo` | 101, then bytes come back as they are sent |

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
    upgrade::{self, Upgraded},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use remora::drain;
use tokio::{
    io::{copy, split},
    net::TcpStream,
    time,
};

use crate::{
    host::{Host, Service},
    tcp::connect,
};

/// A body of any kind.
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, io::Error>;

/// The largest piece `/bytes` and `/cut` send at once.
const PIECE: usize = 16 * 1024;

/// A running application.
#[derive(Debug)]
pub(crate) struct App {
    state: Arc<State>,
    _service: Service,
}

#[derive(Debug, Default)]
struct State {
    host: String,
    requests: AtomicU64,
    connections: AtomicU64,
    failures: AtomicU32,
    failure: AtomicU16,
}

impl App {
    /// How many requests have reached it.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// How many connections have.
    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Answers the next `count` requests with `status`, whatever they ask for.
    pub(crate) fn fail_next(&self, count: u32, status: u16) {
        self.state.failure.store(status, Ordering::SeqCst);
        self.state.failures.store(count, Ordering::SeqCst);
    }
}

impl Host {
    /// Starts the application: HTTP/1.1 and, with prior knowledge, HTTP/2.
    pub(crate) fn http_app(&self, port: u16) -> App {
        let state = Arc::new(State { host: self.name().to_owned(), ..State::default() });
        let shared = Arc::clone(&state);
        let service = self.tcp_server(port, move |stream| {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            let state = Arc::clone(&shared);
            let answer = service_fn(move |it| answer(Arc::clone(&state), it));
            async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let connection =
                    server.serve_connection_with_upgrades(TokioIo::new(stream), answer);
                // A client that goes away is its own affair.
                let _ended = connection.await.is_ok();
            }
        });
        App { state, _service: service }
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, Infallible> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let count_down = |left: u32| left.checked_sub(1);
    if state.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down).is_ok() {
        return Ok(status(state.failure.load(Ordering::SeqCst)));
    }
    if request.headers().contains_key(UPGRADE) {
        return Ok(upgraded(request));
    }
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().ok();
    let answer = match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["status", code] => status(code.parse().unwrap_or(400)),
        ["echo"] => {
            let mut answer =
                Response::new(request.into_body().map_err(io::Error::other).boxed_unsync());
            answer.headers_mut().insert("x-app", HeaderValue::from_static("echo"));
            answer
        }
        ["who"] => Response::new(full(who(&state.host, &request))),
        ["slow"] => {
            let ms = query.strip_prefix("ms=").and_then(number).unwrap_or(0);
            time::sleep(Duration::from_millis(ms)).await;
            status(200)
        }
        ["never"] => std::future::pending().await,
        ["bytes", count] => pieces(count, End::Whole),
        ["cut", count] => pieces(count, End::Cut),
        ["trailers"] => {
            let body = Pieces { left: 9, end: End::Trailers, chunked: true };
            Response::new(body.boxed_unsync())
        }
        _ => status(404),
    };
    Ok(answer)
}

fn status(code: u16) -> Response<AnyBody> {
    let mut answer = Response::new(full(format!("status {code}\n")));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
    answer
}

fn full(text: String) -> AnyBody {
    Full::new(Bytes::from(text)).map_err(|it| match it {}).boxed_unsync()
}

fn who(host: &str, request: &Request<Incoming>) -> String {
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in request.headers() {
        headers.entry(name.as_str()).or_default().push(value.to_str().unwrap_or("?"));
    }
    serde_json::json!({
        "host": host,
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    })
    .to_string()
}

fn upgraded(request: Request<Incoming>) -> Response<AnyBody> {
    drop(drain::spawn("upgraded", async move {
        let Ok(stream) = upgrade::on(request).await else { return };
        let (mut from, mut to) = split(TokioIo::new(stream));
        let _ended = copy(&mut from, &mut to).await.is_ok();
    }));
    let mut answer = status(101);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    *answer.body_mut() = Empty::new().map_err(|it| match it {}).boxed_unsync();
    answer
}

fn pieces(count: &str, end: End) -> Response<AnyBody> {
    let left = count.parse().unwrap_or(0);
    Response::new(Pieces { left, end, chunked: false }.boxed_unsync())
}

/// A body of zeros.
struct Pieces {
    left: usize,
    end: End,
    /// Of a length nobody is told in advance.
    chunked: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Whole,
    Cut,
    Trailers,
    Over,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = self.left.min(PIECE);
        if 0 < piece {
            self.left -= piece;
            return Poll::Ready(Some(Ok(Frame::data(vec![b'0'; piece].into()))));
        }
        Poll::Ready(match std::mem::replace(&mut self.end, End::Over) {
            End::Cut => Some(Err(io::Error::other("cut, as asked for"))),
            End::Trailers => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-checksum", HeaderValue::from_static("nine zeros"));
                Some(Ok(Frame::trailers(trailers)))
            }
            End::Whole | End::Over => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && matches!(self.end, End::Whole | End::Over)
    }

    fn size_hint(&self) -> SizeHint {
        let promised = self.left + usize::from(self.end == End::Cut);
        if self.chunked { SizeHint::default() } else { SizeHint::with_exact(promised as u64) }
    }
}

/// All of a response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// A header as text, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default()
    }
}

/// Why there is no whole response.
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A connection that requests are sent over, one after another or, over HTTP/2, at once.
#[derive(Debug)]
pub(crate) enum Client {
    /// HTTP/1.1.
    One(http1::SendRequest<AnyBody>),
    /// HTTP/2 with prior knowledge.
    Two(http2::SendRequest<AnyBody>),
}

impl Client {
    /// Connects to `to`.
    pub(crate) async fn connect(version: Version, to: SocketAddr) -> Result<Self, Broken> {
        Self::over(version, connect(to).await?).await
    }

    /// Speaks over a connection that is there.
    pub(crate) async fn over(version: Version, stream: TcpStream) -> Result<Self, Broken> {
        let io = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let (client, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            drop(drain::spawn("client", connection));
            Ok(Self::Two(client))
        } else {
            let (client, connection) = http1::handshake(io).await?;
            drop(drain::spawn("client", connection.with_upgrades()));
            Ok(Self::One(client))
        }
    }

    /// Sends one request and reads all of the response.
    pub(crate) async fn send(&mut self, request: Request<AnyBody>) -> Result<Answer, Broken> {
        let (head, body) = self.begin(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let (status, headers) = (head.status.as_u16(), head.headers);
        Ok(Answer { status, headers, body: body.to_bytes(), trailers })
    }

    /// Sends one request and returns when the head of the response is there.
    pub(crate) async fn begin(
        &mut self,
        request: Request<AnyBody>,
    ) -> Result<Response<Incoming>, Broken> {
        let answer = match self {
            Self::One(it) => {
                it.ready().await?;
                it.send_request(request).await
            }
            Self::Two(it) => {
                it.ready().await?;
                it.send_request(request).await
            }
        };
        Ok(answer?)
    }
}

/// A request without a body: `host` is whom it is for, `path` with its query.
pub(crate) fn get(version: Version, host: &str, path: &str) -> Request<AnyBody> {
    request(version, "GET", host, path, Empty::new().map_err(|it| match it {}).boxed_unsync())
}

/// A request with a body.
pub(crate) fn post(version: Version, host: &str, path: &str, body: &str) -> Request<AnyBody> {
    request(version, "POST", host, path, full(body.to_owned()))
}

fn request(
    version: Version,
    method: &str,
    host: &str,
    path: &str,
    body: AnyBody,
) -> Request<AnyBody> {
    let builder = Request::builder().method(method).version(version);
    // HTTP/2 has the host in the target, HTTP/1.1 in a header.
    let builder = if version == Version::HTTP_2 {
        builder.uri(format!("http://{host}{path}"))
    } else {
        builder.uri(path).header(HOST, host)
    };
    builder.body(body).expect("the request is well-formed")
}

/// Connects, and asks for `path` of `host`.
pub(crate) async fn fetch(
    version: Version,
    to: SocketAddr,
    host: &str,
    path: &str,
) -> Result<Answer, Broken> {
    Client::connect(version, to).await?.send(get(version, host, path)).await
}

/// Asks for an upgrade to `echo`, and returns what the connection has become.
pub(crate) async fn upgrade_to_echo(
    to: SocketAddr,
    host: &str,
) -> Result<TokioIo<Upgraded>, Broken> {
    let mut client = Client::connect(Version::HTTP_11, to).await?;
    let mut request = get(Version::HTTP_11, host, "/");
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    let answer = client.begin(request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("no upgrade: {}", answer.status()).into());
    }
    Ok(TokioIo::new(upgrade::on(answer).await?))
}
