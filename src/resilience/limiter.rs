//! Limiter: how many requests a workload takes on at once, found out from its latency.
//!
//! Without a limit the queue in front of an overloaded workload outlives the overload: it works
//! through requests whose callers have left, and goodput falls to nothing. A limit that reads
//! "slower than before" as "overloaded" sheds healthy traffic after every harmless change. So
//! this one sheds only above a ceiling, well over what the workload usually takes:
//!
//! ```text
//! window    1 s and at least 10 completions, or 5 s
//! base      of the first 10 windows the mean of p50; then, p50 < base: base += (p50 - base)/10
//!                                                      otherwise:  base += (p50 - base)/600
//! ceiling   min(max(5 * base, latency_floor), timeout / 2)
//! bad       p50 > ceiling, or timeouts > 5 % of completions:
//!           limit = max(min, 0.85 * min(limit, most in flight))
//! good      and 2 * most in flight >= limit:  limit = min(max, limit + max(1, 5 %))
//! ```
//!
//! One slow request is no signal: half of all are. After 5 bad windows at the least limit,
//! `base = p50`: what a workload takes that has hardly anything to do *is* its service time.
//!
//! Over the limit the less important goes first: a try that is already a retry above 80 % of
//! the limit, ordinary requests above 100 %, critical ones above 120 % ([`Class`]). What is
//! above 100 % is for critical ones only as long as they are no more than that fifth: a flood
//! of requests that call themselves critical gains nothing by it.
//!
//! A request that is given up says something too, if it had waited for longer than the
//! ceiling: its answer would have taken at least that. One given up earlier says nothing.
//!
//! Simulated (`limiter/tests.rs`: 8 workers of 20 ms, callers that wait for 1 s, three seeds):
//!
//! | what happens after a minute | without | with |
//! |---|---|---|
//! | 1.5 times what it can do, 400/s | 0/s in time | 401 to 403/s, p99 200 ms |
//! | five times slower, 80/s | – | 80 to 81/s |
//! | a healthy surge to five times the load | – | nothing shed |
//! | three times the latency, no queue | – | nothing shed |
//! | ten times the latency, no queue | – | after another minute 0.2 to 0.6 % shed |
//! | 1 worker, 1.6 times what it can do, 50/s | – | 49 to 50/s |
//!
//! Weak spot: a workload whose latency grows tenfold for good without being overloaded is
//! held back for up to a minute, which is why `observe` is the default.
//!
//! # Sources
//!
//! - Netflix concurrency-limits: additive increase and multiplicative decrease, the rule that
//!   is followed; `Gradient2Limit`, one that sheds healthy traffic.
//!   <https://github.com/Netflix/concurrency-limits>
//! - Envoy, adaptive concurrency: a window's quantile instead of single samples.

use std::time::{Duration, Instant};

use super::Mode;

/// The shortest window.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest, where completions are few.
const WINDOW_MAX: Duration = Duration::from_secs(5);

/// Completions a window should have.
const COMPLETIONS: u32 = 10;

/// Fewer than these say nothing even in the longest window: half of them is one request.
const COMPLETIONS_MIN: u32 = 3;

/// Windows whose mean is the first base.
const LEARNING: u32 = 10;

/// How many times its base latency a workload may take.
const PATIENCE: u64 = 5;

/// Bad windows at the least limit, after which their latency is the base.
const RELEARN: u32 = 5;

/// Bounds of what the limiter may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does; without a policy it only observes.
    pub mode: Mode,
    /// Where it starts.
    pub initial: u32,
    /// The least it goes down to, at least 1.
    pub min: u32,
    /// The most it goes up to.
    pub max: u32,
    /// Latency below this is never taken for overload.
    pub latency_floor: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            initial: 100,
            min: 4,
            max: 1000,
            latency_floor: Duration::from_millis(50),
        }
    }
}

/// How important a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// A retry of one that has failed: shed first, above 80 % of the limit.
    Retried,
    /// Any other: shed above the limit.
    #[default]
    Default,
    /// What keeps the workload alive, such as a health check: shed above 120 %, and like any
    /// other where a fifth of the limit is taken by its kind.
    Critical,
}

