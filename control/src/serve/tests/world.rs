//! A server on a port of its own, and whoever calls it.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora::{
    clock, drain,
    identity::{self, Expected},
    sync::wire,
    telemetry::Journal,
};
use remora_certs::{
    authority::{Key, Plan, create},
    bundle::Bundle,
    csr,
    spiffe_id::SpiffeId,
    svid::Svid,
    x509,
};
use rustls::{ClientConfig, crypto::aws_lc_rs, pki_types::ServerName, version::TLS13};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::super::{Control, Pace, Parts, audit, auth::Limits};
use crate::{issuing::Names, publish, store::Folder, token};

pub(super) const DAY: Duration = Duration::from_hours(24);

/// Whatever is waited for comes sooner, also on a machine that is busy.
pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) control: Arc<Control>,
    pub(super) address: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) run: JoinHandle<()>,
}

/// What a world is like that is not like others.
pub(super) struct Odd {
    pub(super) limits: Limits,
    pub(super) pace: Pace,
    pub(super) leaf_life: Duration,
    /// Whether it follows a folder of policy.
    pub(super) publishes: bool,
}

impl Default for Odd {
    fn default() -> Self {
        Self { limits: Limits::default(), pace: Pace::DEFAULT, leaf_life: DAY, publishes: false }
    }
}

/// Who has a certificate.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) id: SpiffeId,
    pub(super) svid: Svid,
    pub(super) roots: Bundle,
}

/// A connection.
pub(super) struct Client {
    send: http2::SendRequest<Full<Bytes>>,
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::odd(Odd::default()).await
    }

    pub(super) async fn publishing() -> Self {
        Self::odd(Odd { publishes: true, ..Odd::default() }).await
    }

    pub(super) async fn odd(odd: Odd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan =
            Plan { trust_domain: "cluster.local", root_life: DAY * 90, issuer_life: DAY * 30 };
        create(dir.path(), &plan, clock::wall()).unwrap();
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        std::fs::create_dir_all(dir.path().join("policy")).unwrap();
        Self::on(dir, odd).await
    }

    /// A server of what there is.
    pub(super) async fn on(dir: TempDir, odd: Odd) -> Self {
        Box::pin(Self::begin(dir, odd)).await
    }

    async fn begin(dir: TempDir, odd: Odd) -> Self {
        let (api, address) = local().await;
        let (admin, admin_address) = local().await;
        let source = publish::Source::Folder(dir.path().join("policy"));
        let parts = Parts {
            store: Arc::new(Folder::new(dir.path())),
            dir: Some(dir.path().to_owned()),
            replica: "server".to_owned(),
            names: Names::default(),
            audit: Journal::file(&dir.path().join(audit::FILE)).unwrap(),
            policy: publish::Settings { source: odd.publishes.then_some(source), canary: None },
            leaf_life: odd.leaf_life,
        };
        let control = Control::load(parts).await.unwrap();
        let control = Control { limits: odd.limits, pace: odd.pace, ..control };
        let control = control.start(vec![api], vec![admin]);
        let running = Arc::clone(&control);
        let run = drain::spawn("server", async move { running.run().await });
        Self { dir, control, address, admin: admin_address, run }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn policy(&self, name: &str, text: &str) {
        std::fs::write(self.path().join("policy").join(name), text).unwrap();
    }

    /// What the audit log has, a value for each line.
    pub(super) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path().join("state/audit.jsonl")).unwrap();
        text.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
    }

    pub(super) async fn token(&self, id: &str, life: Duration) -> String {
        let id = id.parse().unwrap();
        let (token, _) =
            token::create(&*self.control.store, &id, life, clock::wall()).await.unwrap();
        token.to_string()
    }

    /// Somebody without a certificate, who makes sure of the host's name as curl does.
    pub(super) async fn stranger(&self) -> Client {
        self.connect(self.unnamed()).await
    }

    /// One of whom the server takes no notice, perhaps.
    pub(super) async fn try_stranger(&self) -> Option<TlsStream<TcpStream>> {
        self.tls(self.unnamed()).await.ok()
    }

    fn unnamed(&self) -> ClientConfig {
        let issuing = self.control.live.get();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(Arc::clone(issuing.roots.store()))
            .with_no_client_auth()
    }

    pub(super) async fn client(&self, member: &Member) -> Client {
        let config = member.config();
        self.connect(config).await
    }

    async fn connect(&self, config: ClientConfig) -> Client {
        Box::pin(self.shake_hands(config)).await
    }

    async fn shake_hands(&self, config: ClientConfig) -> Client {
        let tls = Box::pin(self.tls(config)).await.unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // Who does not read is soon full.
        builder.initial_stream_window_size(64 * 1024);
        let made = Box::pin(builder.handshake(TokioIo::new(tls))).await;
        let (send, connection) = made.unwrap();
        drain::spawn("client", connection);
        Client { send }
    }

    pub(super) async fn tls(
        &self,
        mut config: ClientConfig,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// Gets `id`'s `instance` a certificate by a token.
    pub(super) async fn join(&self, id: &str, instance: &str) -> Member {
        let token = self.token(id, DAY).await;
        let request = csr::Request::new(&id.parse().unwrap(), Key::P256).unwrap();
        let body = json!({"csr": request.pem(), "instance": instance});
        let answer = self.stranger().await.sign(Some(&token), &body).await;
        answer.member(&request)
    }

    /// An operator, as the authority's key makes one.
    pub(super) fn operator(&self) -> Member {
        let issuing = self.control.live.get();
        let svid = issuing
            .authority
            .own(wire::OPERATOR_PATH, DAY, &Names::default(), clock::wall())
            .unwrap();
        let roots = Bundle::from_pem(issuing.record.bundle.roots.as_bytes()).unwrap();
        Member { id: svid.id().clone(), svid, roots }
    }

    /// Reads a page of health and metrics.
    pub(super) async fn page(&self, path: &str) -> (StatusCode, String) {
        let tcp = TcpStream::connect(self.admin).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
        drain::spawn("client", connection);
        let request = Request::get(path).header("host", "control").body(Full::<Bytes>::default());
        let response = send.send_request(request.unwrap()).await.unwrap();
        let status = response.status();
        let page = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(page.to_vec()).unwrap())
    }
}

