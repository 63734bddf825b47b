//! Upgrade: an exchange that may leave HTTP behind (RFC 9110, section 7.8).
//!
//! It has a connection of its own on each leg. When the upstream switches, both sides are
//! joined and bytes flow until both have ended; the endpoint counts as busy meanwhile, and
//! a drain waits for it.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    context::Trail,
    failure::Failure,
    forward::{Tried, Untried},
    service::Permit,
};
use crate::{
    drain::{self, Drain},
    telemetry::metrics::Attempt,
    transport::{
        body::Body,
        h1,
        stream::Stream,
        tcp::{Traffic, relay},
    },
};

/// The one nominated option of an exchange that may switch.
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// Puts back what hop-by-hop stripping removed: this hop may switch, too.
pub fn renew(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, UPGRADE);
    headers.insert(header::UPGRADE, protocol);
}

/// Sends `request` on `stream`, and joins both sides if the upstream switches.
pub(super) async fn exchange(
    stream: Stream,
    mut request: Request<Body>,
    (mut permit, drain): (Permit, Drain),
    trail: Trail,
) -> Result<Tried, Untried> {
    let client: OnUpgrade = hyper::upgrade::on(&mut request);
    let mut response = match h1::send_switching(stream, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(error = %error.source, "no answer to an upgrade");
            permit.outcome(Attempt::Failure);
            let (failure, unseen) = (Failure::Reset, error.unsent.is_some());
            return Err(Untried { failure, request: None, unseen, trail });
        }
    };
    permit.outcome(Attempt::Success);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let response = response.map(Body::from_upstream);
        return Ok(Tried { response, permit: Some(permit), trail });
    }
    let upstream = hyper::upgrade::on(&mut response);
    let idle = permit.service().policy.timeouts.idle;
    let in_flight = drain.in_flight();
    let _running = drain::spawn("upgraded", async move {
        let (Ok(client), Ok(upstream)) = (client.await, upstream.await) else { return };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let mut traffic = Traffic::default();
        // Streams that switched are exempt from the idle time of bodies; a day without a
        // byte is no stream.
        let idle = idle.max(std::time::Duration::from_hours(24));
        let ended = relay(&mut client, &mut upstream, idle, &mut traffic).await;
        tracing::debug!(?traffic, failed = ended.is_err(), "upgraded connection ended");
        drop((permit, in_flight));
    });
    let (head, _) = response.into_parts();
    Ok(Tried { response: Response::from_parts(head, Body::Empty), permit: None, trail })
}
