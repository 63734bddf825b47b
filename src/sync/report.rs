//! Report: how the sidecar does, as control is told.

use super::{Host, Memory, Sync, wire};
use crate::identity::material::fingerprints;

/// The most services that are told: a pod that calls more gets no policy for the rest.
const SERVICES_MAX: usize = 1_000;

/// The most that their names may have together, for control reads no longer report.
const SERVICES_BYTES_MAX: usize = 32 * 1024;

/// The most that is told of an error; its beginning names the place.
const ERROR_BYTES_MAX: usize = 4 * 1024;

impl Sync {
    /// How the sidecar does now.
    pub(super) fn report(&self, host: &Host) -> wire::Report {
        let material = host.identity.material();
        let mut services = (host.services)();
        services.sort_unstable();
        services.dedup();
        services.truncate(SERVICES_MAX);
        let mut bytes = 0;
        services.retain(|it| {
            bytes += it.len() + r#","","#.len();
            bytes <= SERVICES_BYTES_MAX
        });
        let refused = host.policies.status().last_error;
        let memory = self.memory.lock();
        // What was sent is in use only if it is what handshakes look at.
        let in_use = memory.kept.roots == fingerprints(&material.roots);
        wire::Report {
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
                error: memory.policy_error.clone().or(refused).map(short),
            },
            services,
            last_error: memory.error().map(short),
            leaving: host.drain.is_draining(),
        }
    }
}

impl Memory {
    /// The last thing that failed and has not been mended.
    pub(super) fn error(&self) -> Option<String> {
        let errors = [&self.certificate_error, &self.bundle_error, &self.state_error];
        errors.into_iter().flatten().next().cloned()
    }
}

/// The beginning of an error.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    text
}
