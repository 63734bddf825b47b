//! Faults: a service of three instances, each of which can be told how to misbehave.
//!
//! What is asserted is counted by the instances, by the load and by the caller's sidecar;
//! nothing of it depends on how long a step takes.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use nix::sys::signal::Signal;
use tokio::{sync::watch, time};

use crate::{
    dns::Dns,
    host::{Host, Service, wait_until},
    http::{self as web, AnyBody},
    load::Load,
    mesh::each,
    pods::{APP, Mesh, ORDERS, Policy, SERVICE, Setup, Sidecar, outbound, policy},
    topology::Topology,
};

/// Tries, as the caller's sidecar counts them.
pub(crate) const ATTEMPTS: &str = "remora_attempts_total";

/// What was decided about failed tries.
pub(crate) const RETRIES: &str = "remora_retries_total";

/// What became of breakers.
pub(crate) const TRANSITIONS: &str = "remora_breaker_transitions_total";

/// How long an instance takes over a request when nothing is wrong.
pub(crate) const TAKES: Duration = Duration::from_millis(2);

/// Requests under way at once.
pub(crate) const CALLERS: u32 = 16;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What an instance does with a request, once it has its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers 200 after this long.
    Serves(Duration),
    /// Answers when its mood is another.
    Hangs,
    /// Answers with this status at once.
    Fails(u16),
    /// Answers with this status, and asks to be left alone for this many seconds.
    Defers(u16, u16),
    /// Answers 200 and half of the body it promised, then resets the connection.
    Cuts,
    /// Resets the connection without a word.
    Resets,
    /// Answers a gRPC call with a message, and with this status in the trailers.
    Trails(u8),
    /// Answers a gRPC call with nothing but this status.
    Refuses(u8),
}

/// How often each body has come to any of the instances, whole.
pub(crate) type Seen = Arc<Mutex<HashMap<Bytes, u32>>>;

/// One instance of the service. It can be stopped and started again at its address.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) host: Host,
    port: u16,
    state: Arc<State>,
    running: Option<Service>,
}

#[derive(Debug)]
struct State {
    mood: watch::Sender<Mood>,
    requests: AtomicU64,
    seen: Seen,
}

impl Instance {
    /// An instance that serves, on `host`, at `port`.
    fn new(host: &Host, port: u16, seen: &Seen) -> Self {
        let state = State {
            mood: watch::Sender::new(Mood::Serves(TAKES)),
            requests: AtomicU64::new(0),
            seen: Arc::clone(seen),
        };
        let mut made = Self { host: host.clone(), port, state: Arc::new(state), running: None };
        made.start();
        made
    }

    /// Requests that have reached it, whatever it did with them.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Changes its mood, for requests it has in hand as well.
    pub(crate) fn be(&self, mood: Mood) {
        self.state.mood.send_replace(mood);
    }

    /// Stops it as a kill does: its listener is closed, its connections are reset.
    pub(crate) fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Starts it where it was.
    pub(crate) fn start(&mut self) {
        let state = Arc::clone(&self.state);
        self.running = Some(self.host.tcp_server(self.port, move |stream| {
            let state = Arc::clone(&state);
            async move {
                stream.set_zero_linger().expect("a socket");
                stream.set_nodelay(true).expect("a socket");
                let answer = service_fn(move |it| answer(Arc::clone(&state), it));
                let server = auto::Builder::new(TokioExecutor::new());
                // A client that goes away is its own affair, and some answers are errors.
                let _ended = server.serve_connection(TokioIo::new(stream), answer).await.is_ok();
            }
        }));
    }

