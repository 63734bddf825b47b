//! Context: what the process shares, what a worker owns, what a request carries.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, Version};
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Notify};

use super::{
    core::Permit,
    failure::Failure,
    guard::Guards,
    plan::Plan,
    route::Routes,
    service::{Service, ServiceKey},
    traces::{TraceId, Traces},
};
use crate::{
    config::Policies,
    discovery::Discovery,
    drain::Drain,
    identity::Identity,
    telemetry::{
        access_log::AccessLog,
        metrics::{Direction, Metrics},
    },
    transport::body::Body,
};

/// What the whole process shares.
#[derive(Debug)]
pub struct Shared {
    /// Who we are; nobody where mesh TLS is not wanted.
    pub identity: Option<Identity>,
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// What the operator asked for.
    pub policies: Policies,
    /// Where services are.
    pub discovery: Discovery,
    /// What is counted.
    pub metrics: Metrics,
    /// Where requests are logged.
    pub access_log: AccessLog,
    /// Whether we are going away.
    pub drain: Drain,
    /// Where we listen: nothing may be forwarded there, or it would come straight back.
    pub listeners: Vec<SocketAddr>,
    /// Chance, to seed that of others.
    pub draw: Draw,
    /// Sets this process apart from others that call the same services.
    pub seed: u64,
    /// Whether connections were redirected here by packet rules.
    pub captured: bool,
    /// The services that are in use, whoever uses them.
    pub services: Mutex<HashMap<ServiceKey, Weak<Service>>>,
    /// Told when there is one more of them.
    pub called: Arc<Notify>,
    /// What guards the workload.
    pub guards: Guards,
    /// What the application is at work on.
    pub traces: Arc<Traces>,
}

impl Shared {
    /// Whether a connection to `address` would reach this very process.
    pub fn is_own(&self, address: SocketAddr) -> bool {
        self.listeners.iter().any(|it| {
            let same = it.ip() == address.ip();
            let any = it.ip().is_unspecified() && address.ip().is_loopback();
            it.port() == address.port() && (same || any)
        })
    }

    /// Whether `tcp` has reached this very process: there is more than one address for here.
    pub fn has_reached_itself(&self, tcp: &TcpStream) -> bool {
        match (tcp.local_addr(), tcp.peer_addr()) {
            (Ok(local), Ok(peer)) => reaches(&self.listeners, local.ip(), peer),
            _ => false,
        }
    }

    /// The generation of our identity; 0 without one.
    pub fn identity_generation(&self) -> u64 {
        self.identity.as_ref().map_or(0, Identity::generation)
    }
}

/// Whether a connection from `local` to `peer` ends at one of `listeners`. One that listens on
/// all addresses is reached at each of this machine's, and a connection to an address of this
/// machine comes from it.
fn reaches(listeners: &[SocketAddr], local: IpAddr, peer: SocketAddr) -> bool {
    let (local, ip) = (local.to_canonical(), peer.ip().to_canonical());
    listeners.iter().any(|it| {
        let here = it.ip() == ip || it.ip().is_unspecified() && local == ip;
        it.port() == peer.port() && here
    })
}

/// What one thread of one direction owns.
#[derive(Debug)]
pub struct Worker {
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Which way its requests go.
    pub direction: Direction,
    /// Its routes and the connections behind them.
    pub routes: Routes,
    /// Its chance.
    pub draw: Draw,
    /// Where servers speak first.
    pub greeters: Greeters,
}

/// Addresses whose servers speak first: a client of one need not be listened to for a
/// moment before its server is dialled.
///
/// Only a server that was seen to speak first is one. A client that is merely slow to
/// begin must not make its server's connections opaque.
#[derive(Debug, Default)]
pub struct Greeters(Mutex<HashMap<SocketAddr, Instant>>);

impl Greeters {
    /// How many are remembered.
    const MAX: usize = 1024;

    /// For how long.
    const MEMORY: Duration = Duration::from_mins(1);

    /// Whether the server at `address` speaks first.
    pub fn has(&self, address: SocketAddr, now: Instant) -> bool {
        self.0.lock().get(&address).is_some_and(|until| now < *until)
    }

