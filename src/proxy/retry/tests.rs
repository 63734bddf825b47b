//! The layer over endpoints that answer as they are told.

use std::{collections::VecDeque, future, sync::Mutex};

use http::{Method, Request, Response, Version};

use super::*;
use crate::{
    clock,
    endpoint::{Endpoint, EndpointSet},
    policy::ServicePolicy,
    proxy::judge,
    resilience::{
        Mode, hedge,
        service::{Ask, Config, RouteId},
    },
    telemetry::{Metrics, metrics::Direction},
    transport::body::Body,
};

#[tokio::test]
async fn a_mesh_peer_whose_application_died_is_a_reset_of_our_own() {
    let died = || told(502, "reset", true);
    assert_eq!(status(Method::GET, [died(), told(200, "", true)]).await, 200);
    assert_eq!(status(Method::GET, [died(), died(), died()]).await, 502);
    // The application may have done what it was asked before it died.
    assert_eq!(status(Method::POST, [died(), told(200, "", true)]).await, 502);
}

#[tokio::test]
async fn a_peer_whose_application_saw_nothing_is_followed_by_another() {
    let refused = |mesh| told(503, "connect_refused", mesh);
    for method in [Method::GET, Method::POST] {
        assert_eq!(status(method, [refused(true), told(200, "", true)]).await, 200);
    }
    // Anybody can write a header; only a mesh peer is believed. A GET has another try in
    // any case.
    assert_eq!(status(Method::PUT, [refused(false), told(200, "", true)]).await, 503);
}

#[tokio::test]
async fn a_get_has_three_tries_where_nothing_was_done_and_a_post_one() {
    let unavailable = || told(503, "", false);
    let answers = || [unavailable(), unavailable(), told(200, "", false)];
    assert_eq!(status(Method::GET, answers()).await, 200);
    assert_eq!(status(Method::POST, answers()).await, 503);
    assert_eq!(status(Method::PUT, answers()).await, 503);
}

#[tokio::test]
async fn an_answer_that_forbids_another_try_is_obeyed() {
    let mut never = told(503, "", true);
    never.response.headers_mut().insert(headers::RETRY, "no".parse().unwrap());
    let judged = judge::response(&never.response, &facts(), true).1;
    let answers = [Tried { judged, ..never }, told(200, "", true)];
    assert_eq!(status(Method::GET, answers).await, 503);
}

#[tokio::test]
async fn an_error_of_the_application_itself_is_final() {
    for code in [500, 501, 404] {
        assert_eq!(status(Method::GET, [told(code, "", true), told(200, "", true)]).await, code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_given_up_after_as_long_as_any_try() {
    let (tries, _) = hedged(Mode::Enforce).await;
    assert_eq!(tries, [Some(Duration::from_millis(500)); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_only_observed_is_counted_and_not_sent() {
    let (tries, page) = hedged(Mode::Observe).await;
    assert_eq!(tries.len(), 1);
    assert!(page.contains("remora_would_hedge_total{service=\"shop/orders\"} 1"), "{page}");
    assert!(!page.contains("remora_hedges_total{"), "{page}");
}

/// How long each try may take of a call that is never answered, and what is counted.
async fn hedged(mode: Mode) -> (Vec<Option<Duration>>, String) {
    let metrics = Metrics::new();
    let set = std::iter::once(Endpoint::new(([10, 0, 0, 1], 80).into())).collect();
    let config = Config { hedge: hedge::Config { mode, percent: 20 }, ..Config::default() };
    let core = Core::new("shop/orders".into(), config, &set, metrics.service("shop/orders"));
    let (core, draw) = (Arc::new(core), Arc::new(Draw::new(7)));
    for _ in 0..10 {
        let (now, route) = (clock::now(), RouteId::default());
        let ask = Ask { now, kind: Kind::First, route, avoid: None, key: None };
        drop(core.pick(ask, &draw).unwrap());
    }
    let mut policy = ServicePolicy::default();
    policy.retries.try_timeout = Some(Duration::from_millis(500));
    let route = metrics.route(Direction::Outbound, "shop/orders", "default");
    let (plan, facts) = (Arc::new(Plan::new(&policy, route)), facts());
    let request = Request::get("http://orders/").body(Body::Empty).unwrap();
    let silent = Silent::default();
    let layer = RetryLayer { core, draw, traces: Arc::default() };
    let mut calling = layer.layer(silent.clone()).call(Box::new(Call { request, facts, plan }));
    calling.hedge = Some(Box::new(Hedging::new(Duration::from_millis(10))));
    let waited = tokio::time::timeout(Duration::from_millis(100), calling).await;
    assert!(waited.is_err());
    let mut page = Vec::new();
    metrics.render(&mut page);
    let tries = silent.0.lock().unwrap().clone();
    (tries, String::from_utf8(page).unwrap())
}

/// Endpoints that never answer, and how long each try may take.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<Vec<Option<Duration>>>>);

impl Service<Try> for Silent {
    type Response = Tried;
    type Error = Untried;
    type Future = Never;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Untried>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Try) -> Never {
        self.0.lock().unwrap().push(attempt.timeout);
        Never(future::pending())
    }
}

struct Never(future::Pending<Result<Tried, Untried>>);

impl Future for Never {
    type Output = Result<Tried, Untried>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Underway for Never {
    fn trail(&self) -> Trail {
        Trail::default()
    }
}

/// Endpoints that give these answers, one after the other.
#[derive(Clone)]
struct Endpoints(Arc<Mutex<VecDeque<Tried>>>);

impl Service<Try> for Endpoints {
    type Response = Tried;
    type Error = Untried;
    type Future = Told;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Untried>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Try) -> Told {
        Told(future::ready(Ok(self.0.lock().unwrap().pop_front().unwrap())))
    }
}

struct Told(future::Ready<Result<Tried, Untried>>);

impl Future for Told {
    type Output = Result<Tried, Untried>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Underway for Told {
    fn trail(&self) -> Trail {
        Trail::default()
    }
}

fn told(status: u16, reason: &'static str, mesh: bool) -> Tried {
    let mut response = Response::builder().status(status).body(Body::Empty).unwrap();
    if !reason.is_empty() {
        response.headers_mut().insert(headers::REASON, reason.parse().unwrap());
    }
    let (_, judged) = judge::response(&response, &facts(), mesh);
    Tried { response, judged, permit: None, trail: Trail { mesh, ..Trail::default() } }
}

/// The status a caller gets of endpoints that answer so.
async fn status(method: Method, answers: impl Into<VecDeque<Tried>>) -> u16 {
    let metrics = Metrics::new();
    let of_service = metrics.service("shop/orders");
    let set = EndpointSet::default();
    let core = Core::new("shop/orders".into(), Config::default(), &set, of_service);
    let endpoints = Endpoints(Arc::new(Mutex::new(answers.into())));
    let route = metrics.route(Direction::Outbound, "shop/orders", "default");
    let plan = Arc::new(Plan::new(&ServicePolicy::default(), route));
    let facts = facts();
    let request = Request::builder().method(method).body(Body::Empty).unwrap();
    let draw = Arc::new(Draw::new(7));
    let traces = Arc::new(Traces::default());
    let mut stack = RetryLayer { core: Arc::new(core), draw, traces }.layer(endpoints);
    let answer = stack.call(Box::new(Call { request, facts, plan })).await;
    answer.unwrap().response.status().as_u16()
}

fn facts() -> Facts {
    Facts::new(Version::HTTP_11, [127, 0, 0, 1].into(), clock::now())
}
