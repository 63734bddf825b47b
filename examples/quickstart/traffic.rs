//! Traffic: clients that ask as fast as they are answered, and write down what they got.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use remora::{clock, drain};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    apps::{CALLER, REASON, SERVED_BY},
    client::Client,
};

/// What had happened to the mesh when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing yet.
    Calm,
    /// A pod had died.
    Killed,
    /// Certificates had been replaced.
    Rotated,
    /// A policy had been edited.
    Edited,
}

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// When it was sent.
    pub(crate) phase: Phase,
    /// How long it took.
    pub(crate) took: Duration,
    /// Who answered.
    pub(crate) served_by: String,
    /// As whom orders knew its caller.
    pub(crate) caller: String,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

/// All the clients.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    web: SocketAddr,
    requests: usize,
    next: AtomicUsize,
    answers: Mutex<Vec<Answer>>,
    answered: watch::Sender<usize>,
    /// The phase, and how many requests may be sent in all so far.
    now: watch::Sender<(Phase, usize)>,
}

impl Traffic {
    /// Starts `clients` that ask `web` for `requests` orders in all, but for no more than
    /// `allowed` for now.
    pub(crate) fn start(web: SocketAddr, requests: usize, clients: usize, allowed: usize) -> Self {
        let shared = Arc::new(Shared {
            web,
            requests,
            next: AtomicUsize::new(0),
            answers: Mutex::default(),
            answered: watch::Sender::new(0),
            now: watch::Sender::new((Phase::Calm, allowed)),
        });
        let client = |_| drain::spawn("client", Arc::clone(&shared).ask());
        Self { clients: (0..clients).map(client).collect(), shared }
    }

    /// Waits for so many answers; says how many there are.
    pub(crate) async fn answered(&self, count: usize) -> usize {
        let mut answered = self.shared.answered.subscribe();
        // The sender is ours, so waiting cannot fail.
        answered.wait_for(|it| *it >= count).await.map_or(count, |it| *it)
    }

    /// What is sent from now on is sent in `phase`, up to `allowed` in all. On a slow
    /// machine traffic waits there for the story; on others it never does.
    pub(crate) fn enter(&self, phase: Phase, allowed: usize) {
        self.shared.now.send_replace((phase, allowed));
    }

    /// Waits for the last client; returns all answers.
    pub(crate) async fn end(self) -> Vec<Answer> {
        for client in self.clients {
            // A client that panicked leaves answers missing, which are counted.
            let _ended = client.await.is_ok();
        }
        std::mem::take(&mut *self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    async fn ask(self: Arc<Self>) {
        let (mut client, mut now) = (Client::new(self.web), self.now.subscribe());
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return;
            }
            let Ok(phase) = now.wait_for(|(_, allowed)| number < *allowed).await.map(|it| it.0)
            else {
                return;
            };
            let answer = ask_once(&mut client, number, phase, clock::now()).await;
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            self.answered.send_modify(|it| *it += 1);
        }
    }
}

async fn ask_once(client: &mut Client, number: usize, phase: Phase, sent: Instant) -> Answer {
    let answered = client.get("web.shop", &format!("/orders/{number}")).await;
    let took = clock::now() - sent;
    match answered {
        Ok(answer) => {
            let header = |name| answer.headers().get(name).and_then(|it| it.to_str().ok());
            let text = |name| header(name).unwrap_or_default().to_owned();
            let failure = (!answer.status().is_success()).then(|| {
                let reason = header(REASON).unwrap_or("no reason given");
                let body = String::from_utf8_lossy(answer.body());
                format!("/orders/{number}: {} ({reason}) {}", answer.status(), body.trim())
            });
            Answer { phase, took, served_by: text(SERVED_BY), caller: text(CALLER), failure }
        }
        Err(error) => {
            let failure = Some(format!("/orders/{number}: no answer: {error}"));
            Answer { phase, took, served_by: String::new(), caller: String::new(), failure }
        }
    }
}
