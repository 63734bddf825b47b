//! Balancer: picks an endpoint, and never one that cannot be used while another can.
//!
//! Among the endpoints of the most preferred priority that has one available, two distinct
//! candidates are drawn and the one of lower cost is taken, the first drawn where both are
//! equal:
//!
//! ```text
//! cost = max(estimate, age of the oldest request without an answer, 1 ms)
//!      * (1 + pending * mean weight / weight)
//! ```
//!
//! Two choices rather than the least of all: the least of all herds many callers onto one
//! endpoint, since each sidecar sees only its own requests. The age, because an endpoint that
//! hangs has no more samples: its estimate fades, and without the age it attracts traffic
//! again. Both are on a scale that all routes share, that of `latency.rs`.
//!
//! **Weights and ramps.** Candidates are drawn by *stake*: weight times the share that an
//! endpoint gets, which grows from a tenth over the time of the slow start, and by the steps
//! of its breaker's return; the lesser of both counts. Of two candidates the second was drawn
//! among the others, too often for its stake where that is the smaller one, so only as often
//! as its stake is part of the first one's it competes as it is; otherwise its cost counts as
//! many times more. So an endpoint gets at most about twice what its stake says however
//! quick it looks, as with equal stakes, and still everything when the other hangs. To weigh
//! the cost itself instead, as in `cost / weight / ramp`, would mean: with idle endpoints a
//! light or new one gets nothing, since one that is not idle is found every time.
//!
//! **Zones.** Where it is known of some that they are near and of some that they are far, two
//! that are near compete with one of the others, whose cost counts twice: traffic spills once
//! the near ones have about twice as much to do. `RoundRobin`, `Random` and keys don't look
//! at zones.
//!
//! **Not available** is an endpoint whose dial failed: it is *set aside* for 500 ms first,
//! twice as long each time it fails again, 10 s at most, each ± 25 % so that callers do not
//! come back in step. And one whose breaker is open, under a cap ([`Balancer::held_back`]);
//! when its time is over a first try, never a retry, is its probe ([`Pick::probe`]). When
//! there is no endpoint available they are all candidates, and the pick is marked
//! [`Pick::panic`]: to try is better than to answer for an endpoint that was not asked.
//!
//! A [`Token`] carries the generation of its endpoint's state, so an outcome from before a
//! change of that state changes nothing but the count of pending requests.
//!
//! A pick allocates nothing, except where more is under way than ever. It takes constant time
//! where stakes are equal, and the logarithm of the pool where not; only a change of what is
//! available costs its size.
//!
//! # Sources
//!
//! - M. Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001.
//! - Finagle, *Peak EWMA*; Envoy, *Slow start mode*: the least share.
//! - RFC 2782: "A client MUST attempt to contact the target host with the lowest-numbered
//!   priority it can reach". <https://www.rfc-editor.org/rfc/rfc2782>
//! - gobreaker v2: results of an earlier generation are dropped.

mod choose;
mod config;
mod eject;
mod group;
mod latency;
mod members;
mod pool;
mod ring;
mod slot;
mod subset;
mod waiting;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    breaker,
    service::{self, Ask, Kind, RouteId, State},
};
use crate::endpoint::EndpointSet;
pub use config::{Algorithm, Config};
use eject::{Ejections, Rules};
use group::Group;
use latency::{Baselines, PENALTY_MAX};
use slot::Slot;
use waiting::Waiting;

/// The answer to [`Balancer::pick`].
#[must_use = "a pick counts as pending until its token is settled"]
#[derive(Debug)]
pub struct Pick {
    /// The endpoint.
    pub address: SocketAddr,
    /// What [`Balancer::settle`] takes back.
    pub token: Token,
    /// No endpoint is available; this one was picked all the same.
    pub panic: bool,
    /// It was left out until now: its answer decides whether it comes back.
    pub probe: bool,
    /// Requests pending at the endpoint, this one included.
    pub pending: u32,
}

/// One pending request. To be settled exactly once; worth nothing to another balancer.
#[must_use = "a request counts as pending until its token is settled"]
#[derive(Debug)]
pub struct Token {
    slot: u32,
    /// Of the slot: an endpoint that left.
    generation: u32,
    /// Of the endpoint's state: a set-aside since.
    epoch: u32,
    breaker: breaker::Ticket,
    /// When the try began.
    start: Instant,
    route: RouteId,
    /// Its place among those that wait for the head of a response.
    waits: Option<waiting::Ticket>,
}

/// How a request ended at its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a response that is no failure.
    Success,
    /// With a response that is a failure, or in the middle of one, or in no time.
    Failure,
    /// With a response that says "not now" (429, or a sidecar that sheds load): it costs,
    /// and is no failure. The endpoint may have said for how long.
    Busy(Option<Duration>),
    /// Before there was a connection.
    ConnectFailed,
    /// The client left.
    Cancelled,
}

