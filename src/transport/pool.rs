//! Pool: connections to one service's endpoints that can carry another request.
//!
//! One pool belongs to one service on one worker, so its lock is never contended, and what
//! a peer must prove is the same for all that is in it. A connection made with another
//! generation of our identity is never used again: a new certificate or new roots hold from
//! the next request on, while requests in flight end on the connection they began with.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    h1::{H1, Home},
    h2::H2,
};

/// Idle HTTP/1 connections kept to one endpoint.
const IDLE_MAX: usize = 256;

/// How long an HTTP/2 connection without a stream is kept.
const H2_IDLE: Duration = Duration::from_mins(1);

/// What is spoken to an endpoint, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// HTTP/1 in plaintext.
    PlainH1,
    /// HTTP/2 in plaintext, with prior knowledge.
    PlainH2,
    /// HTTP/2 between sidecars.
    MeshH2,
    /// HTTP/1 between sidecars: upgrades and expectations.
    MeshH1,
}

impl Link {
    /// Whether it is under mesh TLS.
    pub fn is_mesh(self) -> bool {
        matches!(self, Self::MeshH2 | Self::MeshH1)
    }

    /// Whether it carries many requests at once.
    pub fn is_h2(self) -> bool {
        matches!(self, Self::MeshH2 | Self::PlainH2)
    }
}

/// Where a connection goes, and what is spoken on it.
pub type Key = (SocketAddr, Link);

/// The connections of one service on one worker.
#[derive(Debug, Default)]
pub struct Pool {
    slots: Mutex<BTreeMap<Key, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The one used last is used next, so that a burst's connections grow old and go.
    #[expect(clippy::vec_box, reason = "a connection goes in and out for each request, boxed")]
    idle: Vec<Box<H1>>,
    shared: Vec<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: H2,
    idle_since: Option<Instant>,
}

impl Pool {
    /// An idle connection that still is one.
    pub fn take(&self, key: Key, generation: u64, now: Instant) -> Option<Box<H1>> {
        loop {
            // Asked outside the lock: the answer may read from the connection.
            let mut connection = self.slots.lock().get_mut(&key)?.idle.pop()?;
            if connection.idle_until > now
                && connection.generation == generation
                && connection.is_usable()
            {
                return Some(connection);
            }
        }
    }

    /// A shared connection with room for a request.
    pub fn share(&self, key: Key, generation: u64) -> Option<H2> {
        let slots = self.slots.lock();
        let shared = &slots.get(&key)?.shared;
        let usable = |it: &&Shared| {
            let connection = &it.connection;
            connection.generation == generation && !connection.is_closed() && connection.has_room()
        };
        shared.iter().find(usable).map(|it| it.connection.clone())
    }

    /// Adds a shared connection.
    pub fn add(&self, key: Key, connection: H2) {
        let shared = Shared { connection, idle_since: None };
        self.slots.lock().entry(key).or_default().shared.push(shared);
    }

    /// Closes what has been idle for too long, has ended, or was made with another identity.
    pub fn sweep(&self, generation: u64, now: Instant) {
        let mut swept = Vec::new();
        self.slots.lock().retain(|(_, link), slot| {
            let current = |of: u64| !link.is_mesh() || of == generation;
            let keep = |it: &mut H1| it.idle_until > now && current(it.generation);
            swept.extend(slot.idle.extract_if(.., |it| !keep(it)));
            slot.shared.retain_mut(|it| {
                let since = match (it.connection.is_idle(), it.idle_since) {
                    (true, since) => since.unwrap_or(now),
                    (false, _) => now,
                };
                it.idle_since = it.connection.is_idle().then_some(since);
                !it.connection.is_closed()
                    && current(it.connection.generation)
                    && now.saturating_duration_since(since) < H2_IDLE
            });
            !slot.idle.is_empty() || !slot.shared.is_empty()
        });
        // Closed outside the lock.
        drop(swept);
    }
}

/// A pool seen from a connection that will come back to it.
#[derive(Debug)]
pub struct Berth {
    /// Where it comes back to.
    pub pool: std::sync::Arc<Pool>,
    /// Which slot.
    pub key: Key,
}

impl Home for Berth {
    fn put(&self, connection: Box<H1>) {
        let mut slots = self.pool.slots.lock();
        let idle = &mut slots.entry(self.key).or_default().idle;
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}
