//! Endpoint: one address a service can be reached at, and the set of them.
//!
//! A set is immutable and cheap to share; discovery publishes a new one when
//! anything changes, and the balancer keeps what it knows of each endpoint that
//! is in both ([`EndpointSet::diff`]).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// One address a service can be reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Relative share of the traffic, `1..=65_535`; 1 where nothing says otherwise.
    pub weight: u16,
    /// Lower is preferred; a higher one is used only when no lower one is available
    /// (RFC 2782, "priority").
    pub priority: u16,
    /// Whether it is near.
    pub zone: Zone,
}

/// Whether an endpoint is in the zone of its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Zone {
    /// Nobody says.
    #[default]
    Unknown,
    /// It is.
    Near,
    /// It is in another one.
    Far,
}

impl Endpoint {
    /// An endpoint of weight 1 and the most preferred priority.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0, zone: Zone::Unknown }
    }
}

/// The endpoints of a service at one moment, ordered by address, each address once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    endpoints: Arc<[Endpoint]>,
}

/// What changed between two sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// In the new set only.
    pub added: Vec<Endpoint>,
    /// In the old set only.
    pub removed: Vec<Endpoint>,
    /// In both, with another weight or priority; as they are in the new set.
    pub changed: Vec<Endpoint>,
}

impl EndpointSet {
    /// The endpoints, in the order of their addresses.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.endpoints.binary_search_by_key(&address, |it| it.address).is_ok()
    }

    /// What has to happen to `self` for it to become `new`.
    pub fn diff(&self, new: &Self) -> Diff {
        let mut diff = Diff::default();
        let old: BTreeMap<_, _> = self.endpoints.iter().map(|it| (it.address, it)).collect();
        for it in new.endpoints() {
            match old.get(&it.address) {
                None => diff.added.push(*it),
                Some(before) if *before != it => diff.changed.push(*it),
                Some(_) => (),
            }
        }
        diff.removed =
            self.endpoints.iter().filter(|it| !new.contains(it.address)).copied().collect();
        diff
    }
}

/// Sorts by address; where an address comes twice, the first one stays.
impl FromIterator<Endpoint> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut by_address = BTreeMap::new();
        for it in endpoints {
            by_address.entry(it.address).or_insert(it);
        }
        Self { endpoints: by_address.into_values().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_says_what_was_added_removed_and_changed() {
        let (a, b, c) = (at(1), at(2), at(3));
        let heavier = Endpoint { weight: 5, ..b };
        let old: EndpointSet = [a, b].into_iter().collect();
        let new: EndpointSet = [heavier, c].into_iter().collect();
        let diff = Diff { added: vec![c], removed: vec![a], changed: vec![heavier] };
        assert_eq!(old.diff(&new), diff);
        assert_eq!(new.diff(&new), Diff::default());
    }

    #[test]
    fn each_address_comes_once_and_in_order() {
        let set: EndpointSet =
            [at(2), at(1), Endpoint { weight: 9, ..at(2) }].into_iter().collect();
        assert_eq!(set.endpoints(), [at(1), at(2)]);
        assert!(set.contains(at(2).address) && !set.contains(at(3).address));
    }

    fn at(last: u8) -> Endpoint {
        Endpoint::new(SocketAddr::from(([10, 0, 0, last], 80)))
    }
}
