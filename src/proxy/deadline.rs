//! Deadline: a call has its answer's head in time, or fails.
//!
//! The time is the shortest of what the policy gives, what the caller says, and what the
//! callers before it said ([`traces`](super::traces)). It ends at the head, tries and dials
//! included; what comes after is bounded by the idle time of the body. Whoever works for the
//! call is told what is left of it ([`tell`]). A call that nobody waits for any more is
//! refused before anybody sees it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Layer, Service};

use super::{
    begin::Begun,
    context::{Answer, Call, Facts, Refusal, Underway},
    failure::Failure,
    handle::Client,
    headers::{self, Seen},
    record::Record,
    route::Choice,
    traces::{Guard, Said, TraceId},
};
use crate::{
    clock,
    policy::deadline::{self, GRACE, Limit},
    telemetry::metrics::Direction,
};

/// The trace of a request, where it may tie an inbound one to an outbound one: a trace that
/// was named here does not.
pub fn trace_of(client: &Client, headers: &HeaderMap, seen: Seen) -> Option<TraceId> {
    let outbound = client.worker.direction == Direction::Outbound;
    if !seen.traceparent || !outbound && client.peer.is_none() {
        return None;
    }
    TraceId::of(headers.get(&headers::TRACEPARENT)?.as_bytes())
}

/// Sets how long a request may take, in all and in part.
///
/// # Errors
///
/// [`Failure::DeadlineExpired`] where nobody waits for it any more.
pub fn bound(
    begun: &mut Begun,
    client: &Client,
    choice: &Choice,
    trace: Option<TraceId>,
) -> Result<(), Failure> {
    let (facts, mut said) = (&mut begun.facts, begun.said);
    if client.worker.direction == Direction::Outbound
        && let Some(id) = trace
        && let Some(inbound) = client.worker.shared.traces.find(id)
    {
        let left = inbound.deadline.map(|it| it.saturating_duration_since(facts.started));
        said = deadline::least(said, left);
        (facts.trace, facts.retried) = (trace, inbound.retried);
    }
    // A stream ends when it likes, unless somebody says otherwise.
    let plan = &choice.plan;
    let stream = facts.grpc && !plan.explicit;
    let own = (!stream).then_some(plan.timeouts.request);
    let grace = if client.peer.is_some() { GRACE } else { Duration::ZERO };
    let limit = Limit::new(own, said, grace);
    if limit.is_over() {
        return Err(Failure::DeadlineExpired);
    }
    facts.timeout = limit.timeout;
    facts.deadline = limit.told.map(|it| facts.started + it);
    if limit.callers {
        facts.late = Failure::DeadlineExpired;
    }
    facts.idle = (!stream).then_some(plan.timeouts.idle);
    Ok(())
}

/// Keeps what an inbound request says for the calls that will be made for it.
pub fn open(client: &Client, facts: &Facts, trace: Option<TraceId>) -> Option<Guard> {
    if client.worker.direction == Direction::Outbound {
        return None;
    }
    let said = Said { deadline: facts.deadline, retried: facts.retried };
    client.worker.shared.traces.open(trace?, said)
}

/// The head of an answer to an inbound request is there. Where a call made for it must not be
/// tried again, it must not be either, and the sidecar of the caller is told so.
pub fn answered(record: &Record, facts: &Facts, fields: &mut HeaderMap) {
    if record.trace.as_ref().is_some_and(|it| it.answered(facts.ends)) {
        headers::forbid_retry(fields);
    }
}

/// Tells whoever gets a request how long it is waited for, and whether it is made for one
/// that is a retry: a mesh peer in our own words, and in those of gRPC whoever is called so.
/// The request may have been told to somebody else before.
pub fn tell(headers: &mut HeaderMap, facts: &Facts, mesh: bool) {
    let (told, ends) = (facts.deadline.filter(|_| mesh), facts.ends);
    if told.is_some() || ends.is_some() {
        let now = clock::now();
        if let Some(until) = told {
            let left = until.saturating_duration_since(now);
            headers.insert(headers::DEADLINE, deadline::to_millis(left).into());
        }
        if let Some(until) = ends {
            // A `TimeoutValue` is positive.
            let left = until.saturating_duration_since(now).max(Duration::from_nanos(1));
            if let Ok(left) = HeaderValue::try_from(deadline::to_grpc(left)) {
                headers.insert(headers::GRPC_TIMEOUT, left);
            }
        }
    }
    if mesh && facts.retried {
        headers.entry(headers::ATTEMPT).or_insert(HeaderValue::from_static("2"));
    } else if !mesh {
        headers.remove(headers::ATTEMPT);
        headers.remove(headers::DEADLINE);
    }
}

/// Bounds the calls of the service below by [`Facts::timeout`].
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

/// A service whose calls end in time.
#[derive(Clone, Debug)]
pub struct Deadline<S>(S);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

