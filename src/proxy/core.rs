//! Core: what is known of one service, whoever calls it and whatever its policy becomes.
//!
//! A lock around [`resilience::Service`](crate::resilience::service::Service), held for as
//! long as one of its decisions takes; the metrics and the log its decisions show in; and a
//! queue for requests that have to wait until there is room.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::context::Draw;
use crate::{
    clock,
    endpoint::EndpointSet,
    resilience::{
        balancer::Outcome,
        hedge,
        service::{
            Ask, Change, Config, Grant, Refused, RouteId, Service as Machine, State, Token, Wish,
        },
    },
    telemetry::metrics::{Attempt, Observed, ServiceMetrics},
};

/// What is known of one service.
#[derive(Debug)]
pub struct Core {
    label: Arc<str>,
    /// What is counted of calls to it.
    pub metrics: Arc<ServiceMetrics>,
    machine: Mutex<Machine>,
    /// The names of its routes; the default one, which has none, comes before them.
    routes: Mutex<Vec<Arc<str>>>,
    /// Told when a try has ended while somebody waits.
    room: Notify,
    waiting: AtomicU32,
    /// When it was last logged that a breaker would open.
    would: Mutex<Option<Instant>>,
}

/// How often it is logged that a breaker would open, which it would each second for each
/// endpoint while a service fails as a whole. All are counted.
const WOULD_EVERY: Duration = Duration::from_mins(1);

/// One try at one endpoint, counted until dropped.
#[derive(Debug)]
pub struct Permit {
    core: Arc<Core>,
    token: Option<Token>,
    outcome: Outcome,
    /// Where.
    pub address: SocketAddr,
    /// When who waits for the answer gives up: what is dropped from then on took too long,
    /// and before it was no longer wanted.
    pub deadline: Option<Instant>,
    /// Whether that is up to whoever sent the request: what took too long for one in a hurry
    /// is late only by what answers take.
    pub callers: bool,
}

/// Leave for one more try, given back when it is dropped without one.
#[derive(Debug)]
pub struct Leave(Option<Arc<Core>>);

impl Core {
    /// The core of the service `label`, whose endpoints are `set`.
    pub fn new(
        label: Arc<str>,
        config: Config,
        set: &EndpointSet,
        metrics: Arc<ServiceMetrics>,
    ) -> Self {
        let machine = Mutex::new(Machine::new(config, set, clock::now()));
        let (routes, room, waiting) = (Mutex::default(), Notify::new(), AtomicU32::new(0));
        Self { label, metrics, machine, routes, room, waiting, would: Mutex::default() }
    }

    /// Changes the settings; what is known stays wherever its own settings did not change.
    pub fn configure(&self, config: Config) {
        self.machine.lock().configure(config, clock::now());
        self.room.notify_waiters();
    }

    /// Makes `set` the endpoints.
    pub fn update(&self, set: &EndpointSet, now: Instant) {
        let mut machine = self.machine.lock();
        machine.update(set, now);
        self.show(&machine);
        drop(machine);
        self.room.notify_waiters();
    }

    /// The number of the route `name`.
    pub fn route(&self, name: &Arc<str>) -> RouteId {
        let mut routes = self.routes.lock();
        let known = routes.iter().position(|it| it == name);
        let index = known.unwrap_or_else(|| {
            if routes.len() < usize::from(RouteId::MAX.0) {
                routes.push(Arc::clone(name));
            }
            routes.len() - 1
        });
        RouteId(u8::try_from(index + 1).unwrap_or(RouteId::MAX.0))
    }

    /// Picks an endpoint for a try.
    ///
    /// # Errors
    ///
    /// Why there is none to be had.
    pub fn pick(self: &Arc<Self>, ask: Ask<'_>, draw: &Draw) -> Result<Permit, Refused> {
        let pick = self.decide(|machine| machine.pick(ask, &mut || draw.next()))?;
        if pick.panic {
            self.metrics.panic_pick();
        }
        Ok(Permit {
            core: Arc::clone(self),
            token: Some(pick.token),
            outcome: Outcome::Cancelled,
            address: pick.address,
            deadline: None,
            callers: false,
        })
    }

    /// Calls `pick` until there is room, no later than `end` nor than the policy
    /// lets requests wait.
    ///
    /// # Errors
    ///
    /// Why there is none to be had, [`Refused::Full`] where there was no room in time.
    ///
    /// # Cancel safety
    ///
    /// Safe: the place in the queue is given back.
    pub async fn in_turn(
        &self,
        end: Option<Instant>,
        mut pick: impl FnMut(Instant) -> Result<Permit, Refused>,
    ) -> Result<Permit, Refused> {
        let limits = self.machine.lock().limits();
        let _place = Place::take(&self.waiting, limits.pending).ok_or(Refused::Full)?;
        let patience = clock::now() + limits.patience;
        let end = end.map_or(patience, |it| it.min(patience));
        loop {
            let mut room = pin!(self.room.notified());
            // In line before it asks: what ends meanwhile is not missed.
            room.as_mut().enable();
            match pick(clock::now()) {
                Err(Refused::Full) => (),
                Ok(permit) => return Ok(permit),
                Err(refused) => {
                    // It takes no room: whoever comes next may, or is refused as well.
                    self.room.notify_one();
                    return Err(refused);
                }
            }
            let room = tokio::time::timeout_at(end.into(), room);
            room.await.map_err(|_| Refused::Full)?;
        }
    }

