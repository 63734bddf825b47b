//! Retry (step 9): judges a try that failed, and maybe sends the request again.
//!
//! A layer around [`Forward`](super::forward::Forward); the decision is
//! [`policy::retry`](crate::policy::retry)'s.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, request};
use hyper::upgrade::OnUpgrade;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{
    context::{Answer, Call, Facts, Refusal, Trail, Underway},
    failure::Failure,
    forward::{Tried, Try, Untried},
    headers,
};
use crate::{
    policy::retry::{self, Verdict, verdict},
    telemetry::metrics::{RetryVerdict, ServiceMetrics},
    transport::body::Body,
};

/// Wraps a service of tries into one of calls.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    /// Where verdicts are counted.
    pub metrics: Arc<ServiceMetrics>,
}

/// Calls that may take more than one try.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    metrics: Arc<ServiceMetrics>,
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, metrics: Arc::clone(&self.metrics) }
    }
}

impl<S> Service<Box<Call>> for Retry<S>
where
    S: Service<Try, Response = Tried, Error = Untried> + Clone,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Retrying<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Box<Call>) -> Self::Future {
        let facts = call.facts;
        let spare = spare(&call.request, &facts).map(Box::new);
        let mut inner = self.inner.clone();
        let trying = inner.call(Try { call, avoid: None });
        Retrying { trying, inner, metrics: Arc::clone(&self.metrics), facts, spare, tries: 1 }
    }
}

/// A copy of the head of a request that may be sent twice: idempotent, and without a body.
///
/// It costs an allocation or three a request; it is what makes a retry possible.
fn spare(request: &Request<Body>, facts: &Facts) -> Option<request::Parts> {
    if !facts.idempotent || !http_body::Body::is_end_stream(request.body()) {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    // Without it a connection that switches has nobody at this end.
    if let Some(switching) = request.extensions().get::<OnUpgrade>() {
        copy.extensions_mut().insert(switching.clone());
    }
    Some(copy.into_parts().0)
}

pin_project! {
    /// A call on its way.
    #[derive(Debug)]
    pub struct Retrying<S: Service<Try>> {
        #[pin]
        trying: S::Future,
        inner: S,
        metrics: Arc<ServiceMetrics>,
        facts: Facts,
        spare: Option<Box<request::Parts>>,
        tries: u8,
    }
}

impl<S> Future for Retrying<S>
where
    S: Service<Try, Response = Tried, Error = Untried>,
{
    type Output = Result<Answer, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let tried = ready!(this.trying.as_mut().poll(cx));
            let (failed, answer) = match tried {
                Ok(tried) => match reported(&tried) {
                    None => return Poll::Ready(Ok(answer(tried, *this.tries))),
                    Some(failure) => {
                        let (unseen, trail) = (failure.is_before_the_application(), tried.trail);
                        (Untried { failure, request: None, unseen, trail }, Some(tried))
                    }
                },
                Err(failed) => (failed, None),
            };
            let trail = Trail { tries: *this.tries, ..failed.trail };
            let request = failed
                .request
                .or_else(|| this.spare.take().map(|head| rebuilt(*head, *this.facts)));
            let verdict = verdict(retry::Facts {
                retryable: failed.failure.row().retryable,
                unseen: failed.unseen,
                idempotent: this.facts.idempotent,
                at_hand: request.is_some(),
                tries: *this.tries,
            });
            count(this.metrics, verdict);
            match (verdict, request, answer) {
                (Verdict::Retry, Some(call), _) => {
                    let call = again(call, *this.tries, failed.trail.upstream);
                    *this.tries += 1;
                    this.trying.set(this.inner.call(call));
                }
                (_, _, Some(tried)) => return Poll::Ready(Ok(self::answer(tried, *this.tries))),
                (..) => return Poll::Ready(Err(Refusal { failure: failed.failure, trail })),
            }
        }
    }
}

impl<S> Underway for Retrying<S>
where
    S: Service<Try>,
    S::Future: Underway,
{
    fn trail(&self) -> Trail {
        Trail { tries: self.tries, ..self.trying.trail() }
    }
}

/// The failure a mesh peer reports of its application, where it is one to judge as if it
/// were ours: its application saw nothing, or was gone before it answered.
fn reported(tried: &Tried) -> Option<Failure> {
    if !tried.trail.mesh {
        return None;
    }
    let reason = tried.response.headers().get(&headers::REASON)?;
    Failure::from_label(reason.as_bytes())
        .filter(|it| it.is_before_the_application() || *it == Failure::Reset)
}

