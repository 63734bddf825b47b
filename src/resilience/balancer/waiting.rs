//! Waiting: which requests have waited longest for their answers, at each endpoint.
//!
//! The requests of an endpoint stand in lines in the order they were sent, those of routes
//! about as slow in one line: who waits for a report that always takes a minute does not
//! hide who waits for an answer that always takes a millisecond. To join, to leave from
//! anywhere and to ask who is first each take constant time, and allocate nothing except
//! where more requests wait than ever before.
//!
//! An endpoint that is removed leaves its lines behind: those in them still leave one by one,
//! and no other line is touched.

use std::time::Instant;

use super::super::service::RouteId;

/// No place.
const NONE: u32 = u32::MAX;

/// The lines of all endpoints.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Vec<Place>,
    /// The first of the places nobody has, chained by `next`.
    free: u32,
}

/// How slow a route is: its answers take about a hundred milliseconds or less, a second, ten,
/// or longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Quick,
    Brisk,
    Slow,
    Long,
}

/// The lines of one endpoint, by [`Pace`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines([Line; 4]);

/// The two ends of a line.
#[derive(Clone, Copy, Debug)]
struct Line {
    first: u32,
    last: u32,
}

/// What a request that waits knows its place by.
#[derive(Debug)]
pub(super) struct Ticket {
    place: u32,
    pace: Pace,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    start: Instant,
    route: RouteId,
    before: u32,
    next: u32,
}

impl Default for Line {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: NONE }
    }

    /// Puts a request at the end of its line.
    pub(super) fn join(
        &mut self,
        lines: &mut Lines,
        pace: Pace,
        start: Instant,
        route: RouteId,
    ) -> Ticket {
        let line = &mut lines.0[pace as usize];
        let place = Place { start, route, before: line.last, next: NONE };
        let mut at = self.free;
        if let Some(free) = self.places.get_mut(at as usize) {
            self.free = free.next;
            *free = place;
        } else {
            // As many as there are requests under way, far below `u32`.
            at = u32::try_from(self.places.len()).unwrap_or(NONE);
            self.places.push(place);
        }
        match self.places.get_mut(line.last as usize) {
            Some(before) => before.next = at,
            None => line.first = at,
        }
        line.last = at;
        Ticket { place: at, pace }
    }

    /// Takes a request out of its line; `lines` is `None` where its endpoint has been
    /// removed.
    #[expect(clippy::needless_pass_by_value, reason = "a place is left once")]
    pub(super) fn leave(&mut self, lines: Option<&mut Lines>, ticket: Ticket) {
        let Some(place) = self.places.get(ticket.place as usize).copied() else { return };
        let mut gone = Lines::default();
        let line = &mut lines.unwrap_or(&mut gone).0[ticket.pace as usize];
        match self.places.get_mut(place.before as usize) {
            Some(before) => before.next = place.next,
            None => line.first = place.next,
        }
        match self.places.get_mut(place.next as usize) {
            Some(next) => next.before = place.before,
            None => line.last = place.before,
        }
        self.places[ticket.place as usize].next = self.free;
        self.free = ticket.place;
    }

    /// Since when, and on which route, the first of each line waits.
    pub(super) fn firsts(&self, lines: &Lines) -> impl Iterator<Item = (Instant, RouteId)> {
        let first = |it: &Line| self.places.get(it.first as usize);
        lines.0.iter().filter_map(first).map(|it| (it.start, it.route))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use std::time::Duration;

    proptest! {
        /// Lines agree with plain lists, whoever leaves in whatever order, and whenever an
        /// endpoint is removed.
        #[test]
        fn lines_agree_with_plain_lists(steps in vec((0_u8..6, 0_usize..3, any::<usize>()), 1..300)) {
            let origin = origin();
            let mut waiting = Waiting::new();
            let mut lines: Vec<(Lines, Vec<(u64, Ticket)>)> =
                (0..3).map(|_| (Lines::default(), Vec::new())).collect();
            let mut removed: Vec<Ticket> = Vec::new();
            let mut most = 0;
            for (n, (action, which, any)) in (0_u64..).zip(steps) {
                let (line, list) = &mut lines[which];
                match action {
                    0..3 => {
                        let start = origin + Duration::from_secs(n);
                        let pace = if n % 3 == 0 { Pace::Slow } else { Pace::Quick };
                        list.push((n, waiting.join(line, pace, start, RouteId(7))));
                    }
                    3 | 4 if !list.is_empty() => {
                        let (_, ticket) = list.remove(any % list.len());
                        waiting.leave(Some(line), ticket);
                    }
                    5 if any % 3 == 0 => {
                        removed.extend(list.drain(..).map(|(_, ticket)| ticket));
                        *line = Lines::default();
                    }
                    _ if !removed.is_empty() => {
                        waiting.leave(None, removed.swap_remove(any % removed.len()));
                    }
                    _ => (),
                }
                let held = lines.iter().map(|it| it.1.len()).sum::<usize>() + removed.len();
                most = most.max(held);
                prop_assert!(waiting.places.len() <= most, "places are used again");
                for (line, list) in &lines {
                    let first = |is_slow: bool| {
                        let it = list.iter().find(|(n, _)| (n % 3 == 0) == is_slow);
                        it.map(|(n, _)| (origin + Duration::from_secs(*n), RouteId(7)))
                    };
                    let expected: Vec<_> = [first(false), first(true)].into_iter().flatten().collect();
                    prop_assert_eq!(waiting.firsts(line).collect::<Vec<_>>(), expected);
                }
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin: only differences are read")]
    fn origin() -> Instant {
        Instant::now()
    }
}
