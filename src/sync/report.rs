//! Report: how the sidecar does, as control is told.

use super::{Host, Memory, Sync, wire};
use crate::identity::material::fingerprints;

impl Sync {
    /// How the sidecar does now.
    pub(super) fn report(&self, host: &Host) -> wire::Report {
        let material = host.identity.material();
        let mut services = (host.services)();
        services.sort_unstable();
        services.dedup();
        let refused = host.policies.status().last_error;
        let memory = self.memory.lock();
        // What was sent is in use only if it is what handshakes look at.
        let in_use = memory.kept.roots == fingerprints(&material.roots);
        let mut report = wire::Report {
            instance: self.config.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            inbound: self.config.inbound,
            certificate: wire::Certificate {
                serial: material.serial(),
                not_after: material.svid.not_after().as_secs(),
                issuer: material.issuer(),
            },
            bundle: if in_use { memory.kept.bundle } else { 0 },
            policy: wire::Policy {
                received: memory.received,
                accepted: memory.kept.generation,
                error: memory.policy_error.clone().or(refused),
            },
            services,
            last_error: memory.error(),
            leaving: host.drain.is_draining(),
        };
        // Control reads no longer one.
        report.curb();
        report
    }
}

impl Memory {
    /// The last thing that failed and has not been mended.
    pub(super) fn error(&self) -> Option<String> {
        let errors = [&self.certificate_error, &self.bundle_error, &self.state_error];
        errors.into_iter().flatten().next().cloned()
    }
}