/// The request that a copied head stands for.
fn rebuilt(head: request::Parts, facts: Facts) -> Box<Call> {
    Box::new(Call { request: Request::from_parts(head, Body::Empty), facts })
}

fn answer(tried: Tried, tries: u8) -> Answer {
    let Tried { response, permit, trail } = tried;
    Answer { response, permit, trail: Trail { tries, ..trail } }
}

fn again(mut call: Box<Call>, tries: u8, avoid: Option<SocketAddr>) -> Try {
    call.request.headers_mut().insert(headers::ATTEMPT, u16::from(tries + 1).into());
    Try { call, avoid }
}

fn count(metrics: &ServiceMetrics, verdict: Verdict) {
    match verdict {
        Verdict::Retry => metrics.retry(RetryVerdict::Sent),
        Verdict::Unsafe => metrics.retry(RetryVerdict::Unsafe),
        Verdict::Limit => metrics.retry(RetryVerdict::Limit),
        Verdict::Final => (),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future, sync::Mutex};

    use http::{Method, Response, Version};

    use super::*;
    use crate::{clock, proxy::context::Manner, telemetry::Metrics};

    #[tokio::test]
    async fn a_mesh_peer_whose_application_died_is_a_reset_of_our_own() {
        let died = || told(502, "reset", true);
        assert_eq!(status(Method::GET, [died(), told(200, "", true)]).await, 200);
        assert_eq!(status(Method::GET, [died(), died()]).await, 502);
        // The application may have done what it was asked before it died.
        assert_eq!(status(Method::POST, [died(), told(200, "", true)]).await, 502);
    }

    #[tokio::test]
    async fn a_peer_whose_application_saw_nothing_is_followed_by_another() {
        let refused = |mesh| told(503, "connect_refused", mesh);
        assert_eq!(status(Method::GET, [refused(true), told(200, "", true)]).await, 200);
        // Anybody can write a header; only a mesh peer is believed.
        assert_eq!(status(Method::GET, [refused(false), told(200, "", true)]).await, 503);
    }

    #[tokio::test]
    async fn what_the_application_says_is_final() {
        let answers = [told(502, "", true), told(200, "", true)];
        assert_eq!(status(Method::GET, answers).await, 502);
        let answers = [told(504, "request_timeout", true), told(200, "", true)];
        assert_eq!(status(Method::GET, answers).await, 504);
    }

    #[test]
    fn a_request_that_may_switch_still_can_when_it_is_sent_again() {
        let mut request = Request::new(Body::Empty);
        request.extensions_mut().insert(hyper::upgrade::on(Request::new(())));
        let facts = facts(&Method::GET);
        let spare = spare(&request, &facts).unwrap();
        let again = rebuilt(spare, facts).request;
        assert!(again.extensions().get::<OnUpgrade>().is_some());
    }

    /// Endpoints that give these answers, one after the other.
    #[derive(Clone)]
    struct Endpoints(Arc<Mutex<VecDeque<Tried>>>);

    impl Service<Try> for Endpoints {
        type Response = Tried;
        type Error = Untried;
        type Future = future::Ready<Result<Tried, Untried>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Untried>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Try) -> Self::Future {
            future::ready(Ok(self.0.lock().unwrap().pop_front().unwrap()))
        }
    }

    fn told(status: u16, reason: &'static str, mesh: bool) -> Tried {
        let mut response = Response::builder().status(status).body(Body::Empty).unwrap();
        if !reason.is_empty() {
            response.headers_mut().insert(headers::REASON, reason.parse().unwrap());
        }
        Tried { response, permit: None, trail: Trail { mesh, ..Trail::default() } }
    }

    /// The status a caller gets of endpoints that answer so.
    async fn status(method: Method, answers: [Tried; 2]) -> u16 {
        let metrics = Metrics::new().service("shop/orders");
        let endpoints = Endpoints(Arc::new(Mutex::new(answers.into())));
        let facts = facts(&method);
        let request = Request::builder().method(method).body(Body::Empty).unwrap();
        let mut stack = RetryLayer { metrics }.layer(endpoints);
        stack.call(Box::new(Call { request, facts })).await.unwrap().response.status().as_u16()
    }

    fn facts(method: &Method) -> Facts {
        Facts {
            version: Version::HTTP_11,
            manner: Manner::Plain,
            idempotent: method.is_idempotent(),
            grpc: false,
            started: clock::now(),
            timeout: None,
            try_timeout: None,
            idle: None,
        }
    }
}
