//! Connect: a TCP connection to an endpoint, or why there is none.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use super::stream::STALL;

/// How long sent bytes may stay unacknowledged before the connection is given up: a peer
/// whose machine is gone answers nothing at all. Linux counts the time a peer does not read
/// as well, though it answers (tcp(7), `TCP_USER_TIMEOUT`), so this is no shorter than
/// [`STALL`].
const UNACKNOWLEDGED: Duration = STALL;

/// The same of a peer that always reads.
const UNACKNOWLEDGED_READER: Duration = Duration::from_secs(30);

/// After how long a silent connection is asked whether its peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where a connection to the application comes from in capture mode, so that the packet
/// rules leave it alone (and never on the loopback address an application may trust).
pub const APP_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// [`APP_SOURCE_V4`] for IPv6; `remora intercept apply` adds it to the loopback device.
pub const APP_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answered that nobody listens there.
    #[error("connection refused by `{0}`")]
    Refused(SocketAddr),
    /// Nobody answered in time.
    #[error("no answer from `{0}` in time")]
    Timeout(SocketAddr),
    /// There is no way there, or no socket to go with.
    #[error("cannot reach `{address}`")]
    Unreachable {
        /// Where to.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Connects to `address` within `patience`, from `source` where one is given.
///
/// # Errors
///
/// Why there is no connection; nothing was sent in any case.
///
/// # Cancel safety
///
/// Safe: the socket is closed.
pub async fn dial(
    address: SocketAddr,
    source: Option<IpAddr>,
    patience: Duration,
) -> Result<TcpStream, Error> {
    let unreachable = |source| Error::Unreachable { address, source };
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(unreachable)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0)).map_err(unreachable)?;
    }
    match tokio::time::timeout(patience, socket.connect(address)).await {
        Err(_) => Err(Error::Timeout(address)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(Error::Refused(address))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(Error::Timeout(address)),
        Ok(Err(error)) => Err(unreachable(error)),
        Ok(Ok(stream)) => {
            tune(&stream);
            Ok(stream)
        }
    }
}

/// Sets what every connection needs: no delay, and an end when the peer is gone.
///
/// A socket that refuses an option still carries bytes, so a refusal is left alone.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
    let _tuned = stream.set_nodelay(true).is_ok()
        && socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)).is_ok()
        && socket.set_tcp_keepalive(&keepalive).is_ok();
}

/// Gives a connection up sooner, where the peer is bound to read: HTTP/2 has windows of its own
/// for what it has no use for, and many requests wait for the end of a connection that is gone.
pub fn expect_reader(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _tuned = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_READER)).is_ok();
}

/// Where connections to an application at `address` come from in capture mode.
pub fn app_source(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => APP_SOURCE_V4.into(),
        SocketAddr::V6(_) => APP_SOURCE_V6.into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_does_not_give_up_a_peer_that_does_not_read_before_we_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialled = dial(address, None, Duration::from_secs(5)).await.unwrap();
        let patience = SockRef::from(&dialled).tcp_user_timeout().unwrap();
        assert!(patience.is_some_and(|it| it >= STALL), "{patience:?}");
    }
}
