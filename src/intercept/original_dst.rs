//! Original destination: where the client of a redirected connection meant to go.
//!
//! A `redirect` rewrites the destination of a connection before the listener sees it;
//! the kernel's connection tracking keeps what stood there. A connection that was not
//! redirected has no original destination, and a caller must not make one up: to proxy
//! a direct hit to "its destination" is to dial oneself for ever.
//!
//! # Sources
//!
//! - Linux `net/netfilter/nf_conntrack_proto.c`, `getorigdst` and `ipv6_getorigdst`.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrIn, SockaddrIn6, getsockopt, sockopt},
};

/// Where the client of `socket` meant to connect to, or `None` when it connected to the
/// listener itself. `local` is the socket's own address.
///
/// IPv4 clients of a dual-stack listener are asked about as IPv4, and the answer is an
/// IPv4 address: the kernel tracks them so.
///
/// # Errors
///
/// What the kernel answers other than "not redirected": a socket of another kind.
pub fn original_dst<F: AsFd>(socket: &F, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let answer = match local.ip().to_canonical() {
        IpAddr::V4(_) => {
            getsockopt(socket, sockopt::OriginalDst).map(|it| SockaddrIn::from(it).into())
        }
        IpAddr::V6(_) => {
            getsockopt(socket, sockopt::Ip6tOriginalDst).map(|it| SockaddrIn6::from(it).into())
        }
    };
    match answer {
        Ok(original) => Ok(unless_itself(original, local, is_of_this_host)),
        // No entry for this connection; or no connection tracking at all, so that nothing
        // can have been redirected.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// `original`, unless it is the listener itself: by the address the connection has now,
/// or by another one of this host. For `redirect` sends a connection to *some* address of
/// the interface it came in by, so that on a host with several a direct hit of one
/// appears to be a redirected connection to the listener's port at another.
///
/// Compared without IPv6 scope and flow, which the two system calls fill in differently.
fn unless_itself(
    original: SocketAddr,
    local: SocketAddr,
    is_of_this_host: impl FnOnce(SocketAddr) -> bool,
) -> Option<SocketAddr> {
    let same_port = original.port() == local.port();
    let same_address = original.ip().to_canonical() == local.ip().to_canonical();
    let itself = same_port && (same_address || is_of_this_host(original));
    (!itself).then_some(original)
}

/// Whether `address` is one of this host's: only these can be bound. Asked only about
/// connections to the listener's own port, which nobody makes on purpose.
fn is_of_this_host(address: SocketAddr) -> bool {
    let mut address = address;
    address.set_port(0);
    UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_was_not_redirected_has_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(original_dst(&accepted, accepted.local_addr().unwrap()).unwrap(), None);
        }
    }

    #[test]
    fn the_listeners_own_address_is_a_direct_hit_in_either_notation() {
        let [plain, mapped, other]: [SocketAddr; 3] =
            ["10.0.0.1:15006", "[::ffff:10.0.0.1]:15006", "10.0.0.1:80"]
                .map(|it| it.parse().unwrap());
        assert_eq!(unless_itself(plain, mapped, |_| false), None);
        assert_eq!(unless_itself(plain, plain, |_| false), None);
        assert_eq!(unless_itself(other, mapped, |_| true), Some(other));
    }

    #[test]
    fn the_scope_of_a_link_local_address_does_not_hide_a_direct_hit() {
        let original: SocketAddr = "[fe80::1]:15006".parse().unwrap();
        let local: SocketAddr = "[fe80::1%2]:15006".parse().unwrap();
        assert_eq!(unless_itself(original, local, |_| false), None);
    }

    #[test]
    fn a_direct_hit_of_another_address_of_this_host_is_one() {
        let [local, own, foreign]: [SocketAddr; 3] =
            ["10.0.0.1:15006", "127.0.0.9:15006", "192.0.2.1:15006"].map(|it| it.parse().unwrap());
        assert_eq!(unless_itself(own, local, is_of_this_host), None);
        assert_eq!(unless_itself(foreign, local, is_of_this_host), Some(foreign));
    }
}
