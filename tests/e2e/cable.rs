//! Cables: links, addresses and routes, by netlink.
//!
//! Each function acts in the network namespace of the calling thread.

use std::{fs::File, net::IpAddr, os::fd::AsRawFd};

use nix::net::if_::if_nametoindex;
use remora::intercept::netlink::{
    self, Attributes, CREATE, DUMP, EXCLUSIVE, Error, Head, Request, Socket, Subsystem,
};

use crate::host::wait_until;

/// `RTM_*`.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
/// `IFLA_*`.
const NAME: u16 = 3;
const PORT: u16 = 12;
const MASTER: u16 = 10;
const STATE: u16 = 16;
const LINK_INFO: u16 = 18;
const NAMESPACE: u16 = 28;
/// `IFLA_INFO_KIND`, `IFLA_INFO_DATA`, `VETH_INFO_PEER`.
const KIND: u16 = 1;
const DATA: u16 = 2;
const PEER: u16 = 1;
/// `IFA_ADDRESS`, `IFA_LOCAL`.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// `IFA_F_NODAD`: usable at once.
const NO_DETECTION: u8 = 0x02;
/// `AF_UNSPEC`, `AF_BRIDGE`.
const UNSPECIFIED: u8 = 0;
const BRIDGE: u8 = 7;
/// `IFLA_BRPORT_STATE`, `BR_STATE_FORWARDING`.
const PORT_STATE: u16 = 1;
const FORWARDING: u8 = 3;
/// `IF_OPER_UP`: set when the kernel has seen the other end, and sends from then on.
const UP_STATE: u8 = 6;
/// `IFF_UP`.
const UP: u32 = 1;

/// Makes a bridge, a switch that cables are plugged into.
pub(crate) fn bridge(name: &str) {
    link(&header(0, 0), CREATE | EXCLUSIVE, |it| {
        it.string(NAME, name);
        it.nested(LINK_INFO, |it| it.string(KIND, "bridge"));
    });
    set_up(name, true);
}

/// Lays a cable from `name`, plugged into `bridge` here, to `peer` in `namespace`.
pub(crate) fn cable(name: &str, bridge: &str, peer: &str, namespace: &File) {
    let (master, namespace) = (index(bridge), namespace.as_raw_fd().cast_unsigned());
    link(&header(0, 0), CREATE | EXCLUSIVE, |it| {
        it.string(NAME, name);
        it.native(MASTER, master);
        it.nested(LINK_INFO, |it| {
            it.string(KIND, "veth");
            it.nested(DATA, |it| {
                it.nested_after(PEER, &header(0, 0), |it| {
                    it.string(NAME, peer);
                    it.native(NAMESPACE, namespace);
                });
            });
        });
    });
    set_up(name, true);
}

/// Switches a link on or off.
pub(crate) fn set_up(name: &str, up: bool) {
    link(&header(index(name), u32::from(up)), 0, |_| ());
}

/// Gives a link an address.
pub(crate) fn address(name: &str, address: IpAddr, prefix: u8) {
    let (family, octets) = match address {
        IpAddr::V4(it) => (2, it.octets().to_vec()),
        IpAddr::V6(it) => (10, it.octets().to_vec()),
    };
    let mut header = vec![family, prefix, NO_DETECTION, 0];
    header.extend(index(name).to_ne_bytes());
    send("add an address", NEW_ADDRESS, CREATE | EXCLUSIVE, &header, |it| {
        it.bytes(LOCAL, &octets);
        it.bytes(ADDRESS, &octets);
    });
}

/// Waits until `name` carries what is sent: a link that is on drops packets until the
/// kernel has seen its other end, and a lost one costs a second.
pub(crate) fn wait_for(name: &str) {
    wait_until(&format!("`{name}` carries packets"), || {
        attributes_of(name, UNSPECIFIED).is_some_and(|it| {
            it.iter().any(|(kind, value)| *kind == STATE && value[..] == [UP_STATE])
        })
    });
}

/// Waits until the switch forwards what comes in by `name`.
pub(crate) fn wait_for_port(name: &str) {
    wait_for(name);
    wait_until(&format!("`{name}` forwards packets"), || {
        let is_forwarding = |value: &[u8]| {
            netlink::attributes(value).any(|it| it == (PORT_STATE, [FORWARDING].as_slice()))
        };
        attributes_of(name, BRIDGE)
            .is_some_and(|it| it.iter().any(|(kind, value)| *kind == PORT && is_forwarding(value)))
    });
}

/// What the kernel tells of a link to those who ask about `family`.
fn attributes_of(name: &str, family: u8) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut header = header(0, 0);
    if let Some(first) = header.first_mut() {
        *first = family;
    }
    let mut request = Request::default();
    let head = Head { step: "list the links", kind: GET_LINK, flags: DUMP, family_header: &header };
    request.unanswered(head, |_| ());
    let mut found = None;
    let done = Socket::open(Subsystem::Route).and_then(|it| {
        it.dump(&request, &mut |reply| {
            let attributes = netlink::attributes(reply.payload.get(16..).unwrap_or_default());
            let attributes: Vec<_> = attributes.map(|(it, value)| (it, value.to_vec())).collect();
            let is_it = |(kind, value): &(u16, Vec<u8>)| {
                *kind == NAME && value.strip_suffix(&[0]) == Some(name.as_bytes())
            };
            if attributes.iter().any(is_it) {
                found = Some(attributes);
            }
        })
    });
    // A list that changed while it was read is asked for again.
    done.ok().and(found)
}

/// `struct ifinfomsg`: family, type, index, flags, and which flags to change.
fn header(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, UP].iter().flat_map(|it| it.to_ne_bytes()).collect()
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).expect("the link exists")
}

fn link(header: &[u8], flags: u16, body: impl FnOnce(&mut Attributes<'_>)) {
    send("change a link", NEW_LINK, flags, header, body);
}

fn send(
    step: &'static str,
    kind: u16,
    flags: u16,
    family_header: &[u8],
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let mut request = Request::default();
    request.message(Head { step, kind, flags, family_header }, body);
    let done: Result<(), Error> =
        Socket::open(Subsystem::Route).and_then(|it| it.transact(&request));
    done.unwrap_or_else(|it| panic!("{it}"));
}
