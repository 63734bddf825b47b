//! Page: families by name, and the text of all of them that Prometheus reads.

use std::sync::Arc;

use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};

/// A registry, with the plainest way to add to it. Names are constants of the program, each
/// of them used once on a page.
#[derive(Debug)]
pub struct Page {
    prefix: &'static str,
    registry: Registry,
}

impl Page {
    /// An empty one, where each name begins with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, registry: Registry::new() }
    }

    /// Adds a counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.named(name, help)))
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.named(name, help)))
    }

    /// Adds a gauge of this value.
    pub fn show(&self, name: &str, help: &str, value: u64) {
        super::set(&self.gauge(name, help), value);
    }

    /// Adds counters, one for each value of the labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.named(name, help), labels))
    }

    /// Adds gauges, one for each value of the labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(self.named(name, help), labels))
    }

    fn named(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}{name}", self.prefix), help)
    }

    /// Adds the version as a gauge, and CPU, memory and descriptors as the kernel counts them:
    /// the `process_*` families.
    pub fn process(&self, build: &str, help: &str) {
        let build = self.gauges(build, help, &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.register(Ok(Process(Arc::new(ProcessCollector::for_self()))));
    }

    #[expect(clippy::expect_used, reason = "names are constants, tried by each test")]
    pub(super) fn register<C: Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let collector = made.expect("the name and labels of a family are valid");
        let registered = self.registry.register(Box::new(collector.clone()));
        registered.expect("the name of a family is its own");
        collector
    }

    /// Appends all of it, in Prometheus' text format 0.0.4.
    pub fn render(&self, out: &mut Vec<u8>) {
        let encoded = TextEncoder::new().encode(&self.registry.gather(), out);
        if let Err(error) = encoded {
            tracing::warn!(%error, "metrics page is incomplete");
        }
    }
}

#[derive(Clone)]
struct Process(Arc<ProcessCollector>);

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}
