//! Admit (step 5): whether a caller may come in at all, and whether its request is taken on.

use http::Request;

use super::{
    context::Facts,
    failure::Failure,
    guard::{Denied, Pass},
    handle::Client,
    route::Parent,
};
use crate::{policy::Mtls, telemetry::metrics::Direction};

/// Decides about a request of `client`.
///
/// # Errors
///
/// Why it is not let in.
pub fn admit(client: &Client) -> Result<(), Failure> {
    if client.worker.direction == Direction::Outbound || client.peer.is_some() {
        return Ok(());
    }
    match client.worker.shared.policies.current().workload.mtls_of(client.port) {
        Mtls::Permissive => Ok(()),
        Mtls::Strict => Err(Failure::Denied),
    }
}

/// Asks what guards the workload, if anything does, about a request that it may be sent.
///
/// # Errors
///
/// Why it is not taken on.
pub fn take_on<B>(
    client: &Client,
    parent: &Parent,
    request: &Request<B>,
    facts: &Facts,
) -> Result<Pass, Denied> {
    match &parent.guard {
        Some(guard) => guard.admit(client.peer.as_deref(), request, facts),
        None => Ok(Pass::default()),
    }
}
