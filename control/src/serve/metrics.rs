use hyper::StatusCode;
use prometheus::{IntCounter, IntCounterVec};
use remora::{
    admin::{self, text},
    clock,
    telemetry::metrics::Page,
};

use super::Control;

/// What names begin with, but for those of the process.
const PREFIX: &str = "remora_control_";

/// What is counted, by name.
#[derive(Debug)]
pub(crate) struct Metrics {
    page: Page,
    pub(crate) requests: IntCounterVec,
    pub(crate) refusals: IntCounterVec,
    pub(crate) certificates: IntCounterVec,
    pub(crate) messages: IntCounterVec,
    pub(crate) handshakes: IntCounterVec,
    pub(crate) dropped: IntCounterVec,
    pub(crate) store_failures: IntCounter,
}

impl Metrics {
    /// All of them, at nothing.
    pub(crate) fn new() -> Self {
        let page = Page::new(PREFIX);
        page.process("build_info", "The version of control.");
        Self {
            requests: page.counters("requests_total", "Calls answered.", &["call", "code"]),
            refusals: page.counters("refusals_total", "Calls refused.", &["reason"]),
            certificates: page.counters("certificates_total", "Certificates signed.", &["proof"]),
            messages: page.counters("messages_total", "Lines sent to watches.", &["type"]),
            handshakes: page.counters("handshakes_total", "TLS handshakes.", &["result"]),
            dropped: page.counters("watches_dropped_total", "Watches control ended.", &["reason"]),
            store_failures: page
                .counter("store_failures_total", "Calls refused for want of a write."),
            page,
        }
    }

    /// The page, with the gauges as `control` is now.
    pub(crate) fn page(&self, control: &Control) -> Vec<u8> {
        let (live, sidecars) = (control.live.get(), control.fleet.all(clock::wall()));
        let generation = control.publisher.status().generation;
        let bundle = &live.record.bundle;
        let (issuer, own) = (live.authority.not_after(), live.svid.not_after());
        let gauges = Page::new(PREFIX);
        for (name, help, value) in [
            ("connections", "TLS connections that are open.", control.drain.count()),
            ("policy_generation", "The generation everybody is to have.", generation),
            ("bundle_sequence", "The trust bundle everybody is to have.", bundle.sequence),
            ("issuer_not_after_seconds", "When the issuer ends.", issuer.as_secs()),
            ("certificate_not_after_seconds", "When the own certificate ends.", own.as_secs()),
            ("leader", "Whether this replica leads.", control.store.leads().into()),
        ] {
            gauges.show(name, help, value);
        }
        let states = gauges.gauges("sidecars", "Sidecars with a valid certificate.", &["state"]);
        let [connected, away] = ["connected", "away"].map(|it| states.with_label_values(&[it]));
        for it in &sidecars {
            if it.connected { connected.inc() } else { away.inc() }
        }
        let mut page = Vec::new();
        self.page.render(&mut page);
        gauges.render(&mut page);
        page
    }
}

/// The page of `path`.
pub(super) fn answer(control: &Control, path: &str) -> admin::Page {
    let (live, now) = (control.live.get(), clock::wall());
    let lacks = |what| text(StatusCode::SERVICE_UNAVAILABLE, what);
    match path {
        "/" => text(StatusCode::OK, "/health/live\n/health/ready\n/metrics\n"),
        "/health/live" => text(StatusCode::OK, "live\n"),
        "/health/ready" if control.drain.is_leaving() => lacks("leaving\n"),
        "/health/ready" if live.authority.not_after() <= now => {
            lacks("the issuer has ended: `remora-control rotate` makes a new one\n")
        }
        "/health/ready" if live.svid.not_after() <= now => {
            lacks("control's own certificate has ended\n")
        }
        "/health/ready" => text(StatusCode::OK, "ready\n"),
        "/metrics" => admin::metrics(control.metrics.page(control)),
        _ => admin::not_found(),
    }
}
