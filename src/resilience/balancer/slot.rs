//! Slot: what is known of one endpoint.

use std::time::{Duration, Instant};

use super::{
    super::breaker::{self, Admits, Breaker},
    latency::Estimate,
    waiting::Lines,
};
use crate::endpoint::Endpoint;

/// How long an endpoint is set aside when its dial fails for the first time: longer than a
/// connection burst, shorter than a person notices.
pub(super) const SET_ASIDE: Duration = Duration::from_millis(500);

/// How long it is set aside at most: an endpoint that came back waits no longer for traffic.
pub(super) const SET_ASIDE_MAX: Duration = Duration::from_secs(10);

/// The least share of what it would get otherwise, in percent: less may be no request at all.
const SHARE_MIN: u8 = 10;

/// How often a share is taken anew while it grows with time: a step that nobody notices.
const STEPS: u32 = 20;

/// How often a breaker that is on its way back is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// One endpoint.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) endpoint: Endpoint,
    /// Of the slot: an endpoint that left.
    pub(super) generation: u32,
    /// Of its state: a set-aside since.
    pub(super) epoch: u32,
    /// Where its group is.
    pub(super) group: u32,
    /// Its place among those of its group that are as near, for subsets.
    pub(super) rank: u32,
    pub(super) pending: u32,
    /// Whether requests are drawn from a pool it is in.
    pub(super) listed: bool,
    /// How much of what it would get otherwise it gets, in percent; none while it is not
    /// available.
    pub(super) share: u8,
    /// Whether its breaker asks for a probe.
    pub(super) wants_probe: bool,
    pub(super) estimate: Estimate,
    pub(super) lines: Lines,
    pub(super) breaker: Breaker,
    /// Dials that failed since one succeeded.
    strikes: u32,
    /// When it is no longer set aside.
    pub(super) until: Option<Instant>,
    /// When it was added or came back, while that is not long ago.
    since: Option<Instant>,
}

impl Slot {
    /// `is_new` where others were there before it.
    pub(super) fn new(endpoint: Endpoint, is_new: bool, now: Instant) -> Self {
        Self {
            endpoint,
            generation: 0,
            epoch: 0,
            group: 0,
            rank: 0,
            pending: 0,
            listed: false,
            share: 100,
            wants_probe: false,
            estimate: Estimate::new(now),
            lines: Lines::default(),
            breaker: Breaker::new(now),
            strikes: 0,
            until: None,
            since: is_new.then_some(now),
        }
    }

    /// A weight of zero would never be drawn, and its owner never be tried.
    pub(super) fn weight(&self) -> u16 {
        self.endpoint.weight.max(1)
    }

    /// What it has in a draw.
    pub(super) fn stake(&self) -> u64 {
        u64::from(self.weight()) * u64::from(self.share)
    }

    pub(super) fn has_strikes(&self) -> bool {
        self.strikes > 0
    }

    pub(super) fn set_aside(&mut self, now: Instant, draw: u32) {
        let base = SET_ASIDE * 2_u32.pow(self.strikes.min(10));
        let base = base.min(SET_ASIDE_MAX);
        // A draw is a share of the half that jitter may take or leave.
        let jitter = ((base / 2).as_nanos() * u128::from(draw)) >> 32;
        let jitter = Duration::from_nanos(u64::try_from(jitter).unwrap_or(0));
        self.until = Some(now + base * 3 / 4 + jitter);
        self.strikes = self.strikes.saturating_add(1);
        self.epoch = self.epoch.wrapping_add(1);
    }

    pub(super) fn bring_back(&mut self) {
        self.until = None;
        self.strikes = 0;
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Takes its share anew, and says when time will change it next.
    pub(super) fn look(
        &mut self,
        slow_start: Duration,
        rules: &breaker::Config,
        now: Instant,
    ) -> Option<Instant> {
        self.until = self.until.filter(|it| now < *it);
        let admits = self.breaker.admits(rules, now);
        self.wants_probe = self.until.is_none() && admits == Admits::Probe;
        let was_away = self.share == 0;
        if self.until.is_some() || admits != Admits::Yes {
            self.share = 0;
            let open = self.breaker.until().unwrap_or(now + LOOK);
            // The instant itself is still too early for a breaker.
            let open = open + Duration::from_nanos(1);
            return self.until.or(Some(open));
        }
        if was_away {
            self.since = Some(now);
            // Whoever comes back may be another process; that it starts slowly is enough.
            self.estimate = Estimate::new(now);
        }
        let returns = self.breaker.share();
        self.share = self.slow(slow_start, now).min(returns);
        let slow = self.since.map(|_| now + slow_start / STEPS);
        if returns < 100 { Some(now + LOOK) } else { slow }
    }

    /// The share that its age allows.
    fn slow(&mut self, slow_start: Duration, now: Instant) -> u8 {
        let Some(since) = self.since else { return 100 };
        let age = now.saturating_duration_since(since);
        if slow_start <= age {
            self.since = None;
            return 100;
        }
        let percent = age.as_nanos() * 100 / slow_start.as_nanos();
        u8::try_from(percent).unwrap_or(100).max(SHARE_MIN)
    }
}