    /// Remembers that the server at `address` spoke first.
    pub fn add(&self, address: SocketAddr, now: Instant) {
        let mut known = self.0.lock();
        if known.len() >= Self::MAX {
            known.retain(|_, until| now < *until);
        }
        if known.len() < Self::MAX {
            known.insert(address, now + Self::MEMORY);
        }
    }
}

/// Random numbers that anybody may draw: unpredictable enough to spread load and to name a
/// trace, never for a secret.
///
/// # Sources
///
/// - Steele, Lea, Flood: *Fast splittable pseudorandom number generators* (`SplitMix64`).
#[derive(Debug)]
pub struct Draw(AtomicU64);

impl Draw {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next 64 bits.
    pub fn long(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next 32 bits.
    pub fn next(&self) -> u32 {
        (self.long() >> 32) as u32
    }
}

/// What a request is, apart from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What the application's client spoke.
    pub version: Version,
    /// Whether the exchange needs a connection of its own.
    pub manner: Manner,
    /// Whether it is a gRPC call.
    pub grpc: bool,
    /// Where its client is.
    pub client: IpAddr,
    /// When its head had been read.
    pub started: Instant,
    /// How long it may take until the head of its answer.
    pub timeout: Option<Duration>,
    /// How long its bodies may be idle.
    pub idle: Option<Duration>,
    /// Until when the head of its answer is waited for, as whoever works for it is told.
    pub deadline: Option<Instant>,
    /// Until when a gRPC caller waits for all of its answer.
    pub ends: Option<Instant>,
    /// What it has failed of when its time is over: ours, or its caller's.
    pub late: Failure,
    /// Whether it is a retry, or made for one: then it is not tried again here.
    pub retried: bool,
    /// The trace of the inbound request it is made for, where one is open.
    pub trace: Option<TraceId>,
}

impl Facts {
    /// A plain request of `client`, that has as long as it likes.
    pub fn new(version: Version, client: IpAddr, started: Instant) -> Self {
        Self {
            version,
            manner: Manner::Plain,
            grpc: false,
            client,
            started,
            timeout: None,
            idle: None,
            deadline: None,
            ends: None,
            late: Failure::RequestTimeout,
            retried: false,
            trace: None,
        }
    }
}

/// Whether an exchange needs a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It does not.
    Plain,
    /// It may switch protocols (RFC 9110, section 7.8).
    Upgrade,
    /// Its body waits for a word of the upstream (RFC 9110, section 10.1.1).
    Expect,
}

/// A request on its way through a service's stack. It goes from layer to layer in a box:
/// its parts are large, and moved often.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request<Body>,
    /// What it is.
    pub facts: Facts,
    /// How it is treated.
    pub plan: Arc<Plan>,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    /// The response.
    pub response: Response<Body>,
    /// Held until the response's body has ended.
    pub permit: Option<Permit>,
    /// What it took.
    pub trail: Trail,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// What failed.
    pub failure: Failure,
    /// What it took.
    pub trail: Trail,
}

/// Something under way that can say where, to who gives it up.
pub trait Underway {
    /// What it has taken so far.
    fn trail(&self) -> Trail;
}

/// Which way a call went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail {
    /// The last endpoint that was tried.
    pub upstream: Option<SocketAddr>,
    /// How many tries were made.
    pub tries: u8,
    /// Whether the last one was under mesh TLS.
    pub mesh: bool,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, trail: Trail::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_listener_of_ours_is_ours() {
        let at = |it: &str| it.parse::<SocketAddr>().unwrap();
        let is_ours = |listener, local: &str, peer| {
            reaches(&[at(listener)], local.parse().unwrap(), at(peer))
        };
        // Dialled as `10.0.0.7`, and the pod's own address is that.
        assert!(is_ours("0.0.0.0:15001", "10.0.0.7", "10.0.0.7:15001"));
        // Dialled as `0.0.0.0`, or as an IPv4 address within IPv6.
        assert!(is_ours("127.0.0.1:15001", "127.0.0.1", "127.0.0.1:15001"));
        assert!(is_ours("127.0.0.1:15001", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:15001"));
        assert!(!is_ours("0.0.0.0:15001", "10.0.0.7", "10.0.0.8:15001"));
        assert!(!is_ours("0.0.0.0:15001", "10.0.0.7", "10.0.0.7:8080"));
    }
}
