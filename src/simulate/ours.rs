//! Ours: a caller that keeps Remora's rules, with the very state machine of the proxy.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    audit::{Broken, Ledger},
    chance::Chance,
    rules::{Answer, Ended, Failure, Kind, Mechanism, Next, Pick, Request, Token, Without},
    time::{At, nanos},
};
use crate::{
    config::scenario::Hop,
    endpoint::EndpointSet,
    policy::{
        deadline,
        retry::{self, Failed, Methods, Said, TryTimeout, Verdict},
    },
    resilience::{
        Mode,
        balancer::{Algorithm, Outcome, PASSED_ON},
        hedge,
        service::{self, Ask, Grant, RouteId, Service, Wish},
    },
};

/// A caller with a sidecar of ours.
#[derive(Debug)]
pub(super) struct Ours {
    service: Service,
    set: EndpointSet,
    retries: retry::Policy,
    /// Whether it is said, and obeyed, that a request must not be sent again.
    chain: bool,
    origin: Instant,
    ledger: Ledger,
}

/// The address of a copy of the service at `hop`.
pub(super) fn address(hop: usize, instance: u32) -> SocketAddr {
    let [.., high, low] = instance.to_be_bytes();
    let hop = u8::try_from(hop).unwrap_or(u8::MAX);
    SocketAddr::from(([10, hop, high, low], 80))
}

/// The copy at an address.
fn instance(address: SocketAddr) -> u32 {
    match address.ip() {
        IpAddr::V4(ip) => ip.to_bits() & 0xffff,
        IpAddr::V6(_) => 0,
    }
}

impl Ours {
    /// Somebody who calls `hop` at `set`.
    pub(super) fn new(
        hop: &Hop,
        without: Without,
        set: &EndpointSet,
        (origin, seed): (Instant, u64),
    ) -> Self {
        let mut config = hop.policy.resilience.clone();
        config.balancer.seed = seed;
        left_out(&mut config, without);
        let mut retries = hop.policy.retries.clone();
        if without.has(Mechanism::Retries) {
            retries.mode = Mode::Off;
        }
        let ledger = Ledger::new(config.budget, config.outlier, hop.instances);
        let service = Service::new(config, set, origin);
        Self {
            service,
            set: set.clone(),
            retries,
            chain: !without.has(Mechanism::Chain),
            origin,
            ledger,
        }
    }

    /// As [`super::rules::Caller::pick`].
    pub(super) fn pick(
        &mut self,
        kind: Kind,
        avoid: Option<u32>,
        now: At,
        chance: &mut Chance,
    ) -> Result<Option<Pick>, Broken> {
        let ask = Ask {
            now: self.instant(now),
            kind: match kind {
                Kind::First => service::Kind::First,
                Kind::Free => service::Kind::Again,
                Kind::Granted => service::Kind::Granted,
            },
            route: RouteId::default(),
            avoid: avoid.and_then(|it| self.set.endpoints().get(it as usize)).map(|it| it.address),
            key: None,
        };
        let picked = self.service.pick(ask, &mut || chance.draw());
        self.look()?;
        let Ok(service::Pick { address, token, panic, probe }) = picked else {
            if kind == Kind::Granted {
                self.abandon();
            }
            return self.check().map(|()| None);
        };
        if kind == Kind::First {
            self.ledger.asked();
        }
        let endpoint = instance(address);
        self.ledger.sent(endpoint, panic || probe)?;
        self.check()?;
        Ok(Some(Pick { endpoint, token: Token::Ours(token) }))
    }

    /// As [`super::rules::Caller::settle`].
    pub(super) fn settle(
        &mut self,
        mut token: service::Token,
        ended: Option<Ended>,
        now: At,
    ) -> Result<(), Broken> {
        let outcome = match ended {
            None => Outcome::Cancelled,
            Some(Ended::Refused) => Outcome::ConnectFailed,
            // The second: what failed is further on, and has been judged there.
            Some(Ended::Answered(Answer { status: 429, .. } | Answer { last: true, .. })) => {
                Outcome::Busy(Some(PASSED_ON))
            }
            Some(ended) if ended.is_good() => Outcome::Success,
            Some(_) => Outcome::Failure,
        };
        let at = self.instant(now);
        if outcome == Outcome::Success {
            self.service.answered(&mut token, at);
        }
        self.service.settle(token, outcome, at);
        self.ledger.settled();
        self.look()?;
        self.check()
    }

