//! Latency: what an endpoint's answers cost, whatever route they are on.
//!
//! A report that takes two seconds and a lookup that takes two milliseconds say the same of
//! their endpoint when both take as long as they always do. So every sample, and the age of
//! every request that waits, is put on one scale by what its route takes everywhere
//! ([`Baselines`]); where an answer is as quick as its route's mean, that is 30 ms.
//!
//! An [`Estimate`] goes up at once and comes down by degrees: a sample that is lower weighs
//! `1 - exp(-t / 10 s)`, where `t` is the time since the sample before. A failure is no sample
//! but a penalty of its own, which doubles in a row and comes down in seconds. Read without samples
//! it fades at the same pace, and what has not been heard of for a quarter of a minute is taken to
//! be as usual, so that nobody is left alone for one bad answer until all others are as bad.
//!
//! What fades is what is read, not what is kept. Linkerd keeps what it reads, so that a lower
//! sample right after a read weighs nothing: in a busy pool that is no average of what an
//! endpoint takes but a fading maximum, which falls until an answer is slower than it.
//!
//! # Sources
//!
//! - Finagle and Linkerd, `PeakEwma`: the jump, the time constant, the first 30 ms.

use std::time::{Duration, Instant};

use super::{super::service::RouteId, waiting::Pace};

/// What an answer takes on the common scale when it takes as long as ever, and what an
/// endpoint is taken to need before it was asked: seconds.
pub(super) const USUAL: f64 = 0.03;

/// How fast an estimate comes down, in seconds.
const DECAY: f64 = 10.0;

/// For how long a sample says anything of its endpoint.
const STALE: Duration = Duration::from_secs(15);

/// How fast the baseline of a route follows, in seconds: slow, so that one endpoint's
/// trouble does not become the measure of all.
const BASELINE_DECAY: f64 = 60.0;

/// What nothing is quicker than, in seconds: below it differences are noise.
pub(super) const FLOOR: f64 = 0.001;

/// What a failure costs, in seconds: more than most answers, or else an endpoint that fails
/// at once would be the quickest of all. Twice as much with each further one in a row: one
/// accident must not keep an endpoint without traffic for long, and what fails always must
/// not be asked often.
const PENALTY: f64 = 0.25;

/// What it costs at most: one that asks for a minute's peace is asked again within one, to
/// see whether it has recovered.
pub(super) const PENALTY_MAX: f64 = 5.0;

/// How fast a penalty comes down, in seconds.
const PENALTY_DECAY: f64 = 3.0;

/// What an endpoint's answers cost, in seconds on the common scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    value: f64,
    /// When it was last sampled.
    at: Instant,
    /// What its failures cost.
    penalty: f64,
    /// When the last one was.
    failed: Instant,
    /// Failures in a row.
    row: u8,
}

/// How long the answers of each route take everywhere.
#[derive(Debug)]
pub(super) struct Baselines([Option<Baseline>; RouteId::MAX.0 as usize + 1]);

#[derive(Clone, Copy, Debug)]
struct Baseline {
    /// In seconds.
    mean: f64,
    samples: u32,
    at: Instant,
}

impl Estimate {
    pub(super) fn new(now: Instant) -> Self {
        Self { value: USUAL, at: now, penalty: 0.0, failed: now, row: 0 }
    }

    /// What it is by now.
    pub(super) fn read(self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        let value = self.value * fading(elapsed, DECAY);
        let value = if STALE <= elapsed { value.min(USUAL) } else { value };
        value.max(self.penalty(now))
    }

    /// What is left of its penalty.
    fn penalty(self, now: Instant) -> f64 {
        if self.penalty <= 0.0 {
            return 0.0;
        }
        self.penalty * fading(now.saturating_duration_since(self.failed), PENALTY_DECAY)
    }

    /// Takes a failure into account; `least` is what it costs where that is more than the
    /// penalty for it.
    pub(super) fn punish(&mut self, least: f64, now: Instant) {
        let penalty = (PENALTY * f64::from(1_u32 << self.row.min(5))).max(least);
        self.row = self.row.saturating_add(1);
        self.penalty = penalty.min(PENALTY_MAX).max(self.penalty(now));
        self.failed = self.failed.max(now);
    }

    /// An answer was no failure.
    pub(super) fn succeed(&mut self) {
        self.row = 0;
    }

    /// Takes a sample into account.
    pub(super) fn observe(&mut self, sample: f64, now: Instant) {
        if self.value <= sample {
            self.value = sample;
        } else {
            let kept = fading(now.saturating_duration_since(self.at), DECAY);
            self.value = self.value * kept + sample * (1.0 - kept);
        }
        self.at = self.at.max(now);
    }

    /// Makes it at least `cost`.
    pub(super) fn raise(&mut self, cost: f64, now: Instant) {
        if self.read(now) < cost {
            (self.value, self.at) = (cost, self.at.max(now));
        }
    }
}

impl Baselines {
    pub(super) fn new() -> Self {
        Self([None; RouteId::MAX.0 as usize + 1])
    }

    pub(super) fn get(&self, route: RouteId) -> Option<Duration> {
        self.0[index(route)].map(|it| Duration::from_secs_f64(it.mean))
    }

    /// How slow a route is; one without an answer is taken for a quick one.
    pub(super) fn pace(&self, route: RouteId) -> Pace {
        match self.0[index(route)].map_or(0.0, |it| it.mean) {
            ..0.1 => Pace::Quick,
            0.1..1.0 => Pace::Brisk,
            1.0..10.0 => Pace::Slow,
            _ => Pace::Long,
        }
    }

    /// Takes an answer into account.
    ///
    /// The first samples make a plain mean; it becomes a moving one when a minute's worth of
    /// them has come.
    pub(super) fn observe(&mut self, route: RouteId, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let Some(it) = &mut self.0[index(route)] else {
            self.0[index(route)] = Some(Baseline { mean: took, samples: 1, at: now });
            return;
        };
        it.samples = it.samples.saturating_add(1);
        let elapsed = now.saturating_duration_since(it.at);
        let weight = (1.0 - fading(elapsed, BASELINE_DECAY)).max(1.0 / f64::from(it.samples));
        it.mean += weight * (took - it.mean);
        it.at = it.at.max(now);
    }

    /// An answer that took this long on the common scale; the first of its route is usual.
    pub(super) fn sample(&self, route: RouteId, took: Duration) -> f64 {
        let mean = self.0[index(route)].map_or(took.as_secs_f64(), |it| it.mean);
        scaled(took, mean)
    }

    /// A wait that has taken this long on the common scale; on a route without an answer yet
    /// it is what it is.
    pub(super) fn wait(&self, route: RouteId, so_far: Duration) -> f64 {
        scaled(so_far, self.0[index(route)].map_or(USUAL, |it| it.mean))
    }
}

/// How much is left after this long, at `decay` seconds to a third or so.
fn fading(elapsed: Duration, decay: f64) -> f64 {
    (-elapsed.as_secs_f64() / decay).exp()
}

/// `time` where `mean` is usual. A mean of less than a microsecond is one of nothing.
fn scaled(time: Duration, mean: f64) -> f64 {
    let mean = mean.max(1e-6);
    time.as_secs_f64() / mean * USUAL
}

fn index(route: RouteId) -> usize {
    usize::from(route.0.min(RouteId::MAX.0))
}
