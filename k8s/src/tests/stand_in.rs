//! A stand-in for the API server: the calls that control makes, and no others.
//!
//! HTTPS over loopback. It takes only the paths, methods, parameters and bodies that it
//! knows, as strictly as the real one, and writes down each, so that a test can compare them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::{Method, Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use remora::{drain, sync::server::Lines};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

/// The token that control shows.
const TOKEN: &str = "control's own";

/// What the next call of a kind meets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// It is answered so, and not made.
    Status(u16),
    /// It is made, and its connection ends without an answer.
    Unanswered,
    /// It is never answered, nor made.
    Silence,
}

/// The server.
#[derive(Clone)]
pub(super) struct StandIn {
    pub(super) config: Config,
    state: Arc<Mutex<State>>,
}

struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Versions up to this one are forgotten: a watch from there is too old.
    forgotten: u64,
    /// Each event, its version and the folder it was in.
    history: Vec<(u64, String, Value)>,
    news: watch::Sender<()>,
    faults: HashMap<Method, VecDeque<Fault>>,
    reviews: HashMap<String, Value>,
    transcript: String,
}

/// What is asked for: a kind's folder, and maybe one object in it.
struct Target {
    kind: &'static str,
    api_version: &'static str,
    folder: String,
    name: Option<String>,
}

type Answer = Result<Response<BoxBody<Bytes, Infallible>>, String>;

