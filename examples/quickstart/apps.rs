//! Apps: the two applications of the shop, which know nothing of a mesh.
//!
//! Each finds its listener as standard input, as it would under inetd, so that its address
//! is known before it runs. What it is told: `orders NAME` or `web PROXY`, where the proxy
//! is what an HTTP client reads from `http_proxy`.

use std::{
    convert::Infallible,
    io::stdin,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use remora::drain;

use crate::{Result, client::Client};

/// Whom web asks; nothing of it but the name is known there.
pub(crate) const SERVICE: &str = "orders.shop.svc.cluster.local";

/// Which instance of orders answered.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// Who had called it, as its sidecar verified.
pub(crate) const CALLER: HeaderName = HeaderName::from_static("x-caller");
/// What a sidecar tells the application behind it about the caller.
const PEER: HeaderName = HeaderName::from_static("x-remora-peer");
/// Why a sidecar answered itself.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-remora-reason");

/// How long an order takes to look up.
pub(crate) const WORK: Duration = Duration::from_millis(20);

type Answer = Response<Full<Bytes>>;

/// Is the application that `args` name, until it is killed.
pub(crate) fn run(args: impl IntoIterator<Item = String>) -> ExitCode {
    let mut args = args.into_iter();
    let (role, told) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Into::into).and_then(|it| {
        it.block_on(async {
            match (&*role, told.parse::<SocketAddr>()) {
                ("web", Ok(proxy)) => serve(Arc::new(Web { proxy, idle: Mutex::default() })).await,
                _ => serve(Arc::new(Orders { name: told })).await,
            }
        })
    });
    ended.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// Something that answers requests.
trait App: Send + Sync + 'static {
    fn answer(&self, path: &str, headers: &HeaderMap) -> impl Future<Output = Answer> + Send;
}

/// Looks orders up.
struct Orders {
    name: String,
}

impl App for Orders {
    async fn answer(&self, path: &str, headers: &HeaderMap) -> Answer {
        tokio::time::sleep(WORK).await;
        let nobody = HeaderValue::from_static("nobody we know");
        let caller = headers.get(&PEER).unwrap_or(&nobody).clone();
        let text = format!("{path} from {} for {}\n", self.name, caller.to_str().unwrap_or("?"));
        let mut answer = Response::new(Full::from(text));
        answer.headers_mut().insert(CALLER, caller);
        if let Ok(name) = HeaderValue::from_str(&self.name) {
            answer.headers_mut().insert(SERVED_BY, name);
        }
        answer
    }
}

/// Asks orders for whatever it is asked.
struct Web {
    proxy: SocketAddr,
    /// Connections to the proxy that nobody uses just now.
    idle: Mutex<Vec<Client>>,
}

impl App for Web {
    async fn answer(&self, path: &str, _: &HeaderMap) -> Answer {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut orders = kept.unwrap_or_else(|| Client::new(self.proxy));
        let answered = orders.get(SERVICE, path).await;
        idle().push(orders);
        match answered {
            Ok(found) => {
                let mut answer = Response::new(Full::from(found.body().clone()));
                *answer.status_mut() = found.status();
                for name in [SERVED_BY, CALLER, REASON] {
                    if let Some(value) = found.headers().get(&name) {
                        answer.headers_mut().insert(name, value.clone());
                    }
                }
                answer
            }
            Err(error) => {
                let mut answer = Response::new(Full::from(format!("web: {error}\n")));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                answer
            }
        }
    }
}

async fn serve<A: App>(app: Arc<A>) -> Result<()> {
    let listener = TcpListener::from(stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let app = Arc::clone(&app);
        drop(drain::spawn("connection", async move {
            let service = service_fn(|request: Request<Incoming>| {
                let app = Arc::clone(&app);
                async move {
                    let answer = app.answer(request.uri().path(), request.headers()).await;
                    Ok::<_, Infallible>(answer)
                }
            });
            // A client that goes away is its own affair.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.is_ok()
        }));
    }
}
