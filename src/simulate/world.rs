//! World: callers and servers, and what happens between them, one event after the other.
//!
//! A *call* is what somebody wants of the next hop, a *try* is one attempt at it, and a
//! *job* is what a copy of the service does about a try. A job outlives its try: who gives
//! up is not noticed by the one who works, and the work is wasted, as it is in life.

mod calls;
mod jobs;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{
    audit::{Broken, Violation},
    chance::Chance,
    ours,
    rules::{Caller, Ended, Kind, Request, Rules, Token, Told},
    server::Server,
    slab::{Key, Slab},
    tally::{Outcome, Tally},
    time::{At, nanos},
    trace::Trace,
};
use crate::{
    config::scenario::{Arrivals, Scenario, Trouble},
    endpoint::{Endpoint, EndpointSet},
};

/// Streams of chance: what is offered, what callers decide, how long work takes.
const OFFERS: u64 = 1;
const CALLERS: u64 = 1 << 32;
const SERVERS: u64 = 2 << 32;

/// Everything there is.
#[derive(Debug)]
pub(super) struct World<'s> {
    scenario: &'s Scenario,
    seed: u64,
    told: Told,
    now: At,
    events: BinaryHeap<Reverse<(At, u64, Event)>>,
    /// Events so far: those of one moment come in the order in which they were made.
    made: u64,
    trace: Trace,
    /// Of each hop, those who call it.
    callers: Vec<Vec<Party>>,
    /// Of each hop, its copies.
    servers: Vec<Vec<Server>>,
    calls: Slab<Call>,
    tries: Slab<Try>,
    jobs: Slab<Job>,
    offers: Chance,
    turn: u32,
    /// Who decides, for a violation to name it.
    party: (usize, usize),
    phase: usize,
    /// When the phase ends.
    until: At,
    tally: Tally,
}

/// Something that happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next request is offered.
    Offer,
    /// A phase ends, and the next one begins.
    Phase,
    /// What a fault destroys is gone.
    Crash { fault: usize },
    /// A try reaches its server.
    Reach { job: Key },
    /// The work on a job is done, but for the call of the next hop.
    Worked { job: Key },
    /// A try is answered, or breaks.
    Reply { of: Key, ended: Ended },
    /// A try has taken as long as it may.
    Late { of: Key },
    /// A call has taken as long as it may.
    Expired { call: Key },
    /// The wait before another try is over.
    Again { call: Key },
    /// It is time for a second try beside the first.
    Hedge { call: Key },
}

/// Somebody who calls.
#[derive(Debug)]
struct Party {
    caller: Caller,
    chance: Chance,
}

#[derive(Debug)]
struct Call {
    hop: usize,
    caller: usize,
    /// The job that needs it; none for what comes from outside.
    parent: Option<Key>,
    request: Request,
    began: At,
    phase: usize,
    tries: u8,
    /// One of them cost nothing.
    again: bool,
    live: Vec<Key>,
    /// What is granted and not sent yet.
    waiting: Option<Kind>,
    /// How the last try that failed ended, and where.
    failed: Option<(Ended, u32)>,
}

#[derive(Debug)]
struct Try {
    call: Key,
    endpoint: u32,
    token: Token,
    sent: At,
}

#[derive(Debug)]
struct Job {
    of: Key,
    hop: usize,
    server: u32,
    /// As the server is told.
    request: Request,
}

impl<'s> World<'s> {
    /// The world before anything has happened.
    pub(super) fn new(
        scenario: &'s Scenario,
        rules: Rules,
        (origin, seed): (Instant, u64),
    ) -> Self {
        let mut world = Self {
            scenario,
            seed,
            told: rules.told(),
            now: 0,
            events: BinaryHeap::new(),
            made: 0,
            trace: Trace::new(),
            callers: Vec::new(),
            servers: Vec::new(),
            calls: Slab::new(),
            tries: Slab::new(),
            jobs: Slab::new(),
            offers: Chance::new(seed, OFFERS),
            turn: 0,
            party: (0, 0),
            phase: 0,
            until: scenario.phases.first().map_or(0, |it| nanos(it.length)),
            tally: Tally::new(scenario),
        };
        let mut before = scenario.callers;
        for (at, hop) in scenario.hops.iter().enumerate() {
            let addresses = (0..hop.instances).map(|it| Endpoint::new(ours::address(at, it)));
            let set: EndpointSet = addresses.collect();
            let number = |it: u32| (at as u64) << 16 | u64::from(it);
            let caller = |it: u32| {
                let mut chance = Chance::new(seed, CALLERS + number(it));
                Party { caller: Caller::new(rules, hop, &set, (origin, chance.word())), chance }
            };
            let server = |it: u32| {
                Server::new(hop, (at, it), scenario, Chance::new(seed, SERVERS + number(it)))
            };
            world.callers.push((0..before).map(caller).collect());
            world.servers.push((0..hop.instances).map(server).collect());
            before = hop.instances;
        }
        world
    }

