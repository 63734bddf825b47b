//! A control that does as a test tells it: true TLS, true HTTP/2, and any mood.

use std::{
    collections::BTreeMap,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Either};
use hyper::body::Incoming;
use parking_lot::Mutex;
use remora_certs::{
    authority::{self, Authority, Key, Leaf, Lives, Plan},
    bundle::Bundle,
    csr,
    spiffe_id::SpiffeId,
    svid::Svid,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::super::{
    server::{self, Answer, Lines, Peer, Service, bearer, parameter},
    wire,
};
use crate::{
    clock,
    drain::{self, Drain},
    identity::control::{self, Accepted},
};

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
    /// The path of each call.
    pub(super) calls: Vec<String>,
    pub(super) requests: Vec<String>,
    pub(super) by_token: usize,
    pub(super) reports: Vec<wire::Report>,
    /// The generation that each watch began with.
    pub(super) watches: Vec<Option<String>>,
}

/// The parts that its connections share.
pub(super) struct State {
    pub(super) authority: Mutex<Authority>,
    pub(super) mood: Mutex<Mood>,
    pub(super) heard: Mutex<Heard>,
    pub(super) bundle: Mutex<wire::Bundle>,
    /// Every watch gets all of them.
    pub(super) lines: watch::Sender<Vec<String>>,
    /// Counts what was heard.
    told: watch::Sender<usize>,
    /// Whoever has called.
    peers: Mutex<Vec<Weak<Peer>>>,
}

/// A control; dropping it ends it.
pub(super) struct StandIn {
    pub(super) state: Arc<State>,
    pub(super) address: SocketAddr,
    folder: TempDir,
    drain: Drain,
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
            told: watch::Sender::new(0),
            peers: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = serve(listener, &state);
        Self { state, address, folder, drain }
    }

    /// Ends it and its connections; it may be started again.
    pub(super) fn stop(&self) {
        self.drain.begin();
        self.disconnect();
    }

    pub(super) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.drain = serve(listener, &self.state);
    }

    pub(super) fn disconnect(&self) {
        let peers = self.state.peers.lock().split_off(0);
        peers.iter().filter_map(Weak::upgrade).for_each(|it| it.kill.notify_one());
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
        let generation = wire::Generation { number, audience, files };
        let (svid, _) = self.state.svid(&format!("spiffe://{DOMAIN}{signer}").parse().unwrap());
        wire::Envelope::seal(&generation, &svid).unwrap()
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
        let mut told = self.state.told.subscribe();
        loop {
            told.mark_unchanged();
            let found = self.state.heard.lock().reports.iter().rev().find(|it| is_it(it)).cloned();
            if let Some(found) = found {
                return found;
            }
            told.changed().await.unwrap();
        }
    }

    /// Waits until so many watches were begun, and tells where.
    pub(super) async fn watches(&self, count: usize) -> Vec<Option<String>> {
        let mut told = self.state.told.subscribe();
        let are_enough = |_: &usize| count <= self.state.heard.lock().watches.len();
        drop(told.wait_for(are_enough).await.unwrap());
        self.state.heard.lock().watches.clone()
    }

    pub(super) fn forget_reports(&self) {
        self.state.heard.lock().reports.clear();
    }
}

impl Service for State {
    async fn accept(&self, tcp: TcpStream) -> io::Result<Accepted> {
        let mood = self.mood.lock().clone();
        if mood.is_mute {
            return pending().await;
        }
        let named = format!("spiffe://{DOMAIN}{}", wire::CONTROL_PATH).parse().unwrap();
        let (svid, _) = self.svid(&mood.calls_itself.unwrap_or(named));
        let roots = Bundle::from_pem(self.bundle.lock().roots.as_bytes()).unwrap();
        control::accept(tcp, &svid, &roots).await
    }

    async fn answer(self: Arc<Self>, peer: Arc<Peer>, request: Request<Incoming>) -> Answer {
        self.peers.lock().push(Arc::downgrade(&peer));
        let is_stranger = peer.chain.is_empty();
        let (head, body) = request.into_parts();
        if is_stranger && bearer(&head.headers) != Some(TOKEN) {
            return refused(StatusCode::UNAUTHORIZED);
        }
        self.heard.lock().calls.push(head.uri.path().to_owned());
        let body = body.collect().await.unwrap().to_bytes();
        match head.uri.path() {
            wire::CERTIFICATES => self.certificate(is_stranger, &body).await,
            wire::WATCH => self.watch(&head.uri),
            _ => {
                if self.mood.lock().refuses_reports {
                    return refused(StatusCode::TOO_MANY_REQUESTS);
                }
                self.heard.lock().reports.push(serde_json::from_slice(&body).unwrap());
                self.told.send_modify(|it| *it += 1);
                whole(StatusCode::NO_CONTENT, Vec::new())
            }
        }
    }

    fn admits(&self, _address: IpAddr) -> bool {
        true
    }

    fn counted(&self, _result: &'static str) {}
}

impl State {
    fn svid(&self, id: &SpiffeId) -> (Svid, String) {
        let leaf = Leaf { id, life: DAY, dns_names: &[], addresses: &[] };
        let issued = self.authority.lock().issue(&leaf, clock::wall()).unwrap();
        let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
        (svid, issued.chain)
    }

    async fn certificate(&self, is_stranger: bool, body: &[u8]) -> Answer {
        let request: wire::SigningRequest = serde_json::from_slice(body).unwrap();
        let mood = self.mood.lock().clone();
        let heard = {
            let mut heard = self.heard.lock();
            heard.by_token += usize::from(is_stranger);
            heard.requests.push(request.csr.clone());
            heard.requests.len()
        };
        if let Some(status) = mood.refuses {
            return refused(status);
        }
        if heard <= mood.loses {
            return pending().await;
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
        whole(StatusCode::OK, serde_json::to_vec(&signed).unwrap())
    }

    fn watch(&self, uri: &Uri) -> Answer {
        let began = parameter(uri, "generation");
        self.heard.lock().watches.push(began.map(str::to_owned));
        self.told.send_modify(|it| *it += 1);
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
        Response::new(Either::Right(Lines(body)))
    }
}

fn refused(status: StatusCode) -> Answer {
    let refusal = wire::Refusal {
        reason: "test".to_owned(),
        error: "not today".to_owned(),
        hint: "ask tomorrow".to_owned(),
    };
    whole(status, serde_json::to_vec(&refusal).unwrap())
}

fn whole(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Either::Left(body.into()));
    *answer.status_mut() = status;
    answer
}

/// Serves until the drain begins that is returned.
fn serve(listener: TcpListener, state: &Arc<State>) -> Drain {
    let drain = Drain::new();
    server::start(vec![listener], state, &drain, server::Pace::DEFAULT);
    drain
}
