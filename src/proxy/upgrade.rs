//! Upgrade: an exchange that may leave HTTP behind (RFC 9110, section 7.8).
//!
//! It has a connection of its own on each leg. When the upstream switches, both sides are
//! joined and bytes flow until both have ended; the endpoint counts as busy meanwhile, and
//! a drain waits for it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    context::{Facts, Trail},
    core::Permit,
    failure::Failure,
    forward::{Tried, Untried},
    judge,
};
use crate::{
    drain::{self, Drain},
    policy::retry::Failed,
    resilience::balancer::Outcome,
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
    (trail, facts, idle): (Trail, Facts, Duration),
) -> Result<Tried, Untried> {
    let client: OnUpgrade = hyper::upgrade::on(&mut request);
    let mut response = match h1::send_switching(stream, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(error = %error.source, "no answer to an upgrade");
            permit.outcome(Outcome::Failure);
            // It is not at hand any more: nobody asks what it was.
            let (failure, how) = (Failure::Reset, Failed::Reset);
            return Err(Untried { failure, how, request: None, trail });
        }
    };
    let (outcome, judged) = judge::response(&response, &facts, trail.mesh);
    permit.outcome(outcome);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let response = response.map(Body::from_upstream);
        return Ok(Tried { response, judged, permit: Some(permit), trail });
    }
    permit.answered();
    let upstream = hyper::upgrade::on(&mut response);
    let in_flight = drain.in_flight();
    let _running = drain::spawn("upgraded", async move {
        let (Ok(client), Ok(upstream)) = (client.await, upstream.await) else { return };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let mut traffic = Traffic::default();
        // Streams that switched are exempt from the idle time of bodies; a day without a
        // byte is no stream.
        let idle = idle.max(Duration::from_hours(24));
        let ended = relay(&mut client, &mut upstream, idle, &mut traffic).await;
        tracing::debug!(?traffic, failed = ended.is_err(), "upgraded connection ended");
        drop((permit, in_flight));
    });
    let (head, _) = response.into_parts();
    let response = Response::from_parts(head, Body::Empty);
    Ok(Tried { response, judged: None, permit: None, trail })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use http::Version;
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        clock,
        endpoint::{Endpoint, EndpointSet},
        proxy::{
            context::{Draw, Manner},
            core::Core,
        },
        resilience::{
            breaker,
            service::{Ask, Config, Kind, Refused, RouteId},
        },
        telemetry::Metrics,
        transport::stream::Wire,
    };

    #[tokio::test]
    async fn an_answer_that_does_not_switch_is_judged_like_any() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut upstream, at) = listener.accept().await.unwrap();
        upstream.write_all(b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let core = core(at);
        let now = clock::now();
        let ask = Ask { now, kind: Kind::First, route: RouteId::default(), avoid: None, key: None };
        let permit = core.pick(ask, &Draw::new(7)).unwrap();
        let request = Request::get("/").body(Body::Empty).unwrap();
        let stream = Stream::Plain(Wire::new(stream, BytesMut::new()));
        let how = (Trail::default(), facts(), Duration::from_secs(1));
        let tried = exchange(stream, request, (permit, Drain::new()), how).await.unwrap();
        assert_eq!(tried.judged.unwrap().failed, Failed::Status(503));
        drop(tried);
        // One failure is enough here to be left out.
        assert_eq!(core.pick(ask, &Draw::new(7)).unwrap_err(), Refused::BreakerOpen);
    }

    fn core(at: std::net::SocketAddr) -> std::sync::Arc<Core> {
        let set: EndpointSet = std::iter::once(Endpoint::new(at)).collect();
        let breaker = breaker::Config {
            scope: breaker::Scope::Service,
            consecutive_failures: Some(1),
            ..breaker::Config::default()
        };
        let config = Config { breaker, ..Config::default() };
        let metrics = Metrics::new().service("shop/orders");
        std::sync::Arc::new(Core::new("shop/orders".into(), config, &set, metrics))
    }

    fn facts() -> Facts {
        Facts {
            manner: Manner::Upgrade,
            ..Facts::new(Version::HTTP_11, [127, 0, 0, 1].into(), clock::now())
        }
    }
}
