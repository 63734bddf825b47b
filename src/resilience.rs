//! Resilience: the state machines that keep one service's trouble from becoming everybody's.
//!
//! Pure: `now` and the random draws are arguments, decisions are return values. The proxy
//! and the simulator drive the very same [`service::Service`].

pub mod admission;
pub mod backoff;
pub mod balancer;
pub mod breaker;
pub mod budget;
pub mod hedge;
pub mod limiter;
pub mod outlier;
pub mod rate;
pub mod service;
pub mod window;

/// What a rule does about what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It acts.
    #[default]
    Enforce,
    /// It counts what it would have done.
    Observe,
    /// Nothing.
    Off,
}
