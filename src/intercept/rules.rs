//! Packet rules: who is sent to the sidecar, as a value.
//!
//! One `inet` table holds both families. The `inbound` chain sees what comes from
//! outside the pod, the `outbound` chain what the pod's own processes send. Both are
//! `nat` chains, which see the first packet of a connection only; what travels over `lo`
//! is decided in `outbound` alone.
//!
//! The order of `outbound` is the law, and each rule protects from the ones after it:
//!
//! 1. the sidecar to its application (its source address says so) passes;
//! 2. the sidecar to an address of its own pod goes to the inbound listener: it chose an
//!    endpoint that happens to be here, and identity must be checked all the same;
//! 3. everything else of the sidecar passes, or it would dial itself for ever;
//! 4. the application talking to itself passes;
//! 5. what the operator leaves out passes;
//! 6. the rest goes to the outbound listener.

use std::{net::IpAddr, ops::RangeInclusive};

use super::{Cidr, Config, FROM_PROXY_V4, FROM_PROXY_V6};

/// The name of the table.
pub const TABLE: &str = "remora";

/// `NF_IP_PRI_NAT_DST`: where destination NAT belongs.
const PRIORITY: i32 = -100;

/// The most entries one list of exceptions may have after overlapping ones are joined.
/// Each is looked up for each new connection, and all of them must fit the one message
/// a transaction is.
pub const LIST_ENTRIES_MAX: usize = 512;

/// A table with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The name of the table, of family `inet`.
    pub table: &'static str,
    /// Lists the rules look things up in; none is empty.
    pub sets: Vec<Set>,
    /// The chains.
    pub chains: Vec<Chain>,
}

/// A list of ports or addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name in the table.
    pub name: &'static str,
    /// What it holds.
    pub kind: SetKind,
    /// Ordered, disjoint and not adjacent; addresses by their bits.
    pub intervals: Vec<RangeInclusive<u128>>,
}

/// What a [`Set`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// TCP ports.
    Port,
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
}

/// Rules for the packets that pass one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name in the table.
    pub name: &'static str,
    /// The packets it sees.
    pub hook: Hook,
    /// Chains of one hook are asked in this order, lowest first.
    pub priority: i32,
    /// Tried in order; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// A point packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Just arrived from another host.
    Prerouting,
    /// Made by a process of this network namespace.
    Output,
}

/// What happens to the packets all of `matches` are true of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All of them must be true.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
    /// Why, for the reader of `nft list ruleset`.
    pub comment: &'static str,
}

/// A property of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It is TCP.
    Tcp,
    /// It is not TCP.
    NotTcp,
    /// It leaves by the loopback interface.
    ToLoopback,
    /// A process of this user sent it.
    Uid(u32),
    /// It comes from this address.
    Source(IpAddr),
    /// It goes elsewhere than to the loopback addresses of this family (and is of it).
    NotToLoopbackAddress(Family),
    /// Its destination port is in this set.
    PortIn(&'static str),
    /// Its source address is in this set.
    SourceIn(Family, &'static str),
    /// Its destination address is in this set.
    DestinationIn(Family, &'static str),
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What a [`Rule`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on unchanged, and no later rule of the chain is asked.
    Return,
    /// The connection goes to this port of this host.
    Redirect(u16),
}

/// Why no rules follow from a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Both listeners would be one.
    #[error(
        "port {0} is both the inbound and the outbound port\n\
         hint: connections of the two directions are told apart by their port"
    )]
    SamePort(u16),
    /// Nothing listens on port 0.
    #[error("port 0 cannot be redirected to\nhint: give the port of the {0} listener")]
    NoPort(&'static str),
    /// A range ends before it begins.
    #[error("`{0}-{1}` is an empty range of ports\nhint: write the lower port first")]
    EmptyRange(u16, u16),
    /// A list of exceptions is too long.
    #[error(
        "`{name}` has {entries} entries, more than {LIST_ENTRIES_MAX}\n\
         hint: use wider ranges or blocks"
    )]
    TooMany {
        /// The set it would become.
        name: &'static str,
        /// How many there were.
        entries: usize,
    },
}