/// Whether a request is taken on.
#[must_use = "a ticket must be settled, and what is shed must not be let in"]
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is.
    Admit(Ticket),
    /// It is not.
    Shed,
    /// It would not be, if the limiter did more than observe.
    WouldShed(Ticket),
}

/// One request that was taken on, to be settled once.
#[must_use = "a ticket that is not settled counts as a request in flight for good"]
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    since: Instant,
    class: Class,
}

/// How a request that was taken on has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer, whose head came after so long.
    Done(Duration),
    /// Without one in time.
    Timeout,
    /// Otherwise: its caller left, or the workload was not there.
    Dropped,
}

/// What the limiter has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// How many requests may be in flight.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// What the workload usually takes; zero while nothing is known.
    pub base: Duration,
}

/// The limit of one workload.
#[derive(Debug)]
pub struct Limiter {
    config: Config,
    /// Half of it bounds the ceiling.
    timeout: Duration,
    limit: u32,
    in_flight: u32,
    /// Those of [`Class::Critical`] among them.
    critical: u32,
    base_ns: u64,
    /// Windows that went into the base, up to [`LEARNING`].
    learnt: u32,
    /// Bad windows at the least limit, one after the other.
    stuck: u32,
    window: Window,
}

/// What is seen in one window.
#[derive(Debug)]
struct Window {
    since: Instant,
    in_flight_max: u32,
    timeouts: u32,
    latency: Histogram,
}

impl Limiter {
    /// A limiter that has seen nothing yet. `timeout` is how long a request may take.
    pub fn new(config: Config, timeout: Duration, now: Instant) -> Self {
        Self {
            config,
            timeout,
            limit: config.initial.clamp(config.min.max(1), config.max.max(config.min).max(1)),
            in_flight: 0,
            critical: 0,
            base_ns: 0,
            learnt: 0,
            stuck: 0,
            window: Window::new(now, 0),
        }
    }

    /// Goes on within other bounds; what was learnt stays.
    pub fn configure(&mut self, config: Config, timeout: Duration) {
        if self.config.initial != config.initial {
            self.limit = config.initial;
        }
        self.limit = self.limit.clamp(config.min.max(1), config.max.max(config.min).max(1));
        (self.config, self.timeout) = (config, timeout);
    }

    /// Asks for one request to be taken on.
    pub fn admit(&mut self, class: Class, now: Instant) -> Decision {
        self.turn(now);
        let fits = self.in_flight < self.limit_of(class);
        if !fits && self.config.mode == Mode::Enforce {
            return Decision::Shed;
        }
        self.in_flight += 1;
        self.critical += u32::from(class == Class::Critical);
        self.window.in_flight_max = self.window.in_flight_max.max(self.in_flight);
        let ticket = Ticket { since: now, class };
        if fits { Decision::Admit(ticket) } else { Decision::WouldShed(ticket) }
    }

