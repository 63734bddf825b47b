//! `nft` syntax of the rules: what an operator reads, and what `nft -f -` loads.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::rules::{Chain, Family, Hook, Match, Rule, Ruleset, Set, SetKind, Verdict};

/// A script that may be loaded any number of times: it makes the table, so that it can
/// be deleted whether or not it was there, and fills it, all in one transaction.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table;
        writeln!(f, "table inet {table}\ndelete table inet {table}\ntable inet {table} {{")?;
        writeln!(f, "  chain {} {{\n  }}\n{}}}", self.generation(), self.body())
    }
}

impl Ruleset {
    /// The sets and chains, which the generation is the mark of.
    pub(super) fn body(&self) -> String {
        let mut text = String::new();
        for set in &self.sets {
            text.push_str(&set.to_string());
        }
        for chain in &self.chains {
            text.push_str(&chain.to_string());
        }
        text
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SetKind::Port => "inet_service",
            SetKind::Ipv4 => "ipv4_addr",
            SetKind::Ipv6 => "ipv6_addr",
        };
        writeln!(f, "  set {} {{", self.name)?;
        writeln!(f, "    type {kind}; flags interval;")?;
        f.write_str("    elements = { ")?;
        for (index, it) in self.intervals.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", interval(self.kind, *it.start(), *it.end()))?;
        }
        f.write_str(" }\n  }\n")
    }
}

/// A single value, a CIDR block, or else a range.
fn interval(kind: SetKind, first: u128, last: u128) -> String {
    let value = |bits| value(kind, bits);
    // The bits in which both ends differ: all of them, from the lowest, in a block.
    let host = first ^ last;
    let is_block = first & host == 0 && host & host.wrapping_add(1) == 0;
    let bits = match kind {
        _ if first == last => return value(first),
        SetKind::Ipv4 if is_block => 32,
        SetKind::Ipv6 if is_block => 128,
        SetKind::Port | SetKind::Ipv4 | SetKind::Ipv6 => {
            return format!("{}-{}", value(first), value(last));
        }
    };
    format!("{}/{}", value(first), bits - host.count_ones())
}

/// `bits` as the port or address they are; a set never holds wider ones.
fn value(kind: SetKind, bits: u128) -> String {
    match kind {
        SetKind::Port => bits.to_string(),
        SetKind::Ipv4 => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).to_string(),
        SetKind::Ipv6 => Ipv6Addr::from_bits(bits).to_string(),
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        writeln!(f, "  chain {} {{", self.name)?;
        writeln!(f, "    type nat hook {hook} priority {}; policy accept;", self.priority)?;
        for rule in &self.rules {
            writeln!(f, "    {rule}")?;
        }
        f.write_str("  }\n")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.matches {
            write!(f, "{it} ")?;
        }
        match self.verdict {
            Verdict::Return => f.write_str("return")?,
            Verdict::Redirect(port) => write!(f, "redirect to :{port}")?,
        }
        write!(f, " comment \"{}\"", self.comment)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::ToLoopback => f.write_str("oif lo"),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Source(IpAddr::V4(it)) => write!(f, "ip saddr {it}"),
            Self::Source(IpAddr::V6(it)) => write!(f, "ip6 saddr {it}"),
            Self::NotToLoopbackAddress(Family::Ipv4) => f.write_str("ip daddr != 127.0.0.0/8"),
            Self::NotToLoopbackAddress(Family::Ipv6) => f.write_str("ip6 daddr != ::1"),
            Self::PortIn(set) => write!(f, "tcp dport @{set}"),
            Self::SourceIn(family, set) => write!(f, "{family} saddr @{set}"),
            Self::DestinationIn(family, set) => write!(f, "{family} daddr @{set}"),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::intercept::Config;

    #[test]
    fn the_default_rules_print_as_a_script() {
        let expected = expect![[r#"
            table inet remora
            delete table inet remora
            table inet remora {
              chain generation_51b3f22a2a8e67fc {
              }
              set in_skip_ports {
                type inet_service; flags interval;
                elements = { 15020 }
              }
              set out_skip_ports {
                type inet_service; flags interval;
                elements = { 53 }
              }
              chain inbound {
                type nat hook prerouting priority -100; policy accept;
                meta l4proto != tcp return comment "only TCP is intercepted"
                tcp dport @in_skip_ports return comment "left out by configuration"
                meta l4proto tcp redirect to :15006 comment "to the sidecar"
              }
              chain outbound {
                type nat hook output priority -100; policy accept;
                meta l4proto != tcp return comment "only TCP is intercepted"
                oif lo ip saddr 127.0.0.6 return comment "sidecar to its application"
                oif lo ip6 saddr ::6 return comment "sidecar to its application"
                oif lo meta skuid 2102 ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006 comment "sidecar to its own pod"
                oif lo meta skuid 2102 ip6 daddr != ::1 meta l4proto tcp redirect to :15006 comment "sidecar to its own pod"
                meta skuid 2102 return comment "sidecar to anywhere else"
                oif lo return comment "application to itself"
                tcp dport @out_skip_ports return comment "left out by configuration"
                meta l4proto tcp redirect to :15001 comment "to the sidecar"
              }
            }
        "#]];
        expected.assert_eq(&Ruleset::new(&Config::default()).unwrap().to_string());
    }

    #[test]
    fn exceptions_print_as_values_ranges_and_blocks() {
        let config = Config {
            skip_inbound_ports: vec![80..=80, 8000..=8010],
            skip_inbound_cidrs: ["10.0.0.0/8", "192.0.2.1", "198.51.100.0/25", "198.51.100.128"]
                .map(|it| it.parse().unwrap())
                .into(),
            skip_outbound_ports: vec![0..=65_535],
            skip_outbound_cidrs: ["0.0.0.0/0", "::/0"].map(|it| it.parse().unwrap()).into(),
            ..Config::default()
        };
        let printed = Ruleset::new(&config).unwrap().to_string();
        let elements: Vec<_> =
            printed.lines().filter_map(|it| it.trim().strip_prefix("elements = ")).collect();
        let expected = expect![[r"
            { 80, 8000-8010 }
            { 0-65535 }
            { 10.0.0.0/8, 192.0.2.1, 198.51.100.0-198.51.100.128 }
            { 0.0.0.0/0 }
            { ::/0 }"]];
        expected.assert_eq(&elements.join("\n"));
    }
}
