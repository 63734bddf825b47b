//! A control that does as a test tells it: true TLS, true HTTP/2, and any mood.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use remora_certs::{
    authority::{self, Authority, Key, Leaf, Lives, Plan},
    bundle::Bundle,
    csr, signed,
    spiffe_id::SpiffeId,
    svid::Svid,
};
use rustls::{
    ServerConfig, crypto::aws_lc_rs, pki_types::CertificateDer, server::WebPkiClientVerifier,
    sign::SingleCertAndKey,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::super::wire;
use crate::{clock, drain};

pub(super) const DOMAIN: &str = "td";
pub(super) const TOKEN: &str = "open sesame";
const DAY: Duration = Duration::from_hours(24);

/// How it behaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Mood {
    /// How long certificates are valid; a day where nothing is said.
    pub(super) life: Option<Duration>,
    /// What every certificate is for, whoever asks.
    pub(super) id: Option<SpiffeId>,
    /// The key of every certificate, whatever was asked for.
    pub(super) key_of_another: bool,
    /// Answered to every request for a certificate.
    pub(super) refuses: Option<StatusCode>,
    /// Answered to every report.
    pub(super) refuses_reports: bool,
    /// Takes connections and says nothing.
    pub(super) is_mute: bool,
    /// Loses so many answers to requests for a certificate, which it has read.
    pub(super) loses: usize,
    /// Shows a certificate of this id.
    pub(super) calls_itself: Option<SpiffeId>,
}

/// What it was told.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) requests: Vec<String>,
    pub(super) by_token: usize,
    pub(super) reports: Vec<wire::Report>,
    pub(super) watches: usize,
}

/// The parts that its connections share.
pub(super) struct State {
    pub(super) authority: Mutex<Authority>,
    pub(super) mood: Mutex<Mood>,
    pub(super) heard: Mutex<Heard>,
    pub(super) bundle: Mutex<wire::Bundle>,
    /// Every watch gets all of them.
    pub(super) lines: watch::Sender<Vec<String>>,
    /// Counts reports.
    reported: watch::Sender<usize>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

/// A control; dropping it ends it.
pub(super) struct StandIn {
    pub(super) state: Arc<State>,
    pub(super) address: SocketAddr,
    folder: TempDir,
    accepting: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop();
    }
}

impl StandIn {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { trust_domain: DOMAIN, root_life: 20 * DAY, issuer_life: 10 * DAY };
        let made = authority::create(&folder.path().join("ca"), &plan, clock::wall()).unwrap();
        let roots = made.root_pem().to_owned();
        std::fs::write(folder.path().join("roots.pem"), &roots).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let state = Arc::new(State {
            authority: Mutex::new(made),
            mood: Mutex::default(),
            heard: Mutex::default(),
            bundle: Mutex::new(wire::Bundle { sequence: 1, roots }),
            lines: watch::Sender::new(Vec::new()),
            reported: watch::Sender::new(0),
            connections: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = drain::spawn("stand-in", accept(listener, Arc::clone(&state)));
        Self { state, address, folder, accepting }
    }

    /// Ends it and its connections; it may be started again.
    pub(super) fn stop(&self) {
        self.accepting.abort();
        self.disconnect();
    }

    pub(super) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.accepting = drain::spawn("stand-in", accept(listener, Arc::clone(&self.state)));
    }

    pub(super) fn disconnect(&self) {
        self.state.connections.lock().drain(..).for_each(|it| it.abort());
    }

    pub(super) fn roots(&self) -> PathBuf {
        self.folder.path().join("roots.pem")
    }

    pub(super) fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    pub(super) fn be(&self, mood: Mood) {
        *self.state.mood.lock() = mood;
    }

    pub(super) fn say(&self, message: &wire::Message) {
        self.say_line(serde_json::to_string(message).unwrap());
    }

    pub(super) fn say_line(&self, line: String) {
        self.state.lines.send_modify(|it| it.push(line));
    }

    /// Policy signed by control.
    pub(super) fn policy(&self, number: u64, files: &[(&str, &str)]) -> wire::Envelope {
        self.policy_by("/ns/remora/sa/control", "shop/web", number, files)
    }

    pub(super) fn policy_by(
        &self,
        signer: &str,
        audience: &str,
        number: u64,
        files: &[(&str, &str)],
    ) -> wire::Envelope {
        let (namespace, account) = audience.split_once('/').unwrap();
        let audience = SpiffeId::workload(DOMAIN, namespace, account).unwrap().to_string();
        let files: BTreeMap<_, _> =
            files.iter().map(|(name, it)| ((*name).to_owned(), (*it).to_owned())).collect();
        let payload = wire::Generation { number, audience, files };
        let payload = serde_json::to_string(&payload).unwrap();
        let (svid, chain) = self.state.svid(&format!("spiffe://{DOMAIN}{signer}").parse().unwrap());
        let signature = STANDARD.encode(signed::sign(payload.as_bytes(), &svid).unwrap());
        wire::Envelope { payload, signature, chain }
    }

    /// Begins to sign by another root, and trusts both.
    pub(super) fn rotate(&self) {
        let state = &self.state;
        let next = authority::next(
            &state.authority.lock(),
            None,
            Lives { root: 20 * DAY, issuer: 10 * DAY },
            Key::P256,
            clock::wall(),
        );
        let next = next.unwrap().authority;
        let mut bundle = state.bundle.lock();
        bundle.sequence += 1;
        bundle.roots += next.root_pem();
        *state.authority.lock() = next;
    }

