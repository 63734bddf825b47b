//! Rules: who decides for a caller, Remora or one of its peers.

use std::time::Instant;

use super::{
    audit::Broken,
    chance::Chance,
    ours::Ours,
    peers::{gobreaker::Gobreaker, istio::Istio, linkerd::Linkerd, plain::Plain},
    time::At,
};
use crate::{config::scenario::Hop, endpoint::EndpointSet, resilience::service};

/// Whose rules callers keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Ours.
    Remora(Without),
    /// Envoy's as Istio sets them, with outlier detection.
    Istio,
    /// Those of Linkerd's proxy: a retry budget, and failure accrual.
    Linkerd,
    /// A circuit breaker in the application, and a loop of three tries around it.
    Gobreaker,
    /// Each endpoint in turn, and one try.
    None,
}

/// A mechanism of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Requests to a service that fails as a whole are let through by a share only.
    Admission,
    /// Endpoints that fail are left alone.
    Breaker,
    /// Retries are charged.
    Budget,
    /// A retry is not retried again further on, and "do not retry" is said and obeyed.
    Chain,
    /// A request says how much time is left for it.
    Deadline,
    /// Latency decides who is picked, and not only pending requests.
    Latency,
    /// There are retries.
    Retries,
}

/// Mechanisms of ours that are left out, to see what each is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without(u8);

impl Rules {
    /// Ours with everything, and each peer's.
    pub const ALL: [Self; 5] =
        [Self::Remora(Without::NOTHING), Self::Istio, Self::Linkerd, Self::Gobreaker, Self::None];

    /// As tables and the command line call them.
    pub fn name(self) -> String {
        let name = match self {
            Self::Remora(Without::NOTHING) => "remora",
            Self::Remora(without) => {
                let names = Mechanism::ALL.into_iter().filter(|it| without.has(*it));
                return format!("- {}", names.map(Mechanism::name).collect::<Vec<_>>().join(", "));
            }
            Self::Istio => "istio",
            Self::Linkerd => "linkerd",
            Self::Gobreaker => "gobreaker",
            Self::None => "none",
        };
        name.to_owned()
    }

    /// Whether a caller's time, and whether it is a retry, is told to whom it calls.
    pub(super) fn told(self) -> Told {
        match self {
            Self::Remora(without) => Told {
                deadline: !without.has(Mechanism::Deadline),
                attempt: !without.has(Mechanism::Chain),
            },
            Self::Istio | Self::Linkerd | Self::Gobreaker | Self::None => Told::default(),
        }
    }
}

impl Mechanism {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Admission,
        Self::Breaker,
        Self::Budget,
        Self::Chain,
        Self::Deadline,
        Self::Latency,
        Self::Retries,
    ];

    /// As tables and the command line call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Breaker => "breaker",
            Self::Budget => "budget",
            Self::Chain => "chain",
            Self::Deadline => "deadline",
            Self::Latency => "latency",
            Self::Retries => "retries",
        }
    }
}

impl Without {
    /// All mechanisms are there.
    pub const NOTHING: Self = Self(0);

    /// This one is left out, too.
    #[must_use]
    pub const fn and(self, mechanism: Mechanism) -> Self {
        Self(self.0 | 1 << mechanism as u8)
    }

    /// Whether this one is left out.
    pub const fn has(self, mechanism: Mechanism) -> bool {
        self.0 & 1 << mechanism as u8 != 0
    }
}

/// What one hop tells the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// How much time is left.
    pub(super) deadline: bool,
    /// That a request is a retry, and back again that it must not be sent once more.
    pub(super) attempt: bool,
}

/// A request, as far as it decides what may be done with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Two of it do what one does.
    pub(super) idempotent: bool,
    /// It is a retry of somebody further up.
    pub(super) inherited: bool,
    /// When nobody waits for it any more.
    pub(super) deadline: At,
}

/// Which try of its request one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first.
    First,
    /// One that costs nothing: of the one before nothing was sent.
    Free,
    /// One that was asked for, and granted.
    Granted,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// With an answer.
    Answered(Answer),
    /// Nobody listened.
    Refused,
    /// In the middle.
    Reset,
    /// It took too long: of the try's own time, or of the request's.
    TimedOut,
}

/// A try that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    /// How.
    pub(super) ended: Ended,
    /// Tries so far, this one included.
    pub(super) tries: u8,
    /// One of them cost nothing.
    pub(super) again: bool,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answer {
    /// An HTTP status.
    pub(super) status: u16,
    /// It says that the request must not be sent again.
    pub(super) last: bool,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another try after some time.
    Try(Kind, At),
    /// Nothing; whether the answer says that nobody should try again.
    End {
        /// It does.
        last: bool,
    },
}

/// An endpoint for a try.
#[derive(Debug)]
pub(super) struct Pick {
    /// An index into the copies of the hop.
    pub(super) endpoint: u32,
    /// What has to be settled.
    pub(super) token: Token,
}

/// A try under way.
#[derive(Debug)]
pub(super) enum Token {
    /// One of ours.
    Ours(service::Token),
    /// Of a peer: where, and the number of what it is to be judged by.
    Peer(u32, u64),
}

