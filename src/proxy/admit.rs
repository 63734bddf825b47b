//! Admit (step 5): whether a caller may come in at all.

use super::{failure::Failure, handle::Client};
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
