use std::{
    convert::Infallible,
    fs,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use remora_certs::pem;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tonic::{Status, codegen::tokio_stream::Stream, server};
use tonic_prost::ProstCodec;

use super::{
    answer::{Response, X509Svid},
    *,
};
use crate::{
    drain,
    identity::{Identity, testing::Mesh},
};

/// Far longer than anything takes, so that only what never comes fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_svid_of_an_agent_becomes_an_identity() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Gives);
    agent.send(svid(&mesh, "orders"));
    let mut events = rig.follow();
    assert_eq!(written(&mut events).await.as_str(), "spiffe://td/ns/shop/sa/orders");
    let identity = Identity::from_folder(&rig.folder()).unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://td/ns/shop/sa/orders");
    // The key for its owner alone.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(rig.folder().join("tls.key")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn every_svid_the_agent_sends_later_is_written_and_noticed() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Gives);
    agent.send(svid(&mesh, "orders"));
    let mut events = rig.follow();
    written(&mut events).await;
    let identity = Identity::from_folder(&rig.folder()).unwrap();
    let (sender, mut rotations) = mpsc::channel(16);
    let told = move |event: &crate::identity::Event| sender.try_send(event.clone()).unwrap();
    drain::spawn("identity watch", identity.clone().watch(told));
    for generation in 2..5 {
        agent.send(svid(&mesh, "orders"));
        written(&mut events).await;
        let event = time::timeout(PATIENCE, rotations.recv()).await.unwrap().unwrap();
        assert!(
            matches!(event, crate::identity::Event::Rotated { generation: it, .. } if it == generation),
            "{event:?}"
        );
    }
    assert_eq!(*agent.state.calls.borrow(), 1, "all over one call");
}

#[tokio::test]
async fn the_same_svid_again_is_not_written_again() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Gives);
    let (first, second) = (svid(&mesh, "orders"), svid(&mesh, "orders"));
    agent.send(first.clone());
    let mut events = rig.follow();
    written(&mut events).await;
    let before = fs::read_link(rig.folder().join("..data")).unwrap();
    // What follows it tells that it has been seen.
    agent.send(first);
    agent.send(Response::default());
    lost(&mut events).await;
    assert_eq!(fs::read_link(rig.folder().join("..data")).unwrap(), before);
    agent.send(second);
    written(&mut events).await;
}

#[tokio::test]
async fn of_several_svids_the_first_counts_in_any_trust_domain() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let mut both = svid(&mesh, "orders");
    both.svids.extend(svid(&mesh, "carts").svids);
    let agent = rig.agent(Part::Gives);
    agent.send(both);
    assert_eq!(written(&mut rig.follow()).await.service_account(), Some("orders"));
}

#[tokio::test]
async fn an_agent_that_goes_and_comes_back_is_found_again() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    // Not there at first: the hint says what to mount.
    let mut events = rig.follow();
    let error = lost(&mut events).await;
    assert!(matches!(*error, Error::Socket { .. }) && error.hint().contains("mount"), "{error}");
    let first = svid(&mesh, "orders");
    let agent = rig.agent(Part::Gives);
    agent.send(first.clone());
    written(&mut events).await;
    // Gone, and its socket with it.
    drop(agent);
    lost(&mut events).await;
    assert!(Identity::from_folder(&rig.folder()).is_ok(), "the last good is kept");
    // Back, with what is in the folder; then with another.
    let agent = rig.agent(Part::Gives);
    agent.send(first);
    while !matches!(next(&mut events).await, Event::Restored) {}
    agent.send(svid(&mesh, "orders"));
    written(&mut events).await;
}

