//! Listen: sockets that accept, and survive running out of descriptors.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::connect::tune;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// How long to wait when the process is out of descriptors: until others have closed.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// Opens a listening socket at `address`; an IPv6 one takes IPv6 only.
///
/// # Errors
///
/// What the kernel says, such as an address in use.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens them all, on the current runtime; a machine without IPv6 is served over IPv4.
///
/// # Errors
///
/// The first address that cannot be listened at, and what the kernel says.
pub fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let has_ipv4 = addresses.iter().any(SocketAddr::is_ipv4);
    let mut listeners = Vec::new();
    for &address in addresses {
        match bind(address).and_then(TcpListener::from_std) {
            Ok(listener) => listeners.push(listener),
            Err(error) if has_ipv4 && is_no_ipv6(address, &error) => {
                tracing::warn!(%address, %error, "this machine has no IPv6");
            }
            Err(error) => return Err((address, error)),
        }
    }
    Ok(listeners)
}

/// Whether the machine has no IPv6 at all, or not this address of it.
pub fn is_no_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let unknown = Errno::EAFNOSUPPORT as i32;
    let is_unknown = error.raw_os_error() == Some(unknown);
    address.is_ipv6() && (error.kind() == io::ErrorKind::AddrNotAvailable || is_unknown)
}

/// Lets the process have as many descriptors as it may: the usual soft limit of 1,024 is for
/// programs that use select(2). Where the kernel says no, the limit is as it was.
pub fn raise_descriptors() {
    let raise = |(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most);
    if let Err(error) = getrlimit(Resource::RLIMIT_NOFILE).and_then(raise) {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
}

/// Accepts the next connection.
///
/// An error of one connection is its own; running out of descriptors is waited out, and
/// told to `on_error`.
///
/// # Cancel safety
///
/// Safe: no connection is lost.
pub async fn accept(
    listener: &TcpListener,
    mut on_error: impl FnMut(&io::Error),
) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tune(&stream);
                return (stream, peer);
            }
            Err(error) if is_of_connection(&error) => (),
            Err(error) => {
                on_error(&error);
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
            }
        }
    }
}

/// Whether only the connection being accepted has gone wrong; see accept(2).
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
