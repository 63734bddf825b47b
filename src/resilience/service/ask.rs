//! Ask: what a service is asked for tries, and what it answers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::super::backoff;

/// A route of a service, as its caller numbers them; 0 is the default route. Routes from
/// [`RouteId::MAX`] on share one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteId(pub u8);

impl RouteId {
    /// The number that all further routes share.
    pub const MAX: Self = Self(63);
}

/// What a try is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// When.
    pub now: Instant,
    /// Of which request.
    pub kind: Kind,
    /// On which route.
    pub route: RouteId,
    /// Where the try before went: picked only when nothing else is available.
    pub avoid: Option<SocketAddr>,
    /// What [`Algorithm::ConsistentHash`](super::super::balancer::Algorithm) hashes; none falls back to
    /// two choices.
    pub key: Option<&'a [u8]>,
}

/// Which try of its request one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first: it earns its share of a retry.
    First,
    /// One that cost nothing, because nothing of the try before had been sent.
    Again,
    /// One that was granted by [`Service::retry`](super::Service::retry) or
    /// [`Service::hedge`](super::Service::hedge).
    Granted,
}

/// Why there is no try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no endpoint.
    NoEndpoints,
    /// The breaker of the route or service is open, or admission says no.
    BreakerOpen,
    /// Too much is under way. There may be room in a moment.
    Full,
}

/// What a retry depends on.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Which retry of its request it is, from 1.
    pub number: u8,
    /// On which route.
    pub route: RouteId,
    /// The wait the route asks for.
    pub backoff: backoff::Config,
    /// The wait the endpoint asked for, which replaces that.
    pub after: Option<backoff::Asked>,
    /// What is left of the request's time; no limit where `None`.
    pub left: Option<Duration>,
}

/// The answer to [`Service::retry`](super::Service::retry).
#[must_use = "a grant is picked for, or abandoned"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Another try may be sent after this long.
    After(Duration),
    /// The budget is spent, or too many retries are under way.
    Exhausted,
    /// There is no time left for it.
    Deadline,
}

/// How many times as long as usual an answer takes until it is late.
const SLOW: u32 = 3;

/// When it is late where nobody knows how long one takes.
const UNUSUAL: Duration = Duration::from_millis(250);

impl super::Service {
    /// Whether a try without an answer is late by what answers on its route take. One whose
    /// caller gave up before that says nothing of its endpoint.
    pub fn is_late(&self, token: &super::Token, now: Instant) -> bool {
        let usual = self.balancer.baseline(token.route);
        let late = usual.map_or(UNUSUAL, |it| it.saturating_mul(SLOW));
        late <= now.saturating_duration_since(token.start)
    }

    /// How long an answer on this route takes these days, at the quickest endpoint; `None`
    /// where none has come.
    pub fn usual(&self, route: RouteId, now: Instant) -> Option<Duration> {
        self.balancer.usual(route, now)
    }
}