#[tokio::test]
async fn a_denial_says_to_register_and_keeps_the_last_good() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Denies);
    let mut events = rig.follow();
    let error = lost(&mut events).await;
    assert_eq!(
        error.to_string(),
        "the agent has no identity for this process: no identity issued: nö"
    );
    assert!(error.hint().contains("register this workload"), "{}", error.hint());
    // It is told once, and asked again until the registration is there.
    agent.calls(3).await;
    assert!(events.try_recv().is_err());
    agent.play(Part::Gives);
    agent.send(svid(&mesh, "orders"));
    written(&mut events).await;
    // Denied after all: in the midst of the call.
    agent.fail(Status::permission_denied("deleted"));
    assert!(matches!(*lost(&mut events).await, Error::Denied(_)));
    assert!(Identity::from_folder(&rig.folder()).is_ok());
}

#[tokio::test]
async fn an_agent_that_fails_is_asked_again() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Gives);
    let mut events = rig.follow();
    agent.calls(1).await;
    agent.fail(Status::unavailable("a moment"));
    let error = lost(&mut events).await;
    assert_eq!(error.to_string(), "the agent answered with gRPC status 14: a moment");
    agent.calls(2).await;
    agent.send(svid(&mesh, "orders"));
    written(&mut events).await;
}

#[tokio::test]
async fn what_is_no_svid_is_refused_and_the_last_good_kept() {
    let (mesh, stranger, rig) = (Mesh::new(), Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Gives);
    agent.send(svid(&mesh, "orders"));
    let mut events = rig.follow();
    written(&mut events).await;
    let before = fs::read_link(rig.folder().join("..data")).unwrap();
    let changed = |change: fn(&mut X509Svid, X509Svid)| {
        let mut answer = svid(&mesh, "orders");
        change(&mut answer.svids[0], svid(&stranger, "orders").svids.remove(0));
        answer
    };
    for (answer, message) in [
        (Response::default(), "the agent's answer holds no SVID"),
        (changed(|it, _| it.key.clear()), "the agent's answer lacks `x509_svid_key`"),
        (changed(|it, _| it.bundle.clear()), "the agent's answer lacks `bundle`"),
        (changed(|it, _| it.chain.clear()), "the agent's answer lacks `x509_svid`"),
        (changed(|it, _| it.chain.push(0)), "`x509_svid` in the agent's answer is not one"),
        (changed(|it, _| it.bundle.truncate(9)), "`bundle` in the agent's answer is not one"),
        (changed(|it, other| it.key = other.key), "cannot be used: `tls.crt` and `tls.key`"),
        (changed(|it, other| it.bundle = other.bundle), "the roots in `ca.crt` do not vouch"),
        (
            changed(|it, _| it.spiffe_id = "spiffe://td/x".to_owned()),
            "the agent says `spiffe://td/x`, and its certificate `spiffe://td/ns/shop/sa/orders`",
        ),
    ] {
        agent.send(answer);
        let error = lost(&mut events).await;
        assert!(error.to_string().contains(message), "{error}");
        assert!(!error.hint().is_empty());
    }
    assert_eq!(fs::read_link(rig.folder().join("..data")).unwrap(), before);
}

