//! Defaults: what is in force without any document, each with its reason.
//!
//! The values are read from the policies themselves, so that this page cannot be wrong.

mod resilience;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    config::{
        units::written,
        words::{MTLS_MODES, TLS_MODES, word},
    },
    policy::{Discovery, ServicePolicy, TlsPolicy, WorkloadPolicy, service::Timeouts},
};

/// One default.
#[derive(Clone)]
struct Default {
    /// Where a document would say otherwise.
    key: &'static str,
    value: String,
    reason: &'static str,
}

/// Writes each default and its reason.
pub(super) fn run(out: &mut dyn Write) -> io::Result<ExitCode> {
    let sections = [
        ("ServicePolicy: how callers reach a service", service(&ServicePolicy::default())),
        ("WorkloadPolicy: what guards a workload", workload(&WorkloadPolicy::default())),
    ];
    for (index, (title, defaults)) in sections.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        writeln!(out, "{separator}{title}")?;
        for Default { key, value, reason } in defaults {
            writeln!(out, "  {key:<27} {value:<18} {reason}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn service(policy: &ServicePolicy) -> Vec<Default> {
    let ServicePolicy { tls, resilience, hash_key, retries, timeouts, discovery } = policy;
    let discovery = match discovery {
        Discovery::Host => "the host",
        Discovery::Dns { .. } => "dns",
        Discovery::Srv { .. } => "srv",
        Discovery::Static(_) => "endpoints",
    };
    let discovery =
        row("discovery", discovery, "the addresses of the name the application asked for");
    [
        tls_and_timeouts(tls, timeouts),
        resilience::load_balancer(&resilience.balancer, hash_key.as_ref()),
        resilience::retries(retries),
        resilience::extra_load(&resilience.budget, resilience.hedge),
        resilience::breaker(&resilience.breaker),
        resilience::outlier(&resilience.outlier, resilience.admission),
        resilience::limits(&resilience.limits),
        vec![discovery],
    ]
    .concat()
}

fn tls_and_timeouts(tls: &TlsPolicy, timeouts: &Timeouts) -> Vec<Default> {
    let identities = if tls.identities.is_empty() { "the namespace" } else { "listed" };
    vec![
        row(
            "tls.mode",
            word(&TLS_MODES, &tls.mode),
            "mutual TLS with every peer that speaks it; the others are counted",
        ),
        row("tls.identities", identities, "any workload of the service's namespace may answer"),
        row(
            "timeouts.request",
            written(timeouts.request),
            "to the response's head only: a limit on the whole would cut exports and long polls",
        ),
        row(
            "timeouts.connect",
            written(timeouts.connect),
            "inside a cluster a SYN that took longer was lost",
        ),
        row(
            "timeouts.idle",
            written(timeouts.idle),
            "between two frames of a body: longer than any keep-alive in use",
        ),
    ]
}

fn workload(policy: &WorkloadPolicy) -> Vec<Default> {
    let WorkloadPolicy {
        mtls,
        port_mtls,
        opaque_ports,
        request_timeout,
        idle_timeout,
        rate_limits,
        concurrency,
    } = policy;
    let mut rows = vec![
        row(
            "mtls.mode",
            word(&MTLS_MODES, mtls),
            "callers outside the mesh still get in, and are counted",
        ),
        row("mtls.ports", listed(port_mtls.len()), "every port is like the others"),
        row("opaquePorts", listed(opaque_ports.len()), "the protocol is detected on every port"),
        row(
            "timeouts.request",
            written(*request_timeout),
            "as for callers: to the response's head",
        ),
        row(
            "timeouts.idle",
            written(*idle_timeout),
            "as for callers: between two frames of a body",
        ),
        row("rateLimits", listed(rate_limits.len()), "only you know what is too often"),
    ];
    rows.extend(resilience::concurrency(concurrency));
    rows
}

fn row(key: &'static str, value: impl Into<String>, reason: &'static str) -> Default {
    Default { key, value: value.into(), reason }
}

fn listed(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { count.to_string() }
}
