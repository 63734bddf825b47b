//! Stream: one connection's bytes, plain or under TLS, with bounds on what a peer can hold.
//!
//! [`Wire`] is a TCP connection that gives back what detection read, reads ahead below
//! TLS, and fails when the peer has taken nothing for [`STALL`]. [`Stream`] is a wire or
//! TLS over one, so that everything above has one type.

use std::{
    io::{self, IoSlice},
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::{client, server};

/// How long a peer may refuse to take bytes before the connection is given up.
pub const STALL: Duration = Duration::from_mins(2);

/// How much is read ahead below TLS: two records. rustls alone reads 4 KiB a call. What the
/// allocator hands out from its thread's cache, since it is given back whenever it is empty.
pub const READ_AHEAD: usize = 32 * 1024;

/// A TCP connection.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    /// Read but not yet given out: first what detection saw, then what was read ahead.
    held: BytesMut,
    ahead: usize,
    /// Running while the peer takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
    /// Whether the peer may take nothing for as long as it likes.
    patient: bool,
    /// Whether bytes that the peer no longer takes are dropped without an error.
    forgiving: bool,
}

impl Wire {
    /// A connection whose bytes begin with `seen`.
    pub fn new(tcp: TcpStream, seen: BytesMut) -> Self {
        Self { tcp, held: seen, ahead: 0, stall: None, patient: false, forgiving: false }
    }

    /// Reads up to `ahead` bytes a call from now on, and gives them out as asked for.
    #[must_use]
    pub fn reading_ahead(mut self, ahead: usize) -> Self {
        self.ahead = ahead;
        self
    }

    /// Lets the peer take nothing for as long as it likes: somebody may be reading page by
    /// page. That it is there still is what keepalives ask.
    pub fn be_patient(&mut self) {
        self.patient = true;
        let _set = SockRef::from(&self.tcp).set_tcp_user_timeout(None).is_ok();
    }

    /// Makes the end of the connection a reset: what went before it was not all.
    pub fn reset(&self) {
        let _set = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)).is_ok();
    }

    /// Leaves it to the reading side to say that the peer is gone: what it said before, such
    /// as an answer to an upload that it did not want, is in the socket still.
    pub fn forgive(&mut self) {
        self.forgiving = true;
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, and what was read from it but not given out.
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.tcp, self.held)
    }

    /// Whether there are bytes to give out without reading.
    pub fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let given = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..given]);
        self.held.advance(given);
        if self.held.is_empty() {
            // An idle connection holds no memory.
            self.held = BytesMut::new();
        }
    }

    /// Turns the writing of `len` bytes to a peer that is gone into success, where forgiven.
    fn forgiven(
        &self,
        written: Poll<io::Result<usize>>,
        len: impl FnOnce() -> usize,
    ) -> Poll<io::Result<usize>> {
        written.map(|written| match written {
            Err(ref error) if self.forgiving && is_gone(error) => Ok(len()),
            Ok(_) | Err(_) => written,
        })
    }

    /// Turns a write that makes no progress for [`STALL`] into an error.
    fn progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        if self.patient {
            return Poll::Pending;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

/// Whether a write failed because the peer has closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            this.give(buf);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= this.ahead {
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        }
        ready!(this.tcp.poll_read_ready(cx))?;
        this.held.reserve(this.ahead);
        let Wire { tcp, held, .. } = this;
        let read = std::pin::pin!(tokio::io::AsyncReadExt::read_buf(tcp, held));
        let Poll::Ready(read) = read.poll(cx) else {
            // An idle connection holds no memory.
            this.held = BytesMut::new();
            return Poll::Pending;
        };
        read?;
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write(cx, buf);
        let written = this.forgiven(written, || buf.len());
        this.progress(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut filled = bufs.iter().filter(|it| !it.is_empty());
        // A plain send is cheaper in the kernel than a gathering one.
        let written = match (filled.next(), filled.next()) {
            (Some(only), None) => Pin::new(&mut this.tcp).poll_write(cx, only),
            _ => Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs),
        };
        let written = this.forgiven(written, || bufs.iter().map(|it| it.len()).sum());
        this.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// Whether there is nothing to read from `socket`, and never will be.
pub fn has_ended(socket: RawFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    matches!(recv(socket, &mut [0], flags), Ok(0) | Err(Errno::ECONNRESET))
}

/// A wire, or TLS over one.
#[derive(Debug)]
pub enum Stream {
    /// As it came from the network.
    Plain(Wire),
    /// Accepted, and terminated here.
    Accepted(Box<server::TlsStream<Wire>>),
    /// Dialled under TLS.
    Dialled(Box<client::TlsStream<Wire>>),
}

impl Stream {
    /// The connection below.
    pub fn wire(&self) -> &Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Accepted(tls) => tls.get_ref().0,
            Self::Dialled(tls) => tls.get_ref().0,
        }
    }

    /// The connection below.
    pub fn wire_mut(&mut self) -> &mut Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Accepted(tls) => tls.get_mut().0,
            Self::Dialled(tls) => tls.get_mut().0,
        }
    }

    /// Whether the bytes are encrypted on the network, by us.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// The same call on whichever stream it is.
macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => $call,
            Stream::Accepted($stream) => $call,
            Stream::Dialled($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Accepted(stream) => stream.is_write_vectored(),
            Self::Dialled(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_connection_that_waits_for_bytes_holds_no_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut wire = Wire::new(tcp, BytesMut::new()).reading_ahead(READ_AHEAD);
        let mut bytes = [0; 5];
        for _ in 0..2 {
            let reading = tokio::time::timeout(Duration::from_millis(5), wire.read(&mut bytes));
            assert!(reading.await.is_err());
            assert_eq!(wire.held.capacity(), 0);
            peer.write_all(b"hello").await.unwrap();
            wire.read_exact(&mut bytes).await.unwrap();
            assert_eq!((&bytes, wire.held.capacity()), (b"hello", 0));
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_after_the_peer_has_refused_the_upload() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut wire = Wire::new(tcp, BytesMut::new());
        wire.forgive();
        wire.write_all(b"upload").await.unwrap();
        peer.readable().await.unwrap();
        peer.write_all(b"no").await.unwrap();
        // With unread bytes: the kernel sends a reset.
        drop(peer);
        wire.tcp().ready(tokio::io::Interest::ERROR).await.unwrap();
        for _ in 0..3 {
            wire.write_all(b"more of it").await.unwrap();
        }
        let mut answer = [0; 2];
        wire.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"no");
        assert!(wire.read(&mut answer).await.map_or(true, |read| read == 0));
    }
}