#[tokio::test]
async fn garbage_is_refused_whatever_it_is() {
    let rig = Rig::new();
    let agent = rig.agent(Part::Says(b"\0\0\0\0\x03abc"));
    let mut events = rig.follow();
    let refused = async |part, events: &mut mpsc::Receiver<Event>| {
        agent.play(part);
        lost(events).await
    };
    assert!(matches!(*lost(&mut events).await, Error::Message(_)));
    let says = Part::Says;
    assert!(matches!(*refused(says(b"\x01\0\0\0\0"), &mut events).await, Error::Compressed));
    let large = refused(says(b"\0\xff\xff\xff\xff"), &mut events).await;
    assert!(matches!(*large, Error::TooLarge(u32::MAX)));
    // Ended in the midst of a message.
    assert!(matches!(*refused(says(b"\0\0\0"), &mut events).await, Error::Ended));
    assert!(matches!(*refused(Part::Missing, &mut events).await, Error::Status(404)));
    // Not HTTP/2 at all.
    drop(agent);
    let _other = rig.says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    while !matches!(*lost(&mut events).await, Error::Http(_)) {}
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_given_up() {
    let mut rig = Rig::new();
    rig.pace = Pace { answer: Duration::from_millis(50), ..PACE };
    // Neither HTTP/2, nor an answer, nor a message.
    let silent = rig.says(b"");
    let mut events = rig.follow();
    assert!(matches!(*lost(&mut events).await, Error::Late(_)));
    drop(silent);
    let agent = rig.agent(Part::Gives);
    agent.calls(3).await;
}

#[tokio::test]
async fn failures_in_a_row_are_counted_until_an_svid_comes() {
    let (mesh, rig) = (Mesh::new(), Rig::new());
    let agent = rig.agent(Part::Denies);
    let mut events = rig.follow();
    agent.calls(3).await;
    agent.play(Part::Gives);
    agent.send(svid(&mesh, "orders"));
    lost(&mut events).await;
    written(&mut events).await;
    agent.fail(Status::unavailable(""));
    lost(&mut events).await;
    while !matches!(next(&mut events).await, Event::Restored) {}
    let waits = rig.waits.lock().clone();
    let ended = waits.iter().rposition(|it| *it == 1).unwrap();
    assert!(2 <= ended, "{waits:?}");
    assert_eq!(waits[..ended], (1..=u32::try_from(ended).unwrap()).collect::<Vec<_>>());
}

/// What an agent does when it is called.
#[derive(Clone, Copy)]
enum Part {
    /// Sends what [`Agent::send`] is given, as it comes.
    Gives,
    Denies,
    /// These bytes, and the end.
    Says(&'static [u8]),
    Missing,
}

/// A socket and a folder.
struct Rig {
    dir: TempDir,
    pace: Pace,
    /// What [`follow`] asked how long to wait for.
    waits: Arc<Mutex<Vec<u32>>>,
}

/// An agent until dropped, and its socket with it.
struct Agent {
    state: Arc<State>,
    accepting: JoinHandle<()>,
    socket: PathBuf,
}

struct State {
    part: Mutex<Part>,
    /// What every call gets first.
    current: Mutex<Option<Response>>,
    /// Into the newest call.
    newest: Mutex<Option<mpsc::Sender<Result<Response, Status>>>>,
    calls: watch::Sender<usize>,
}

impl State {
    fn new(part: Part) -> Arc<Self> {
        Arc::new(Self {
            part: Mutex::new(part),
            current: Mutex::default(),
            newest: Mutex::default(),
            calls: watch::Sender::new(0),
        })
    }
}

/// What goes into a call, as a stream.
struct Messages(mpsc::Receiver<Result<Response, Status>>);

impl Stream for Messages {
    type Item = Result<Response, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), pace: PACE, waits: Arc::default() }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("state/identity")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn follow(&self) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(64);
        let waits = Arc::clone(&self.waits);
        let wait = move |failures| {
            waits.lock().push(failures);
            Duration::from_millis(1)
        };
        let follower = Follower {
            socket: self.socket(),
            folder: self.folder(),
            pace: self.pace,
            on_event: move |event: &Event| sender.try_send(event.clone()).unwrap(),
            in_folder: None,
            lost: None,
        };
        drain::spawn("workload api", follower.run(wait));
        events
    }

    fn agent(&self, part: Part) -> Agent {
        let state = State::new(part);
        let listener = UnixListener::bind(self.socket()).unwrap();
        let serving = Arc::clone(&state);
        let accepting = drain::spawn("agent", async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                connections.spawn(async move {
                    let answer = service_fn(move |request| answer(Arc::clone(&state), request));
                    let server = auto::Builder::new(TokioExecutor::new()).http2_only();
                    // A client that goes away is its own affair.
                    let _ended = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Agent { state, accepting, socket: self.socket() }
    }

    /// Something that says `bytes` to whoever connects, and no more.
    fn says(&self, bytes: &'static [u8]) -> Agent {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let accepting = drain::spawn("no agent", async move {
            let mut connections = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(bytes).await.unwrap();
                connections.push(stream);
            }
        });
        Agent { state: State::new(Part::Missing), accepting, socket: self.socket() }
    }
}

