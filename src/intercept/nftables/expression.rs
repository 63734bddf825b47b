//! Expressions: a rule as the small machine in the kernel runs it.
//!
//! An expression loads a property of the packet into a register, or compares the
//! register and leaves the rule when it differs, or acts. The sequences are those `nft`
//! makes of the same rule, so that `nft list ruleset` can show them as they were meant.

use std::net::IpAddr;

use crate::intercept::{
    netlink::Attributes,
    rules::{Family, Hook, Match, Rule, Verdict},
};

use super::{DATA_VALUE, LIST_ELEMENT};

/// `NFTA_EXPR_*`.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFT_REG_VERDICT` and `NFT_REG_1`.
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
/// `enum nft_meta_keys`: outgoing interface, user, family, protocol.
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `LOOPBACK_IFINDEX`: `lo` is the first interface of every network namespace.
const LO: u32 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_RETURN`.
const RETURN: i32 = -5;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the port is given.
const PORT_GIVEN: u32 = 2;

/// Which address of a packet.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// The number of `hook`: `NF_INET_PRE_ROUTING` or `NF_INET_LOCAL_OUT`.
pub(super) fn hook(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    }
}

/// Writes the expressions of `rule`.
pub(super) fn write(list: &mut Attributes<'_>, rule: &Rule) {
    for it in &rule.matches {
        matching(list, it);
    }
    match rule.verdict {
        Verdict::Return => immediate(list, VERDICT_REGISTER, |it| {
            // `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`.
            it.nested(2, |it| it.big_endian(1, RETURN.cast_unsigned()));
        }),
        Verdict::Redirect(port) => {
            immediate(list, REGISTER, |it| it.bytes(DATA_VALUE, &port.to_be_bytes()));
            expression(list, "redir", |it| {
                it.big_endian(1, REGISTER);
                it.big_endian(3, PORT_GIVEN);
            });
        }
    }
}

fn matching(list: &mut Attributes<'_>, it: &Match) {
    match it {
        Match::Tcp => meta(list, META_L4PROTO, EQUAL, &[TCP]),
        Match::NotTcp => meta(list, META_L4PROTO, NOT_EQUAL, &[TCP]),
        Match::ToLoopback => meta(list, META_OIF, EQUAL, &LO.to_ne_bytes()),
        Match::Uid(uid) => meta(list, META_SKUID, EQUAL, &uid.to_ne_bytes()),
        Match::Source(IpAddr::V4(it)) => {
            address(list, Family::Ipv4, Side::Source, 4);
            compare(list, EQUAL, &it.octets());
        }
        Match::Source(IpAddr::V6(it)) => {
            address(list, Family::Ipv6, Side::Source, 16);
            compare(list, EQUAL, &it.octets());
        }
        // The first byte decides: 127.0.0.0/8.
        Match::NotToLoopbackAddress(Family::Ipv4) => {
            address(list, Family::Ipv4, Side::Destination, 1);
            compare(list, NOT_EQUAL, &[127]);
        }
        Match::NotToLoopbackAddress(Family::Ipv6) => {
            address(list, Family::Ipv6, Side::Destination, 16);
            compare(list, NOT_EQUAL, &std::net::Ipv6Addr::LOCALHOST.octets());
        }
        Match::PortIn(set) => {
            meta(list, META_L4PROTO, EQUAL, &[TCP]);
            payload(list, TRANSPORT, 2, 2);
            lookup(list, set);
        }
        Match::SourceIn(family, set) => {
            address(list, *family, Side::Source, address_bytes(*family));
            lookup(list, set);
        }
        Match::DestinationIn(family, set) => {
            address(list, *family, Side::Destination, address_bytes(*family));
            lookup(list, set);
        }
    }
}

/// Loads the first `bytes` of an address of a packet of `family`; other packets do not match.
fn address(list: &mut Attributes<'_>, family: Family, side: Side, bytes: u32) {
    let (protocol, offset) = match (family, side) {
        (Family::Ipv4, Side::Source) => (IPV4, 12),
        (Family::Ipv4, Side::Destination) => (IPV4, 16),
        (Family::Ipv6, Side::Source) => (IPV6, 8),
        (Family::Ipv6, Side::Destination) => (IPV6, 24),
    };
    meta(list, META_NFPROTO, EQUAL, &[protocol]);
    payload(list, NETWORK, offset, bytes);
}

fn address_bytes(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    }
}

/// Loads the property `key` and compares it with `value`.
fn meta(list: &mut Attributes<'_>, key: u32, operator: u32, value: &[u8]) {
    expression(list, "meta", |it| {
        it.big_endian(2, key);
        it.big_endian(1, REGISTER);
    });
    compare(list, operator, value);
}

fn compare(list: &mut Attributes<'_>, operator: u32, value: &[u8]) {
    expression(list, "cmp", |it| {
        it.big_endian(1, REGISTER);
        it.big_endian(2, operator);
        it.nested(3, |it| it.bytes(DATA_VALUE, value));
    });
}

fn payload(list: &mut Attributes<'_>, base: u32, offset: u32, bytes: u32) {
    expression(list, "payload", |it| {
        it.big_endian(1, REGISTER);
        it.big_endian(2, base);
        it.big_endian(3, offset);
        it.big_endian(4, bytes);
    });
}

fn lookup(list: &mut Attributes<'_>, set: &str) {
    expression(list, "lookup", |it| {
        it.string(1, set);
        it.big_endian(2, REGISTER);
    });
}

fn immediate(list: &mut Attributes<'_>, register: u32, data: impl FnOnce(&mut Attributes<'_>)) {
    expression(list, "immediate", |it| {
        it.big_endian(1, register);
        it.nested(2, data);
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    list.nested(LIST_ELEMENT, |it| {
        it.string(NAME, name);
        it.nested(DATA, data);
    });
}
