//! Window: how many requests of late succeeded and failed, in constant time and space.
//!
//! The window moves by whole buckets, a tenth of its length: what it covers is up to a
//! bucket shorter than the length asked for, never longer. A result belongs to the bucket
//! its request **began** in: a request that took a minute says how things were a minute
//! ago, and where that is before the window it says nothing.
//!
//! The length is an argument rather than a field: a window costs a hundred bytes in each
//! endpoint, and a change of settings takes effect with the next bucket, forgetting nothing.
//!
//! # Sources
//!
//! - gobreaker v2: the rolling window, and the credit to the bucket of the start.

use std::time::{Duration, Instant};

/// Fine enough that one bucket's end is no cliff, few enough to sum at each failure.
const BUCKETS: u32 = 10;

/// Results of requests over a trailing window.
///
/// Pure state: an instant before one already seen counts as the latest one seen.
#[derive(Debug)]
pub struct Window {
    /// When the latest bucket began.
    begun: Instant,
    latest: Tick,
    /// By [`Tick`], modulo their number.
    buckets: [Counts; BUCKETS as usize],
}

/// The number of a bucket; after the largest comes 0, in a century or so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(u32);

/// Requests that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Well.
    pub ok: u32,
    /// In a failure.
    pub failed: u32,
}

impl Window {
    /// A window that has seen nothing.
    pub fn new(now: Instant) -> Self {
        let buckets = [Counts::default(); BUCKETS as usize];
        Self { begun: now, latest: Tick(0), buckets }
    }

    /// The bucket of a request that begins now.
    pub fn tick(&mut self, length: Duration, now: Instant) -> Tick {
        let (steps, into) = self.steps(length, now);
        if steps > 0 {
            for step in 1..=steps.min(BUCKETS) {
                self.buckets[self.latest.after(step).index()] = Counts::default();
            }
            self.latest = self.latest.after(steps);
            self.begun = now.checked_sub(into).unwrap_or(now);
        }
        self.latest
    }

    /// Counts a request that began in the bucket `tick`.
    pub fn credit(&mut self, tick: Tick, ok: bool) {
        if self.latest.0.wrapping_sub(tick.0) < BUCKETS {
            let bucket = &mut self.buckets[tick.index()];
            let count = if ok { &mut bucket.ok } else { &mut bucket.failed };
            *count = count.saturating_add(1);
        }
    }

    /// What was counted in the window that ends now.
    pub fn counts(&self, length: Duration, now: Instant) -> Counts {
        let (steps, _) = self.steps(length, now);
        // The oldest buckets are those the next ones will take the place of.
        (1..=BUCKETS).skip(steps as usize).fold(Counts::default(), |sum, it| {
            let bucket = self.buckets[self.latest.after(it).index()];
            Counts {
                ok: sum.ok.saturating_add(bucket.ok),
                failed: sum.failed.saturating_add(bucket.failed),
            }
        })
    }

    /// Forgets what was counted; ticks go on.
    pub fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS as usize];
    }

    /// How many buckets began since the latest, and how long ago the last of them.
    fn steps(&self, length: Duration, now: Instant) -> (u32, Duration) {
        let width = (length / BUCKETS).max(Duration::from_nanos(1));
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed < width {
            return (0, elapsed);
        }
        let (elapsed, width) = (elapsed.as_nanos(), width.as_nanos());
        let into = Duration::from_nanos(u64::try_from(elapsed % width).unwrap_or(0));
        (u32::try_from(elapsed / width).unwrap_or(u32::MAX), into)
    }
}

impl Counts {
    /// All of them.
    pub fn total(self) -> u32 {
        self.ok.saturating_add(self.failed)
    }
}

impl Tick {
    fn after(self, steps: u32) -> Self {
        Self(self.0.wrapping_add(steps))
    }