impl StandIn {
    /// A server with nothing in it.
    pub(super) async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let root = params.self_signed(&key).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![root.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kubeconfig = json!({
            "clusters": [{ "name": "it", "cluster": {
                "server": format!("https://{}", listener.local_addr().unwrap()),
                "certificate-authority-data": ByteString(root.pem().into_bytes()),
            }}],
            "users": [{ "name": "it", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "it", "context": {
                "cluster": "it", "user": "it", "namespace": "remora",
            }}],
            "current-context": "it",
        });
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            version: 100,
            forgotten: 0,
            history: Vec::new(),
            news: watch::Sender::default(),
            faults: HashMap::new(),
            reviews: HashMap::new(),
            transcript: String::new(),
        }));
        let it = Self { config, state };
        drain::spawn("stand-in", it.clone().accept(listener, Arc::new(tls).into()));
        it
    }

    /// Each call so far, its body and the status of the answer; numbers that change from run
    /// to run have names instead.
    pub(super) fn transcript(&self) -> String {
        std::mem::take(&mut self.state.lock().transcript)
    }

    /// The next calls by `method` meet these.
    pub(super) fn fail(&self, method: Method, faults: &[Fault]) {
        self.state.lock().faults.entry(method).or_default().extend(faults);
    }

    /// What a review of `token` is answered.
    pub(super) fn review(&self, token: &str, status: Value) {
        self.state.lock().reviews.insert(token.to_owned(), status);
    }

    /// Forgets the past, and ends each watch.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.forgotten = state.version;
        state.news = watch::Sender::default();
    }

    async fn accept(self, listener: TcpListener, tls: TlsAcceptor) {
        while let Ok((stream, _)) = listener.accept().await {
            let (it, tls) = (self.clone(), tls.clone());
            drain::spawn("stand-in's connection", async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| {
                    let it = it.clone();
                    async move { it.call(request).await }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // An error is how a connection ends without an answer.
                let _ended = server.serve_connection(TokioIo::new(stream), service).await.is_ok();
            });
        }
    }

    async fn call(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|it| it.to_string())?.to_bytes();
        let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let body = (!body.is_empty()).then(|| serde_json::from_slice(&body).unwrap());
        let shown = head.headers.get("authorization").and_then(|it| it.to_str().ok());
        assert_eq!(shown, Some(format!("Bearer {TOKEN}").as_str()));
        let fault = {
            let faults = &mut self.state.lock().faults;
            faults.get_mut(&head.method).and_then(VecDeque::pop_front)
        };
        let accept = head.headers.get("accept").and_then(|it| it.to_str().ok()).unwrap_or_default();
        let names = if accept.contains("PartialObjectMetadata") { " (metadata)" } else { "" };
        self.write_down(&format!("{} {path}{names}\n", head.method), body.as_ref());
        match fault {
            Some(Fault::Status(code)) => Ok(self.status(code, "as the test wants it")),
            Some(Fault::Silence) => {
                self.write_down("-> silence\n", None);
                sleep(Duration::from_mins(1)).await;
                Err("silence".to_owned())
            }
            Some(Fault::Unanswered) => {
                self.serve(&head, &path, body);
                self.write_down("-> unanswered\n", None);
                Err("unanswered".to_owned())
            }
            None => Ok(self.serve(&head, &path, body)),
        }
    }

    fn serve(
        &self,
        head: &http::request::Parts,
        path: &str,
        body: Option<Value>,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let Some(target) = Target::of(head.uri.path()) else {
            return self.status(404, &format!("no path `{path}`"));
        };
        let query: HashMap<_, _> = head
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|it| it.split_once('='))
            .collect();
        if let Some(body) = &body {
            assert_eq!(head.headers["content-type"], "application/json");
            check(&target, body);
        }
        let selector =
            query.get("labelSelector").map(|it| it.replace("%2F", "/").replace("%3D", "="));
        match (&head.method, &target.name, body) {
            (&Method::GET, Some(_), None) => self.get(&target),
            (&Method::GET, None, None) if query.contains_key("watch") => {
                self.watch(&target, selector.as_deref().unwrap(), query["resourceVersion"])
            }
            (&Method::GET, None, None) => self.list(&target, selector.as_deref()),
            (&Method::POST, None, Some(body)) => self.post(&target, body),
            (&Method::PUT, Some(_), Some(body)) => self.put(&target, body),
            (&Method::DELETE, Some(_), _) => self.delete(&target),
            _ => self.status(405, "no such call"),
        }
    }

    fn get(&self, target: &Target) -> Response<BoxBody<Bytes, Infallible>> {
        let found = self.state.lock().objects.get(&target.path()).cloned();
        found.map_or_else(|| self.status(404, "not found"), |it| self.answer(200, &it))
    }

    fn list(
        &self,
        target: &Target,
        selector: Option<&str>,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let (items, version) = {
            let state = self.state.lock();
            let within = state.objects.iter().filter(|(path, _)| {
                path.strip_prefix(&target.folder).is_some_and(|it| !it.is_empty())
            });
            let items: Vec<_> =
                within.map(|(_, it)| it.clone()).filter(|it| selects(selector, it)).collect();
            (items, state.version)
        };
        let metadata = json!({ "resourceVersion": version.to_string() });
        let kind = format!("{}List", target.kind);
        let list = json!({
            "apiVersion": target.api_version, "kind": kind, "metadata": metadata, "items": items,
        });
        self.answer(200, &list)
    }

    fn watch(
        &self,
        target: &Target,
        selector: &str,
        since: &str,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        self.write_down("-> 200\n", None);
        let state = self.state.lock();
        let since: u64 = since.parse().unwrap();
        if since < state.forgotten {
            let gone = json!({ "type": "ERROR", "object": {
                "kind": "Status", "code": 410, "reason": "Expired", "message": "too old",
            }});
            let body = http_body_util::Full::from(format!("{gone}\n")).boxed();
            return Response::new(body);
        }
        let news = state.news.subscribe();
        let (sender, receiver) = mpsc::channel(16);
        let target = (target.folder.clone(), selector.to_owned());
        drain::spawn("stand-in's watch", self.clone().tell(since, target, news, sender));
        Response::new(Lines(receiver).boxed())
    }

    /// Sends each event of the objects selected, as a line.
    async fn tell(
        self,
        mut since: u64,
        (folder, selector): (String, String),
        mut news: watch::Receiver<()>,
        sender: mpsc::Sender<Bytes>,
    ) {
        loop {
            let lines: Vec<_> = {
                let state = self.state.lock();
                let new = state.history.iter().filter(|it| since < it.0 && it.1 == folder);
                let new = new.filter(|it| selects(Some(&selector), &it.2["object"]));
                let lines = new.map(|it| Bytes::from(format!("{}\n", it.2))).collect();
                since = state.version;
                lines
            };
            for line in lines {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                new = news.changed() => if new.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }

    fn post(&self, target: &Target, mut body: Value) -> Response<BoxBody<Bytes, Infallible>> {
        if target.kind == "TokenReview" {
            let token = body["spec"]["token"].as_str().unwrap();
            let invalid = json!({ "authenticated": false, "error": "no such token" });
            let status = self.state.lock().reviews.get(token).cloned().unwrap_or(invalid);
            body["status"] = status;
            return self.answer(201, &body);
        }
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let path = format!("{}/{name}", target.folder);
        if self.state.lock().objects.contains_key(&path) {
            return self.status(409, "already exists");
        }
        assert!(body["metadata"].get("resourceVersion").is_none(), "{body}");
        let body = self.state.lock().store(&path, "ADDED", body);
        self.answer(201, &body)
    }

    fn put(&self, target: &Target, body: Value) -> Response<BoxBody<Bytes, Infallible>> {
        let Some(found) = self.state.lock().objects.get(&target.path()).cloned() else {
            return self.status(404, "not found");
        };
        let (asked, there) =
            (&body["metadata"]["resourceVersion"], &found["metadata"]["resourceVersion"]);
        if !asked.is_null() && asked != there {
            return self.status(409, "the object has been modified");
        }
        let body = self.state.lock().store(&target.path(), "MODIFIED", body);
        self.answer(200, &body)
    }

    fn delete(&self, target: &Target) -> Response<BoxBody<Bytes, Infallible>> {
        let removed = {
            let mut state = self.state.lock();
            let removed = state.objects.remove(&target.path());
            if let Some(it) = &removed {
                state.happened(&target.folder, "DELETED", it);
            }
            removed
        };
        match removed {
            Some(_) => self.answer(200, &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" })),
            None => self.status(404, "not found"),
        }
    }

    fn status(&self, code: u16, message: &str) -> Response<BoxBody<Bytes, Infallible>> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": code, "message": message,
            "reason": if code == 404 { "NotFound" } else { "" },
        });
        self.answer(code, &status)
    }

    fn answer(&self, code: u16, body: &Value) -> Response<BoxBody<Bytes, Infallible>> {
        self.write_down(&format!("-> {code}\n"), None);
        let body = http_body_util::Full::from(body.to_string()).boxed();
        Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    }

    fn write_down(&self, line: &str, body: Option<&Value>) {
        let mut state = self.state.lock();
        let mut line = line.to_owned();
        if let Some(body) = body {
            let mut body = body.clone();
            normalise(&mut body);
            line = format!("{line}   {body}\n");
        }
        if let Some((before, after)) = line.split_once("resourceVersion=") {
            let after = after.trim_start_matches(|it: char| it.is_ascii_digit());
            line = format!("{before}resourceVersion=N{after}");
        }
        state.transcript.push_str(&line);
    }
}