    /// Asks for a retry.
    ///
    /// # Errors
    ///
    /// Why there is to be none; never [`Grant::After`].
    pub fn retry(
        self: &Arc<Self>,
        wish: Wish,
        now: Instant,
        draw: &Draw,
    ) -> Result<(Duration, Leave), Grant> {
        match self.decide(|machine| machine.retry(wish, now, &mut || draw.next())) {
            Grant::After(wait) => Ok((wait, Leave(Some(Arc::clone(self))))),
            refused @ (Grant::Exhausted | Grant::Deadline) => Err(refused),
        }
    }

    /// How long an answer takes these days.
    pub fn usual(&self, route: RouteId, now: Instant) -> Option<Duration> {
        self.machine.lock().usual(route, now)
    }

    /// How long to wait for an answer before a hedge is worth it.
    pub fn hedge_after(&self) -> Option<Duration> {
        self.machine.lock().hedge_after()
    }

    /// Asks for a hedge.
    ///
    /// # Errors
    ///
    /// Why there is to be none; never [`hedge::Verdict::Granted`].
    pub fn hedge(self: &Arc<Self>, now: Instant) -> Result<Leave, hedge::Verdict> {
        match self.decide(|machine| machine.hedge(now)) {
            hedge::Verdict::Granted => Ok(Leave(Some(Arc::clone(self)))),
            refused @ (hedge::Verdict::WouldSend | hedge::Verdict::Exhausted) => Err(refused),
        }
    }

    fn settle(&self, token: Token, outcome: Outcome, now: Instant) {
        self.decide(|machine| {
            machine.settle(token, outcome, now);
            if outcome == Outcome::ConnectFailed {
                self.show(machine);
            }
        });
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.room.notify_one();
        }
    }

    /// Has a decision made under the lock. What has happened by it is counted and logged once
    /// the lock is no longer held.
    fn decide<T>(&self, decision: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine.lock();
        let decided = decision(&mut machine);
        if let Some(changes) = machine.changes() {
            self.show(&machine);
            drop(machine);
            self.tell(changes);
        }
        decided
    }

    fn tell(&self, changes: Vec<Change>) {
        for Change { address, to, why } in changes {
            self.metrics.breaker(to);
            let (service, endpoint) = (&self.label, address.map(tracing::field::display));
            match to {
                State::Open => {
                    tracing::warn!(%service, endpoint, reason = why.label(), "breaker opened");
                }
                State::HalfOpen | State::Closed => {
                    let to = to.label();
                    tracing::info!(%service, endpoint, to, reason = why.label(), "breaker moved");
                }
                State::WouldOpen if self.is_news(clock::now()) => {
                    tracing::info!(%service, endpoint, reason = why.label(), "breaker would open");
                }
                // Of these there may be one a request.
                State::WouldOpen | State::WouldRefuse | State::WouldExhaust | State::WouldHedge => {
                }
            }
        }
    }

    /// Whether it is to be logged once more that a breaker would open.
    fn is_news(&self, now: Instant) -> bool {
        let mut would = self.would.lock();
        let is_news = would.is_none_or(|it| WOULD_EVERY <= now.saturating_duration_since(it));
        if is_news {
            *would = Some(now);
        }
        is_news
    }

    /// Shows how many endpoints there are.
    fn show(&self, machine: &Machine) {
        let stats = machine.stats();
        self.metrics.endpoints(stats.available, stats.set_aside, stats.ejected);
    }
}

impl Observed for Core {
    fn observe(&self) {
        let mut machine = self.machine.lock();
        self.show(&machine);
        self.metrics.retry_budget(machine.retry_tokens(clock::now()));
    }
}

impl Permit {
    /// Says how the try has gone so far; what was said last is what counts.
    pub fn outcome(&mut self, outcome: Outcome) {
        (self.outcome, self.deadline) = (outcome, None);
    }

    /// Says that a response's head has come, and that its body will take a while.
    pub fn answered(&mut self) {
        if let Some(token) = &mut self.token
            && self.outcome == Outcome::Success
        {
            self.core.machine.lock().answered(token, clock::now());
        }
    }

    /// Says that the client has left: what the endpoint had said before counts if it was
    /// bad, and what it might have said does not.
    pub fn left(&mut self) {
        if self.outcome == Outcome::Success {
            self.cancel();
        }
    }

    /// Leaves the endpoint without having learnt anything of it.
    pub fn cancel(&mut self) {
        self.outcome(Outcome::Cancelled);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(token) = self.token.take() else { return };
        let now = clock::now();
        let expired = self.deadline.is_some_and(|it| it <= now);
        let is_late = || !self.callers || self.core.machine.lock().is_late(&token, now);
        let (outcome, attempt) = match self.outcome {
            Outcome::Cancelled if expired && is_late() => (Outcome::Failure, Attempt::Timeout),
            Outcome::Cancelled => (Outcome::Cancelled, Attempt::Cancelled),
            Outcome::Success => (Outcome::Success, Attempt::Success),
            outcome @ (Outcome::Failure | Outcome::Busy(_)) => (outcome, Attempt::Failure),
            Outcome::ConnectFailed => (Outcome::ConnectFailed, Attempt::ConnectFailed),
        };
        self.core.metrics.attempt(attempt);
        self.core.settle(token, outcome, now);
    }
}

impl Leave {
    /// The try was picked for.
    pub fn taken(mut self) {
        self.0 = None;
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            core.machine.lock().abandon();
        }
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicU32);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicU32, max: u32) -> Option<Self> {
        let place = Self(waiting);
        // Given back on drop, where there was none to be had.
        (waiting.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
