//! Retry (step 9): judges a try that failed, and maybe sends the request again.
//!
//! A layer around [`Forward`](super::forward::Forward). Whether another try is allowed is
//! [`policy::retry`](crate::policy::retry)'s decision; whether there is anything to pay for
//! it, the [`Core`]'s. Where a policy asks for hedges, a request that takes longer than
//! nearly all others gets a second try before the first has failed; the first answer counts.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::Sleep;
use tower::{Layer, Service};

use super::{
    context::{Answer, Call, Draw, Facts, Refusal, Trail, Underway},
    core::{Core, Leave},
    failure::Failure,
    forward::{Tried, Try, Untried},
    headers,
    plan::Plan,
    spare::{Spare, what},
    traces::Traces,
};
use crate::{
    clock,
    policy::{
        deadline::share_of,
        retry::{self, Said, TryTimeout, Verdict, verdict},
    },
    resilience::{
        backoff::Asked,
        hedge,
        service::{Grant, Kind, Wish},
    },
    telemetry::metrics::{Hedge, RetryVerdict},
};

/// Wraps a service of tries into one of calls.
#[derive(Clone, Debug)]
pub struct RetryLayer {
    /// What is known of the service.
    pub core: Arc<Core>,
    /// Chance.
    pub draw: Arc<Draw>,
    /// What the application is at work on.
    pub traces: Arc<Traces>,
}

/// Calls that may take more than one try.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: Arc<RetryLayer>,
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, layer: Arc::new(self.clone()) }
    }
}

impl<S> Service<Box<Call>> for Retry<S>
where
    S: Service<Try, Response = Tried, Error = Untried> + Clone + Unpin,
    S::Future: Underway + Unpin,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Retrying<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Box<Call>) -> Self::Future {
        let (facts, plan, what) = (call.facts, Arc::clone(&call.plan), what(&call));
        let spare = Spare::of(&mut call);
        let hedges = spare.as_ref().is_some_and(|it| !it.has_body()) && repeats(&plan, what);
        let hedge = if hedges { self.layer.core.hedge_after() } else { None };
        let limits = (&*self.layer.core, &facts, &*plan);
        let timeout = try_timeout(limits, repeats(&plan, what), 0, facts.started);
        let first = Try { call, avoid: None, kind: Kind::First, leave: None, timeout };
        let mut inner = self.inner.clone();
        Retrying {
            trying: inner.call(first),
            inner,
            layer: Arc::clone(&self.layer),
            facts,
            plan,
            what,
            spare,
            tries: 1,
            again: false,
            waiting: None,
            hedge: hedge.map(|it| Box::new(Hedging::new(it))),
        }
    }
}

/// A call on its way.
#[derive(Debug)]
pub struct Retrying<S: Service<Try>> {
    trying: S::Future,
    inner: S,
    layer: Arc<RetryLayer>,
    facts: Facts,
    plan: Arc<Plan>,
    what: retry::Request,
    spare: Option<Spare>,
    tries: u8,
    /// Whether there was a try that cost nothing.
    again: bool,
    /// For the next try, once the last has failed.
    waiting: Option<Box<Waiting>>,
    hedge: Option<Box<Hedging<S::Future>>>,
}

/// A try whose time has not come.
#[derive(Debug)]
struct Waiting {
    sleep: Pin<Box<Sleep>>,
    next: Try,
}

/// A second try, sent when the first takes long.
#[derive(Debug)]
struct Hedging<F> {
    sleep: Pin<Box<Sleep>>,
    second: Option<F>,
}

impl<F> Hedging<F> {
    fn new(after: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(after)), second: None }
    }
}

impl<S> Future for Retrying<S>
where
    S: Service<Try, Response = Tried, Error = Untried> + Unpin,
    S::Future: Underway + Unpin,
{
    type Output = Result<Answer, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                ready!(waiting.sleep.as_mut().poll(cx));
            }
            if let Some(waiting) = this.waiting.take() {
                this.trying = this.inner.call(waiting.next);
            }
            let tried = match Pin::new(&mut this.trying).poll(cx) {
                Poll::Ready(tried) => tried,
                Poll::Pending => ready!(this.poll_hedge(cx)),
            };
            if let Some(end) = this.judge(tried) {
                return Poll::Ready(end);
            }
        }
    }
}