impl State {
    fn store(&mut self, path: &str, event: &str, mut body: Value) -> Value {
        body["metadata"]["resourceVersion"] = (self.version + 1).to_string().into();
        self.objects.insert(path.to_owned(), body.clone());
        self.happened(path.rsplit_once('/').unwrap().0, event, &body);
        body
    }

    fn happened(&mut self, folder: &str, what: &str, object: &Value) {
        self.version += 1;
        let event = json!({ "type": what, "object": object });
        self.history.push((self.version, folder.to_owned(), event));
        self.news.send_replace(());
    }
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        const KNOWN: [(&str, &str, &str); 4] = [
            ("/api/v1/namespaces/remora/secrets", "v1", "Secret"),
            ("/api/v1/namespaces/remora/configmaps", "v1", "ConfigMap"),
            (
                "/apis/coordination.k8s.io/v1/namespaces/remora/leases",
                "coordination.k8s.io/v1",
                "Lease",
            ),
            (
                "/apis/authentication.k8s.io/v1/tokenreviews",
                "authentication.k8s.io/v1",
                "TokenReview",
            ),
        ];
        let (folder, api_version, kind) =
            *KNOWN.iter().find(|(folder, ..)| path.starts_with(folder))?;
        let name = path.strip_prefix(folder)?;
        let name = if name.is_empty() { None } else { Some(name.strip_prefix('/')?.to_owned()) };
        Some(Self { kind, api_version, folder: folder.to_owned(), name })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.folder, self.name.as_deref().unwrap_or_default())
    }
}

/// What the real one refuses as invalid.
fn check(target: &Target, body: &Value) {
    if body["kind"] == "DeleteOptions" || target.name.is_some() && body == &json!({}) {
        return;
    }
    assert_eq!(body["kind"], target.kind, "{body}");
    assert_eq!(body["apiVersion"], target.api_version, "{body}");
    if target.kind == "TokenReview" {
        return;
    }
    let metadata = &body["metadata"];
    let name = metadata["name"].as_str().unwrap();
    assert!(target.name.as_deref().is_none_or(|it| it == name), "{body}");
    assert!(!name.is_empty() && name.len() <= 253, "{name}");
    assert!(name.split('.').all(is_label), "{name}");
    for (_, value) in metadata["labels"].as_object().into_iter().flatten() {
        assert!(value.as_str().is_some_and(is_label), "{body}");
    }
    let bytes = |field: &str| {
        for (_, value) in body[field].as_object().into_iter().flatten() {
            serde_json::from_value::<ByteString>(value.clone()).unwrap();
        }
    };
    match target.kind {
        "Secret" => bytes("data"),
        "ConfigMap" => {
            bytes("binaryData");
            let texts = body["data"].as_object().into_iter().flatten();
            assert!(texts.into_iter().all(|(_, it)| it.is_string()), "{body}");
        }
        _ => {}
    }
}

/// RFC 1123.
fn is_label(text: &str) -> bool {
    let inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `label=value` selects the object.
fn selects(selector: Option<&str>, object: &Value) -> bool {
    let Some((label, value)) = selector.map(|it| it.split_once('=').unwrap()) else { return true };
    object["metadata"]["labels"][label] == value
}

/// Texts in place of what changes from run to run.
fn normalise(body: &mut Value) {
    for (pointer, to) in [
        ("/metadata/resourceVersion", "N"),
        ("/spec/acquireTime", "TIME"),
        ("/spec/renewTime", "TIME"),
    ] {
        if let Some(it) = body.pointer_mut(pointer).filter(|it| !it.is_null()) {
            *it = to.into();
        }
    }
    if let Some(it) = body.pointer_mut("/spec/holderIdentity") {
        let name = it.as_str().and_then(|it| it.split_once('_')).map(|it| it.0.to_owned());
        *it = name.into();
    }
}