    /// Waits until it is called again. How soon it gets its share is another question.
    pub(crate) fn is_back(&self) {
        let before = self.requests();
        let what = format!("requests come to `{}` again", self.host.name());
        wait_until(&what, || before < self.requests());
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<AnyBody>, io::Error> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    if !body.is_empty() {
        *state.seen.lock().expect("nobody panics with it").entry(body).or_default() += 1;
    }
    let mut mood = state.mood.subscribe();
    let now = *mood.borrow_and_update();
    let mut answer = Response::new(Piece::of("done\n", End::Whole));
    match now {
        Mood::Serves(takes) => time::sleep(takes).await,
        Mood::Hangs => {
            let _changed = mood.wait_for(|it| *it != Mood::Hangs).await.is_ok();
        }
        Mood::Fails(code) => *answer.status_mut() = StatusCode::from_u16(code).expect("a status"),
        Mood::Defers(code, seconds) => {
            *answer.status_mut() = StatusCode::from_u16(code).expect("a status");
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Mood::Cuts => {
            answer.headers_mut().insert("content-length", HeaderValue::from_static("10"));
            *answer.body_mut() = Piece::of("half\n", End::Cut);
        }
        Mood::Resets => return Err(io::Error::other("reset, as asked for")),
        Mood::Trails(status) => {
            answer.headers_mut().insert(CONTENT_TYPE, GRPC);
            *answer.body_mut() = Piece::of("\0\0\0\0\0", End::Trailers(status));
        }
        Mood::Refuses(status) => {
            answer.headers_mut().insert(CONTENT_TYPE, GRPC);
            answer.headers_mut().insert("grpc-status", u16::from(status).into());
            *answer.body_mut() = Empty::new().map_err(|it| match it {}).boxed_unsync();
        }
    }
    Ok(answer)
}

/// A body of one piece.
struct Piece {
    bytes: Option<Bytes>,
    end: End,
}

/// How it ends.
#[derive(Clone, Copy)]
enum End {
    Whole,
    /// In an error, when what there is has been sent.
    Cut,
    Broken,
    Trailers(u8),
}

impl Piece {
    fn of(text: &'static str, end: End) -> AnyBody {
        Self { bytes: Some(Bytes::from_static(text.as_bytes())), end }.boxed_unsync()
    }
}

impl Body for Piece {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        Poll::Ready(match std::mem::replace(&mut self.end, End::Whole) {
            End::Whole => None,
            End::Cut => {
                self.end = End::Broken;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            End::Broken => Some(Err(io::Error::other("cut, as asked for"))),
            End::Trailers(status) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", u16::from(status).into());
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }
}

/// A caller, and the instances of the service it calls.
#[derive(Debug)]
pub(crate) struct Three {
    pub(crate) web: Host,
    /// The caller's sidecar.
    pub(crate) client: Sidecar,
    pub(crate) instances: [Instance; 3],
    /// What has come to them.
    pub(crate) seen: Seen,
    /// The caller's documents.
    pub(crate) policy: Policy,
    /// Those of the instances, where they have one.
    pub(crate) sidecars: Vec<Sidecar>,
    mesh: Option<Mesh>,
    dns: Dns,
}

impl Three {
    /// Instances without a sidecar, and a caller with these documents.
    pub(crate) fn plain(documents: &str) -> Self {
        Self::new(documents, None)
    }

    /// Instances with a sidecar each.
    pub(crate) fn meshed(documents: &str) -> Self {
        Self::new(documents, Some(Mesh::new()))
    }

    /// Runs `check` for instances without and with a sidecar each.
    pub(crate) fn each_way(documents: &str, check: impl Fn(Self)) {
        each("without sidecars", || check(Self::plain(documents)));
        each("behind sidecars", || check(Self::meshed(documents)));
    }

    fn new(documents: &str, mesh: Option<Mesh>) -> Self {
        let [web, a, b, c] = Topology::of(["web", "a", "b", "c"]);
        let (dns, seen, policy) = (web.dns(), Seen::default(), policy(&[("a.yaml", documents)]));
        let hosts = [a, b, c];
        dns.set("orders.shop", &hosts.each_ref().map(Host::v4), 1);
        let setup = |account: &str| match &mesh {
            Some(mesh) => Setup::new(&mesh.issue(account)),
            None => Setup::nobody(),
        };
        let port = if mesh.is_some() { APP } else { SERVICE };
        let instances = hosts.each_ref().map(|it| Instance::new(it, port, &seen));
        let behind = if mesh.is_some() { &hosts[..] } else { &[] };
        let sidecars = behind.iter().map(|it| beside(&setup("orders")).start(it)).collect();
        let client = beside(&setup("web"))
            .with("--dns", &web.v4())
            .with("--policy", &policy.path().display())
            .start(&web);
        Self { web, client, instances, seen, policy, sidecars, mesh, dns }
    }

    /// Takes an instance out of DNS, asks its sidecar to leave, and waits until it has.
    pub(crate) fn stop_sidecar(&mut self, which: usize) {
        self.publish(|it| it != which);
        let sidecar = &mut self.sidecars[which];
        sidecar.process.signal(Signal::SIGTERM);
        sidecar.process.wait();
        assert!(sidecar.process.output().contains("\"drained\":true"), "it left with work in hand");
    }

    /// Makes those instances known that `wanted` says.
    fn publish(&self, wanted: impl Fn(usize) -> bool) {
        let hosts = (0..).zip(&self.instances).filter(|(which, _)| wanted(*which));
        let addresses: Vec<_> = hosts.map(|(_, it)| it.host.v4()).collect();
        self.dns.set("orders.shop", &addresses, 1);
    }

    /// Starts the sidecar of an instance again, and makes it known.
    pub(crate) fn start_sidecar(&mut self, which: usize) {
        let mesh = self.mesh.as_ref().expect("they have sidecars");
        let host = &self.instances[which].host;
        self.sidecars[which] = beside(&Setup::new(&mesh.folder("orders"))).start(host);
        self.publish(|_| true);
    }

    /// Callers that each send one request after the other, without an end.
    pub(crate) fn load(
        &self,
        request: impl Fn(u64) -> Request<AnyBody> + Send + Sync + 'static,
    ) -> Load {
        Load::start(&self.web, outbound(), CALLERS, request)
    }

    /// Requests at each instance so far.
    pub(crate) fn requests(&self) -> [u64; 3] {
        self.instances.each_ref().map(Instance::requests)
    }

    /// Requests at each instance while this many more are answered.
    pub(crate) fn requests_during(&self, load: &Load, more: u64) -> [u64; 3] {
        let before = self.requests();
        load.go_on_for(more);
        let after = self.requests();
        [0, 1, 2].map(|it| after[it] - before[it])
    }

    /// Asserts that while this many more requests are answered, an instance gets less than
    /// `percent` of all tries.
    pub(crate) fn gets_less(&self, load: &Load, more: u64, (which, percent): (usize, u64)) {
        let during = self.requests_during(load, more);
        let all: u64 = during.iter().sum();
        assert!(during[which] * 100 < all * percent, "{percent} % of {during:?} is less");
    }

    /// Sends one request from the application, and returns its status and reason.
    pub(crate) fn send(
        &self,
        request: impl FnOnce() -> Request<AnyBody> + Send + 'static,
    ) -> (u16, String) {
        self.web.run(move || async move {
            let request = request();
            let client = web::Client::connect(request.version(), outbound()).await;
            let answer = client.expect("the sidecar listens").send(request).await;
            let answer = answer.expect("there is an answer");
            (answer.status, answer.header("x-remora-reason").to_owned())
        })
    }
}

/// What all sidecars of a case have in common: few lines in the log, for there is much load.
fn beside(setup: &Setup) -> Setup {
    setup.clone().with("--access-log", "failures")
}

/// A document about the service, with these lines in its `spec`.
pub(crate) fn about_orders(spec: &str) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{name: orders}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: orders}}]{spec}\n"
    )
}

/// An idempotent request.
pub(crate) fn get(_: u64) -> Request<AnyBody> {
    web::get(Version::HTTP_11, ORDERS, "/orders")
}

/// A request that must not be sent twice, with a body of its own.
pub(crate) fn post(number: u64) -> Request<AnyBody> {
    web::post(Version::HTTP_11, ORDERS, "/pay", &format!("payment {number}"))
}
