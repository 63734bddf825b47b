//! Clock: the one place that reads the time.
//!
//! Everything that decides takes `now` as an argument; this is where callers get it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall-clock time since the Unix epoch; zero for a clock set before it.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
