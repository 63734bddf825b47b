//! Listen: sockets that accept, and survive running out of descriptors.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
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