impl Ruleset {
    /// The rules that intercept what `config` says.
    ///
    /// # Errors
    ///
    /// A contradiction in `config`.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let (inbound, outbound) = (config.inbound_port, config.outbound_port);
        if inbound == outbound {
            return Err(Error::SamePort(inbound));
        }
        if let Some((_, name)) =
            [(inbound, "inbound"), (outbound, "outbound")].iter().find(|(port, _)| *port == 0)
        {
            return Err(Error::NoPort(name));
        }
        let sets = [
            port_set("in_skip_ports", &config.skip_inbound_ports)?,
            port_set("out_skip_ports", &config.skip_outbound_ports)?,
            address_set("in_skip_v4", SetKind::Ipv4, &config.skip_inbound_cidrs)?,
            address_set("in_skip_v6", SetKind::Ipv6, &config.skip_inbound_cidrs)?,
            address_set("out_skip_v4", SetKind::Ipv4, &config.skip_outbound_cidrs)?,
            address_set("out_skip_v6", SetKind::Ipv6, &config.skip_outbound_cidrs)?,
        ];
        let sets: Vec<_> = sets.into_iter().filter(|it| !it.intervals.is_empty()).collect();
        let chains = vec![inbound_chain(config, &sets), outbound_chain(config, &sets)];
        Ok(Self { table: TABLE, sets, chains })
    }

    /// How many rules there are in all chains.
    pub fn rule_count(&self) -> usize {
        self.chains.iter().map(|it| it.rules.len()).sum()
    }

    /// The name of an empty chain that marks these very rules in the kernel: two
    /// rule sets have the same one exactly when they print the same (but for chance,
    /// 2⁻⁶⁴; FNV-1a, so that it is the same in each build).
    pub fn generation(&self) -> String {
        let hash = self.body().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("generation_{hash:016x}")
    }
}

fn inbound_chain(config: &Config, sets: &[Set]) -> Chain {
    let mut rules = vec![rule(vec![Match::NotTcp], Verdict::Return, "only TCP is intercepted")];
    rules.extend(exceptions(
        sets,
        [
            Match::PortIn("in_skip_ports"),
            Match::SourceIn(Family::Ipv4, "in_skip_v4"),
            Match::SourceIn(Family::Ipv6, "in_skip_v6"),
        ],
    ));
    let all = Verdict::Redirect(config.inbound_port);
    rules.push(rule(vec![Match::Tcp], all, "to the sidecar"));
    Chain { name: "inbound", hook: Hook::Prerouting, priority: PRIORITY, rules }
}

fn outbound_chain(config: &Config, sets: &[Set]) -> Chain {
    let (pass, uid) = (Verdict::Return, Match::Uid(config.proxy_uid));
    let hairpin = |family| {
        let matches =
            vec![Match::ToLoopback, uid.clone(), Match::NotToLoopbackAddress(family), Match::Tcp];
        rule(matches, Verdict::Redirect(config.inbound_port), "sidecar to its own pod")
    };
    let from_proxy = |source| {
        rule(vec![Match::ToLoopback, Match::Source(source)], pass, "sidecar to its application")
    };
    let mut rules = vec![
        rule(vec![Match::NotTcp], pass, "only TCP is intercepted"),
        from_proxy(FROM_PROXY_V4.into()),
        from_proxy(FROM_PROXY_V6.into()),
        hairpin(Family::Ipv4),
        hairpin(Family::Ipv6),
        rule(vec![uid.clone()], pass, "sidecar to anywhere else"),
        rule(vec![Match::ToLoopback], pass, "application to itself"),
    ];
    rules.extend(exceptions(
        sets,
        [
            Match::PortIn("out_skip_ports"),
            Match::DestinationIn(Family::Ipv4, "out_skip_v4"),
            Match::DestinationIn(Family::Ipv6, "out_skip_v6"),
        ],
    ));
    let all = Verdict::Redirect(config.outbound_port);
    rules.push(rule(vec![Match::Tcp], all, "to the sidecar"));
    Chain { name: "outbound", hook: Hook::Output, priority: PRIORITY, rules }
}

/// A rule for each of `lookups` whose set exists.
fn exceptions(sets: &[Set], lookups: [Match; 3]) -> impl Iterator<Item = Rule> {
    let exists = |name: &str| sets.iter().any(|it| it.name == name);
    lookups
        .into_iter()
        .filter(move |it| it.set().is_some_and(exists))
        .map(|it| rule(vec![it], Verdict::Return, "left out by configuration"))
}

