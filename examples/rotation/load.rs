//! Load: clients that ask all the while, and the applications that answer them.
//!
//! A client is the application of web: it asks its own sidecar, as a proxy, for orders.
//! Each waits a moment between two requests, so that the load is steady and leaves a small
//! machine time for handshakes.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use remora::drain;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::{Result, client::Client};

/// Whom clients ask; nothing of it but the name is known to them.
const SERVICE: &str = "orders.shop.svc.cluster.local";

/// Clients of each sidecar of web, and how long they think.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(40);

/// All the clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts the clients of these sidecars.
    pub(crate) fn start(webs: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared::default());
        let clients = webs.iter().flat_map(|it| [*it; CLIENTS]);
        let client = |web| drain::spawn("client", Arc::clone(&shared).ask(web));
        Self { clients: clients.map(client).collect(), shared }
    }

    /// How many requests have been answered.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits for the last answers: how many there are in all, and what failed.
    pub(crate) async fn end(self) -> (usize, Vec<String>) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.err().map(|it| it.to_string()));
        }
        let told = &self.shared.failures;
        failures.append(&mut told.lock().unwrap_or_else(PoisonError::into_inner));
        (self.shared.answered.load(Ordering::Relaxed), failures)
    }
}

impl Shared {
    async fn ask(self: Arc<Self>, web: SocketAddr) {
        let mut client = Client::new(web);
        while !self.ended.load(Ordering::Relaxed) {
            let failure = match client.get(SERVICE, "/orders/17").await {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => {
                    let (status, reason) =
                        (answer.status(), answer.headers().get("x-remora-reason"));
                    Some(format!("{status} {reason:?} {:?}", answer.body()))
                }
                Err(error) => Some(format!("no answer: {error}")),
            };
            self.answered.fetch_add(1, Ordering::Relaxed);
            if let Some(failure) = failure {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
            sleep(PAUSE).await;
        }
    }
}

/// Starts an application that looks orders up; says where it is.
pub(crate) async fn orders() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    drop(drain::spawn("orders", async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(drain::spawn("connection", async move {
                let service = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"17\n"))))
                });
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.is_ok()
            }));
        }
    }));
    Ok(address)
}
