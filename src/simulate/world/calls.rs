//! Calls: what callers do, from the first try of a request to its end.

use super::{
    super::{
        audit::Broken,
        rules::{Answer, Ended, Failure, Kind, Next, Request},
        slab::Key,
        time::nanos,
    },
    Call, Event, Job, Try, World,
};

impl World<'_> {
    /// Calls `hop` as its caller number `caller`, because of job `parent`.
    pub(super) fn call(
        &mut self,
        (hop, caller): (usize, usize),
        parent: Option<Key>,
        request: Request,
    ) -> Result<(), Broken> {
        let timeout = nanos(self.scenario.hops[hop].policy.timeouts.request);
        let mut deadline = self.now.saturating_add(timeout);
        if self.told.deadline {
            deadline = deadline.min(request.deadline);
        }
        let request = Request { deadline, ..request };
        let call = self.calls.insert(Call {
            hop,
            caller,
            parent,
            request,
            began: self.now,
            phase: self.phase,
            tries: 0,
            again: false,
            live: Vec::new(),
            waiting: None,
            failed: None,
        });
        if deadline <= self.now {
            return self.end(call, Ended::TimedOut, true);
        }
        self.at(deadline, Event::Expired { call });
        self.send(call, Kind::First)
    }

    /// Sends a try of `call`, or ends it where that must not be.
    fn send(&mut self, key: Key, kind: Kind) -> Result<(), Broken> {
        let Some(call) = self.calls.get_mut(key) else { return Ok(()) };
        let (hop, number, mut request) = (call.hop, call.caller, call.request);
        let failed = call.failed;
        self.party = (hop, number);
        let party = &mut self.callers[hop][number];
        let avoid = failed.map(|(_, endpoint)| endpoint);
        let picked = party.caller.pick(kind, avoid, self.now, &mut party.chance)?;
        let Some(pick) = picked else {
            let last = self.told.attempt;
            let refused = Ended::Answered(Answer { status: 503, last });
            return self.end(key, failed.map_or(refused, |(ended, _)| ended), last);
        };
        let patience = party.caller.patience(request, call.tries, self.now);
        let hedge = party.caller.hedge_after(request).filter(|_| kind == Kind::First);
        call.tries = call.tries.saturating_add(1);
        call.again |= kind == Kind::Free;
        let endpoint = pick.endpoint;
        let of = self.tries.insert(Try { call: key, endpoint, token: pick.token, sent: self.now });
        call.live.push(of);
        let deadline = request.deadline;
        let late = patience.map(|it| self.now.saturating_add(it)).filter(|it| *it < deadline);
        request.inherited |= kind == Kind::Granted;
        request.inherited &= self.told.attempt;
        request.deadline = late.unwrap_or(deadline);
        let job = self.jobs.insert(Job { of, hop, server: endpoint, request });
        self.trace.note(&[hop as u64, number as u64, u64::from(endpoint), job.number()]);
        self.at(self.now + nanos(self.scenario.network), Event::Reach { job });
        if let Some(late) = late {
            self.at(late, Event::Late { of });
        }
        if let Some(wait) = hedge {
            self.at(self.now + wait, Event::Hedge { call: key });
        }
        Ok(())
    }

    /// A try has ended; nothing where it was given up before.
    pub(super) fn ended(&mut self, of: Key, ended: Ended) -> Result<(), Broken> {
        let Some(Try { call: key, endpoint, token, sent }) = self.tries.remove(of) else {
            return Ok(());
        };
        let Some(call) = self.calls.get_mut(key) else { return Ok(()) };
        call.live.retain(|it| *it != of);
        self.trace.note(&[key.number(), u64::from(ended.status())]);
        self.party = (call.hop, call.caller);
        let party = &mut self.callers[call.hop][call.caller];
        party.caller.settle(token, Some(ended), (self.now, self.now - sent))?;
        if ended.is_good() {
            return self.end(key, ended, false);
        }
        call.failed = Some((ended, endpoint));
        if !call.live.is_empty() || call.waiting.is_some() {
            return Ok(());
        }
        let failure = Failure { ended, tries: call.tries, again: call.again };
        match party.caller.judge(call.request, failure, self.now, &mut party.chance)? {
            Next::Try(kind, wait) => {
                call.waiting = Some(kind);
                self.at(self.now + wait, Event::Again { call: key });
                Ok(())
            }
            Next::End { last } => self.end(key, ended, last),
        }
    }

    /// The wait before another try is over.
    pub(super) fn again(&mut self, key: Key) -> Result<(), Broken> {
        let waiting = self.calls.get_mut(key).and_then(|it| it.waiting.take());
        waiting.map_or(Ok(()), |kind| self.send(key, kind))
    }

    /// A call that has no answer yet may get a second try beside the first.
    pub(super) fn hedge(&mut self, key: Key) -> Result<(), Broken> {
        let Some(call) = self.calls.get_mut(key) else { return Ok(()) };
        let &[first] = call.live.as_slice() else { return Ok(()) };
        if call.tries != 1 {
            return Ok(());
        }
        self.party = (call.hop, call.caller);
        if !self.callers[call.hop][call.caller].caller.hedge(self.now)? {
            return Ok(());
        }
        let first = self.tries.get(first).map_or(0, |it| it.endpoint);
        call.failed = Some((Ended::TimedOut, first));
        self.send(key, Kind::Granted)
    }

    /// A call has taken as long as it may.
    pub(super) fn expired(&mut self, key: Key) -> Result<(), Broken> {
        let Some(call) = self.calls.get_mut(key) else { return Ok(()) };
        let live = std::mem::take(&mut call.live);
        let (hop, number) = (call.hop, call.caller);
        self.party = (hop, number);
        for of in live {
            let Some(Try { token, sent, .. }) = self.tries.remove(of) else { continue };
            let (now, took) = (self.now, self.now - sent);
            let caller = &mut self.callers[hop][number].caller;
            caller.settle(token, Some(Ended::TimedOut), (now, took))?;
        }
        self.end(key, Ended::TimedOut, false)
    }

    /// A call is over. `last` tells whoever waits for it not to try again.
    fn end(&mut self, key: Key, ended: Ended, last: bool) -> Result<(), Broken> {
        let Some(call) = self.calls.remove(key) else { return Ok(()) };
        let caller = &mut self.callers[call.hop][call.caller].caller;
        for of in call.live {
            let Some(Try { token, sent, .. }) = self.tries.remove(of) else { continue };
            caller.settle(token, None, (self.now, self.now - sent))?;
        }
        if call.waiting == Some(Kind::Granted) {
            caller.abandon();
        }
        match call.parent {
            // The application answers as it was answered, and so does the sidecar: it knows
            // by its trace that the call belongs to this request.
            Some(job) => {
                self.answer(job, Answer { status: ended.status(), last });
            }
            None if ended.is_good() => self.tally.good(call.phase, self.now - call.began),
            None => (),
        }
        Ok(())
    }
}
