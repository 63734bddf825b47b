//! Traces: what an application is at work on, found again by the calls it makes for it.
//!
//! How long a caller waits, and that its request was a retry already, has to reach the calls
//! that the application makes on its behalf; few applications copy such headers. Many copy
//! `traceparent`, so what an inbound request says is kept under its trace while it is open,
//! and an outbound request is looked up by its own. The answer goes the other way: a call
//! that must not be tried again marks the trace, and the inbound response says so.
//!
//! Only mesh peers are believed. One trace may have several requests open here: then the
//! latest deadline counts, so that none of them is cut short for another, and it counts as
//! a retry only if all of them are.
//!
//! Bounded: [`MAX`] traces, and what comes when there is no room is not kept; a request of
//! it has its own timeout still. The ids are hashed with a key nobody outside knows.
//!
//! # Sources
//!
//! - W3C Trace Context, section 3.2: `traceparent`.
//!   <https://www.w3.org/TR/trace-context/#traceparent-header>

use std::{
    collections::{HashMap, hash_map},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;

/// Traces that are kept at most.
pub const MAX: usize = SHARDS * SHARD_MAX;

/// Parts of the map, so that workers seldom meet.
const SHARDS: usize = 16;

/// Traces one part keeps.
const SHARD_MAX: usize = 1024;

/// Names one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The trace of a `traceparent`; `None` where it is not one.
    pub fn of(traceparent: &[u8]) -> Option<Self> {
        let (head, rest) = traceparent.split_at_checked(55)?;
        // A later version may have more fields, after another dash.
        let follows =
            rest.is_empty() || head.get(..2) != Some(b"00") && rest.first() == Some(&b'-');
        let dashed = [2, 35, 52].iter().all(|it| head.get(*it) == Some(&b'-'));
        let is_hex = |it: &u8| matches!(it, b'0'..=b'9' | b'a'..=b'f');
        let parts = [head.get(..2)?, head.get(3..35)?, head.get(36..52)?, head.get(53..)?];
        let [version, trace, ..] = parts;
        if !follows || !dashed || version == b"ff" || !parts.iter().all(|it| it.iter().all(is_hex))
        {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(trace.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |it, digit| it << 4 | nibble(*digit));
        }
        (id != [0; 16]).then_some(Self(id))
    }
}

/// The value of a digit of lower-case hex.
fn nibble(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
}

/// The traces of this process's open inbound requests.
#[derive(Debug, Default)]
pub struct Traces {
    shards: [Mutex<HashMap<TraceId, Entry>>; SHARDS],
    key: RandomState,
}

/// What is known of a trace.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Requests of it that are open here.
    open: u32,
    /// Those of them that are retries.
    retried: u32,
    said: Said,
    /// Calls made for it that must not be tried again.
    exhausted: u32,
}

impl Entry {
    /// Puts the deadline off until another, if that is later; to never, if there is none.
    fn outlast(&mut self, other: Option<Instant>) {
        let both = self.said.deadline.zip(other);
        self.said.deadline = both.map(|(one, other)| one.max(other));
    }
}

/// What an open inbound request says to the calls made for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// When whoever waits for it gives up, if ever.
    pub deadline: Option<Instant>,
    /// Whether it is a retry.
    pub retried: bool,
}

impl Traces {
    /// Keeps what an inbound request says until the guard is dropped; `None` where there is
    /// no room.
    pub fn open(self: &Arc<Self>, id: TraceId, said: Said) -> Option<Guard> {
        let retried = u32::from(said.retried);
        let index = self.index(id);
        let mut shard = self.shards[index].lock();
        let room = shard.len() < SHARD_MAX;
        let exhausted = match shard.entry(id) {
            hash_map::Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.outlast(said.deadline);
                (entry.open, entry.retried) = (entry.open + 1, entry.retried + retried);
                entry.exhausted
            }
            hash_map::Entry::Vacant(entry) if room => {
                entry.insert(Entry { open: 1, retried, said, exhausted: 0 });
                0
            }
            hash_map::Entry::Vacant(_) => {
                tracing::debug!("no room for another trace: its calls have only their own time");
                return None;
            }
        };
        drop(shard);
        Some(Guard { traces: Arc::clone(self), index, id, retried: said.retried, exhausted })
    }

    /// What the open inbound requests of a trace say.
    pub fn find(&self, id: TraceId) -> Option<Said> {
        let shard = self.shards[self.index(id)].lock();
        let entry = shard.get(&id)?;
        Some(Said { retried: entry.retried == entry.open, ..entry.said })
    }

    /// Notes that a call made for this trace must not be tried again.
    pub fn exhausted(&self, id: TraceId) {
        if let Some(entry) = self.shards[self.index(id)].lock().get_mut(&id) {
            entry.exhausted = entry.exhausted.wrapping_add(1);
        }
    }

    /// The part that a trace is kept in.
    #[expect(clippy::cast_possible_truncation, reason = "any bits do")]
    fn index(&self, id: TraceId) -> usize {
        self.key.hash_one(id) as usize % SHARDS
    }
}

