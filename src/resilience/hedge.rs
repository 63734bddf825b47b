//! Hedge: when a second try is worth sending before the first has failed.
//!
//! The second is sent when the first has taken longer than all but a small share of the
//! answers before it: it then adds about that share of load, and cuts off what is slower.
//! [`Latencies`] finds that time, [`Budget`] keeps the load bounded when the service
//! becomes slow as a whole and every first try is late.
//!
//! # Sources
//!
//! - Dean, Barroso: *The Tail at Scale*, hedged requests.
//! - Finagle `BackupRequestFilter`: the quantile from the share, a budget of its own, and
//!   what is sampled (successes, timeouts, and the first of a pair when the second wins).

use std::time::{Duration, Instant};

use super::{Mode, budget::Bucket};

/// Whether requests are hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does; off without a policy.
    pub mode: Mode,
    /// Extra load that hedges may add, in percent of the requests, `1..=20`.
    pub percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { mode: Mode::Off, percent: 2 }
    }
}

/// Hedges that may be saved up: a service that stood still for a moment is not to be sent
/// all of its requests twice.
const BURST: u32 = 10;

/// The least that is waited: below it a timer's own error decides.
const AFTER_MIN: Duration = Duration::from_millis(1);

/// The share of answers, in percent, that a hedge never overtakes.
const QUANTILE_MIN: u32 = 95;

/// Answers that have to be known before there are hedges.
const SAMPLES_MIN: u32 = 100;

/// How often the quantile is taken anew.
const REFRESH: Duration = Duration::from_secs(3);

/// Buckets of a histogram.
const BUCKETS: usize = 64;

/// The answer to [`Budget::withdraw`].
#[must_use = "only what is granted may be sent"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be sent; it has been charged.
    Granted,
    /// It must not be sent: the mode is to observe. It has been charged.
    WouldSend,
    /// It must not be sent.
    Exhausted,
}

/// What hedges may cost one service: a share of its requests and nothing before the first
/// of them. It is asked besides the [budget](super::budget) of retries.
#[derive(Debug)]
pub struct Budget(Bucket);

impl Budget {
    /// An empty budget.
    pub fn new(now: Instant) -> Self {
        Self(Bucket::new(0, now))
    }

    /// Counts one request, not its retries or hedges: it earns its share.
    pub fn deposit(&mut self, config: &Config, now: Instant) {
        if config.mode != Mode::Off {
            self.0.deposit(config.percent, now);
        }
    }

    /// Asks for one hedge, and charges it when granted.
    pub fn withdraw(&mut self, config: &Config, now: Instant) -> Verdict {
        let mut enough = || self.0.withdraw(config.percent, BURST, now);
        match config.mode {
            Mode::Off => Verdict::Exhausted,
            Mode::Enforce | Mode::Observe if !enough() => Verdict::Exhausted,
            Mode::Enforce => Verdict::Granted,
            Mode::Observe => Verdict::WouldSend,
        }
    }

    /// Takes back what was granted and not sent.
    pub fn refund(&mut self) {
        self.0.refund();
    }
}

/// How long the answers of one service take.
///
/// Answers are counted in two halves of [`REFRESH`] each, or longer where there are few:
/// when the second is full, the time to hedge after is taken from both, and the first is
/// forgotten.
#[derive(Debug)]
pub struct Latencies {
    halves: [Histogram; 2],
    /// When the half that is being filled may end.
    ends: Instant,
    after: Option<Duration>,
}

impl Latencies {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { halves: [Histogram::EMPTY; 2], ends: now + REFRESH, after: None }
    }

    /// Learns from a first try that took `latency`: it succeeded, timed out, or was
    /// overtaken by its hedge.
    pub fn record(&mut self, config: &Config, latency: Duration, now: Instant) {
        if config.mode == Mode::Off {
            return;
        }
        let [before, filling] = &mut self.halves;
        filling.add(latency);
        if now < self.ends || filling.count < SAMPLES_MIN / 2 {
            return;
        }
        if SAMPLES_MIN <= before.count + filling.count {
            let percent = QUANTILE_MIN.max(100_u32.saturating_sub(config.percent));
            self.after = Some(quantile(&self.halves, percent).max(AFTER_MIN));
        }
        let [_, filled] = self.halves;
        (self.halves, self.ends) = ([filled, Histogram::EMPTY], now + REFRESH);
    }

    /// How long a first try may take before it is hedged; `None` where there are no hedges,
    /// or too little is known.
    pub fn after(&self, config: &Config) -> Option<Duration> {
        self.after.filter(|_| config.mode != Mode::Off)
    }
}

/// Counts of latencies in buckets whose width is an eighth to a quarter of their values.
#[derive(Clone, Copy, Debug)]
struct Histogram {
    count: u32,
    buckets: [u32; BUCKETS],
}

impl Histogram {
    const EMPTY: Self = Self { count: 0, buckets: [0; BUCKETS] };

    fn add(&mut self, latency: Duration) {
        self.count = self.count.saturating_add(1);
        let bucket = &mut self.buckets[bucket(latency)];
        *bucket = bucket.saturating_add(1);
    }
}

/// The bucket of `latency`: one for each of the first units, and then four for each
/// doubling.
fn bucket(latency: Duration) -> usize {
    let units = u32::try_from(latency.as_micros() >> UNIT_BITS).unwrap_or(u32::MAX);
    let Some(octave) = units.checked_ilog2().filter(|it| 2 <= *it) else {
        return units as usize;
    };
    let step = (units >> (octave - 2)) & 3;
    (((octave - 1) * 4 + step) as usize).min(BUCKETS - 1)
}

/// What every latency in `bucket` is less than, the last one's apart.
fn upper(bucket: usize) -> Duration {
    let next = bucket as u64 + 1;
    let units = if next < 4 { next } else { (4 + next % 4) << (next / 4 - 1) };
    Duration::from_micros(units << UNIT_BITS)
}

/// A unit of 256 µs, as a power of two: finer than the least that is ever waited.
const UNIT_BITS: u32 = 8;

/// What at least `percent` hundredths of all latencies are less than.
fn quantile(halves: &[Histogram; 2], percent: u32) -> Duration {
    let count: u64 = halves.iter().map(|it| u64::from(it.count)).sum();
    let wanted = (count * u64::from(percent)).div_ceil(100);
    let mut below = 0;
    let found = (0..BUCKETS).find(|at| {
        below += halves.iter().map(|it| u64::from(it.buckets[*at])).sum::<u64>();
        wanted <= below
    });
    upper(found.unwrap_or(BUCKETS - 1))
}

#[cfg(test)]
mod tests;