    fn index(self) -> usize {
        (self.0 % BUCKETS) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn successes_and_failures_are_counted_apart() {
        let (mut window, now) = window();
        let tick = window.tick(LENGTH, now);
        for ok in [true, false, true] {
            window.credit(tick, ok);
        }
        let counts = window.counts(LENGTH, now);
        assert_eq!((counts, counts.total()), (Counts { ok: 2, failed: 1 }, 3));
    }

    #[test]
    fn a_result_counts_from_when_its_request_began() {
        let (mut window, start) = window();
        let tick = window.tick(LENGTH, start);
        let _later = window.tick(LENGTH, start + 9 * SECOND);
        window.credit(tick, false);
        assert_eq!(window.counts(LENGTH, start + 9 * SECOND).failed, 1);
        assert_eq!(window.counts(LENGTH, start + LENGTH).failed, 0);
    }

    #[test]
    fn a_request_that_began_before_the_window_says_nothing() {
        let (mut window, start) = window();
        let tick = window.tick(LENGTH, start);
        let _later = window.tick(LENGTH, start + LENGTH);
        window.credit(tick, false);
        assert_eq!(window.counts(LENGTH, start + LENGTH), Counts::default());
    }

    #[test]
    fn a_clock_running_backwards_forgets_nothing() {
        let (mut window, start) = window();
        let tick = window.tick(LENGTH, start + 15 * SECOND);
        window.credit(tick, true);
        assert_eq!(window.tick(LENGTH, start), tick);
        window.credit(tick, true);
        assert_eq!(window.counts(LENGTH, start).ok, 2);
    }

    #[test]
    fn another_length_forgets_nothing_that_is_not_older() {
        let (mut window, start) = window();
        let tick = window.tick(LENGTH, start);
        window.credit(tick, true);
        assert_eq!(window.counts(6 * LENGTH, start + 53 * SECOND).ok, 1);
        assert_eq!(window.counts(LENGTH / 10, start + SECOND).ok, 0);
    }

    #[test]
    fn what_is_cleared_is_forgotten_and_ticks_go_on() {
        let (mut window, start) = window();
        let early = window.tick(LENGTH, start);
        let tick = window.tick(LENGTH, start + 3 * SECOND);
        window.credit(tick, true);
        window.clear();
        assert_eq!(window.counts(LENGTH, start + 3 * SECOND).total(), 0);
        assert_ne!(window.tick(LENGTH, start + 3 * SECOND), early);
    }

    #[test]
    fn neither_no_length_nor_a_long_sleep_is_too_much() {
        let (mut window, start) = window();
        let day = Duration::from_hours(24);
        for step in 1..3 {
            let tick = window.tick(Duration::ZERO, start + step * day);
            window.credit(tick, false);
            assert_eq!(window.counts(Duration::ZERO, start + step * day).total(), 1);
        }
        assert_eq!(window.counts(LENGTH, start + 3 * day).total(), 0);
        let _tick = window.tick(LENGTH, start + 3 * day);
        assert_eq!(window.counts(LENGTH, start + 3 * day).total(), 0);
    }

    proptest! {
        /// Against a log of every result, with the requests in their buckets.
        #[test]
        fn it_counts_what_a_log_would(
            steps in vec((0_u64..2_500, 0_usize..20, any::<bool>()), 1..300),
        ) {
            let (mut window, start) = window();
            let (mut now, mut begun, mut ended) = (start, Vec::new(), Vec::new());
            for (advance_ms, ends, ok) in steps {
                now += Duration::from_millis(advance_ms);
                begun.push((now, window.tick(LENGTH, now)));
                if let Some((at, tick)) = begun.get(ends).copied() {
                    begun.swap_remove(ends);
                    window.credit(tick, ok);
                    ended.push((at, ok));
                }
                let bucket = |at: Instant| (at - start).as_secs();
                let live = ended.iter().filter(|it| bucket(now) - bucket(it.0) < 10);
                let (ok, failed): (Vec<_>, Vec<_>) = live.copied().partition(|it| it.1);
                let counts = window.counts(LENGTH, now);
                prop_assert_eq!((counts.ok as usize, counts.failed as usize), (ok.len(), failed.len()));
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin: only differences are read")]
    fn window() -> (Window, Instant) {
        let start = Instant::now();
        (Window::new(start), start)
    }
}
