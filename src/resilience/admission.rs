//! Admission: lets through to a service that fails as a whole about what it can answer.
//!
//! The last resort of a client: where endpoints fail, and so many are left out already that
//! the cap keeps the others in ([`super::outlier`]), or there is but one, all that is left is
//! to send less. A request is refused with probability
//!
//! ```text
//! p = max(0, (n - 2 × ok) / (n + 1)), at most 80 %
//! ```
//!
//! over a trailing window of which `n` counts the refused ones too. So nothing is refused
//! while half of the requests succeed; a service that can answer a tenth of them gets a fifth
//! rather than all; and one that answers nothing still gets every fifth, by which its return
//! is noticed. Only while ejections are held back: an endpoint that fails alone is left out,
//! which costs nobody an answer.
//!
//! A success rate that is lower than a half for another reason, such as a request that is
//! wrong, is no failure in the first place, or would have tripped no breaker.
//!
//! # Sources
//!
//! - *Site Reliability Engineering*, ch. 21, "Client-Side Throttling": the formula, K = 2.
//! - Envoy, *Admission control*: the cap of 80 %. Its threshold of 95 % would refuse good
//!   requests of a service that fails every third.

use std::time::{Duration, Instant};

use super::{Mode, window::Window};

/// The last resort of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What it does.
    pub mode: Mode,
}

/// How far back results count: what a service did longer ago says nothing of what it can do
/// now, and it takes about two of these until all is let through again.
const WINDOW: Duration = Duration::from_secs(5);

/// A share of fewer requests than this says nothing.
const MIN_REQUESTS: u32 = 20;

/// The most that is refused, as a share of `u32`: 80 %.
const REFUSED_MAX: u32 = u32::MAX / 5 * 4;

/// The answer to [`Admission::admits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// Send it.
    Yes,
    /// Send it, and say that it would have been refused, were the mode `enforce`.
    WouldNot,
    /// Refuse it; it has been counted.
    No,
}

/// What a service answered of late.
///
/// Pure state: it reads no clock and draws no number.
#[derive(Debug)]
pub struct Admission {
    window: Window,
}