fn rule(matches: Vec<Match>, verdict: Verdict, comment: &'static str) -> Rule {
    Rule { matches, verdict, comment }
}

impl Match {
    /// The set it looks things up in.
    pub fn set(&self) -> Option<&'static str> {
        match self {
            Self::PortIn(set) | Self::SourceIn(_, set) | Self::DestinationIn(_, set) => Some(set),
            Self::Tcp
            | Self::NotTcp
            | Self::ToLoopback
            | Self::Uid(_)
            | Self::Source(_)
            | Self::NotToLoopbackAddress(_) => None,
        }
    }
}

fn port_set(name: &'static str, ports: &[RangeInclusive<u16>]) -> Result<Set, Error> {
    if let Some(it) = ports.iter().find(|it| it.is_empty()) {
        return Err(Error::EmptyRange(*it.start(), *it.end()));
    }
    let intervals = ports.iter().map(|it| u128::from(*it.start())..=u128::from(*it.end()));
    set(name, SetKind::Port, intervals.collect())
}

fn address_set(name: &'static str, kind: SetKind, blocks: &[Cidr]) -> Result<Set, Error> {
    let intervals = blocks.iter().filter_map(|it| match (kind, it.first(), it.last()) {
        (SetKind::Ipv4, IpAddr::V4(first), IpAddr::V4(last)) => {
            Some(u128::from(first.to_bits())..=u128::from(last.to_bits()))
        }
        (SetKind::Ipv6, IpAddr::V6(first), IpAddr::V6(last)) => {
            Some(first.to_bits()..=last.to_bits())
        }
        _ => None,
    });
    set(name, kind, intervals.collect())
}

/// Orders `intervals` and joins those that touch: the kernel refuses overlaps.
fn set(
    name: &'static str,
    kind: SetKind,
    mut intervals: Vec<RangeInclusive<u128>>,
) -> Result<Set, Error> {
    intervals.sort_by_key(|it| *it.start());
    let mut joined: Vec<RangeInclusive<u128>> = Vec::new();
    for it in intervals {
        match joined.last_mut() {
            Some(last) if *it.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(it.end());
            }
            _ => joined.push(it),
        }
    }
    if LIST_ENTRIES_MAX < joined.len() {
        return Err(Error::TooMany { name, entries: joined.len() });
    }
    Ok(Set { name, kind, intervals: joined })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_and_adjacent_exceptions_become_one() {
        let set = port_set("it", &[8..=9, 1..=3, 4..=4, 2..=2, 9..=12]).unwrap();
        assert_eq!(set.intervals, [1..=4, 8..=12]);
    }

    #[test]
    fn a_list_without_entries_costs_no_rule() {
        let nothing = Config {
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            ..Config::default()
        };
        let rules = Ruleset::new(&nothing).unwrap();
        assert_eq!((rules.sets.len(), rules.rule_count()), (0, 10));
        assert_eq!(Ruleset::new(&Config::default()).unwrap().rule_count(), 12);
    }

    #[test]
    fn a_contradiction_is_refused() {
        let refused = |config: Config| Ruleset::new(&config).unwrap_err();
        let config = Config::default();
        assert_eq!(
            refused(Config { outbound_port: 15_006, ..config.clone() }),
            Error::SamePort(15_006)
        );
        assert_eq!(refused(Config { inbound_port: 0, ..config.clone() }), Error::NoPort("inbound"));
        let (first, last) = (9, 8);
        assert_eq!(
            refused(Config { skip_inbound_ports: vec![first..=last], ..config.clone() }),
            Error::EmptyRange(9, 8)
        );
        let many = (0..=1024).map(|it| it * 2..=it * 2).collect();
        assert_eq!(
            refused(Config { skip_outbound_ports: many, ..config }),
            Error::TooMany { name: "out_skip_ports", entries: 1025 }
        );
    }

    #[test]
    fn the_generation_tells_rule_sets_apart_and_stays_for_equal_ones() {
        let of = |config: Config| Ruleset::new(&config).unwrap().generation();
        assert_eq!(of(Config::default()), of(Config::default()));
        assert_ne!(of(Config::default()), of(Config { proxy_uid: 1, ..Config::default() }));
    }
}