impl Member {
    pub(super) fn config(&self) -> ClientConfig {
        let expected =
            Expected::Ids([format!("spiffe://cluster.local{}", wire::CONTROL_PATH).into()].into());
        identity::client_config(self.svid.clone(), self.roots.clone(), &expected, b"h2").unwrap()
    }
}

/// An answer that has come in whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: hyper::HeaderMap,
    pub(super) body: Value,
}

impl Answer {
    /// Status and reason, of a refusal.
    pub(super) fn reason(&self) -> (u16, &str) {
        (self.status.as_u16(), self.body["reason"].as_str().unwrap_or_default())
    }

    pub(super) fn member(&self, request: &csr::Request) -> Member {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        let signed: wire::Signed = serde_json::from_value(self.body.clone()).unwrap();
        let svid = Svid::from_pem(signed.chain.as_bytes(), request.key_pem().as_bytes()).unwrap();
        let roots = Bundle::from_pem(signed.bundle.roots.as_bytes()).unwrap();
        Member { id: svid.id().clone(), svid, roots }
    }
}

impl Client {
    pub(super) async fn sign(&mut self, token: Option<&str>, body: &Value) -> Answer {
        let mut request = Request::post(uri(wire::CERTIFICATES));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.answer(request.body(Full::from(body.to_string())).unwrap()).await
    }

    pub(super) async fn get(&mut self, path: &str) -> Answer {
        self.call(Method::GET, path, "").await
    }

    /// Reports that these services are called.
    pub(super) async fn report(&mut self, instance: &str, services: &[&str]) {
        let report = wire::Report {
            instance: instance.to_owned(),
            services: services.iter().map(|it| (*it).to_owned()).collect(),
            ..wire::Report::default()
        };
        let body = serde_json::to_string(&report).unwrap();
        let answer = self.call(Method::POST, wire::REPORT, &body).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.body);
    }

    pub(super) async fn call(&mut self, method: Method, path: &str, body: &str) -> Answer {
        let request = Request::builder().method(method).uri(uri(path));
        self.answer(request.body(Full::from(body.to_owned())).unwrap()).await
    }

    async fn answer(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.response(request).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn response(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        timeout(SOON, Box::pin(self.send.send_request(request))).await.unwrap().unwrap()
    }

    pub(super) async fn watch(&mut self, instance: &str) -> Lines {
        self.watch_as(&format!("instance={instance}")).await
    }

    /// Resumes at a generation, as its payload was.
    pub(super) async fn resume(&mut self, instance: &str, has: &wire::Generation) -> Lines {
        let payload = serde_json::to_string(has).unwrap();
        let generation = x509::fingerprint(payload.as_bytes());
        self.watch_as(&format!("instance={instance}&generation={generation}")).await
    }

    async fn watch_as(&mut self, query: &str) -> Lines {
        let request = Request::get(uri(&format!("{}?{query}", wire::WATCH)));
        let response = self.response(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines { body: response.into_body(), rest: Vec::new() }
    }

    /// Whether the server has said that it leaves.
    pub(super) fn is_closed(&self) -> bool {
        self.send.is_closed()
    }
}

impl Lines {
    /// The next line; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<wire::Message> {
        loop {
            if let Some(end) = self.rest.iter().position(|it| *it == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = timeout(SOON, self.body.frame()).await.expect("nothing comes");
            self.rest.extend_from_slice(frame?.ok()?.data_ref()?);
        }
    }

    /// The next that is no heartbeat.
    pub(super) async fn news(&mut self) -> Option<wire::Message> {
        loop {
            match self.next().await {
                Some(wire::Message::Heartbeat) => (),
                other => return other,
            }
        }
    }

    pub(super) async fn generation(&mut self) -> wire::Generation {
        match self.news().await {
            Some(wire::Message::Policy(it)) => serde_json::from_str(&it.payload).unwrap(),
            other => panic!("expected a generation, found {other:?}"),
        }
    }

    /// The next generation with these words in it.
    pub(super) async fn having(&mut self, words: &str) -> wire::Generation {
        loop {
            let generation = self.generation().await;
            if text(&generation).contains(words) {
                return generation;
            }
        }
    }

    pub(super) async fn bundle(&mut self) -> wire::Bundle {
        match self.news().await {
            Some(wire::Message::Bundle(it)) => it,
            other => panic!("expected a bundle, found {other:?}"),
        }
    }
}

/// All documents of a generation.
pub(super) fn text(generation: &wire::Generation) -> String {
    generation.files.values().cloned().collect()
}

/// Waits for what will be, and looks again every few milliseconds.
pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun: Instant = clock::now();
    while !is_so().await {
        assert!(clock::now() - begun < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A listener on a port of its own.
async fn local() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn uri(path: &str) -> String {
    format!("https://localhost{path}")
}