    /// As [`super::rules::Caller::judge`].
    pub(super) fn judge(
        &mut self,
        request: Request,
        Failure { ended, tries, again }: Failure,
        now: At,
        chance: &mut Chance,
    ) -> Result<Next, Broken> {
        let said_last = matches!(ended, Ended::Answered(Answer { last: true, .. }));
        let said = if said_last && self.chain { Said::Never } else { Said::Nothing };
        let failed = match ended {
            Ended::Answered(Answer { status, .. }) => Failed::Status(status),
            Ended::Refused => Failed::Unsent,
            Ended::Reset => Failed::Reset,
            Ended::TimedOut => Failed::TryTimeout,
        };
        let tried = retry::Try { failed, said, tries, at_hand: true, untouched: false, again };
        let verdict = retry::verdict(&self.retries, self.asked(request), tried);
        // As the proxy marks its trace: what was tried here as often as it may be is not to be
        // tried again further up, that would only come back here.
        let last = self.chain && matches!(verdict, Verdict::Forbidden | Verdict::Limit);
        match verdict {
            Verdict::Again => Ok(Next::Try(Kind::Free, 0)),
            Verdict::Ask { after } => {
                let left = Duration::from_nanos(request.deadline.saturating_sub(now));
                let (number, backoff) = (tries, self.retries.backoff);
                let route = RouteId::default();
                let wish = Wish { number, route, backoff, after, left: Some(left) };
                let at = self.instant(now);
                Ok(match self.service.retry(wish, at, &mut || chance.draw()) {
                    Grant::After(wait) => {
                        self.ledger.granted(now)?;
                        Next::Try(Kind::Granted, nanos(wait))
                    }
                    Grant::Exhausted | Grant::Deadline => Next::End { last: self.chain },
                })
            }
            Verdict::Would
            | Verdict::Unsafe
            | Verdict::Limit
            | Verdict::Chain
            | Verdict::Forbidden
            | Verdict::Final => Ok(Next::End { last }),
        }
    }

    /// Gives back a grant that no try was picked for.
    pub(super) fn abandon(&mut self) {
        self.service.abandon();
        self.ledger.abandoned();
    }

    /// As [`super::rules::Caller::patience`].
    pub(super) fn patience(&self, request: Request, tries: u8, now: At) -> Option<At> {
        match self.retries.try_limit() {
            TryTimeout::At(limit) => return Some(nanos(limit)),
            TryTimeout::Share if request.idempotent => (),
            TryTimeout::Share | TryTimeout::None => return None,
        }
        let left = Duration::from_nanos(request.deadline.saturating_sub(now));
        let more = (self.retries.attempts + 1).saturating_sub(tries);
        Some(nanos(deadline::share_of(
            left,
            more,
            self.service.usual(RouteId::default(), self.instant(now)),
        )))
    }

    /// As [`super::rules::Caller::hedge_after`].
    pub(super) fn hedge_after(&self, request: Request) -> Option<At> {
        let may = request.idempotent && !(request.inherited && self.chain);
        self.service.hedge_after().filter(|_| may).map(nanos)
    }

    /// As [`super::rules::Caller::hedge`].
    pub(super) fn hedge(&mut self, now: At) -> Result<bool, Broken> {
        let granted = self.service.hedge(self.instant(now)) == hedge::Verdict::Granted;
        if granted {
            self.ledger.granted(now)?;
        }
        Ok(granted)
    }

    /// How often an endpoint was left out.
    pub(super) fn ejections(&self) -> u64 {
        self.ledger.ejections
    }

    /// Nothing is under way any more.
    pub(super) fn over(&self) -> Result<(), Broken> {
        self.ledger.over()
    }

    fn asked(&self, request: Request) -> retry::Request {
        let method = if request.idempotent { Methods::GET } else { Methods::POST };
        let retried = request.inherited && self.chain;
        retry::Request { method, idempotency_key: false, retried }
    }

    fn instant(&self, at: At) -> Instant {
        self.origin + Duration::from_nanos(at)
    }

    /// Takes note of what happened to endpoints.
    fn look(&mut self) -> Result<(), Broken> {
        for change in self.service.changes().unwrap_or_default() {
            if let Some(address) = change.address {
                self.ledger.changed(instance(address), change)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Broken> {
        self.ledger.agrees(self.service.stats())
    }
}

/// Switches off what is to be left out.
fn left_out(config: &mut service::Config, without: Without) {
    if without.has(Mechanism::Breaker) {
        config.breaker.mode = Mode::Off;
        config.outlier.mode = Mode::Off;
    }
    if without.has(Mechanism::Admission) {
        config.admission.mode = Mode::Off;
    }
    if without.has(Mechanism::Budget) {
        config.budget.mode = Mode::Off;
    }
    if without.has(Mechanism::Latency) {
        config.balancer.algorithm = Algorithm::LeastRequest;
    }
}
