//! Services: what pingora's server runs, each on a runtime of its own.
//!
//! One service a worker, so that each has one thread and its connections never move to
//! another; one for everything that is not traffic.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora_core::{
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::MissedTickBehavior,
};

use super::listeners::Listener;
use crate::{
    clock, drain,
    proxy::{
        accept::{Accepted, Entry, serve},
        context::Worker,
    },
    transport::listen::accept,
};

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// After how many sweeps a name nobody asked for is forgotten.
const FORGET: u32 = 600;

/// A worker: accepts on its direction's listeners and serves what comes.
pub(super) struct Traffic {
    /// What it is called in a debugger.
    pub name: String,
    /// What it owns.
    pub worker: Arc<Worker>,
    /// Where it accepts, and how connections come there.
    pub listeners: Vec<(Listener, Entry)>,
    /// Bounds the connections of the direction.
    pub room: Arc<Semaphore>,
    /// The generation of our identity.
    pub rotated: watch::Receiver<u64>,
}

#[async_trait]
impl Service for Traffic {
    async fn start_service(
        &mut self,
        descriptors: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        _: usize,
    ) {
        let mut running = Vec::new();
        for (listener, entry) in self.listeners.clone() {
            let socket = listener.socket(descriptors.as_ref()).and_then(TcpListener::from_std);
            match socket {
                Ok(socket) => running.push(self.accept(socket, entry)),
                Err(error) => tracing::error!(address = %listener.actual, %error, "cannot accept"),
            }
        }
        let worker = Arc::clone(&self.worker);
        let sweeping = drain::spawn("sweep", async move { sweep(&worker).await });
        // Only a successor takes the listeners; a shutdown ends the process with its runtimes.
        let _told = shutdown.wait_for(|it| *it).await.is_ok();
        running.iter().for_each(tokio::task::JoinHandle::abort);
        self.worker.shared.drain.begin();
        let _ended = sweeping.await.is_ok();
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.listeners.iter().map(|(it, _)| it.asked.to_string()).collect())
    }
}

impl Traffic {
    fn accept(&self, socket: TcpListener, entry: Entry) -> tokio::task::JoinHandle<()> {
        let (worker, room) = (Arc::clone(&self.worker), Arc::clone(&self.room));
        let rotated = self.rotated.clone();
        drain::spawn("accept", async move {
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                let (tcp, peer) = accept(&socket, |error| {
                    tracing::warn!(%error, "cannot accept connections for a moment");
                })
                .await;
                let accepted =
                    Accepted { tcp, peer, entry: entry.clone(), rotated: rotated.clone() };
                connection(Arc::clone(&worker), accepted, permit);
            }
        })
    }
}

fn connection(worker: Arc<Worker>, accepted: Accepted, permit: OwnedSemaphorePermit) {
    let _running = drain::spawn("connection", async move {
        serve(worker, accepted).await;
        drop(permit);
    });
}

async fn sweep(worker: &Worker) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1_u32.. {
        ticks.tick().await;
        let generation = worker.shared.identity_generation();
        worker.routes.sweep(generation, clock::now(), round % FORGET == 0);
    }
}

/// Everything that is not traffic: admin, discovery, watching of files.
pub(super) struct Background<F> {
    /// What runs; taken when it starts.
    pub run: Option<F>,
    /// Where it accepts, for who comes after this process.
    pub listeners: Vec<Listener>,
}

#[async_trait]
impl<F> Service for Background<F>
where
    F: Future<Output = ()> + Send + Sync + 'static,
{
    async fn start_service(&mut self, descriptors: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        for listener in &self.listeners {
            // Only the entry in `descriptors` is wanted.
            if let Err(error) = listener.socket(descriptors.as_ref()) {
                tracing::error!(address = %listener.actual, %error, "cannot be handed over");
            }
        }
        if let Some(run) = self.run.take() {
            run.await;
        }
    }

    fn name(&self) -> &'static str {
        "background"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Where a listener of `entry` says it is, for a log.
pub(super) fn describe(listener: &Listener, entry: &Entry) -> (SocketAddr, &'static str) {
    let kind = match entry {
        Entry::Captured => "captured",
        Entry::App(_) => "app",
        Entry::Proxy => "proxy",
        Entry::Tunnel(_) => "tunnel",
    };
    (listener.actual, kind)
}