    /// Waits for a report that `is_it`.
    pub(super) async fn report(&self, is_it: impl Fn(&wire::Report) -> bool) -> wire::Report {
        let mut told = self.state.reported.subscribe();
        loop {
            told.mark_unchanged();
            let found = self.state.heard.lock().reports.iter().rev().find(|it| is_it(it)).cloned();
            if let Some(found) = found {
                return found;
            }
            told.changed().await.unwrap();
        }
    }

    pub(super) fn forget_reports(&self) {
        self.state.heard.lock().reports.clear();
    }
}

impl State {
    fn svid(&self, id: &SpiffeId) -> (Svid, String) {
        let leaf = Leaf { id, life: DAY, dns_names: &[], addresses: &[] };
        let issued = self.authority.lock().issue(&leaf, clock::wall()).unwrap();
        let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
        (svid, issued.chain)
    }

    fn tls(&self) -> TlsAcceptor {
        let named = self.mood.lock().calls_itself.clone();
        let id = named
            .unwrap_or_else(|| format!("spiffe://{DOMAIN}{}", wire::CONTROL_PATH).parse().unwrap());
        let (svid, _) = self.svid(&id);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Bundle::from_pem(self.bundle.lock().roots.as_bytes()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(roots.store()),
            Arc::clone(&provider),
        );
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(
                svid.certified().as_ref().clone(),
            )));
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    async fn answer(
        self: Arc<Self>,
        caller: Option<CertificateDer<'static>>,
        request: Request<Incoming>,
    ) -> Response<Lines> {
        let token = request.headers().get(header::AUTHORIZATION);
        let by_token = token.is_some_and(|it| *it == format!("Bearer {TOKEN}").as_str());
        if caller.is_none() && !by_token {
            return refused(StatusCode::UNAUTHORIZED);
        }
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match path.as_str() {
            wire::CERTIFICATES => self.certificate(caller, &body).await,
            wire::WATCH => self.watch(),
            _ => {
                if self.mood.lock().refuses_reports {
                    return refused(StatusCode::TOO_MANY_REQUESTS);
                }
                self.heard.lock().reports.push(serde_json::from_slice(&body).unwrap());
                self.reported.send_modify(|it| *it += 1);
                let mut answer = Response::new(Lines::of(Bytes::new()));
                *answer.status_mut() = StatusCode::NO_CONTENT;
                answer
            }
        }
    }

    async fn certificate(
        &self,
        caller: Option<CertificateDer<'static>>,
        body: &[u8],
    ) -> Response<Lines> {
        let request: wire::SigningRequest = serde_json::from_slice(body).unwrap();
        let mood = self.mood.lock().clone();
        let heard = {
            let mut heard = self.heard.lock();
            heard.by_token += usize::from(caller.is_none());
            heard.requests.push(request.csr.clone());
            heard.requests.len()
        };
        if let Some(status) = mood.refuses {
            return refused(status);
        }
        if heard <= mood.loses {
            return std::future::pending().await;
        }
        let workload = SpiffeId::workload(DOMAIN, "shop", "web").unwrap();
        let id = mood.id.unwrap_or(workload);
        let asked = if mood.key_of_another {
            csr::Request::unnamed(Key::P256).unwrap().pem().to_owned()
        } else {
            request.csr
        };
        let asked = csr::read(&asked).unwrap();
        let life = mood.life.unwrap_or(DAY);
        let signed = self.authority.lock().sign(&asked, &id, life, clock::wall());
        let Ok(signed) = signed else { return refused(StatusCode::BAD_REQUEST) };
        let bundle = self.bundle.lock().clone();
        let not_after = signed.not_after.as_secs();
        let signed = wire::Signed { chain: signed.chain, bundle, not_after };
        Response::new(Lines::of(serde_json::to_vec(&signed).unwrap().into()))
    }

    fn watch(&self) -> Response<Lines> {
        self.heard.lock().watches += 1;
        let (sender, body) = mpsc::channel(16);
        let mut lines = self.lines.subscribe();
        drain::spawn("stand-in watch", async move {
            let mut said = 0;
            loop {
                let news = lines.borrow_and_update().get(said..).unwrap_or_default().to_vec();
                said += news.len();
                for line in news {
                    if sender.send(Bytes::from(line + "\n")).await.is_err() {
                        return;
                    }
                }
                let gone = sender.closed();
                tokio::select! {
                    changed = lines.changed() => if changed.is_err() { return },
                    () = gone => return,
                }
            }
        });
        Response::new(Lines(body))
    }
}

fn refused(status: StatusCode) -> Response<Lines> {
    let refusal = wire::Refusal {
        reason: "test".to_owned(),
        error: "not today".to_owned(),
        hint: "ask tomorrow".to_owned(),
    };
    let mut answer = Response::new(Lines::of(serde_json::to_vec(&refusal).unwrap().into()));
    *answer.status_mut() = status;
    answer
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let connection = drain::spawn("stand-in connection", serve(tcp, Arc::clone(&state)));
        state.connections.lock().push(connection);
    }
}

async fn serve(tcp: TcpStream, state: Arc<State>) {
    if state.mood.lock().is_mute {
        return std::future::pending().await;
    }
    let tls = state.tls();
    let Ok(stream) = tls.accept(tcp).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let service = service_fn(move |request| {
        let (state, shown) = (Arc::clone(&state), shown.clone());
        async move { Ok::<_, Infallible>(state.answer(shown, request).await) }
    });
    let serving = http2::Builder::new(TokioExecutor::new());
    let _ended = serving.serve_connection(TokioIo::new(stream), service).await.is_ok();
}

/// A body that comes bit by bit.
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl Lines {
    fn of(bytes: Bytes) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(bytes).unwrap();
        Self(receiver)
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|it| it.map(|it| Ok(Frame::data(it))))
    }
}
