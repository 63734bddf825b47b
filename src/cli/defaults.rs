//! Defaults: what is in force without any document, each with its reason.
//!
//! The values are read from the policies themselves, so that this page cannot be wrong.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use crate::policy::{Algorithm, Discovery, Mtls, ServicePolicy, TlsMode, WorkloadPolicy};

/// One default.
struct Default {
    /// Where a document would say otherwise.
    key: &'static str,
    value: String,
    reason: &'static str,
}

/// Writes each default and its reason.
pub(super) fn run(out: &mut dyn Write) -> io::Result<ExitCode> {
    let sections = [
        ("ServicePolicy: how callers reach a service", service()),
        ("WorkloadPolicy: what guards a workload", workload()),
    ];
    for (index, (title, defaults)) in sections.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        writeln!(out, "{separator}{title}")?;
        for Default { key, value, reason } in defaults {
            writeln!(out, "  {key:<22} {value:<13} {reason}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn service() -> Vec<Default> {
    let ServicePolicy { tls, algorithm, timeouts, discovery } = ServicePolicy::default();
    let mode = match tls.mode {
        TlsMode::Auto => "auto",
        TlsMode::Strict => "strict",
        TlsMode::Off => "off",
    };
    let identities = if tls.identities.is_empty() { "the namespace" } else { "listed" };
    let algorithm = match algorithm {
        Algorithm::LeastRequest => "LeastRequest",
        Algorithm::PeakEwma => "PeakEwma",
        Algorithm::RoundRobin => "RoundRobin",
        Algorithm::Random => "Random",
    };
    let discovery = match discovery {
        Discovery::Host => "the host",
        Discovery::Dns { .. } => "dns",
        Discovery::Srv { .. } => "srv",
        Discovery::Static(_) => "endpoints",
    };
    vec![
        row("tls.mode", mode, "mutual TLS with every peer that speaks it; the others are counted"),
        row("tls.identities", identities, "any workload of the service's namespace may answer"),
        row(
            "loadBalancer.algorithm",
            algorithm,
            "of two drawn, the one with fewer requests pending; picked per request, not per connection",
        ),
        row(
            "timeouts.request",
            duration(timeouts.request),
            "to the response's head only: a limit on the whole would cut exports and long polls",
        ),
        row(
            "timeouts.connect",
            duration(timeouts.connect),
            "inside a cluster a SYN that took longer was lost",
        ),
        row(
            "timeouts.idle",
            duration(timeouts.idle),
            "between two frames of a body: longer than any keep-alive in use",
        ),
        row("discovery", discovery, "the addresses of the name the application asked for"),
    ]
}

fn workload() -> Vec<Default> {
    let WorkloadPolicy { mtls, port_mtls, opaque_ports, request_timeout, idle_timeout } =
        WorkloadPolicy::default();
    let mode = match mtls {
        Mtls::Permissive => "permissive",
        Mtls::Strict => "strict",
    };
    vec![
        row("mtls.mode", mode, "callers outside the mesh still get in, and are counted"),
        row("mtls.ports", listed(port_mtls.len()), "every port is like the others"),
        row("opaquePorts", listed(opaque_ports.len()), "the protocol is detected on every port"),
        row(
            "timeouts.request",
            duration(request_timeout),
            "as for callers: to the response's head",
        ),
        row(
            "timeouts.idle",
            duration(idle_timeout),
            "as for callers: between two frames of a body",
        ),
    ]
}

fn row(key: &'static str, value: impl Into<String>, reason: &'static str) -> Default {
    Default { key, value: value.into(), reason }
}

fn duration(duration: Duration) -> String {
    let (seconds, minutes) = (duration.as_secs(), duration.as_secs() / 60);
    if 0 < minutes && seconds % 60 == 0 { format!("{minutes}m") } else { format!("{seconds}s") }
}

fn listed(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { count.to_string() }
}