/// What one caller knows of the service it calls.
#[derive(Debug)]
pub(super) enum Caller {
    Ours(Box<Ours>),
    Istio(Istio),
    Linkerd(Linkerd),
    Gobreaker(Gobreaker),
    Plain(Plain),
}

impl Caller {
    /// Somebody who calls `hop` at `set` and knows nothing yet. `seed` sets it apart.
    pub(super) fn new(
        rules: Rules,
        hop: &Hop,
        set: &EndpointSet,
        (origin, seed): (Instant, u64),
    ) -> Self {
        let endpoints = hop.instances;
        match rules {
            Rules::Remora(without) => {
                Self::Ours(Box::new(Ours::new(hop, without, set, (origin, seed))))
            }
            Rules::Istio => Self::Istio(Istio::new(endpoints)),
            Rules::Linkerd => Self::Linkerd(Linkerd::new(endpoints)),
            Rules::Gobreaker => Self::Gobreaker(Gobreaker::new(endpoints)),
            Rules::None => Self::Plain(Plain::new(endpoints)),
        }
    }

    /// Where a try goes, other than to `avoid` if there is a choice; `None` where it must
    /// not be sent.
    pub(super) fn pick(
        &mut self,
        kind: Kind,
        avoid: Option<u32>,
        now: At,
        chance: &mut Chance,
    ) -> Result<Option<Pick>, Broken> {
        let picked = match self {
            Self::Ours(it) => return it.pick(kind, avoid, now, chance),
            Self::Istio(it) => it.pick(avoid, now, chance),
            Self::Linkerd(it) => it.pick(kind, now, chance),
            Self::Gobreaker(it) => it.pick(now),
            Self::Plain(it) => Some(it.pick()),
        };
        let pick = |(endpoint, note)| Pick { endpoint, token: Token::Peer(endpoint, note) };
        Ok(picked.map(pick))
    }

    /// Takes a try back that took `took`; `None` where it was given up.
    pub(super) fn settle(
        &mut self,
        token: Token,
        ended: Option<Ended>,
        (now, took): (At, At),
    ) -> Result<(), Broken> {
        match (self, token) {
            (Self::Ours(it), Token::Ours(token)) => return it.settle(token, ended, now),
            (Self::Istio(it), Token::Peer(at, _)) => it.settle(at, ended, now),
            (Self::Linkerd(it), Token::Peer(at, note)) => {
                it.settle((at, note), ended, (now, took));
            }
            (Self::Gobreaker(it), Token::Peer(_, note)) => it.settle(note, ended, now),
            (Self::Plain(_) | Self::Ours(_), _) | (_, Token::Ours(_)) => (),
        }
        Ok(())
    }

    /// What follows a try of `request` that failed.
    pub(super) fn judge(
        &mut self,
        request: Request,
        failure: Failure,
        now: At,
        chance: &mut Chance,
    ) -> Result<Next, Broken> {
        Ok(match self {
            Self::Ours(it) => return it.judge(request, failure, now, chance),
            Self::Istio(_) => Istio::judge(failure, chance),
            Self::Linkerd(it) => it.judge(failure, now),
            Self::Gobreaker(_) => Gobreaker::judge(failure),
            Self::Plain(_) => Next::End { last: false },
        })
    }

    /// Gives back a grant that no try was picked for.
    pub(super) fn abandon(&mut self) {
        if let Self::Ours(it) = self {
            it.abandon();
        }
    }

    /// How long a try may take, of a request that had `tries` before; without a limit of
    /// its own where `None`.
    pub(super) fn patience(&self, request: Request, tries: u8, now: At) -> Option<At> {
        if let Self::Ours(it) = self { it.patience(request, tries, now) } else { None }
    }

    /// How long to wait until a second try is sent beside the first.
    pub(super) fn hedge_after(&self, request: Request) -> Option<At> {
        if let Self::Ours(it) = self { it.hedge_after(request) } else { None }
    }

    /// Asks for such a try.
    pub(super) fn hedge(&mut self, now: At) -> Result<bool, Broken> {
        if let Self::Ours(it) = self { it.hedge(now) } else { Ok(false) }
    }

    /// Nothing is under way any more.
    pub(super) fn over(&self) -> Result<(), Broken> {
        if let Self::Ours(it) = self { it.over() } else { Ok(()) }
    }

    /// How often an endpoint was left out so far.
    pub(super) fn ejections(&self) -> u64 {
        match self {
            Self::Ours(it) => it.ejections(),
            Self::Istio(it) => it.ejections,
            Self::Linkerd(it) => it.ejections,
            Self::Gobreaker(it) => it.ejections,
            Self::Plain(_) => 0,
        }
    }
}

impl Ended {
    /// Whether it is what the caller wanted.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Answered(Answer { status: ..500, .. }))
    }

    /// What a caller is told.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Answered(Answer { status, .. }) => status,
            Self::Refused => 503,
            Self::Reset => 502,
            Self::TimedOut => 504,
        }
    }
}