impl<S> Service<Box<Call>> for Deadline<S>
where
    S: Service<Box<Call>, Response = Answer, Error = Refusal>,
    S::Future: Underway,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Bounded<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Box<Call>) -> Self::Future {
        let Facts { started, timeout, late, .. } = call.facts;
        let timer = timeout.map(|it| sleep_until((started + it).into()));
        Bounded { inner: self.0.call(call), timer, late }
    }
}

pin_project! {
    /// A call with an end.
    #[derive(Debug)]
    pub struct Bounded<F> {
        #[pin]
        inner: F,
        #[pin]
        timer: Option<Sleep>,
        late: Failure,
    }
}

impl<F> Future for Bounded<F>
where
    F: Future<Output = Result<Answer, Refusal>> + Underway,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(answered) = this.inner.as_mut().poll(cx) {
            return Poll::Ready(answered);
        }
        let expired = this.timer.as_pin_mut().is_some_and(|it| it.poll(cx).is_ready());
        if !expired {
            return Poll::Pending;
        }
        let trail = this.inner.trail();
        Poll::Ready(Err(Refusal { failure: *this.late, trail }))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Pending, sync::Arc, time::Instant};

    use http::{Request, Version};

    use super::{
        super::{context::Trail, plan::Plan},
        *,
    };
    use crate::{policy::ServicePolicy, telemetry::Metrics, transport::body::Body};

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_mesh_peer_is_told_what_is_left_and_nobody_else_is() {
        let mut facts = facts(clock::now());
        facts.deadline = Some(clock::now() + Duration::from_secs(9));
        let mut headers = HeaderMap::new();
        tell(&mut headers, &facts, true);
        let left: u32 = headers[headers::DEADLINE].to_str().unwrap().parse().unwrap();
        assert!((1000..9000).contains(&left), "{left}");
        tell(&mut headers, &facts, false);
        assert!(headers.is_empty(), "{headers:?}");
        facts.deadline = None;
        tell(&mut headers, &facts, true);
        assert!(headers.is_empty(), "there is no limit to tell of: {headers:?}");
    }

    #[test]
    fn a_grpc_call_is_told_when_it_ends_and_not_when_its_head_is_due() {
        let mut facts = facts(clock::now());
        facts.deadline = Some(clock::now() + Duration::from_secs(9));
        let mut headers = HeaderMap::new();
        headers.insert(headers::GRPC_TIMEOUT, HeaderValue::from_static("1H"));
        facts.ends = Some(clock::now() + HOUR);
        tell(&mut headers, &facts, false);
        let left = deadline::from_grpc(headers[headers::GRPC_TIMEOUT].as_bytes()).unwrap();
        assert!(left < HOUR, "{left:?}");
        assert!(left > HOUR / 50 * 49, "{left:?}");
        // What is over is still said in a form that is understood.
        facts.ends = Some(clock::now());
        tell(&mut headers, &facts, false);
        assert_eq!(headers[headers::GRPC_TIMEOUT], "1n");
    }

    #[test]
    fn what_is_made_for_a_retry_is_sent_as_one() {
        let facts = Facts { retried: true, ..facts(clock::now()) };
        let mut headers = HeaderMap::new();
        tell(&mut headers, &facts, true);
        assert_eq!(headers[headers::ATTEMPT], "2");
        headers.insert(headers::ATTEMPT, 3.into());
        tell(&mut headers, &facts, true);
        assert_eq!(headers[headers::ATTEMPT], "3");
        tell(&mut headers, &facts, false);
        assert!(headers.is_empty());
    }

    #[tokio::test]
    async fn time_that_has_passed_before_a_call_is_part_of_it() {
        let started = clock::now().checked_sub(Duration::from_secs(2)).unwrap();
        let mut facts = facts(started);
        facts.timeout = Some(Duration::from_secs(1));
        assert_eq!(refused(facts).await, Failure::RequestTimeout);
        facts.late = Failure::DeadlineExpired;
        assert_eq!(refused(facts).await, Failure::DeadlineExpired);
    }

    /// What a call fails of that is never answered.
    async fn refused(facts: Facts) -> Failure {
        let mut stack = DeadlineLayer.layer(Silent);
        let request = Request::new(Body::Empty);
        let metrics = Metrics::new().route(Direction::Outbound, "shop/orders", "default");
        let plan = Arc::new(Plan::new(&ServicePolicy::default(), metrics));
        stack.call(Box::new(Call { request, facts, plan })).await.unwrap_err().failure
    }

    struct Silent;

    struct Silence(Pending<Result<Answer, Refusal>>);

    impl Service<Box<Call>> for Silent {
        type Response = Answer;
        type Error = Refusal;
        type Future = Silence;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Box<Call>) -> Silence {
            Silence(std::future::pending())
        }
    }

    impl Future for Silence {
        type Output = Result<Answer, Refusal>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            Pin::new(&mut self.0).poll(cx)
        }
    }

    impl Underway for Silence {
        fn trail(&self) -> Trail {
            Trail::default()
        }
    }

    fn facts(started: Instant) -> Facts {
        Facts::new(Version::HTTP_11, [127, 0, 0, 1].into(), started)
    }
}
