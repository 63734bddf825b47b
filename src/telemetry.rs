//! Telemetry: what an operator can see from outside, and nothing that decides.

pub mod access_log;
pub mod log;
pub mod metrics;

pub use access_log::AccessLog;
pub use metrics::{Direction, Metrics};
