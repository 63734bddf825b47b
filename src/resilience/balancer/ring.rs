//! Ring: which endpoint a key belongs to, and which ones come after it.
//!
//! Each endpoint owns many points of a circle; a key belongs to the first point after its
//! hash. When an endpoint leaves, only its own keys move.
//!
//! # Sources
//!
//! - *libketama*, as nginx and pingora have it: the points and the hash.
//! - V. Mirrokni et al., *Consistent Hashing with Bounded Loads*, 2017.

use std::{fmt, net::SocketAddr};

use pingora_ketama::{Bucket, Continuum};

use super::slot::Slot;

/// No weight is taken for more than this many times the least: each is 160 points.
const WEIGHT_MAX: u32 = 16;

/// The circle.
pub(super) struct Ring(Continuum);

impl Ring {
    /// The ring of these slots.
    pub(super) fn new(members: &[u32], slots: &[Slot]) -> Self {
        let of = |it: &u32| &slots[*it as usize];
        let weights = || members.iter().map(|it| u32::from(of(it).weight()));
        let divisor = weights().fold(0, greatest_common_divisor).max(1);
        let most = weights().max().unwrap_or(1);
        // Weights stay as they are to each other, unless that would take too many points.
        let scaled = |weight: u32| {
            let exact = weight / divisor;
            if most / divisor <= WEIGHT_MAX { exact } else { (weight * WEIGHT_MAX).div_ceil(most) }
        };
        let bucket =
            |it| Bucket::new(of(it).endpoint.address, scaled(u32::from(of(it).weight())).max(1));
        Self(Continuum::new(&members.iter().map(bucket).collect::<Vec<_>>()))
    }

    /// The owners of the points from the key's on, once around.
    pub(super) fn walk(&self, key: &[u8]) -> impl Iterator<Item = SocketAddr> {
        let start = self.0.node_idx(key);
        let mut at = start;
        let mut is_done = false;
        std::iter::from_fn(move || {
            if is_done {
                return None;
            }
            let owner = self.0.get_addr(&mut at).copied();
            is_done = at == start;
            owner
        })
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
