//! Interception: the pod's TCP reaches the sidecar, and the pod notices nothing.
//!
//! A container of the pod that holds `CAP_NET_ADMIN` runs `remora intercept apply`
//! once; the sidecar itself needs no capability. The packet rules are a pure value
//! ([`rules::Ruleset`]) with three readers: [`nftables`] gives them to the kernel in one
//! atomic, idempotent transaction, their `Display` is what an operator reads and what
//! `nft -f -` accepts, and verification counts them in the kernel. The sidecar asks each
//! accepted socket where its client meant to go ([`original_dst()`]).
//!
//! Rules are installed over netlink rather than by `nft` or `iptables`, because the
//! image then needs no userland, and because one transaction leaves no moment with half
//! of the rules and cannot install them twice.
//!
//! The sidecar dials its own application from [`FROM_PROXY_V4`] or [`FROM_PROXY_V6`],
//! so that the rules can tell these connections from those to be intercepted. Any
//! address of 127/8 can be bound; the IPv6 one is added to `lo` by [`Command::Apply`].

pub mod cidr;
pub mod loopback;
pub mod netlink;
pub mod nftables;
pub mod original_dst;
pub mod rules;
mod syntax;

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

pub use cidr::{Cidr, ParseError};
pub use original_dst::original_dst;
use rules::Ruleset;

/// The IPv4 address the sidecar dials its application from.
pub const FROM_PROXY_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The IPv6 address the sidecar dials its application from.
pub const FROM_PROXY_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Whether `peer` is the sidecar itself: such a connection must never be proxied again.
pub fn is_from_proxy(peer: IpAddr) -> bool {
    match peer.to_canonical() {
        IpAddr::V4(it) => it == FROM_PROXY_V4,
        IpAddr::V6(it) => it == FROM_PROXY_V6,
    }
}

/// What `remora intercept` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Installs the rules, in place of those of an earlier run.
    Apply,
    /// Writes the rules as `nft` syntax, and touches nothing.
    Print,
    /// Checks that the kernel holds the very rules `Apply` would install.
    Verify,
    /// Removes the rules, if there are any.
    Remove,
}

/// What to intercept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The port of the sidecar's inbound listener, on every address.
    pub inbound_port: u16,
    /// The port of the sidecar's outbound listener, on 127.0.0.1 and `::1`.
    pub outbound_port: u16,
    /// The user the sidecar runs as, and no other process of the pod may.
    pub proxy_uid: u32,
    /// Ports of the pod that clients reach directly.
    pub skip_inbound_ports: Vec<RangeInclusive<u16>>,
    /// Ports the pod reaches directly.
    pub skip_outbound_ports: Vec<RangeInclusive<u16>>,
    /// Clients that reach the pod directly.
    pub skip_inbound_cidrs: Vec<Cidr>,
    /// Destinations the pod reaches directly.
    pub skip_outbound_cidrs: Vec<Cidr>,
}

/// The ports and the user of the published image. The administration port is not
/// intercepted, for probes and scrapes come from outside the mesh; neither is DNS over
/// TCP, which must work before the sidecar does.
impl Default for Config {
    fn default() -> Self {
        Self {
            inbound_port: 15_006,
            outbound_port: 15_001,
            proxy_uid: 2102,
            skip_inbound_ports: vec![15_020..=15_020],
            skip_outbound_ports: vec![53..=53],
            skip_inbound_cidrs: Vec::new(),
            skip_outbound_cidrs: Vec::new(),
        }
    }
}

/// Why the rules could not be made, installed or verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Rules(#[from] rules::Error),
    /// The kernel refused a step.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
    /// The kernel holds other rules, or none.
    #[error("the packet rules are not in place: {0}\nhint: run `remora intercept apply`")]
    NotInPlace(nftables::Difference),
    /// The result could not be written.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

/// Runs one `command` in the network namespace of the calling thread.
///
/// # Errors
///
/// The [`Error`]s above. No rule has changed then, for an installation is one
/// transaction.
pub fn run(command: Command, config: &Config, out: &mut dyn Write) -> Result<(), Error> {
    let rules = Ruleset::new(config)?;
    match command {
        Command::Apply => {
            let ipv6 = loopback::add(FROM_PROXY_V6)?;
            nftables::install(&rules)?;
            let generation = rules.generation();
            writeln!(out, "installed {} rules, {generation}", rules.rule_count())?;
            if ipv6 == loopback::Ipv6::Off {
                writeln!(out, "IPv6 is switched off here: only IPv4 can be intercepted")?;
            }
        }
        Command::Print => write!(out, "{rules}")?,
        Command::Verify => {
            nftables::verify(&rules)?.map_err(Error::NotInPlace)?;
            writeln!(out, "{} rules in place, {}", rules.rule_count(), rules.generation())?;
        }
        Command::Remove => {
            nftables::remove(rules.table)?;
            loopback::remove(FROM_PROXY_V6)?;
            writeln!(out, "no rules are left")?;
        }
    }
    Ok(())
}
