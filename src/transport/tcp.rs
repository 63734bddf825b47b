//! Opaque forwarding: bytes in both directions until both have ended.
//!
//! One direction may end before the other (half-close), and a connection on which nothing
//! moves either way for the idle time is closed. Between two plain sockets the bytes stay
//! in the kernel (`splice`).

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{splice, stream::Stream};

/// Bytes held for each direction while they wait to be written: the size of a TLS record.
const BUFFER: usize = 16 * 1024;

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from the client to the upstream.
    pub sent: u64,
    /// Bytes from the upstream to the client.
    pub received: u64,
    /// Whether the upstream said something before the client did.
    pub answered_first: bool,
}

impl Traffic {
    /// Notes how much has gone through by now.
    pub(super) fn note(&mut self, sent: u64, received: u64) {
        self.answered_first |= self.sent == 0 && sent == 0 && received > 0;
        (self.sent, self.received) = (sent, received);
    }
}

/// Forwards between `client` and `upstream` until both directions have ended.
///
/// Where one side breaks off, the other side's connection is reset: an orderly end would say
/// that what it got was all there was.
///
/// # Errors
///
/// The first error of either side, or a time-out when nothing moved for `idle`; `traffic`
/// holds what went through in any case.
///
/// # Cancel safety
///
/// Both connections are closed; bytes on their way are lost.
pub async fn forward(
    mut client: Stream,
    mut upstream: Stream,
    idle: Duration,
    traffic: &mut Traffic,
) -> io::Result<()> {
    client.wire_mut().be_patient();
    upstream.wire_mut().be_patient();
    let ended = match (&mut client, &mut upstream) {
        (Stream::Plain(client), Stream::Plain(upstream)) => {
            splice::forward(client, upstream, idle, traffic).await
        }
        (client, upstream) => relay(client, upstream, idle, traffic).await,
    };
    if ended.is_err() {
        client.wire().reset();
        upstream.wire().reset();
    }
    ended
}

/// Forwards between any two streams, by copying.
///
/// # Errors
///
/// As [`forward`].
pub async fn relay<A, B>(
    client: &mut A,
    upstream: &mut B,
    idle: Duration,
    traffic: &mut Traffic,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Flow::new(u64::MAX), Flow::new(u64::MAX));
    let mut timer = pin!(tokio::time::sleep(idle));
    let moving = std::future::poll_fn(|cx| {
        let before = (up.moved, down.moved);
        let sent = up.poll(cx, client, upstream)?;
        let received = down.poll(cx, upstream, client)?;
        traffic.note(up.moved, down.moved);
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if before != (up.moved, down.moved) {
            timer.set(tokio::time::sleep(idle));
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(idle_error()))
    });
    moving.await
}

/// The end of a connection on which nothing moves.
pub(super) fn idle_error() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing moved for the idle time")
}

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// How much went through.
    pub(super) moved: u64,
    /// After how much to stop copying.
    limit: u64,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Copying,
    Closing,
    Done,
}

impl Flow {
    /// A direction in which nothing has moved, copied until `limit` bytes have.
    pub(super) fn new(limit: u64) -> Self {
        Self { buffer: None, start: 0, end: 0, moved: 0, limit, at: At::Copying }
    }

    /// Whether it stopped at its limit, with nothing held.
    pub(super) fn is_at_limit(&self) -> bool {
        self.at == At::Copying && self.start == self.end && self.moved >= self.limit
    }

    /// Ready when the source has ended and the sink has been told, or at the limit.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.at == At::Copying {
            if self.is_at_limit() {
                return Ok(Poll::Ready(()));
            }
            if self.start == self.end {
                let buffer = self.buffer.get_or_insert_with(|| vec![0; BUFFER].into());
                let mut read = ReadBuf::new(buffer);
                match Pin::new(&mut *from).poll_read(cx, &mut read) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        // An idle direction holds no memory.
                        self.buffer = None;
                        if let Poll::Ready(flushed) = Pin::new(&mut *to).poll_flush(cx) {
                            flushed?;
                        }
                        return Ok(Poll::Pending);
                    }
                }
                (self.start, self.end) = (0, read.filled().len());
                if self.end == 0 {
                    self.at = At::Closing;
                    self.buffer = None;
                }
            }
            let Some(buffer) = &self.buffer else { continue };
            while self.start < self.end {
                match Pin::new(&mut *to).poll_write(cx, &buffer[self.start..self.end]) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => {
                        let written = written?;
                        self.start += written;
                        self.moved += written as u64;
                    }
                }
            }
        }
        if self.at == At::Closing {
            match Pin::new(to).poll_shutdown(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                // The sink may have gone first; there is nothing left to tell it.
                Poll::Ready(_) => self.at = At::Done,
            }
        }
        Ok(Poll::Ready(()))
    }
}
