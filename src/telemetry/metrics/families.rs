//! Families: the names, their help and their labels.
//!
//! Each states its cardinality as a product. S = services, R = routes of a service,
//! D = 2 directions; S and R are bounded by the budget of the parent module.

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use super::Page;

/// Lines kept for what is not charged: the families without a service label (under 100) and
/// those of the service `other` (a route and all local replies each way, one service).
pub(super) const RESERVED: usize = 250;

/// Upper bounds in seconds. Half a millisecond is a local answer; a minute is the default
/// request timeout. Between them about two to a decade, and more where p99s usually lie.
const BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// Lines of one histogram: its buckets, `+Inf`, the sum and the count.
pub(super) const HISTOGRAM_LINES: usize = BUCKETS.len() + 3;

/// Every family of the page.
#[derive(Debug)]
pub(super) struct Families {
    /// Those with a service label, in the budget.
    pub(super) by_service: ByService,
    /// D × 5 protocols × 2.
    pub(super) connections: IntGaugeVec,
    /// 2 sides × about 10 results.
    pub(super) handshakes: IntCounterVec,
    /// 1.
    pub(super) certificate_not_after: IntGauge,
    /// 1, where there is control.
    pub(super) control_connected: IntGaugeVec,
    /// 1, where there is control.
    pub(super) control_generation: IntGaugeVec,
    /// 2 results.
    pub(super) certificate_renewals: IntCounterVec,
    /// 1.
    pub(super) policy_generation: IntGauge,
    /// 2 results.
    pub(super) policy_reloads: IntCounterVec,
    /// 3 results.
    pub(super) dns_lookups: IntCounterVec,
    /// 1.
    pub(super) access_log_dropped: IntCounter,
    /// 1.
    pub(super) panics: IntCounter,
}

/// The families with a service label.
#[derive(Debug)]
pub(super) struct ByService {
    /// D × S × R × 6 codes.
    pub(super) requests: IntCounterVec,
    /// D × S × R × 16 lines of a histogram.
    pub(super) duration: HistogramVec,
    /// D × S × the reasons of the failure table (22).
    pub(super) local_replies: IntCounterVec,
    /// S × 5 outcomes.
    pub(super) attempts: IntCounterVec,
    /// S × 8 verdicts.
    pub(super) retries: IntCounterVec,
    /// S × 3 states.
    pub(super) endpoints: IntGaugeVec,
    /// D × S × 2 flows.
    pub(super) tcp_bytes: IntCounterVec,
    /// S.
    pub(super) plaintext_fallbacks: IntCounterVec,
    /// Names that are being resolved, in the same budget.
    pub(super) dns_age: GaugeVec,
    /// What the resilience core decides.
    pub(super) decisions: Decisions,
}

/// The families of what the resilience core decides, in the same budget.
#[derive(Debug)]
pub(super) struct Decisions {
    /// S.
    pub(super) retry_budget: IntGaugeVec,
    /// S × 3 results.
    pub(super) hedges: IntCounterVec,
    /// S.
    pub(super) panic_picks: IntCounterVec,
    /// S × 3 states.
    pub(super) breaker: IntCounterVec,
    /// S.
    pub(super) would_eject: IntCounterVec,
    /// S.
    pub(super) would_retry: IntCounterVec,
    /// S.
    pub(super) would_exhaust: IntCounterVec,
    /// S.
    pub(super) would_hedge: IntCounterVec,
    /// D × S × 5 reasons.
    pub(super) would_reject: IntCounterVec,
    /// S.
    pub(super) concurrency_limit: IntGaugeVec,
    /// S.
    pub(super) concurrency_in_flight: IntGaugeVec,
}

impl Families {
    /// Makes every family and registers it.
    pub(super) fn new(page: &Page) -> Self {
        page.process("remora_build_info", "The build; always 1.");
        Self {
            by_service: ByService::new(page),
            connections: page.gauges(
                "remora_connections",
                "Connections from clients that are open.",
                &["direction", "protocol", "tls"],
            ),
            handshakes: page.counters(
                "remora_handshakes_total",
                "Mesh TLS handshakes.",
                &["side", "result"],
            ),
            policy_reloads: page.counters(
                "remora_policy_reloads_total",
                "Loads of the policy folder; a rejected one leaves the old policy in force.",
                &["result"],
            ),
            dns_lookups: page.counters("remora_dns_lookups_total", "DNS lookups.", &["result"]),
            certificate_not_after: page.gauge(
                "remora_certificate_not_after_seconds",
                "When the certificate in use ends, in Unix time.",
            ),
            control_connected: page.gauges(
                "remora_control_connected",
                "Whether control can be heard: 1, or 0.",
                &[],
            ),
            control_generation: page.gauges(
                "remora_control_generation",
                "Number of the newest generation of policy that was accepted from control.",
                &[],
            ),
            certificate_renewals: page.counters(
                "remora_certificate_renewals_total",
                "Certificates that control was asked for.",
                &["result"],
            ),
            policy_generation: page
                .gauge("remora_policy_generation", "Generation of the policy in force."),
            access_log_dropped: page.counter(
                "remora_access_log_dropped_total",
                "Access log lines dropped because standard output is not read fast enough.",
            ),
            panics: page
                .counter("remora_panics_total", "Panics caught; each one is a bug to report."),
        }
    }
}

