//! Stand-in: what redirects the application where there is but one user.

use std::net::{Ipv4Addr, Ipv6Addr};

use remora::intercept::rules::{Chain, Family, Match, Rule, Ruleset, Set, SetKind, Verdict};

/// Its table.
pub(crate) const TABLE: &str = "remora_e2e";

/// The outbound rules without those about users, for connections from `addresses`; see
/// [`crate::world`].
pub(crate) fn rules(rules: &Ruleset, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Ruleset {
    let set = |name, kind, bits| Set { name, kind, intervals: vec![bits..=bits] };
    let mut sets = rules.sets.clone();
    sets.push(set("application_v4", SetKind::Ipv4, v4.to_bits().into()));
    sets.push(set("application_v6", SetKind::Ipv6, v6.to_bits()));
    let about_users = |it: &Match| matches!(it, Match::Uid(_) | Match::Source(_));
    let outbound = rules.chains.iter().find(|it| it.name == "outbound").expect("the chain");
    let mut kept = Vec::new();
    for rule in outbound.rules.iter().filter(|it| !it.matches.iter().any(about_users)) {
        match rule.verdict {
            Verdict::Return => kept.push(rule.clone()),
            Verdict::Redirect(_) => {
                for (family, set) in
                    [(Family::Ipv4, "application_v4"), (Family::Ipv6, "application_v6")]
                {
                    let matches = vec![Match::SourceIn(family, set), Match::Tcp];
                    kept.push(Rule { matches, ..rule.clone() });
                }
            }
        }
    }
    // Before the chain under test: a connection is redirected once.
    let chain = Chain { priority: outbound.priority - 1, rules: kept, ..outbound.clone() };
    Ruleset { table: TABLE, sets, chains: vec![chain] }
}
