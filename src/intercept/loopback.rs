//! Loopback address: what lets the sidecar dial its application over IPv6.
//!
//! All of 127/8 belongs to `lo`, but of IPv6 only `::1` does, and rules cannot tell the
//! sidecar by an address it shares with everybody. So one more is added.

use std::net::Ipv6Addr;

use nix::errno::Errno;

use super::netlink::{self, CREATE, Head, REPLACE, Request, Socket, Subsystem};

/// `RTM_NEWADDR` and `RTM_DELADDR`.
const NEW: u16 = 20;
const DELETE: u16 = 21;
/// `AF_INET6`.
const FAMILY: u8 = 10;
/// `IFA_F_NODAD`: usable at once; nobody else can have an address of `lo`.
const NO_DETECTION: u8 = 0x02;
/// `RT_SCOPE_HOST`.
const SCOPE_HOST: u8 = 254;
/// `LOOPBACK_IFINDEX`.
const LO: u32 = 1;
/// `IFA_ADDRESS`.
const ADDRESS: u16 = 1;

/// Whether the network namespace has IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// It has.
    On,
    /// It is switched off, or the kernel is without it.
    Off,
}

/// Adds `address` to `lo`, unless it is there.
///
/// # Errors
///
/// The kernel refused for another reason than having no IPv6.
pub fn add(address: Ipv6Addr) -> Result<Ipv6, netlink::Error> {
    let step = "add the IPv6 address of the sidecar to `lo`";
    match change(step, NEW, CREATE | REPLACE, address) {
        Ok(()) => Ok(Ipv6::On),
        Err(it) if it.errno == Errno::EEXIST => Ok(Ipv6::On),
        Err(it) if is_off(it.errno) => Ok(Ipv6::Off),
        Err(it) => Err(it),
    }
}

/// Removes `address` from `lo`, if it is there.
///
/// # Errors
///
/// The kernel refused for another reason than having no IPv6.
pub fn remove(address: Ipv6Addr) -> Result<Ipv6, netlink::Error> {
    let step = "remove the IPv6 address of the sidecar from `lo`";
    match change(step, DELETE, 0, address) {
        Ok(()) => Ok(Ipv6::On),
        Err(it) if it.errno == Errno::EADDRNOTAVAIL => Ok(Ipv6::On),
        Err(it) if is_off(it.errno) => Ok(Ipv6::Off),
        Err(it) => Err(it),
    }
}

/// Missing permission is `EPERM`; `EACCES` means the sysctl `disable_ipv6`, and `ENODEV`
/// or `ENXIO` that `lo` has no IPv6 state.
fn is_off(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENODEV | Errno::ENXIO
    )
}

fn change(
    step: &'static str,
    kind: u16,
    flags: u16,
    address: Ipv6Addr,
) -> Result<(), netlink::Error> {
    // `struct ifaddrmsg`: family, prefix length, flags, scope, interface.
    let mut header = vec![FAMILY, 128, NO_DETECTION, SCOPE_HOST];
    header.extend(LO.to_ne_bytes());
    let mut request = Request::default();
    let head = Head { step, kind, flags, family_header: &header };
    request.message(head, |it| it.bytes(ADDRESS, &address.octets()));
    Socket::open(Subsystem::Route)?.transact(&request)
}
