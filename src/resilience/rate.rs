//! Rate: how often something may happen, exactly, for as many callers as come.
//!
//! The generic cell rate algorithm keeps one instant for each caller, the theoretical arrival
//! time `tat` at which its bucket is full again. With `T = per / requests`,
//!
//! ```text
//! next = max(tat, now) + T;   allowed if next - now <= burst * T, and then tat = next
//! ```
//!
//! so over any stretch of time `t` no caller gets more than `burst + t / T`, and one that is
//! refused knows to the nanosecond when it would not be: a refusal is not charged. All is
//! whole nanoseconds since [`Buckets::new`]; `T` is rounded up, never over the rate.
//!
//! What callers call themselves is theirs to choose, so nothing of it is kept but a hash
//! under a secret of the buckets' own, and no more than [`KEYS_MAX`] of those. A bucket
//! that is full again is the same as none and makes room for a new one. Where none is full,
//! callers that are not known yet share one bucket: those that flood us with names of their
//! own get what a single caller gets, and push out nobody.
//!
//! # Sources
//!
//! - ITU-T I.371 (2004), annex A: the generic cell rate algorithm (virtual scheduling).
//! - Aumasson, Bernstein: *`SipHash`: a fast short-input PRF*: tables that hostile keys fill.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

/// Callers that have a bucket of their own: some 300 KiB of table at the most.
pub const KEYS_MAX: usize = 10_000;

/// How often buckets that are full again are looked for. A look costs some 20 µs, so that a
/// flood of new keys costs no more than a few thousandths of a core.
const SWEEP: Duration = Duration::from_millis(100);

/// A rate and how much of it may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many, at least 1 …
    pub requests: u32,
    /// … in how long, at least a nanosecond for each.
    pub per: Duration,
    /// How many may come at once, at least 1.
    pub burst: u32,
}

/// Who a bucket is for: a hash of its name that nobody outside can aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(u64);

/// What was decided about one request.
#[must_use = "a refused request must not be let in"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may happen, and was charged.
    pub allowed: bool,
    /// How many more could come right now.
    pub remaining: u32,
    /// When all of the burst could.
    pub reset: Duration,
    /// When one could: zero where one could now.
    pub retry_after: Duration,
}

/// The buckets of one rate.
#[derive(Debug)]
pub struct Buckets {
    /// `T`, in nanoseconds.
    interval: u64,
    /// `burst * T`, in nanoseconds.
    tolerance: u64,
    origin: Instant,
    /// `tat` of each caller, in nanoseconds since `origin`.
    known: HashMap<Key, u64, RandomState>,
    keys_max: usize,
    /// `tat` of all other callers together.
    others: u64,
    /// When it pays to look for room again.
    sweep_at: u64,
}

impl Rate {
    /// `T`: how far apart requests are that come at the rate.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns())
    }

    fn interval_ns(&self) -> u64 {
        nanoseconds(self.per).div_ceil(u64::from(self.requests.max(1))).max(1)
    }
}

