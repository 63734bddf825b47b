//! Opaque forwarding: a connection whose bytes are nobody's business, to one endpoint.
//!
//! A dial that fails is made again at another endpoint, once: nothing was sent. After that
//! the connection is the endpoint's for as long as it lasts.

use std::sync::Arc;

use super::{accept::RESOLUTION, context::Worker, core::Permit, failure::Failure, route::Parent};
use crate::{
    clock,
    resilience::{
        balancer::Outcome,
        service::{Ask, Kind, RouteId},
    },
    telemetry::metrics::Flow,
    transport::{
        stream::{Stream, Wire},
        tcp::{self, Traffic},
    },
};

/// How forwarding ended.
#[derive(Debug)]
pub enum Forwarded {
    /// With this having gone through.
    Ended(Traffic),
    /// Not at all: the client, who had been silent, spoke before the endpoint did.
    ClientFirst(Wire),
}

/// Forwards `client` to an endpoint of `parent` until both directions have ended, and says
/// what went through.
///
/// A client that is `silent` is one because the server speaks first in its protocol, or
/// because it has nothing to say yet: whoever speaks first tells which.
///
/// # Cancel safety
///
/// Both connections are closed.
pub async fn forward(worker: &Worker, parent: &Parent, client: Stream, silent: bool) -> Forwarded {
    let shared = &worker.shared;
    // A connection on which nobody has said a word holds no shutdown up.
    let in_flight = (!silent).then(|| shared.drain.in_flight());
    let destination = Arc::clone(parent.default_destination());
    let service = &destination.upstream.service;
    service.resolved(RESOLUTION).await;
    let mut failed_at = None;
    let mut opened = Err(Failure::NoEndpoints);
    for kind in [Kind::First, Kind::Again] {
        let now = clock::now();
        let ask = Ask { now, kind, route: RouteId::default(), avoid: failed_at, key: None };
        let permit = match service.refreshed(now).pick(ask, &worker.draw) {
            Ok(permit) => permit,
            Err(refused) => {
                if failed_at.is_none() {
                    opened = Err(refused.into());
                }
                break;
            }
        };
        opened = open(&destination.upstream, permit).await.map_err(|(failure, at)| {
            failed_at = Some(at);
            failure
        });
        if !matches!(opened, Err(failure) if failure.row().retryable) {
            break;
        }
    }
    let (upstream, mut permit) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            shared.metrics.local_reply(worker.direction, &parent.label, failure.label());
            tracing::debug!(service = %parent.label, reason = failure.label(), "no connection");
            return Forwarded::Ended(Traffic::default());
        }
    };
    let client = match client {
        Stream::Plain(client) if silent && speaks_first(&client, &upstream).await => {
            permit.cancel();
            return Forwarded::ClientFirst(client);
        }
        client @ (Stream::Plain(_) | Stream::Accepted(_) | Stream::Dialled(_)) => client,
    };
    let _in_flight = in_flight.unwrap_or_else(|| shared.drain.in_flight());
    let mut traffic = Traffic::default();
    let idle = service.policy.timeouts.idle.max(TCP_IDLE);
    let ended = tcp::forward(client, upstream, idle, &mut traffic).await;
    if let Err(error) = ended {
        tracing::debug!(service = %parent.label, %error, "connection ended early");
    }
    let bytes = shared.metrics.tcp(worker.direction, &parent.label);
    bytes.bytes(Flow::Received, traffic.sent);
    bytes.bytes(Flow::Sent, traffic.received);
    drop(permit);
    Forwarded::Ended(traffic)
}

/// Whether `client` speaks before `upstream` does.
async fn speaks_first(client: &Wire, upstream: &Stream) -> bool {
    let (mut first, mut second) = ([0], [0]);
    // Looked at rather than asked about: a socket that was read from may claim for a while
    // that there is more.
    tokio::select! {
        biased;
        _ = upstream.wire().tcp().peek(&mut first) => false,
        _ = client.tcp().peek(&mut second) => true,
        () = tokio::time::sleep(TCP_IDLE) => false,
    }
}

/// How long an opaque connection may be silent at least: databases keep theirs for hours.
const TCP_IDLE: std::time::Duration = std::time::Duration::from_hours(1);

type Opened = Result<(Stream, Permit), (Failure, std::net::SocketAddr)>;

async fn open(upstream: &Arc<super::upstream::Upstream>, mut permit: Permit) -> Opened {
    match upstream.opaque(permit.address).await {
        Ok((stream, _)) => {
            permit.outcome(Outcome::Success);
            // What follows may take days, and is no answer that is late.
            permit.answered();
            Ok((stream, permit))
        }
        Err(failure) => {
            permit.outcome(Outcome::ConnectFailed);
            Err((failure, permit.address))
        }
    }
}
