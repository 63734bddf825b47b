//! Splice: bytes from one socket to another that never leave the kernel.
//!
//! A connection's first bytes are copied: most connections never carry more, and a pipe
//! costs two descriptors. A direction that has carried [`WORTHWHILE`] moves on to a pipe.
//!
//! # Sources
//!
//! - splice(2). A spliced read that finds nothing is told from a full pipe by never reading
//!   before the pipe is empty.

use std::{
    io,
    os::fd::OwnedFd,
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, SpliceFFlags, splice},
    unistd::pipe2,
};
use tokio::{
    io::{AsyncWrite, Interest},
    net::TcpStream,
};

use super::{
    stream::Wire,
    tcp::{Flow, Traffic, idle_error},
};

/// After how many bytes a direction is worth a pipe.
const WORTHWHILE: u64 = 256 * 1024;

/// How much is asked for at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Forwards between two sockets until both directions have ended.
pub(super) async fn forward(
    client: &mut Wire,
    upstream: &mut Wire,
    idle: Duration,
    traffic: &mut Traffic,
) -> io::Result<()> {
    let (mut up, mut down) = (Direction::new(), Direction::new());
    let mut timer = pin!(tokio::time::sleep(idle));
    let moving = std::future::poll_fn(|cx| {
        let before = *traffic;
        let sent = up.poll(cx, client, upstream)?;
        let received = down.poll(cx, upstream, client)?;
        traffic.note(up.moved(), down.moved());
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if before != *traffic {
            timer.set(tokio::time::sleep(idle));
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(idle_error()))
    });
    moving.await
}

/// One direction: copied, then spliced.
#[derive(Debug)]
struct Direction {
    copied: Flow,
    pipe: Option<Pipe>,
}

/// What is on its way through the kernel.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
    moved: u64,
    ended: bool,
    done: bool,
}

impl Direction {
    fn new() -> Self {
        Self { copied: Flow::new(WORTHWHILE), pipe: None }
    }

    fn moved(&self) -> u64 {
        self.copied.moved + self.pipe.as_ref().map_or(0, |it| it.moved)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        to: &mut Wire,
    ) -> io::Result<Poll<()>> {
        if self.pipe.is_none() {
            if self.copied.poll(cx, from, to)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if !self.copied.is_at_limit() {
                return Ok(Poll::Ready(()));
            }
            let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
            self.pipe = Some(Pipe { out, into, held: 0, moved: 0, ended: false, done: false });
        }
        match &mut self.pipe {
            Some(pipe) => pipe.poll(cx, from.tcp(), to),
            None => Ok(Poll::Ready(())),
        }
    }
}

impl Pipe {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &mut Wire,
    ) -> io::Result<Poll<()>> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        while !self.ended || self.held > 0 {
            while self.held > 0 {
                let sink = to.tcp();
                let Poll::Ready(ready) = sink.poll_write_ready(cx) else {
                    return Ok(Poll::Pending);
                };
                ready?;
                let write = || Ok(splice(&self.out, None, sink, None, self.held, flags)?);
                match sink.try_io(Interest::WRITABLE, write) {
                    Ok(written) => {
                        self.held -= written;
                        self.moved += written as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                    Err(error) => return Err(error),
                }
            }
            let Poll::Ready(ready) = from.poll_read_ready(cx) else { return Ok(Poll::Pending) };
            ready?;
            let read = || Ok(splice(from, None, &self.into, None, CHUNK, flags)?);
            match from.try_io(Interest::READABLE, read) {
                Ok(0) => self.ended = true,
                Ok(read) => self.held = read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
        if !self.done {
            let Poll::Ready(_) = std::pin::Pin::new(to).poll_shutdown(cx) else {
                return Ok(Poll::Pending);
            };
            self.done = true;
        }
        Ok(Poll::Ready(()))
    }
}
