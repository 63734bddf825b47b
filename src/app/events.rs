//! Events: what a change of certificate or policy means to metrics, health and the log.

use tokio::sync::watch;

use crate::{
    admin::{Condition, Health},
    config, identity,
    telemetry::metrics::Metrics,
};

/// A change of certificate.
pub(super) fn on_identity(
    event: &identity::Event,
    metrics: &Metrics,
    health: &Health,
    rotated: &watch::Sender<u64>,
) {
    match event {
        identity::Event::Rotated { generation, not_after } => {
            metrics.certificate_not_after(*not_after);
            health.note(Condition::Identity, None);
            rotated.send_replace(*generation);
            tracing::info!(generation, not_after = not_after.as_secs(), "identity rotated");
        }
        identity::Event::Refused { error } => {
            health.note(Condition::Identity, Some(error.to_string()));
            tracing::warn!(%error, "new identity refused; the old one stays");
        }
        identity::Event::Restored => {
            health.note(Condition::Identity, None);
            tracing::info!("identity is as it was");
        }
    }
}

/// A change of policy.
pub(super) fn on_policy(event: &config::Event, metrics: &Metrics, health: &Health) {
    match event {
        config::Event::Accepted { generation, warnings } => {
            for warning in warnings {
                tracing::warn!(%warning, "policy accepted with a warning");
            }
            metrics.policy_reload(true);
            metrics.policy_generation(*generation);
            health.set(Condition::Policy, Ok(()));
            health.note(Condition::Policy, None);
            tracing::info!(generation, "policy accepted");
        }
        config::Event::Refused { errors } => {
            metrics.policy_reload(false);
            health.note(Condition::Policy, Some(errors.to_string()));
            tracing::error!(%errors, "policy refused; the last good one stays in force");
        }
    }
}
