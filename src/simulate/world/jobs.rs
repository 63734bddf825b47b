//! Jobs: what servers do, from a request that reaches one to its answer.

use super::{
    super::{
        audit::Broken,
        rules::{Answer, Ended},
        server::Manner,
        slab::Key,
        time::nanos,
    },
    Event, Job, World,
};

impl World<'_> {
    /// A request reaches its server.
    pub(super) fn reach(&mut self, key: Key) {
        let Some(&Job { hop, server, request, .. }) = self.jobs.get(key) else { return };
        let phase = self.phase.min(self.scenario.phases.len().saturating_sub(1));
        self.tally.reached(phase, (hop, server), self.bad(hop, server));
        // What nobody waits for any more is refused before the application sees it.
        if self.told.deadline && request.deadline <= self.now {
            return self.reply(key, Ended::Answered(Answer { status: 504, last: true }), 0);
        }
        match self.servers[hop][server as usize].manner(self.now) {
            Manner::Takes => {
                let next = self.servers[hop][server as usize].take(key);
                self.begin(next);
            }
            Manner::Answers(status, after) => {
                self.reply(key, Ended::Answered(Answer { status, last: false }), after);
            }
            Manner::Keeps => drop(self.jobs.remove(key)),
            Manner::Refuses => self.reply(key, Ended::Refused, 0),
        }
    }

    /// Whether a copy of `hop` has a fault of its own just now, and whether `server` has.
    fn bad(&self, hop: usize, server: u32) -> (bool, bool) {
        let now = self.now;
        let active = self.scenario.faults.iter().filter(|it| {
            let time = nanos(it.from)..nanos(it.until);
            it.hop == hop && !it.instances.is_empty() && time.contains(&now)
        });
        active.fold((false, false), |(_, at), it| (true, at || it.instances.contains(&server)))
    }

    /// A worker begins with `job`, if there is one.
    fn begin(&mut self, job: Option<Key>) {
        let Some(key) = job else { return };
        let Some(&Job { hop, server, .. }) = self.jobs.get(key) else { return };
        let took = self.servers[hop][server as usize].work(self.now);
        self.at(self.now + took, Event::Worked { job: key });
    }

    /// The work on a job is done: the next hop is called, or there is none.
    pub(super) fn worked(&mut self, key: Key) -> Result<(), Broken> {
        let Some(&Job { hop, server, request, .. }) = self.jobs.get(key) else { return Ok(()) };
        if self.servers[hop][server as usize].hangs(self.now) {
            self.jobs.remove(key);
            let next = self.servers[hop][server as usize].release(key);
            self.begin(next);
            return Ok(());
        }
        if hop + 1 == self.scenario.hops.len() {
            self.answer(key, Answer { status: 200, last: false });
            return Ok(());
        }
        self.call((hop + 1, server as usize), Some(key), request)
    }

    /// A job ends with `answer`; nothing where it is gone.
    pub(super) fn answer(&mut self, key: Key, answer: Answer) {
        let Some(&Job { hop, server, .. }) = self.jobs.get(key) else { return };
        self.reply(key, Ended::Answered(answer), 0);
        let next = self.servers[hop][server as usize].release(key);
        self.begin(next);
    }

    /// Everything that is under way at some copies is lost.
    pub(super) fn crash(&mut self, fault: usize) {
        let Some(fault) = self.scenario.faults.get(fault) else { return };
        for server in 0..self.servers[fault.hop].len() {
            if !fault.concerns(fault.hop, u32::try_from(server).unwrap_or(u32::MAX)) {
                continue;
            }
            let it = &mut self.servers[fault.hop][server];
            let lost: Vec<_> = it.working.drain(..).chain(it.queue.drain(..)).collect();
            for key in lost {
                self.reply(key, Ended::Reset, 0);
            }
        }
    }

    /// Sends `ended` back after some time; the job is over.
    fn reply(&mut self, key: Key, ended: Ended, after: u64) {
        if let Some(Job { of, .. }) = self.jobs.remove(key) {
            let at = self.now + after + nanos(self.scenario.network);
            self.at(at, Event::Reply { of, ended });
        }
    }
}