impl Buckets {
    /// Buckets for up to `keys_max` callers, all of them full. What callers call themselves is
    /// hashed under `secret`.
    pub fn new(rate: Rate, keys_max: usize, secret: RandomState, now: Instant) -> Self {
        let interval = rate.interval_ns();
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(rate.burst.max(1))),
            origin: now,
            known: HashMap::with_hasher(secret),
            keys_max,
            others: 0,
            sweep_at: 0,
        }
    }

    /// Asks for one request of the caller `name`, and charges it when allowed.
    pub fn take(&mut self, name: &[u8], now: Instant) -> Decision {
        let (interval, tolerance) = (self.interval, self.tolerance);
        let now = nanoseconds(now.saturating_duration_since(self.origin));
        let tat = self.bucket(self.key(name), now);
        let full_at = (*tat).max(now);
        let next = full_at.saturating_add(interval);
        let allowed = next - now <= tolerance;
        if allowed {
            *tat = next;
        }
        let used = (*tat).max(now) - now;
        let free = tolerance.saturating_sub(used);
        Decision {
            allowed,
            remaining: u32::try_from(free / interval).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(used),
            retry_after: Duration::from_nanos(interval.saturating_sub(free)),
        }
    }

    /// Takes back the charge for one request of `name` that did not happen after all.
    pub fn give_back(&mut self, name: &[u8]) {
        let key = self.key(name);
        let tat = self.known.get_mut(&key).unwrap_or(&mut self.others);
        *tat = tat.saturating_sub(self.interval);
    }

    /// How many callers have a bucket of their own.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nobody has.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn key(&self, name: &[u8]) -> Key {
        Key(self.known.hasher().hash_one(name))
    }

    /// The bucket of `key`: its own if there is one or room for one.
    fn bucket(&mut self, key: Key, now: u64) -> &mut u64 {
        let is_crowded = self.keys_max <= self.known.len() && !self.known.contains_key(&key);
        if is_crowded && self.sweep_at <= now {
            self.sweep(now);
        }
        if is_crowded && self.keys_max <= self.known.len() {
            return &mut self.others;
        }
        self.known.entry(key).or_insert(now)
    }

    /// Forgets the buckets that are full again.
    fn sweep(&mut self, now: u64) {
        self.known.retain(|_, tat| now < *tat);
        // Nothing can be forgotten before the first of them is full.
        let first = self.known.values().min().copied().unwrap_or(now);
        self.sweep_at = first.max(now.saturating_add(nanoseconds(SWEEP)));
    }
}

