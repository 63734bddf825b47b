//! Subset: which of many endpoints one client uses, so that not everybody talks to everybody.
//!
//! Of more than [`LARGE`] endpoints a client uses the few that rank first by a hash of its own
//! seed and their addresses (rendezvous hashing). The ranking of two endpoints depends on no
//! third one: when some are replaced, only those that left make room, so a rollout does not
//! close the connections to the rest.
//!
//! How many they are follows the load: while there are at least 1.125 requests under way for
//! each, as a mean over 15 s, one is added; at 0.875 or fewer one is taken away, down to
//! [`SIZE_MIN`]. With no more than one request at each on average, more endpoints would
//! spread what does not need spreading.
//!
//! When all of a subset is unavailable, the rest is used. A pool is used whole when its
//! weights differ, which a few of its endpoints could not keep, and when keys are hashed,
//! which all clients are to send to the same endpoints.
//!
//! # Sources
//!
//! - Finagle, *Aperture load balancers*: the load band, its numbers, and the least size.
//! - D. Thaler, C. Ravishankar, *Using Name-Based Mappings to Increase Hit Rates*, 1998.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Pools of up to this many endpoints are used whole.
pub(super) const LARGE: usize = 50;

/// The least size: enough that two choices spread the load, and that half may fail.
pub(super) const SIZE_MIN: u32 = 12;

/// Over which time the load is averaged, in seconds.
const WINDOW: f64 = 15.0;

/// The load of an endpoint at which one is taken away …
const LOW: f64 = 0.875;

/// … and at which one is added.
const HIGH: f64 = 1.125;

/// How many endpoints a subset has, by the load of late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    size: u32,
    average: f64,
    at: Instant,
}

impl Band {
    pub(super) fn new(now: Instant) -> Self {
        Self { size: SIZE_MIN, average: 0.0, at: now }
    }

    pub(super) fn size(self) -> u32 {
        self.size
    }

    /// Takes into account that `pending` requests were under way until now; says whether
    /// the size has changed. `all` is how many endpoints there are.
    pub(super) fn observe(&mut self, pending: u32, all: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        if !elapsed.is_zero() {
            let kept = (-Duration::as_secs_f64(&elapsed) / WINDOW).exp();
            self.average = self.average * kept + f64::from(pending) * (1.0 - kept);
        }
        let load = self.average / f64::from(self.size);
        let before = self.size;
        if HIGH <= load {
            self.size = self.size.saturating_add(1);
        } else if load <= LOW {
            self.size -= 1;
        }
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        self.size = self.size.min(all).max(SIZE_MIN);
        self.size != before
    }
}

/// Where an endpoint stands for the client of this seed: the lower, the sooner it is used.
pub(super) fn rank(seed: u64, address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(it) => u128::from(it.to_bits()),
        IpAddr::V6(it) => it.to_bits(),
    };
    let words = [ip >> 64, ip & u128::from(u64::MAX), u128::from(address.port())];
    words
        .into_iter()
        .fold(mixed(seed), |hash, word| mixed(hash ^ u64::try_from(word).unwrap_or_default()))
}

/// One round of `SplitMix64`: each bit of the input flips each of the output half the time.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
