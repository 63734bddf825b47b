//! Route: which backends a request's path leads to.
//!
//! Precedence is the Gateway API's: an exact match first, then the longest prefix,
//! then the order of the documents.
//!
//! # Sources
//!
//! - Gateway API, `HTTPRouteRule.matches`: precedence, and prefixes by whole segments.
//!   <https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule>

use std::{sync::Arc, time::Duration};

use super::ServiceName;

/// The rules attached to one service, most specific first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    rules: Vec<Rule>,
}

/// One rule: the first whose match fits the request is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The metric label: the document's name, and its rule's name or index.
    pub name: Arc<str>,
    /// What the path must be.
    pub path: PathMatch,
    /// Port of the parent service this is for; any where `None`.
    pub port: Option<u16>,
    /// Where the requests go, shared by weight; the service itself where empty.
    pub backends: Arc<[Backend]>,
    /// Overrides the service's request timeout.
    pub request_timeout: Option<Duration>,
    /// From one try's request head to its response's head; never longer than the request's.
    pub try_timeout: Option<Duration>,
    /// What may be sent again; as the service's policy says where `None`.
    pub retry: Option<RouteRetry>,
}

/// What a rule says of retries: each replaces what the service's policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    /// Statuses of a response that may be followed by another try.
    pub codes: Option<Arc<[u16]>>,
    /// Tries after the first.
    pub attempts: Option<u8>,
    /// The least wait before one.
    pub backoff: Option<Duration>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// This, to the byte.
    Exact(String),
    /// This, or this followed by `/` and anything.
    Prefix(String),
}

/// One place a rule's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Relative share, `0..=1_000_000`; 0 gets nothing.
    pub weight: u32,
}

impl RouteTable {
    /// Orders `rules` by the Gateway API's precedence; ties keep the order given.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by_key(|it| it.path.precedence());
        Self { rules }
    }

    /// The rules, in the order in which they are consulted.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule for `path` (without its query) at `port`.
    pub fn find(&self, path: &str, port: u16) -> Option<&Rule> {
        self.position(path, port).map(|it| &self.rules[it])
    }

    /// Index of the rule for `path` (without its query) at `port`.
    pub fn position(&self, path: &str, port: u16) -> Option<usize> {
        self.rules
            .iter()
            .position(|it| it.port.is_none_or(|wanted| wanted == port) && it.path.matches(path))
    }
}

impl Rule {
    /// Index of the backend that owns the point `draw` of the weights; `None` where no
    /// backend has a weight. `draw` is uniform over `u32`.
    pub fn backend(&self, draw: u32) -> Option<usize> {
        let total: u64 = self.backends.iter().map(|it| u64::from(it.weight)).sum();
        let mut point = (u64::from(draw) * total) >> 32;
        self.backends.iter().position(|it| match point.checked_sub(u64::from(it.weight)) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }
}

impl PathMatch {
    /// Whether `path` is what this asks for.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                path.strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }

    /// Less is consulted earlier.
    fn precedence(&self) -> (bool, std::cmp::Reverse<usize>) {
        match self {
            Self::Exact(path) => (false, std::cmp::Reverse(path.len())),
            Self::Prefix(path) => (true, std::cmp::Reverse(path.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let prefix = PathMatch::Prefix("/v1".into());
        assert!(prefix.matches("/v1") && prefix.matches("/v1/x") && !prefix.matches("/v10"));
        assert!(PathMatch::Prefix("/".into()).matches("/anything"));
    }

    #[test]
    fn an_exact_match_comes_before_the_longest_prefix() {
        let table = RouteTable::new(vec![
            rule("short", PathMatch::Prefix("/a".into()), &[]),
            rule("long", PathMatch::Prefix("/a/b".into()), &[]),
            rule("exact", PathMatch::Exact("/a/b".into()), &[]),
        ]);
        let found = |path| table.find(path, 80).map(|it| &*it.name);
        assert_eq!(found("/a/b"), Some("exact"));
        assert_eq!(found("/a/b/c"), Some("long"));
        assert_eq!(found("/a/c"), Some("short"));
        assert_eq!(found("/b"), None);
    }

    #[test]
    fn a_backend_of_weight_zero_gets_nothing() {
        assert_eq!(rule("r", PathMatch::Prefix("/".into()), &[0, 0]).backend(7), None);
        let rule = rule("r", PathMatch::Prefix("/".into()), &[0, 3]);
        assert_eq!(rule.backend(0), Some(1));
    }

    proptest! {
        /// Shares follow the weights, over evenly spaced draws.
        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(0_u32..100, 1..5)) {
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let rule = rule("r", PathMatch::Prefix("/".into()), &weights);
            let mut hits = vec![0_u32; weights.len()];
            for step in 0..total {
                // The middle of each of `total` equal parts of the range of a draw.
                let draw = ((u64::from(step) * 2 + 1) << 32) / (u64::from(total) * 2);
                hits[rule.backend(u32::try_from(draw).unwrap()).unwrap()] += 1;
            }
            prop_assert_eq!(hits, weights);
        }
    }

    fn rule(name: &str, path: PathMatch, weights: &[u32]) -> Rule {
        let backends = (0..).zip(weights).map(|(port, weight)| Backend {
            service: ServiceName::new("shop", name),
            port,
            weight: *weight,
        });
        Rule {
            name: name.into(),
            path,
            port: None,
            backends: backends.collect(),
            request_timeout: None,
            try_timeout: None,
            retry: None,
        }
    }
}