impl ByService {
    fn new(page: &Page) -> Self {
        Self {
            requests: page.counters(
                "remora_requests_total",
                "Requests settled, by class of status; a client that left is `cancelled`.",
                &["direction", "service", "route", "code"],
            ),
            duration: page.seconds(
                "remora_request_duration_seconds",
                "Time from a request's head to the end of its response.",
                &["direction", "service", "route"],
            ),
            local_replies: page.counters(
                "remora_local_replies_total",
                "Responses made by Remora itself, by reason.",
                &["direction", "service", "reason"],
            ),
            attempts: page.counters(
                "remora_attempts_total",
                "Tries sent to endpoints; divided by requests this is the amplification.",
                &["service", "outcome"],
            ),
            retries: page.counters(
                "remora_retries_total",
                "Failed tries, by what was decided about one more.",
                &["service", "verdict"],
            ),
            endpoints: page.gauges(
                "remora_endpoints",
                "Endpoints of a service, by state.",
                &["service", "state"],
            ),
            tcp_bytes: page.counters(
                "remora_tcp_bytes_total",
                "Bytes of opaque connections.",
                &["direction", "service", "flow"],
            ),
            plaintext_fallbacks: page.count_of_services(
                "remora_plaintext_fallbacks_total",
                "Connections in plaintext to peers that did not speak mesh TLS.",
            ),
            dns_age: page.seconds_gauges(
                "remora_dns_age_seconds",
                "Age of a name's last good answer, when it was last asked for.",
                &["service"],
            ),
            decisions: Decisions::new(page),
        }
    }
}

impl Decisions {
    fn new(page: &Page) -> Self {
        Self {
            retry_budget: page.number_of_services(
                "remora_retry_budget_tokens",
                "Retries and hedges that may be sent at once, in whole ones.",
            ),
            hedges: page.counters(
                "remora_hedges_total",
                "Second tries before the first had failed; won is one that answered first.",
                &["service", "result"],
            ),
            panic_picks: page.count_of_services(
                "remora_panic_picks_total",
                "Tries at an endpoint that was left out, because every one of them was.",
            ),
            breaker: page.counters(
                "remora_breaker_transitions_total",
                "Changes of the breakers of a service and its endpoints, by new state.",
                &["service", "to"],
            ),
            would_eject: page.count_of_services(
                "remora_would_eject_total",
                "Endpoints that a rule of mode `observe`, or but for the cap, would have left out.",
            ),
            would_retry: page.count_of_services(
                "remora_would_retry_total",
                "Retries that a policy of mode `observe` would have sent.",
            ),
            would_exhaust: page.count_of_services(
                "remora_would_exhaust_total",
                "Retries and hedges that a budget of mode `observe` would have refused.",
            ),
            would_hedge: page.count_of_services(
                "remora_would_hedge_total",
                "Hedges that a policy of mode `observe` would have sent.",
            ),
            would_reject: page.counters(
                "remora_would_reject_total",
                "Requests that a rule of mode `observe` would have refused, by reason.",
                &["direction", "service", "reason"],
            ),
            concurrency_limit: page.number_of_services(
                "remora_concurrency_limit",
                "Requests that the workload may work on at once.",
            ),
            concurrency_in_flight: page.number_of_services(
                "remora_concurrency_in_flight",
                "Requests that the workload works on.",
            ),
        }
    }
}

impl Page {
    fn count_of_services(&self, name: &str, help: &str) -> IntCounterVec {
        self.counters(name, help, &["service"])
    }

    fn number_of_services(&self, name: &str, help: &str) -> IntGaugeVec {
        self.gauges(name, help, &["service"])
    }

    fn seconds_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }
}