impl<S> Retrying<S>
where
    S: Service<Try, Response = Tried, Error = Untried> + Unpin,
    S::Future: Underway + Unpin,
{
    /// What a try comes to; `None` where another one is on its way.
    fn judge(&mut self, mut tried: Result<Tried, Untried>) -> Option<Result<Answer, Refusal>> {
        let (failed, said, unsent) = match &mut tried {
            Ok(Tried { judged: None, .. }) => return Some(self.end(tried)),
            Ok(Tried { judged: Some(it), .. }) => (it.failed, it.said, None),
            Err(it) => (it.how, Said::Nothing, it.request.take()),
        };
        if let Some(second) = self.hedge.take().and_then(|it| it.second) {
            // The other one may still come to something.
            self.trying = second;
            return None;
        }
        let at_hand = unsent.is_some() || self.spare.as_ref().is_some_and(Spare::is_at_hand);
        let (tries, again) = (self.tries, self.again);
        let untouched = self.spare.as_ref().is_some_and(Spare::is_untouched);
        let one = retry::Try { failed, said, tries, at_hand, untouched, again };
        let verdict = verdict(&self.plan.retries, self.what, one);
        let leave = match verdict {
            Verdict::Again => Some((Duration::ZERO, None)),
            Verdict::Ask { after } => self.ask(after).map(|(wait, leave)| (wait, Some(leave))),
            Verdict::Would
            | Verdict::Unsafe
            | Verdict::Limit
            | Verdict::Chain
            | Verdict::Forbidden
            | Verdict::Final => None,
        };
        self.count(verdict);
        if leave.is_none() && (is_in_vain(verdict) || is_refused_here(&tried)) {
            self.exhausted();
        }
        let Some((wait, leave)) = leave else { return Some(self.end(tried)) };
        let avoid = trail(&tried).upstream;
        let spare = self.spare.as_ref();
        let spared = || spare.and_then(|it| it.call(self.facts, &self.plan));
        let Some(call) = unsent.or_else(spared) else { return Some(self.end(tried)) };
        // What is left of an answer is given up before the next try begins.
        drop(tried);
        self.send(call, avoid, wait, leave);
        None
    }

    /// Asks for leave to try again, after a wait.
    fn ask(&self, after: Option<Asked>) -> Option<(Duration, Leave)> {
        let RetryLayer { core, draw, .. } = &*self.layer;
        let now = clock::now();
        let left =
            self.facts.timeout.map(|it| (self.facts.started + it).saturating_duration_since(now));
        let (number, backoff) = (self.tries, self.plan.retries.backoff);
        let wish = Wish { number, route: self.plan.id, backoff, after, left };
        let asked = core.retry(wish, now, draw);
        core.metrics.retry(match &asked {
            Ok(_) => RetryVerdict::Sent,
            Err(Grant::Deadline) => RetryVerdict::Deadline,
            Err(Grant::Exhausted | Grant::After(_)) => RetryVerdict::Exhausted,
        });
        asked.ok()
    }

    /// Lets whoever called know, by way of the inbound request, that trying again is in vain.
    fn exhausted(&self) {
        if let Some(trace) = self.facts.trace {
            self.layer.traces.exhausted(trace);
        }
    }

    /// Sends the request once more, after a wait.
    fn send(
        &mut self,
        mut call: Box<Call>,
        avoid: Option<SocketAddr>,
        wait: Duration,
        leave: Option<Leave>,
    ) {
        let tries = self.tries + 1;
        call.request.headers_mut().insert(headers::ATTEMPT, u16::from(tries).into());
        let kind = if leave.is_some() { Kind::Granted } else { Kind::Again };
        let now = clock::now();
        let limits = (&*self.layer.core, &self.facts, &*self.plan);
        let timeout = try_timeout(limits, repeats(&self.plan, self.what), self.tries, now + wait);
        let next = Try { call, avoid, kind, leave, timeout };
        self.tries = tries;
        if wait.is_zero() {
            self.again = self.again || kind == Kind::Again;
            self.trying = self.inner.call(next);
            return;
        }
        self.waiting = Some(Box::new(Waiting { sleep: Box::pin(tokio::time::sleep(wait)), next }));
    }

    /// The second try's answer, where it comes first.
    fn poll_hedge(&mut self, cx: &mut Context<'_>) -> Poll<Result<Tried, Untried>> {
        let Some(hedge) = &mut self.hedge else { return Poll::Pending };
        let Some(second) = &mut hedge.second else {
            ready!(hedge.sleep.as_mut().poll(cx));
            self.hedge();
            return if self.hedge.is_some() { self.poll_hedge(cx) } else { Poll::Pending };
        };
        let tried = ready!(Pin::new(second).poll(cx));
        if matches!(&tried, Ok(Tried { judged: None, .. })) {
            self.layer.core.metrics.hedge(Hedge::Won);
            return Poll::Ready(tried);
        }
        // It failed: nothing was gained and the first is still out.
        self.hedge = None;
        Poll::Pending
    }

    /// Sends a second try, if there is leave.
    fn hedge(&mut self) {
        let metrics = &self.layer.core.metrics;
        let leave = match self.layer.core.hedge(clock::now()) {
            Ok(leave) => Some(leave),
            // Counted with what else the core has to tell.
            Err(hedge::Verdict::WouldSend) => None,
            Err(hedge::Verdict::Granted | hedge::Verdict::Exhausted) => {
                metrics.hedge(Hedge::Exhausted);
                None
            }
        };
        let call = self.spare.as_ref().and_then(|it| it.call(self.facts, &self.plan));
        let (Some(leave), Some(mut call), Some(hedge)) = (leave, call, &mut self.hedge) else {
            self.hedge = None;
            return;
        };
        // It stands for the first once that has failed, and is given up like it.
        let limits = (&*self.layer.core, &self.facts, &*self.plan);
        let timeout = try_timeout(limits, true, self.tries, clock::now());
        self.tries += 1;
        call.request.headers_mut().insert(headers::ATTEMPT, u16::from(self.tries).into());
        let avoid = self.trying.trail().upstream;
        let (kind, leave) = (Kind::Granted, Some(leave));
        hedge.second = Some(self.inner.call(Try { call, avoid, kind, leave, timeout }));
        self.layer.core.metrics.hedge(Hedge::Sent);
    }

    /// What the caller gets.
    fn end(&self, tried: Result<Tried, Untried>) -> Result<Answer, Refusal> {
        let trail = Trail { tries: self.tries, ..trail(&tried) };
        match tried {
            Ok(Tried { response, permit, .. }) => Ok(Answer { response, permit, trail }),
            Err(Untried { failure, .. }) => Err(Refusal { failure, trail }),
        }
    }

    fn count(&self, verdict: Verdict) {
        let metrics = &self.layer.core.metrics;
        match verdict {
            Verdict::Again => metrics.retry(RetryVerdict::Free),
            Verdict::Would => metrics.would_retry(),
            Verdict::Unsafe => metrics.retry(RetryVerdict::Unsafe),
            Verdict::Limit => metrics.retry(RetryVerdict::Limit),
            Verdict::Chain => metrics.retry(RetryVerdict::Chain),
            Verdict::Forbidden => metrics.retry(RetryVerdict::Forbidden),
            // Counted with what the budget said.
            Verdict::Ask { .. } | Verdict::Final => (),
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

/// Whether a request that ends so was tried as often as it may be: more tries further up
/// would only come back here.
fn is_in_vain(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Ask { .. } | Verdict::Forbidden | Verdict::Limit)
}

/// Whether it was not sent so as to spare its service.
fn is_refused_here(tried: &Result<Tried, Untried>) -> bool {
    let refused = [Failure::BreakerOpen, Failure::PoolFull];
    matches!(tried, Err(it) if refused.contains(&it.failure))
}

fn trail(tried: &Result<Tried, Untried>) -> Trail {
    match tried {
        Ok(it) => it.trail,
        Err(it) => it.trail,
    }
}

/// Whether the policy lets a request be sent again that may have done something.
fn repeats(plan: &Plan, what: retry::Request) -> bool {
    plan.retries.methods.has(what.method) || what.idempotency_key
}

/// How long a try that begins at `now` may take, after `tries` others.
fn try_timeout(
    (core, facts, plan): (&Core, &Facts, &Plan),
    may_repeat: bool,
    tries: u8,
    now: Instant,
) -> Option<Duration> {
    match plan.try_timeout {
        TryTimeout::At(timeout) => Some(timeout),
        TryTimeout::Share if may_repeat => {
            let left = (facts.started + facts.timeout?).saturating_duration_since(now);
            let tries_left = (plan.retries.attempts + 1).saturating_sub(tries);
            Some(share_of(left, tries_left, core.usual(plan.id, now)))
        }
        TryTimeout::Share | TryTimeout::None => None,
    }
}

#[cfg(test)]
mod tests;