    /// Takes a request off those in flight, and what its end says into account.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is settled once")]
    pub fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.critical = self.critical.saturating_sub(u32::from(ticket.class == Class::Critical));
        match outcome {
            Outcome::Done(latency) => self.window.latency.add(latency),
            Outcome::Timeout => {
                self.window.timeouts += 1;
                self.window.latency.add(now.saturating_duration_since(ticket.since));
            }
            Outcome::Dropped => {
                let waited = now.saturating_duration_since(ticket.since);
                if self.ceiling().is_some_and(|it| it < waited) {
                    self.window.latency.add(waited);
                }
            }
        }
        self.turn(now);
    }

    /// What it has found.
    pub fn stats(&self) -> Stats {
        let Self { limit, in_flight, .. } = *self;
        Stats { limit, in_flight, base: Duration::from_nanos(self.base_ns) }
    }

    /// How many may be in flight for one more of `class` to fit.
    fn limit_of(&self, class: Class) -> u32 {
        match class {
            Class::Retried => share(self.limit, 80).max(1),
            Class::Default => self.limit,
            Class::Critical => {
                let more = share(self.limit, 20).max(1);
                if self.critical < more { self.limit + more } else { self.limit }
            }
        }
    }

    /// What half of the requests may not exceed; `None` while no base is known.
    fn ceiling(&self) -> Option<Duration> {
        let base = Duration::from_nanos(self.base_ns.saturating_mul(PATIENCE));
        (0 < self.learnt).then(|| base.max(self.config.latency_floor).min(self.timeout / 2))
    }

    /// Draws the conclusions of the window, if it has ended.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.window.since);
        let completions = self.window.latency.count;
        if age < WINDOW || completions < COMPLETIONS && age < WINDOW_MAX {
            return;
        }
        let next = Window::new(now, self.in_flight);
        let ended = std::mem::replace(&mut self.window, next);
        if COMPLETIONS_MIN <= completions {
            self.judge(&ended);
        }
    }

    fn judge(&mut self, window: &Window) {
        let Config { min, max, .. } = self.config;
        let p50 = window.latency.median();
        self.learn(nanoseconds(p50));
        let is_slow = self.ceiling().is_some_and(|it| it < p50);
        let is_late = window.latency.count < window.timeouts.saturating_mul(20);
        if !is_slow && !is_late {
            self.stuck = 0;
            if self.limit <= window.in_flight_max.saturating_mul(2) {
                self.limit = (self.limit + share(self.limit, 5).max(1)).min(max.max(1));
            }
            return;
        }
        let at_floor = self.limit <= min.max(1);
        self.limit = share(self.limit.min(window.in_flight_max), 85).max(min).max(1);
        self.stuck = if at_floor { self.stuck + 1 } else { 0 };
        if RELEARN <= self.stuck {
            (self.base_ns, self.stuck) = (nanoseconds(p50), 0);
        }
    }

    /// Lets the base follow what is usual: downwards soon, upwards over minutes.
    fn learn(&mut self, p50: u64) {
        let base = self.base_ns;
        if self.learnt < LEARNING {
            self.learnt += 1;
            let seen = u64::from(self.learnt);
            // The mean of all so far, without their sum.
            self.base_ns =
                if base < p50 { base + (p50 - base) / seen } else { base - (base - p50) / seen };
        } else if p50 < base {
            self.base_ns = base - (base - p50) / 10;
        } else {
            self.base_ns = base + (p50 - base) / 600;
        }
    }
}

impl Window {
    fn new(now: Instant, in_flight: u32) -> Self {
        Self { since: now, in_flight_max: in_flight, timeouts: 0, latency: Histogram::default() }
    }
}

/// Buckets of an octave: a median is off by a sixteenth at the most.
const STEPS: u32 = 8;

/// The lowest octave begins at 2^13 ns, some 8 µs, and the highest ends at 2^38, over 4 min.
const OCTAVES: (u32, u32) = (13, 38);

const BUCKETS: usize = ((OCTAVES.1 - OCTAVES.0) * STEPS) as usize;

/// Latencies, counted by size: 800 bytes, whatever their number.
#[derive(Debug)]
struct Histogram {
    counts: [u32; BUCKETS],
    count: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    fn add(&mut self, latency: Duration) {
        let ns = nanoseconds(latency).clamp(1 << OCTAVES.0, (1 << OCTAVES.1) - 1);
        let octave = ns.ilog2();
        // The three bits below the highest.
        let step = (ns >> (octave - STEPS.ilog2())) & u64::from(STEPS - 1);
        let bucket = u64::from((octave - OCTAVES.0) * STEPS) + step;
        if let Some(count) = usize::try_from(bucket).ok().and_then(|it| self.counts.get_mut(it)) {
            *count += 1;
            self.count += 1;
        }
    }

    /// The middle of the bucket the median is in; zero where there is none.
    fn median(&self) -> Duration {
        let (mut seen, half) = (0, self.count.div_ceil(2));
        let reached = |it: &u32| {
            seen += it;
            0 < half && half <= seen
        };
        let Some(bucket) = self.counts.iter().position(reached) else { return Duration::ZERO };
        let bucket = u32::try_from(bucket).unwrap_or(u32::MAX);
        let (octave, step) = (OCTAVES.0 + bucket / STEPS, u64::from(bucket % STEPS));
        // In units of half a step: the octave begins at 16 of them.
        Duration::from_nanos((2 * (u64::from(STEPS) + step) + 1) << (octave - STEPS.ilog2() - 1))
    }
}

/// `percent` of `limit`, rounded down.
fn share(limit: u32, percent: u32) -> u32 {
    u32::try_from(u64::from(limit) * u64::from(percent) / 100).unwrap_or(u32::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