impl Agent {
    fn play(&self, part: Part) {
        *self.state.part.lock() = part;
    }

    /// Sends `answer` into the call there is, and into all to come.
    fn send(&self, answer: Response) {
        *self.state.current.lock() = Some(answer.clone());
        if let Some(call) = &*self.state.newest.lock() {
            // One that has ended got it not, and the next one does.
            let _sent = call.try_send(Ok(answer)).is_ok();
        }
    }

    /// Ends the call there is.
    fn fail(&self, status: Status) {
        self.state.newest.lock().as_ref().unwrap().try_send(Err(status)).unwrap();
    }

    /// Waits until it has been called so often.
    async fn calls(&self, count: usize) {
        let mut calls = self.state.calls.subscribe();
        let reached = calls.wait_for(|it| count <= *it);
        time::timeout(PATIENCE, reached).await.unwrap().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.accepting.abort();
        fs::remove_file(&self.socket).unwrap_or_default();
    }
}

async fn answer(
    state: Arc<State>,
    request: http::Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    let part = *state.part.lock();
    let answer = match part {
        Part::Missing => {
            let mut answer = http::Response::default();
            *answer.status_mut() = http::StatusCode::NOT_FOUND;
            answer
        }
        Part::Says(bytes) => {
            http::Response::new(tonic::body::Body::new(Full::from(Bytes::from_static(bytes))))
        }
        Part::Denies | Part::Gives => {
            let mut server = server::Grpc::new(ProstCodec::<Response, Empty>::default());
            let fetch = tower::service_fn(|it| std::future::ready(fetch(&state, &it)));
            server.server_streaming(fetch, request).await
        }
    };
    state.calls.send_modify(|it| *it += 1);
    Ok(answer)
}

/// `X509SVIDRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

fn fetch(
    state: &State,
    request: &tonic::Request<Empty>,
) -> Result<tonic::Response<Messages>, Status> {
    if request.metadata().get("workload.spiffe.io").is_none_or(|it| it != "true") {
        return Err(Status::invalid_argument("security header missing from request"));
    }
    if matches!(*state.part.lock(), Part::Denies) {
        return Err(Status::permission_denied("no identity issued: nö"));
    }
    let (sender, messages) = mpsc::channel(16);
    if let Some(answer) = &*state.current.lock() {
        sender.try_send(Ok(answer.clone())).unwrap();
    }
    *state.newest.lock() = Some(sender);
    Ok(tonic::Response::new(Messages(messages)))
}

/// A new certificate of `account`, as an agent sends it.
fn svid(mesh: &Mesh, account: &str) -> Response {
    let folder = mesh.issue(account);
    let read = |name| fs::read(folder.join(name)).unwrap();
    let der = |name| {
        let text = read(name);
        let blocks = pem::blocks(&text).unwrap();
        blocks.iter().flat_map(|it| it.certificate().unwrap().to_vec()).collect::<Vec<_>>()
    };
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")).unwrap();
    let svid = X509Svid {
        spiffe_id: format!("spiffe://td/ns/shop/sa/{account}"),
        chain: der("tls.crt"),
        key: key.secret_der().to_vec(),
        bundle: der("ca.crt"),
    };
    Response { svids: vec![svid] }
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap()
}

/// Whose SVID is written next.
async fn written(events: &mut mpsc::Receiver<Event>) -> SpiffeId {
    loop {
        if let Event::Written { id, .. } = next(events).await {
            return id;
        }
    }
}

/// The failure that is told next.
async fn lost(events: &mut mpsc::Receiver<Event>) -> Arc<Error> {
    loop {
        if let Event::Lost { error } = next(events).await {
            return error;
        }
    }
}
