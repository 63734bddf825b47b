//! End-to-end tests: the shipped binary between real hosts, on one machine.
//!
//! `cargo test --test e2e` needs neither root nor any program but the one under test:
//! the test binary runs itself again in namespaces of its own ([`world`]), builds hosts,
//! cables and addresses over netlink ([`topology`]), and starts the binary there. A case
//! is a function that panics when a promise is broken; [`runner`] is the little that is
//! needed of a test harness, because a harness with threads could not change namespaces.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod cable;
mod control;
mod control_many;
mod control_sidecars;
mod deadlines;
mod dns;
mod failover;
mod faults;
mod faults_endpoints;
mod faults_policy;
mod faults_retries;
mod grpc;
mod guards;
mod host;
mod hostile;
mod hostile_frames;
mod http;
mod identity;
mod identity_peers;
mod identity_rotation;
mod intercept;
mod lifecycle;
mod load;
mod mesh;
mod metrics;
mod pods;
mod pods_control;
mod policy;
mod process;
mod protocols_http1;
mod protocols_http2;
mod protocols_mesh;
mod protocols_tcp;
mod rig;
mod rotation;
mod runner;
mod stand_in;
mod tcp;
mod topology;
mod wire;
mod world;

use std::process::ExitCode;

/// All cases, in the order they run.
fn cases() -> Vec<runner::Case> {
    [
        rig::CASES,
        intercept::CASES,
        identity::CASES,
        identity_rotation::CASES,
        rotation::CASES,
        policy::CASES,
        control_sidecars::CASES,
        control_many::CASES,
        failover::CASES,
        faults_endpoints::CASES,
        faults_retries::CASES,
        faults_policy::CASES,
        deadlines::CASES,
        guards::CASES,
        lifecycle::CASES,
        protocols_http1::CASES,
        protocols_http2::CASES,
        protocols_tcp::CASES,
        protocols_mesh::CASES,
        hostile::CASES,
        hostile_frames::CASES,
    ]
    .concat()
}

fn main() -> ExitCode {
    // This binary is also control, which has none of its own here.
    if let Some(code) = control::run(std::env::args().skip(1)) {
        return code;
    }
    let options = match runner::Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => return runner::refuse(&message),
    };
    let all = cases();
    let total = all.len();
    let cases = options.select(all);
    if options.list {
        return runner::list(&cases);
    }
    match world::enter() {
        Ok(world::Side::Inside) => runner::run(&cases, total - cases.len()),
        Ok(world::Side::Outside(code)) => code,
        Err(message) => runner::refuse(&message),
    }
}
