//! TCP: plain servers and a plain client.

use std::{
    future::Future,
    io,
    net::{Ipv6Addr, SocketAddr},
};

use remora::drain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::host::{Host, Ready, Service, source};

/// Connects as whoever runs on this thread; see [`crate::world`].
pub(crate) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    connect_from(source(to), to).await
}

/// Connects from a certain address.
pub(crate) async fn connect_from(
    from: Option<SocketAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(from)?;
    }
    // An application does not wait for its own packets to be acknowledged.
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// Sends `bytes`, says that this is all, and reads all of the answer.
pub(crate) async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Connects to `to`, sends `bytes` and reads to the end, as text.
pub(crate) async fn ask(to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let answer = exchange(connect(to).await?, bytes).await?;
    String::from_utf8(answer).map_err(io::Error::other)
}

impl Host {
    /// Serves each connection to `port`, of either family, on a task of its own.
    pub(crate) fn tcp_server<F>(
        &self,
        port: u16,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Service
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tcp_server_at((Ipv6Addr::UNSPECIFIED, port).into(), serve)
    }

    /// The same at one address.
    pub(crate) fn tcp_server_at<F>(
        &self,
        at: SocketAddr,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Service
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (service, ()) = self.serve(async move |ready: Ready<()>| {
            let listener = TcpListener::bind(at).await.expect("the port is free");
            ready.tell(());
            loop {
                let (stream, _) = listener.accept().await.expect("connections come");
                drop(drain::spawn("test server", serve(stream)));
            }
        });
        service
    }

    /// Sends back what comes, to the end and no longer: a client that is done sending
    /// still gets all of it.
    pub(crate) fn tcp_echo(&self, port: u16) -> Service {
        self.tcp_banner(port, "")
    }

    /// Greets with `banner` before the client has said a word, as a mail server or a
    /// database does, then sends back what comes.
    pub(crate) fn tcp_banner(&self, port: u16, banner: &'static str) -> Service {
        self.tcp_server(port, move |mut stream| async move {
            let (mut from, mut to) = stream.split();
            // A client that resets is its own affair.
            let _greeted = to.write_all(banner.as_bytes()).await.is_ok();
            let _sent = copy(&mut from, &mut to).await.is_ok();
            let _ended = to.shutdown().await.is_ok();
        })
    }
}