    /// Lets everything happen.
    pub(super) fn run(mut self, rules: Rules) -> Result<Outcome, Violation> {
        self.at(self.until, Event::Phase);
        for (fault, it) in self.scenario.faults.iter().enumerate() {
            if matches!(it.trouble, Trouble::Crash { .. }) {
                self.at(nanos(it.from), Event::Crash { fault });
            }
        }
        self.next_offer();
        while let Some(Reverse((now, number, event))) = self.events.pop() {
            self.now = now;
            self.trace.note(&[now, number]);
            self.happen(event).map_err(|it| self.violation(it))?;
        }
        for hop in 0..self.callers.len() {
            for caller in 0..self.callers[hop].len() {
                self.party = (hop, caller);
                let over = self.callers[hop][caller].caller.over();
                over.map_err(|it| self.violation(it))?;
            }
        }
        let (trace, steps) = (self.trace.digest(), self.made);
        Ok(Outcome { rules, phases: self.tally.finish(), trace, steps })
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Offer => self.offer(),
            Event::Phase => {
                self.next_phase();
                Ok(())
            }
            Event::Crash { fault } => {
                self.crash(fault);
                Ok(())
            }
            Event::Reach { job } => {
                self.reach(job);
                Ok(())
            }
            Event::Worked { job } => self.worked(job),
            Event::Reply { of, ended } => self.ended(of, ended),
            Event::Late { of } => self.ended(of, Ended::TimedOut),
            Event::Expired { call } => self.expired(call),
            Event::Again { call } => self.again(call),
            Event::Hedge { call } => self.hedge(call),
        }
    }

    /// Somebody outside wants something of the first hop.
    fn offer(&mut self) -> Result<(), Broken> {
        if self.phase == self.scenario.phases.len() {
            return Ok(());
        }
        self.next_offer();
        self.tally.offered(self.phase);
        self.turn = (self.turn + 1) % self.scenario.callers;
        let caller = self.turn as usize;
        let request = Request {
            idempotent: self.offers.percent(self.scenario.idempotent_percent),
            inherited: false,
            deadline: At::MAX,
        };
        self.call((0, caller), None, request)
    }

    fn next_offer(&mut self) {
        let rate = self.scenario.phases.get(self.phase).map_or(1, |it| it.rate);
        let mean = Duration::from_secs(1) / rate.max(1);
        let wait = match self.scenario.arrivals {
            Arrivals::Poisson => self.offers.exponential(mean),
            Arrivals::Constant => nanos(mean),
        };
        self.at(self.now + wait, Event::Offer);
    }

    fn next_phase(&mut self) {
        let callers = self.callers.iter().flatten();
        self.tally.over(self.phase, callers.map(|it| it.caller.ejections()).sum());
        self.phase += 1;
        if let Some(phase) = self.scenario.phases.get(self.phase) {
            self.until += nanos(phase.length);
            self.at(self.until, Event::Phase);
        }
    }

    /// Makes `event` happen at `at`.
    fn at(&mut self, at: At, event: Event) {
        self.made += 1;
        self.events.push(Reverse((at, self.made, event)));
    }

    fn violation(&self, Broken(what): Broken) -> Violation {
        let (hop, caller) = self.party;
        let name = self.scenario.hops.get(hop).map(|it| &*it.name).unwrap_or_default();
        let at = Duration::from_nanos(self.now);
        Violation { what, caller: format!("caller {caller} of {name}"), at, seed: self.seed }
    }
}
