//! Load: requests over several connections, of which none may fail.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use remora::{clock, drain};
use tokio::time;

use crate::{
    host::{Host, PATIENCE, Running},
    http::{AnyBody, Client},
    pods::eventually,
};

/// Requests that are sent until somebody has seen enough.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Progress>,
    running: Option<Running<()>>,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    done: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Load {
    /// Sends what `request` makes of a number over `connections` connections of `host` to
    /// `to`, one request after the other on each. What is not a 200,
    /// or of gRPC not an OK, has failed.
    pub(crate) fn start(
        host: &Host,
        to: SocketAddr,
        connections: u32,
        request: impl Fn(u64) -> http::Request<AnyBody> + Send + Sync + 'static,
    ) -> Self {
        Self::paced(host, to, (connections, Duration::ZERO), request)
    }

    /// The same, where each connection sends one request in `pace`, and makes up for those
    /// that took longer.
    pub(crate) fn paced(
        host: &Host,
        to: SocketAddr,
        (connections, pace): (u32, Duration),
        request: impl Fn(u64) -> http::Request<AnyBody> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Progress::default());
        let (progress, request) = (Arc::clone(&shared), Arc::new(request));
        // It ends when the case says so; each of its steps has a time of its own.
        let running = host.start_for(4 * PATIENCE, move || async move {
            let began = time::Instant::from_std(clock::now());
            let senders = (0..connections).map(|sender| {
                let (progress, request) = (Arc::clone(&progress), Arc::clone(&request));
                // Not all at once.
                let first = began + pace * sender / connections;
                drain::spawn("load", async move {
                    send_on(to, (first, pace), &progress, &*request).await;
                })
            });
            for sender in senders.collect::<Vec<_>>() {
                sender.await.expect("a sender does not panic");
            }
        });
        Self { shared, running: Some(running) }
    }

    /// Waits until `more` requests have been answered from now on.
    pub(crate) fn go_on_for(&self, more: u64) {
        let target = self.shared.done.load(Ordering::SeqCst) + more;
        let reached = eventually(|| target <= self.shared.done.load(Ordering::SeqCst));
        assert!(reached, "the load stands still; failed: {:?}", tally(&self.failed()));
    }

    /// Ends, and returns how many requests there were and why some failed.
    pub(crate) fn stop(mut self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.running.take().expect("it runs").join();
        (self.shared.done.load(Ordering::SeqCst), self.failed())
    }

    /// Ends, and makes sure that nothing failed.
    pub(crate) fn stop_without_failure(self) -> u64 {
        let (done, failed) = self.stop();
        assert!(failed.is_empty(), "of {done} requests failed: {:?}", tally(&failed));
        done
    }

    fn failed(&self) -> Vec<String> {
        self.shared.failed.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// How often each reason is among `failed`.
pub(crate) fn tally(failed: &[String]) -> BTreeMap<&str, usize> {
    failed.iter().fold(BTreeMap::new(), |mut counts, it| {
        *counts.entry(&**it).or_default() += 1;
        counts
    })
}

async fn send_on(
    to: SocketAddr,
    (mut next, pace): (time::Instant, Duration),
    progress: &Progress,
    request: &(impl Fn(u64) -> http::Request<AnyBody> + ?Sized),
) {
    let mut client = None;
    while !progress.stop.load(Ordering::SeqCst) {
        time::sleep_until(next).await;
        next += pace;
        let number = progress.done.fetch_add(1, Ordering::SeqCst);
        let sent = send(&mut client, to, request(number)).await;
        if let Err(it) = sent {
            client = None;
            progress.failed.lock().expect("nobody panics with it").push(it);
        }
    }
}

/// Sends over `client`, or a new connection, and leaves there what can be used again.
async fn send(
    client: &mut Option<Client>,
    to: SocketAddr,
    request: http::Request<AnyBody>,
) -> Result<(), String> {
    let mut used = if let Some(it) = client.take() {
        it
    } else {
        let made = Client::connect(request.version(), to).await;
        made.map_err(|it| format!("no connection: {it}"))?
    };
    let answer = used.send(request).await.map_err(|it| format!("no answer: {it}"))?;
    if answer.header("connection") != "close" {
        *client = Some(used);
    }
    let of_grpc = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    match (answer.status, of_grpc.map(HeaderValue::as_bytes)) {
        (200, None | Some(b"0")) => Ok(()),
        (200, Some(status)) => Err(format!("200 grpc-status {}", status.escape_ascii())),
        (other, _) => Err(format!("{other} {}", answer.header("x-remora-reason"))),
    }
}