impl Admission {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { window: Window::new(now) }
    }

    /// Counts a request that was sent, by whether the service answered it.
    pub fn record(&mut self, ok: bool, now: Instant) {
        let tick = self.window.tick(WINDOW, now);
        self.window.credit(tick, ok);
    }

    /// Whether a request may go, while ejections are held back or not. `draw` is uniform
    /// over `u32`.
    pub fn admits(&mut self, config: Config, held_back: bool, draw: u32, now: Instant) -> Admits {
        if !held_back || config.mode == Mode::Off || !self.refuses(draw, now) {
            return Admits::Yes;
        }
        if config.mode == Mode::Observe {
            return Admits::WouldNot;
        }
        self.record(false, now);
        Admits::No
    }

    fn refuses(&self, draw: u32, now: Instant) -> bool {
        let counts = self.window.counts(WINDOW, now);
        let n = u128::from(counts.total());
        let excess = n.saturating_sub(2 * u128::from(counts.ok));
        // draw / 2^32 < excess / (n + 1)
        u128::from(MIN_REQUESTS) <= n
            && draw < REFUSED_MAX
            && u128::from(draw) * (n + 1) < excess << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_a_third_is_refused_nothing() {
        let mut it = Subject::new(Config::default());
        for answer in [true, true, false].repeat(1_000) {
            assert_eq!(it.request(answer), Admits::Yes);
        }
    }

    #[test]
    fn a_service_that_answers_nothing_still_gets_every_fifth() {
        let mut it = Subject::new(Config::default());
        let _warm_up = it.sent_of(6_000, || false);
        let sent = it.sent_of(10_000, || false);
        assert!((1_880..2_120).contains(&sent), "{sent}");
    }

    #[test]
    fn a_service_that_is_too_slow_gets_twice_what_it_can_answer() {
        let mut it = Subject::new(Config::default());
        // Of the hundred requests of a second it answers the first thirty that come.
        let second = |it: &mut Subject| {
            let mut room = 30;
            it.sent_of(100, move || {
                room -= 1;
                room >= 0
            })
        };
        let _settling = (0..60).map(|_| second(&mut it)).sum::<u32>();
        let sent: u32 = (0..60).map(|_| second(&mut it)).sum();
        assert!((55 * 60..65 * 60).contains(&sent), "{sent}");
    }

    #[test]
    fn a_service_that_recovers_gets_everything_again_within_ten_seconds() {
        let mut it = Subject::new(Config::default());
        let _outage = it.sent_of(60 * 100, || false);
        let seconds: Vec<_> = (0..60).map(|_| it.sent_of(100, || true)).collect();
        let back = seconds.iter().rposition(|it| *it < 100).unwrap() + 1;
        assert!((3..=10).contains(&back), "{back} {seconds:?}");
    }

    #[test]
    fn fewer_than_twenty_requests_say_nothing() {
        let mut it = Subject::new(Config::default());
        (0..20).for_each(|_| assert_eq!(it.request_with(false, 0), Admits::Yes));
        assert_eq!(it.request_with(false, 0), Admits::No);
    }

    #[test]
    fn what_is_refused_is_the_share_of_the_formula() {
        let mut it = Subject::new(Config::default());
        (0..5).for_each(|_| assert_eq!(it.request_with(true, 0), Admits::Yes));
        (0..15).for_each(|_| assert_eq!(it.request_with(false, u32::MAX), Admits::Yes));
        // (20 - 2 × 5) / (20 + 1) of 2³², and of the 21 with the one refused.
        assert_eq!(it.request_with(true, 2_045_222_521), Admits::No);
        assert_eq!(it.request_with(true, 2_147_483_648), Admits::Yes);
    }

    #[test]
    fn nothing_is_refused_while_ejections_are_not_held_back() {
        let mut it = Subject { held_back: false, ..Subject::new(Config::default()) };
        (0..100).for_each(|_| assert_eq!(it.request_with(false, 0), Admits::Yes));
        it.held_back = true;
        assert_eq!(it.request_with(false, 0), Admits::No, "what was learnt before counts");
    }

    #[test]
    fn observe_says_what_it_would_refuse_and_sends_it() {
        let mut it = Subject::new(Config { mode: Mode::Observe });
        (0..20).for_each(|_| assert_eq!(it.request_with(false, 0), Admits::Yes));
        assert_eq!(it.request_with(false, 0), Admits::WouldNot);
        assert_eq!(it.admission.window.counts(WINDOW, it.now).total(), 21, "counted once");
    }

    #[test]
    fn off_does_nothing() {
        let mut it = Subject::new(Config { mode: Mode::Off });
        (0..100).for_each(|_| assert_eq!(it.request_with(false, 0), Admits::Yes));
    }

    #[test]
    fn an_outage_is_forgotten_with_its_window() {
        let mut it = Subject::new(Config::default());
        let _outage = it.sent_of(6_000, || false);
        it.now += WINDOW;
        assert_eq!(it.request_with(true, 0), Admits::Yes);
    }

    /// A service asked a hundred times a second, with its clock and its chance.
    struct Subject {
        admission: Admission,
        config: Config,
        held_back: bool,
        now: Instant,
        random: u64,
    }

    impl Subject {
        #[expect(
            clippy::disallowed_methods,
            reason = "an arbitrary origin: only differences are read"
        )]
        fn new(config: Config) -> Self {
            let now = Instant::now();
            Self { admission: Admission::new(now), config, held_back: true, now, random: 1 }
        }

        fn request(&mut self, answer: bool) -> Admits {
            let draw = self.draw();
            self.request_with(answer, draw)
        }

        fn request_with(&mut self, answer: bool, draw: u32) -> Admits {
            self.request_for(|| answer, draw)
        }

        /// How many of `n` requests are sent; each is answered if `answers` says so.
        fn sent_of(&mut self, n: u32, mut answers: impl FnMut() -> bool) -> u32 {
            let mut sent = 0;
            for _ in 0..n {
                let draw = self.draw();
                sent += u32::from(self.request_for(&mut answers, draw) != Admits::No);
            }
            sent
        }

        fn request_for(&mut self, answers: impl FnOnce() -> bool, draw: u32) -> Admits {
            self.now += Duration::from_millis(10);
            let admits = self.admission.admits(self.config, self.held_back, draw, self.now);
            if admits != Admits::No {
                self.admission.record(answers(), self.now);
            }
            admits
        }

        fn draw(&mut self) -> u32 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u32::try_from(self.random >> 32).unwrap()
        }
    }
}
