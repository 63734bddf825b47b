//! Metrics: what control counts, and the page that Prometheus reads.
//!
//! | name | labels | what |
//! |---|---|---|
//! | `remora_control_requests_total` | 8 calls × some 8 codes | calls answered |
//! | `remora_control_refusals_total` | some 25 reasons | calls refused, by the word on the wire |
//! | `remora_control_certificates_total` | 3 proofs | certificates handed out |
//! | `remora_control_messages_total` | 4 types | lines sent to watches |
//! | `remora_control_handshakes_total` | 4 results | `ok`, `failed`, `timeout`, `refused` (rate, or too many) |
//! | `remora_control_watches_dropped_total` | 3 reasons | watches ended by control: `slow`, `expired`, `untrusted` |
//! | `remora_control_connections` | | TLS connections that are open |
//! | `remora_control_sidecars` | 2 states | `connected`, `away`: with a valid certificate |
//! | `remora_control_policy_generation` | | what everybody is to have |
//! | `remora_control_bundle_sequence` | | what everybody is to trust |
//! | `remora_control_issuer_not_after_seconds` | | when the issuer ends |
//! | `remora_control_certificate_not_after_seconds` | | when control's own certificate ends |
//! | `remora_control_leader` | | 1 on the replica that numbers policy and drives rotations |
//! | `remora_control_store_failures_total` | | calls refused because the store or the audit log took no write |
//! | `remora_control_build_info` | version | 1 |
//!
//! Beside them are the `process_*` families. Gauges are set when the page is read.

use prometheus::{
    Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector, process_collector::ProcessCollector,
};

/// The families, by name.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) refusals: IntCounterVec,
    pub(crate) certificates: IntCounterVec,
    pub(crate) messages: IntCounterVec,
    pub(crate) handshakes: IntCounterVec,
    pub(crate) dropped: IntCounterVec,
    pub(crate) connections: IntGauge,
    pub(crate) sidecars: IntGaugeVec,
    pub(crate) generation: IntGauge,
    pub(crate) bundle: IntGauge,
    pub(crate) issuer_ends: IntGauge,
    pub(crate) own_ends: IntGauge,
    pub(crate) leader: IntGauge,
    pub(crate) store_failures: IntCounter,
}

impl Metrics {
    /// All of them, at nothing.
    ///
    /// # Errors
    ///
    /// When a name is taken or wrong: never, for those above.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("remora_control".to_owned()), None)?;
        let counters = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name, help| register(&registry, IntGauge::new(name, help)?);
        let sidecars = Opts::new("sidecars", "Sidecars with a valid certificate.");
        let build = Opts::new("build_info", "The version of control.");
        register(&registry, IntGaugeVec::new(build, &["version"])?)?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self {
            requests: counters("requests_total", "Calls answered.", &["call", "code"])?,
            refusals: counters("refusals_total", "Calls refused.", &["reason"])?,
            certificates: counters("certificates_total", "Certificates signed.", &["proof"])?,
            messages: counters("messages_total", "Lines sent to watches.", &["type"])?,
            handshakes: counters("handshakes_total", "TLS handshakes.", &["result"])?,
            dropped: counters("watches_dropped_total", "Watches control ended.", &["reason"])?,
            connections: gauge("connections", "TLS connections that are open.")?,
            sidecars: register(&registry, IntGaugeVec::new(sidecars, &["state"])?)?,
            generation: gauge("policy_generation", "The generation everybody is to have.")?,
            bundle: gauge("bundle_sequence", "The trust bundle everybody is to have.")?,
            issuer_ends: gauge("issuer_not_after_seconds", "When the issuer ends.")?,
            own_ends: gauge("certificate_not_after_seconds", "When the own certificate ends.")?,
            leader: gauge("leader", "Whether this replica leads.")?,
            store_failures: register(
                &registry,
                IntCounter::new("store_failures_total", "Calls refused for want of a write.")?,
            )?,
            registry,
        })
    }

    /// The page.
    pub(crate) fn page(&self) -> Vec<u8> {
        let mut families = self.registry.gather();
        families.extend(ProcessCollector::for_self().collect());
        let mut page = Vec::new();
        // Into memory, from families that were checked when they were made.
        let _written = TextEncoder::new().encode(&families, &mut page).is_ok();
        page
    }
}

fn register<T: Collector + Clone + 'static>(
    registry: &Registry,
    family: T,
) -> Result<T, prometheus::Error> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}