/// What it costs an endpoint that somebody it called has failed: enough that another one,
/// which may be better off, is preferred for some seconds, and no more.
pub const PASSED_ON: Duration = Duration::from_millis(250);

/// Endpoints that are asked for what is usual: every try asks.
const USUAL_OF: usize = 16;

/// The state of a pool in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Endpoints that may be picked.
    pub available: usize,
    /// Endpoints whose dials fail.
    pub set_aside: usize,
    /// Endpoints whose breakers are not closed. One on its way back is available, too, and
    /// one whose probe could not connect is set aside, too.
    pub ejected: usize,
    /// Requests not settled.
    pub pending: u64,
}

/// The endpoints of one service and what is known of each.
#[derive(Debug)]
pub struct Balancer {
    config: Config,
    rules: Rules,
    slots: Vec<Slot>,
    /// Slots without an endpoint.
    free: Vec<u32>,
    by_address: BTreeMap<SocketAddr, u32>,
    /// By priority, the most preferred first.
    groups: Vec<Group>,
    waiting: Waiting,
    baselines: Box<Baselines>,
    ejections: Ejections,
    /// Picks made, for [`Algorithm::RoundRobin`].
    turn: u32,
    /// When time will change what is available, or how much of its share it gets.
    next: Option<Instant>,
}

impl Balancer {
    /// A balancer over `set` that knows nothing of its endpoints yet.
    pub fn new(config: &service::Config, set: &EndpointSet, now: Instant) -> Self {
        let mut balancer = Self {
            config: config.balancer,
            rules: Rules::new(config),
            slots: Vec::new(),
            free: Vec::new(),
            by_address: BTreeMap::new(),
            groups: Vec::new(),
            waiting: Waiting::new(),
            baselines: Box::new(Baselines::new()),
            ejections: Ejections::default(),
            turn: 0,
            next: None,
        };
        balancer.update(set, now);
        balancer
    }

    /// Changes how endpoints are picked; what is known of them stays.
    pub fn configure(&mut self, config: &service::Config, now: Instant) {
        self.config = config.balancer;
        self.rules = Rules::new(config);
        self.arrange(now);
    }

    /// Picks an endpoint and counts a request as pending there; `None` in an empty pool.
    ///
    /// `rng` returns draws that are uniform over `u32`.
    pub fn pick(&mut self, ask: Ask<'_>, rng: &mut impl FnMut() -> u32) -> Option<Pick> {
        if self.next.is_some_and(|it| it <= ask.now) {
            self.refresh(ask.now);
        }
        self.turn = self.turn.wrapping_add(1);
        let avoid = ask.avoid.and_then(|it| self.by_address.get(&it).copied());
        if ask.kind == Kind::First
            && let Some(slot) = self.probed(avoid)
        {
            let pick = self.take(slot, &ask, rng());
            // The breaker may want no other one.
            self.refresh(ask.now);
            return Some(Pick { probe: true, ..pick });
        }
        if let Some(slot) = self.choose(Group::available, &ask, rng, avoid) {
            return Some(self.take(slot, &ask, rng()));
        }
        // What is left is the endpoint to avoid, or nothing that is available.
        if let Some(slot) = avoid.filter(|it| self.slots[*it as usize].share > 0) {
            return Some(self.take(slot, &ask, rng()));
        }
        let slot = self.choose(Group::all, &ask, rng, avoid).or(avoid)?;
        self.ejections.refuse(ask.now);
        Some(Pick { panic: true, ..self.take(slot, &ask, rng()) })
    }

    /// Says that the head of a response has come, and that it is no failure: what follows
    /// takes as long as it takes.
    pub fn answered(&mut self, token: &mut Token, now: Instant) {
        if token.waits.is_none() {
            return;
        }
        let took = now.saturating_duration_since(token.start);
        self.baselines.observe(token.route, took, now);
        if let Some(slot) = leave(&mut self.slots, &mut self.waiting, token) {
            slot.breaker.answered(&mut token.breaker);
            slot.estimate.succeed();
            slot.estimate.observe(self.baselines.sample(token.route, took), now);
        }
    }

