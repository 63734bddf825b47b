//! Manners: which endpoints of one service speak mesh TLS, as far as each has shown.
//!
//! Bounded: where there is no room, what makes room is a peer that spoke plaintext, the one
//! whose time is over first. What a peer has proved is kept as long as there is another to
//! forget; a forgotten one is asked again, never taken for a plaintext peer.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long a peer that does not speak mesh TLS is taken to go on so.
const PLAINTEXT: Duration = Duration::from_mins(1);

/// Endpoints whose manner is remembered, of one service.
const MEMORY_MAX: usize = 1024;

/// Whether an endpoint speaks mesh TLS, where policy leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not known yet.
    Unknown,
    /// It does.
    Mesh,
    /// It does not, and was asked a while ago: time to ask again, on the side.
    PlaintextOnceMore,
    /// It does not.
    Plaintext {
        /// Until when that is taken for granted.
        until: Instant,
    },
}

/// What is remembered of the endpoints of one service.
#[derive(Debug, Default)]
pub struct Manners {
    known: HashMap<SocketAddr, Known>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Mesh,
    Plaintext { until: Instant },
}

impl Manners {
    /// Whether the endpoint at `address` speaks mesh TLS. One caller is told to ask again.
    pub fn get(&mut self, address: SocketAddr, now: Instant) -> Manner {
        match self.known.get_mut(&address) {
            None => Manner::Unknown,
            Some(Known::Mesh) => Manner::Mesh,
            Some(Known::Plaintext { until }) if *until <= now => {
                *until = now + PLAINTEXT;
                Manner::PlaintextOnceMore
            }
            Some(Known::Plaintext { until }) => Manner::Plaintext { until: *until },
        }
    }

    /// Remembers whether the endpoint at `address` speaks mesh TLS; says whether it is news
    /// that it does not.
    pub fn learn(&mut self, address: SocketAddr, mesh: bool, now: Instant) -> bool {
        if MEMORY_MAX <= self.known.len() && !self.known.contains_key(&address) {
            self.make_room();
        }
        let known = if mesh { Known::Mesh } else { Known::Plaintext { until: now + PLAINTEXT } };
        let before = self.known.insert(address, known);
        !mesh && !matches!(before, Some(Known::Plaintext { .. }))
    }

    fn make_room(&mut self) {
        let until = |it: &Known| match it {
            Known::Plaintext { until } => Some(*until),
            Known::Mesh => None,
        };
        let plaintext = self.known.iter().filter_map(|(at, it)| Some((until(it)?, *at))).min();
        let gone = plaintext.map(|it| it.1).or_else(|| self.known.keys().next().copied());
        gone.map(|it| self.known.remove(&it));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_peer_is_what_it_has_shown() {
        let (mut manners, now) = (Manners::default(), clock::now());
        assert_eq!(manners.get(at(1), now), Manner::Unknown);
        assert!(!manners.learn(at(1), true, now));
        assert_eq!(manners.get(at(1), now), Manner::Mesh);
        assert!(manners.learn(at(1), false, now), "that it does no more is news");
        assert!(!manners.learn(at(1), false, now), "and once is enough");
        assert_eq!(manners.get(at(1), now), Manner::Plaintext { until: now + PLAINTEXT });
    }

    #[test]
    fn one_caller_a_minute_asks_a_plaintext_peer_again() {
        let (mut manners, now) = (Manners::default(), clock::now());
        manners.learn(at(1), false, now);
        let later = now + PLAINTEXT;
        assert_eq!(manners.get(at(1), later), Manner::PlaintextOnceMore);
        assert_eq!(manners.get(at(1), later), Manner::Plaintext { until: later + PLAINTEXT });
    }

    #[test]
    fn what_makes_room_is_the_plaintext_peer_whose_time_is_over_first() {
        let (mut manners, now) = (Manners::default(), clock::now());
        for it in 3..MEMORY_MAX {
            manners.learn(at(it), true, now);
        }
        let second = Duration::from_secs(1);
        manners.learn(at(0), false, now + second);
        manners.learn(at(1), false, now);
        manners.learn(at(2), false, now + second);
        manners.learn(at(MEMORY_MAX), true, now);
        let unknown: Vec<_> =
            (0..=MEMORY_MAX).filter(|it| manners.get(at(*it), now) == Manner::Unknown).collect();
        assert_eq!(unknown, [1]);
    }

    #[test]
    fn among_peers_that_have_all_proved_themselves_one_is_forgotten() {
        let (mut manners, now) = (Manners::default(), clock::now());
        for it in 0..=MEMORY_MAX {
            manners.learn(at(it), true, now);
        }
        let known = |it: &usize| manners.get(at(*it), now) == Manner::Mesh;
        assert_eq!((0..=MEMORY_MAX).filter(known).count(), MEMORY_MAX);
    }

    #[test]
    fn a_peer_that_is_known_makes_no_room() {
        let (mut manners, now) = (Manners::default(), clock::now());
        for it in 0..MEMORY_MAX {
            manners.learn(at(it), false, now);
        }
        manners.learn(at(5), true, now);
        assert!((0..MEMORY_MAX).all(|it| manners.get(at(it), now) != Manner::Unknown));
    }

    fn at(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(number).unwrap()))
    }
}
