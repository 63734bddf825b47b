//! Access log: one JSON line a request on standard output, which never holds a request up.
//!
//! A line is serialised straight into a buffer shared with one writer thread, which takes
//! the whole of it at a time: logging is a short lock and a copy, without an allocation, and
//! many lines are one system call. When standard output is read too slowly the buffer fills
//! to its bound, and further lines are dropped and counted
//! (`remora_access_log_dropped_total`): what a pod serves matters more than a record of it.
//!
//! [`AccessLog::wants`] is asked first, so that a request that is not logged costs a
//! comparison.

mod json;
mod writer;

use std::{io, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use super::{Direction, Metrics};
use writer::Queue;

/// Which requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    Off,
    /// Those answered with 5xx or by Remora itself.
    #[default]
    Failures,
    /// All.
    All,
    /// Failures, and this share of the others, in millionths.
    Ratio(u32),
}

/// A policy has another form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown access log policy `{0}`\nhint: `off`, `failures`, `all`, or a percentage such as `5%`"
)]
pub struct PolicyError(String);

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError(text.into());
        Ok(match text {
            "off" => Self::Off,
            "failures" => Self::Failures,
            "all" => Self::All,
            other => {
                let percent = other.strip_suffix('%').ok_or_else(wrong)?;
                let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
                let digits = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
                if !digits(whole) || !digits(part) || 4 < part.len() {
                    return Err(wrong());
                }
                // Four digits of a percentage are a millionth.
                let millionths = format!("{whole}{part:0<4}").parse().map_err(|_| wrong())?;
                if 1_000_000 < millionths {
                    return Err(wrong());
                }
                Self::Ratio(millionths)
            }
        })
    }
}

/// One request, as it ended.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When it ended, since the Unix epoch.
    pub time: Duration,
    /// Which way it went.
    pub direction: Direction,
    /// Its method.
    pub method: &'a str,
    /// The host it asked for.
    pub authority: &'a str,
    /// Its path, without the query: that may hold secrets.
    pub path: &'a str,
    /// Such as `HTTP/1.1`, `HTTP/2` or `grpc`.
    pub protocol: &'a str,
    /// The status answered; 0 where the client left before there was one.
    pub status: u16,
    /// The reason of a response made by Remora.
    pub reason: Option<&'a str>,
    /// The route's name.
    pub route: &'a str,
    /// The service's name.
    pub service: &'a str,
    /// The endpoint of the last try.
    pub upstream: Option<SocketAddr>,
    /// How many tries there were.
    pub attempts: u32,
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// The SPIFFE ID of the other side, where it proved one.
    pub peer: Option<&'a str>,
    /// The value of `x-request-id`.
    pub request_id: &'a str,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// Whether the client's connection was mesh TLS.
    pub tls: bool,
}

/// The access log. Cheap to clone; what is left is written when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct AccessLog {
    policy: Policy,
    queue: Option<Arc<Queue>>,
}

impl AccessLog {
    /// Begins to write to `out`, standard output in a process, on a thread of its own;
    /// there is none where the policy is to log nothing.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn new(
        policy: Policy,
        out: impl io::Write + Send + 'static,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let queue = match policy {
            Policy::Off => None,
            Policy::Failures | Policy::All | Policy::Ratio(_) => Some(Queue::start(out, metrics)?),
        };
        Ok(Self { policy, queue })
    }

    /// A log of nothing.
    pub fn off() -> Self {
        Self { policy: Policy::Off, queue: None }
    }

    /// Whether a request that ended so is to be logged. `draw` is uniform over `u32`.
    #[inline]
    pub fn wants(&self, status: u16, reason: Option<&str>, draw: u32) -> bool {
        let failed = reason.is_some() || 500 <= status;
        match self.policy {
            Policy::Off => false,
            Policy::Failures => failed,
            Policy::All => true,
            Policy::Ratio(millionths) => {
                failed || (u64::from(draw) * 1_000_000) >> 32 < u64::from(millionths)
            }
        }
    }

    /// Logs a request that is wanted. Never waits for standard output.
    pub fn log(&self, entry: &Entry<'_>) {
        if let Some(queue) = &self.queue {
            queue.push(|line| json::write(entry, line));
        }
    }

    /// Waits until everything logged so far is written, and for `most` at the longest.
    /// Blocks the thread: for the end of a process.
    pub fn flush(&self, most: Duration) {
        if let Some(queue) = &self.queue {
            queue.flush(most);
        }
    }
}

#[cfg(test)]
mod tests;
