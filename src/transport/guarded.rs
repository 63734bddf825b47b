//! Guarded stream: what hyper's HTTP/1 server reads, with [`Guard`] watching.
//!
//! A head that must not be forwarded is spoilt where it goes wrong, so that hyper itself
//! answers 400 in its turn, after the answers to earlier requests, and closes. A body that
//! goes wrong ends the connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    framing::{Guard, Violation},
    stream::Stream,
};

/// No head may contain it, so hyper refuses one that does.
const SPOILER: u8 = 0;

/// What follows it: hyper looks at a head that came in parts only once it has its end.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A stream whose bytes pass the guard.
#[derive(Debug)]
pub struct Guarded {
    stream: Stream,
    guard: Guard,
    flags: Arc<Flags>,
    /// What is still to be read of a head that was spoilt.
    spoilt: Option<&'static [u8]>,
}

/// What the service above and the owner of the connection share with its stream.
#[derive(Debug, Default)]
pub struct Flags {
    released: AtomicBool,
    blocked: AtomicBool,
    moved: AtomicBool,
    within: AtomicBool,
    refused: AtomicBool,
}

impl Flags {
    /// Says that the connection switches protocols: the guard no longer looks.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is under way: no part of a request has come, and all that was
    /// written has been taken.
    pub fn is_between(&self) -> bool {
        !self.within.load(Ordering::Relaxed) && !self.blocked.load(Ordering::Relaxed)
    }

    /// Whether the peer has taken bytes since this was last asked.
    pub fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Whether the peer has not taken yet what was written: how long it may is the wire's
    /// to say.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Whether the guard refused a message.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Guarded {
    /// Watches `stream`, which begins with a request.
    pub fn new(stream: Stream, flags: Arc<Flags>) -> Self {
        Self { stream, guard: Guard::default(), flags, spoilt: None }
    }

    /// The stream below, no longer watched.
    pub fn into_inner(self) -> Stream {
        self.stream
    }

    fn written<T>(&self, written: Poll<T>) -> Poll<T> {
        self.flags.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(rest) = &mut this.spoilt {
            let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
            buf.put_slice(now);
            *rest = later;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.flags.released.load(Ordering::Relaxed) {
            this.guard.release();
        }
        let read = &mut buf.filled_mut()[before..];
        let Err(Violation { at, in_head }) = this.guard.feed(read) else {
            this.flags.within.store(!this.guard.is_between(), Ordering::Relaxed);
            return Poll::Ready(Ok(()));
        };
        this.spoilt = Some(HEAD_END);
        this.flags.refused.store(true, Ordering::Relaxed);
        if !in_head {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "bad chunk")));
        }
        read[at] = SPOILER;
        buf.set_filled(before + at + 1);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.flags.moved.store(true, Ordering::Relaxed);
        this.written(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.written(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
