//! Time: nanoseconds since a simulation began.

use std::time::Duration;

/// A moment, or the distance between two of them.
pub(super) type At = u64;

/// `duration`; centuries are the most there is.
pub(super) fn nanos(duration: Duration) -> At {
    At::try_from(duration.as_nanos()).unwrap_or(At::MAX)
}