/// Whole nanoseconds; five centuries of them fit.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const TEN_A_SECOND: Rate = Rate { requests: 10, per: Duration::from_secs(1), burst: 5 };

    #[test]
    fn a_burst_is_let_in_at_once_and_the_rest_at_the_rate() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        let at = |buckets: &mut Buckets, ms| {
            buckets.take(b"a", start + Duration::from_millis(ms)).allowed
        };
        assert_eq!((0..8).filter(|_| at(&mut buckets, 0)).count(), 5);
        assert!(!at(&mut buckets, 99) && at(&mut buckets, 100) && !at(&mut buckets, 100));
        // A second at the rate, whoever asks however often.
        assert_eq!((101..=1_100).filter(|ms| at(&mut buckets, *ms)).count(), 10);
    }

    #[test]
    fn a_refused_caller_is_told_the_very_nanosecond() {
        let rate = Rate { requests: 3, per: Duration::from_secs(1), burst: 1 };
        let (mut buckets, start) = buckets(rate, KEYS_MAX);
        assert!(buckets.take(b"a", start).allowed);
        let at = start + Duration::from_nanos(1_234_567);
        let refused = buckets.take(b"a", at);
        assert!(!refused.allowed && refused.remaining == 0);
        assert_eq!(refused.retry_after, Duration::from_nanos(333_333_334 - 1_234_567));
        let early = refused.retry_after.saturating_sub(Duration::from_nanos(1));
        assert!(!buckets.take(b"a", at + early).allowed);
        assert!(buckets.take(b"a", at + refused.retry_after).allowed);
    }

    #[test]
    fn a_refusal_is_not_charged() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        for _ in 0..1_000 {
            let _refused = buckets.take(b"a", start);
        }
        assert!(buckets.take(b"a", start + TEN_A_SECOND.interval()).allowed);
    }

    #[test]
    fn a_request_that_did_not_happen_is_not_charged() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        while buckets.take(b"a", start).allowed {}
        buckets.give_back(b"a");
        assert!(buckets.take(b"a", start).allowed);
        assert!(!buckets.take(b"a", start).allowed);
    }

    #[test]
    fn what_remains_can_be_had_and_no_more() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        for expected in [4, 3, 2, 1, 0] {
            let decision = buckets.take(b"a", start);
            assert_eq!((decision.allowed, decision.remaining), (true, expected));
            let used = u64::from(5 - expected);
            assert_eq!(decision.reset, Duration::from_millis(100 * used));
        }
    }

    #[test]
    fn one_caller_does_not_use_up_what_another_may() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        while buckets.take(b"a", start).allowed {}
        assert_eq!(buckets.take(b"b", start).remaining, 4);
    }

    #[test]
    fn a_flood_of_keys_neither_grows_the_table_nor_pushes_anybody_out() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, 100);
        while buckets.take(b"honest", start).allowed {}
        let flooded = (0..100_000)
            .filter(|it| buckets.take(format!("flood {it}").as_bytes(), start).allowed)
            .count();
        assert_eq!(buckets.len(), 100);
        // 99 with a bucket of their own, and five for all the others.
        assert_eq!(flooded, 99 + 5);
        // Remembered: were it forgotten, it could burst again.
        assert!(!buckets.take(b"honest", start).allowed);
    }

    #[test]
    fn a_bucket_that_is_full_again_makes_room() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, 2);
        let _ones = ["a", "b", "b"].map(|it| buckets.take(it.as_bytes(), start));
        while buckets.take(b"c", start).allowed {}
        let later = start + Duration::from_millis(100);
        // `a` is full again this very moment, `b` will be at 200 ms.
        assert_eq!(buckets.take(b"c", later).remaining, 4);
        assert_eq!(buckets.take(b"b", later).remaining, 3);
        assert_eq!(buckets.len(), 2);
    }

    #[test]
    fn a_clock_that_runs_backwards_gives_nothing_away() {
        let (mut buckets, start) = buckets(TEN_A_SECOND, KEYS_MAX);
        let later = start + Duration::from_secs(1);
        while buckets.take(b"a", later).allowed {}
        assert!(!buckets.take(b"a", start).allowed);
        assert!(!buckets.take(b"a", later).allowed);
    }

    #[test]
    fn the_longest_burst_of_the_slowest_rate_does_not_overflow() {
        let rate = Rate { requests: 1, per: Duration::from_hours(24), burst: u32::MAX };
        let (mut buckets, start) = buckets(rate, KEYS_MAX);
        let decision = buckets.take(b"a", start);
        assert!(decision.allowed && 0 < decision.remaining);
    }

    proptest! {
        /// The plainest model keeps what was allowed, and allows what leaves every stretch of
        /// time that ends now within `burst + t / T`.
        #[test]
        fn as_much_is_allowed_as_a_log_of_all_requests_allows(
            requests in 1_u32..50,
            burst in 1_u32..8,
            steps in vec((0_u64..400_000_000, 0_u8..3), 1..200),
        ) {
            let rate = Rate { requests, per: Duration::from_secs(1), burst };
            let (mut buckets, start) = buckets(rate, KEYS_MAX);
            let mut logs: [Vec<Duration>; 3] = Default::default();
            let mut now = Duration::ZERO;
            for (step, caller) in steps {
                now += Duration::from_nanos(step);
                let log = &mut logs[usize::from(caller)];
                log.push(now);
                let fits = log.iter().enumerate().all(|(index, since)| {
                    let sent = u32::try_from(log.len() - index).unwrap();
                    sent <= burst || rate.interval() * (sent - burst) <= now.abs_diff(*since)
                });
                let decision = buckets.take(&[caller], start + now);
                prop_assert_eq!(decision.allowed, fits, "at {:?} of {:?}", now, log);
                prop_assert_eq!(decision.retry_after.is_zero(), 0 < decision.remaining);
                if !fits {
                    log.pop();
                }
            }
        }
    }

    fn buckets(rate: Rate, keys_max: usize) -> (Buckets, Instant) {
        let start = crate::clock::now();
        (Buckets::new(rate, keys_max, RandomState::new(), start), start)
    }
}