/// An open inbound request's place among the traces.
#[derive(Debug)]
pub struct Guard {
    traces: Arc<Traces>,
    index: usize,
    id: TraceId,
    retried: bool,
    /// [`Entry::exhausted`] as it was before this one.
    exhausted: u32,
}

impl Guard {
    /// The head of the answer is there, which is what the deadline was for: from here on only
    /// what `ends` the whole call bounds those made for it. Says whether one of them must not
    /// be tried again, and so neither must the request.
    pub fn answered(&self, ends: Option<Instant>) -> bool {
        let mut shard = self.traces.shards[self.index].lock();
        let Some(entry) = shard.get_mut(&self.id) else { return false };
        entry.outlast(ends);
        entry.exhausted != self.exhausted
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut shard = self.traces.shards[self.index].lock();
        let hash_map::Entry::Occupied(mut entry) = shard.entry(self.id) else { return };
        let it = entry.get_mut();
        (it.open, it.retried) = (it.open - 1, it.retried - u32::from(self.retried));
        if it.open == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn a_traceparent_is_read_to_the_letter() {
        let tail = "-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = format!("00{tail}");
        let id = TraceId::of(parent.as_bytes()).unwrap();
        assert_eq!(id.0[..4], [0x4b, 0xf9, 0x2f, 0x35]);
        assert!(TraceId::of(format!("01{tail}-more").as_bytes()).is_some());
        for wrong in [
            String::new(),
            format!("0{tail}"),
            format!("{parent}-more"),
            format!("ff{tail}"),
            format!("01{tail}more"),
            parent.to_uppercase(),
            parent.replace('-', "_"),
            parent.replace("4bf9", "4bg9"),
            parent.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        ] {
            assert_eq!(TraceId::of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_request_says_is_found_while_it_is_open() {
        let (traces, said) = (Arc::new(Traces::default()), within(5));
        let guard = traces.open(id(1), said).unwrap();
        assert_eq!(traces.find(id(1)), Some(said));
        assert_eq!(traces.find(id(2)), None);
        drop(guard);
        assert_eq!(traces.find(id(1)), None);
    }

    #[test]
    fn no_request_is_cut_short_for_another_of_its_trace() {
        let traces = Arc::new(Traces::default());
        let soon = traces.open(id(1), within(1)).unwrap();
        let later = traces.open(id(1), within(5));
        assert!(traces.find(id(1)).unwrap().deadline > within(4).deadline);
        drop(soon);
        let endless = traces.open(id(1), Said::default());
        assert_eq!(traces.find(id(1)), Some(Said::default()));
        drop((later, endless));
        assert_eq!(traces.find(id(1)), None);
    }

    #[test]
    fn a_trace_is_a_retry_only_if_all_its_open_requests_are() {
        let traces = Arc::new(Traces::default());
        let again = traces.open(id(1), Said { retried: true, deadline: None });
        assert!(traces.find(id(1)).unwrap().retried);
        let first = traces.open(id(1), Said::default());
        assert!(!traces.find(id(1)).unwrap().retried);
        drop(first);
        assert!(traces.find(id(1)).unwrap().retried);
        drop(again);
    }

    #[test]
    fn an_answer_that_has_begun_may_go_on_past_the_deadline() {
        let traces = Arc::new(Traces::default());
        let guard = traces.open(id(1), within(1)).unwrap();
        guard.answered(None);
        assert_eq!(traces.find(id(1)), Some(Said::default()));
    }

    #[test]
    fn a_call_that_must_not_be_repeated_says_so_to_its_trace_alone() {
        let traces = Arc::new(Traces::default());
        let (one, other) = (traces.open(id(1), within(1)), traces.open(id(2), within(1)));
        traces.exhausted(id(1));
        traces.exhausted(id(3));
        assert!(one.unwrap().answered(None));
        assert!(!other.unwrap().answered(None));
        assert_eq!(traces.find(id(3)), None);
    }

    #[test]
    fn a_request_is_not_told_of_what_happened_before_it() {
        let traces = Arc::new(Traces::default());
        let before = traces.open(id(1), within(1)).unwrap();
        traces.exhausted(id(1));
        // Of a caller that sends all it has to do under one trace.
        let after = traces.open(id(1), within(1)).unwrap();
        assert!(before.answered(None));
        assert!(!after.answered(None));
        traces.exhausted(id(1));
        assert!(after.answered(None));
    }

    #[test]
    fn there_is_room_for_so_many_traces_and_no_more() {
        let traces = Arc::new(Traces::default());
        let opened = (0..2 * MAX as u128).map(|it| traces.open(id(it + 1), within(1)));
        let guards: Vec<_> = opened.flatten().collect();
        assert!(guards.len() <= MAX);
        assert!(guards.len() > MAX / 2);
        // One that is known already takes no room.
        assert!(traces.open(guards[0].id, within(1)).is_some());
        drop(guards);
        assert!(traces.shards.iter().all(|it| it.lock().is_empty()));
    }

    fn id(number: u128) -> TraceId {
        TraceId(number.to_be_bytes())
    }

    fn within(secs: u64) -> Said {
        let deadline = Some(clock::now() + Duration::from_secs(secs));
        Said { deadline, retried: false }
    }
}