    /// Takes a request back, with how it ended.
    pub fn settle(&mut self, mut token: Token, outcome: Outcome, now: Instant) {
        self.learn(&mut token, outcome, now);
        let Token { slot: at, generation, epoch, breaker: ticket, .. } = token;
        let Some(slot) = self.slots.get_mut(at as usize) else { return };
        if slot.generation != generation {
            return;
        }
        debug_assert!(slot.pending > 0, "a token is settled once");
        slot.pending = slot.pending.saturating_sub(1);
        let mut is_moved = slot.listed && self.groups[slot.group as usize].count(false, now);
        if slot.epoch == epoch {
            match outcome {
                Outcome::ConnectFailed => {
                    slot.set_aside(now, ticket.draw());
                    is_moved = true;
                }
                Outcome::Success if slot.has_strikes() => {
                    slot.bring_back();
                    is_moved = true;
                }
                Outcome::Success | Outcome::Failure | Outcome::Busy(_) | Outcome::Cancelled => (),
            }
        }
        if self.judge(at, ticket, outcome, now) || is_moved {
            self.refresh(now);
        }
    }

    /// How long an answer's head takes on this route, everywhere and on average; `None`
    /// where none has come.
    pub fn baseline(&self, route: RouteId) -> Option<Duration> {
        self.baselines.get(route)
    }

    /// How long an answer on this route takes these days at the quickest endpoint, failures
    /// as long as what they cost; `None` where none has come.
    pub fn usual(&self, route: RouteId, now: Instant) -> Option<Duration> {
        let mean = self.baselines.get(route)?;
        let some = self.by_address.values().take(USUAL_OF);
        let slots = some.map(|it| &self.slots[*it as usize]);
        let known = slots.filter(|it| it.share > 0).map(|it| it.estimate.read(now));
        Some(mean.mul_f64(known.reduce(f64::min)? / latency::USUAL))
    }

    /// The state of the pool in numbers. An endpoint that comes back counts from the next
    /// pick.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for slot in self.by_address.values().map(|it| &self.slots[*it as usize]) {
            stats.pending += u64::from(slot.pending);
            stats.available += usize::from(slot.share > 0);
            stats.set_aside += usize::from(slot.until.is_some());
            stats.ejected += usize::from(slot.breaker.state() != State::Closed);
        }
        stats
    }

    /// What the end of a request says of its endpoint's latency.
    fn learn(&mut self, token: &mut Token, outcome: Outcome, now: Instant) {
        if outcome == Outcome::Success {
            self.answered(token, now);
            return;
        }
        let had_waited = token.waits.is_some();
        let so_far = now.saturating_duration_since(token.start);
        let Some(slot) = leave(&mut self.slots, &mut self.waiting, token) else { return };
        match outcome {
            Outcome::Failure => slot.estimate.punish(0.0, now),
            Outcome::Busy(after) => {
                slot.estimate.punish(after.map_or(0.0, |it| it.as_secs_f64()), now);
            }
            Outcome::Success | Outcome::ConnectFailed | Outcome::Cancelled => (),
        }
        // It took too long for its client, or for us; how long it would have taken, nobody
        // knows.
        if had_waited && matches!(outcome, Outcome::Failure | Outcome::Cancelled) {
            slot.estimate.raise(self.baselines.wait(token.route, so_far).min(PENALTY_MAX), now);
        }
    }

    /// A slot whose breaker asks for a probe.
    fn probed(&self, avoid: Option<u32>) -> Option<u32> {
        let group = self.groups.iter().find(|it| it.wants_probe())?;
        let wants = |it: &&u32| Some(**it) != avoid && self.slots[**it as usize].wants_probe;
        group.all().slots().iter().find(wants).copied()
    }

    fn take(&mut self, at: u32, ask: &Ask<'_>, draw: u32) -> Pick {
        let slot = &mut self.slots[at as usize];
        slot.pending += 1;
        let pace = self.baselines.pace(ask.route);
        let ticket = self.waiting.join(&mut slot.lines, pace, ask.now, ask.route);
        let token = Token {
            slot: at,
            generation: slot.generation,
            epoch: slot.epoch,
            breaker: slot.breaker.acquire(&self.rules.breaker, ask.now, draw),
            start: ask.now,
            route: ask.route,
            waits: Some(ticket),
        };
        let (address, pending) = (slot.endpoint.address, slot.pending);
        if slot.listed && self.groups[slot.group as usize].count(true, ask.now) {
            self.refresh(ask.now);
        }
        Pick { address, token, panic: false, probe: false, pending }
    }
}

/// Takes a request out of its endpoint's lines, if it still is there; the slot of its
/// endpoint, if that has not left.
fn leave<'a>(
    slots: &'a mut [Slot],
    waiting: &mut Waiting,
    token: &mut Token,
) -> Option<&'a mut Slot> {
    let slot = slots.get_mut(token.slot as usize);
    let mut slot = slot.filter(|it| it.generation == token.generation);
    if let Some(ticket) = token.waits.take() {
        waiting.leave(slot.as_mut().map(|it| &mut it.lines), ticket);
    }
    slot
}

#[cfg(test)]
mod tests;
