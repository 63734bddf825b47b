//! Budget: bounds the load that retries and hedges may add to one service.
//!
//! A retry adds load exactly when the service is least able to take it. The budget bounds
//! the sum over a service, not the tries of one request: at any instant, whatever arrives
//! when,
//!
//! ```text
//! spent <= burst + percent/100 * requests + elapsed / 10 s
//! ```
//!
//! so a total outage multiplies traffic by `1 + percent/100` in the long run, whatever the
//! number of tries a route allows. The burst is there for the first moment, and the last
//! term lets a service with hardly any traffic retry at all. It is small on purpose: ten a
//! second, as is usual elsewhere, would make an outage at one request a second eleven times
//! as large.
//!
//! What is earned can be saved up to what the requests of the last ten seconds earn, or the
//! burst where that is more: a quiet night does not pay for a storm in the morning.
//!
//! All counts are whole thousandths of a token: a hundredth of a percent is not lost to
//! rounding, as where a share is inverted and cut off.
//!
//! # Sources
//!
//! - Finagle `RetryBudget`: the idea, and a share of 20 % over ten seconds.
//! - *Site Reliability Engineering*, ch. 21: a retry ratio for each client.
//! - Envoy `retry_budget`: a bound on what is under way at once, [`gate`].

use std::time::{Duration, Instant};

use super::Mode;

/// One token, in the unit of account.
const TOKEN: u64 = 1_000;

/// What one request earns, for each percent.
const EARNED: u64 = TOKEN / 100;

/// In this time one thousandth of a token comes in by itself: a token in ten seconds.
const TRICKLE: Duration = Duration::from_millis(10);

/// One-second slots over which requests are counted for the cap.
const SLOTS: usize = 10;

/// What one service may spend on retries and hedges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does.
    pub mode: Mode,
    /// Tokens earned per hundred requests, `0..=100`.
    pub percent: u32,
    /// Tokens there are at first, and at least may be saved.
    pub burst: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { mode: Mode::Enforce, percent: 20, burst: 10 }
    }
}

/// The answer to who would send more than was asked for.
#[must_use = "what is exhausted must not be sent"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be sent; it has been charged.
    Granted,
    /// It may be sent, because the mode is to observe.
    WouldRefuse,
    /// It must not be.
    Exhausted,
}

impl Verdict {
    /// What `mode` makes of whether there is enough.
    fn of(mode: Mode, enough: bool) -> Self {
        match mode {
            Mode::Off => Self::Granted,
            _ if enough => Self::Granted,
            Mode::Enforce => Self::Exhausted,
            Mode::Observe => Self::WouldRefuse,
        }
    }
}

/// Whether one more retry may be under way beside `retries` others, where `tries` are under
/// way in all, those included: a share of them as the budget's, and at least its burst.
///
/// At least one would do for the steady state, but when an endpoint dies with several
/// requests in flight they fail in one instant, and then it would refuse what the burst
/// was saved for.
pub fn gate(config: &Config, retries: u32, tries: u32) -> Verdict {
    let share = u64::from(tries) * u64::from(config.percent) / 100;
    Verdict::of(config.mode, u64::from(retries) < share.max(config.burst.max(1).into()))
}

/// The budget of one service.
#[derive(Debug)]
pub struct Budget(Bucket);

impl Budget {
    /// A budget with its whole burst to spend.
    pub fn new(config: &Config, now: Instant) -> Self {
        Self(Bucket::new(config.burst, now))
    }

    /// Counts one request, not its retries: it earns its share.
    pub fn deposit(&mut self, config: &Config, now: Instant) {
        self.0.deposit(config.percent, now);
    }

    /// Asks for one retry or hedge, and charges it when granted.
    pub fn withdraw(&mut self, config: &Config, now: Instant) -> Verdict {
        self.0.trickle(now);
        Verdict::of(config.mode, self.0.withdraw(config.percent, config.burst, now))
    }

    /// How many may be sent at once, as far as tokens go.
    pub fn tokens(&mut self, config: &Config, now: Instant) -> u32 {
        self.0.trickle(now);
        let tokens = self.0.saved(config.percent, config.burst, now);
        u32::try_from(tokens / TOKEN).unwrap_or(u32::MAX)
    }

    /// Takes back what was granted and not sent.
    pub fn refund(&mut self) {
        self.0.refund();
    }
}

/// Tokens earned by requests; see the module.
#[derive(Debug)]
pub(super) struct Bucket {
    /// In thousandths.
    tokens: u64,
    /// Until when all that trickles in has come in.
    trickled: Instant,
    /// When the current slot ends.
    slot_ends: Instant,
    /// Requests of each of the last seconds; the current one's are at `slot`.
    slots: [u32; SLOTS],
    slot: usize,
    /// The sum of them.
    requests: u64,
}

impl Bucket {
    /// A bucket with `tokens` in it.
    pub(super) fn new(tokens: u32, now: Instant) -> Self {
        Self {
            tokens: u64::from(tokens) * TOKEN,
            trickled: now,
            slot_ends: now + Duration::from_secs(1),
            slots: [0; SLOTS],
            slot: 0,
            requests: 0,
        }
    }

    /// Counts one request, which earns `percent` hundredths of a token.
    pub(super) fn deposit(&mut self, percent: u32, now: Instant) {
        if self.slot_ends <= now {
            self.turn(now);
        }
        self.slots[self.slot] += 1;
        self.requests += 1;
        self.tokens += EARNED * u64::from(percent);
    }

    /// Lets in what has trickled since the last time.
    fn trickle(&mut self, now: Instant) {
        let elapsed =
            now.saturating_duration_since(self.trickled).as_millis() / TRICKLE.as_millis();
        let elapsed = u32::try_from(elapsed).unwrap_or(u32::MAX);
        self.trickled += TRICKLE * elapsed;
        self.tokens += u64::from(elapsed);
    }

    /// Takes one token out, if there is a whole one among those that may be saved.
    ///
    /// The cap is looked at only here: one request moves it by no more than what it earns,
    /// so that looking at it with each of them would change nothing.
    pub(super) fn withdraw(&mut self, percent: u32, burst: u32, now: Instant) -> bool {
        let left = self.saved(percent, burst, now).checked_sub(TOKEN);
        self.tokens = left.unwrap_or(self.tokens);
        left.is_some()
    }

    /// What there is of what may be saved, in thousandths.
    fn saved(&mut self, percent: u32, burst: u32, now: Instant) -> u64 {
        if self.slot_ends <= now {
            self.turn(now);
        }
        let cap = (u64::from(burst) * TOKEN).max(self.requests * EARNED * u64::from(percent));
        self.tokens = self.tokens.min(cap);
        self.tokens
    }

    /// Puts one token back in.
    pub(super) fn refund(&mut self) {
        self.tokens += TOKEN;
    }

    /// Begins the slot that `now` is in, and forgets the requests of those it replaces.
    #[cold]
    fn turn(&mut self, now: Instant) {
        let seconds = now.duration_since(self.slot_ends).as_secs() + 1;
        self.slot_ends += Duration::from_secs(seconds);
        for _ in 0..seconds.min(SLOTS as u64) {
            self.slot = (self.slot + 1) % SLOTS;
            self.requests -= u64::from(std::mem::take(&mut self.slots[self.slot]));
        }
    }
}

#[cfg(test)]
mod tests;
