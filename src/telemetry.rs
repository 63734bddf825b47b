//! Telemetry: what an operator can see from outside, and nothing that decides.

pub mod access_log;
pub mod journal;
pub mod log;
pub mod metrics;

use std::error::Error;

pub use access_log::AccessLog;
pub use journal::Journal;
pub use metrics::{Direction, Metrics};

/// What an error says, and all that led to it.
pub fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
