use proptest::{collection::vec, prelude::*};

use super::*;
use crate::clock;

const CONFIG: Config = Config { mode: Mode::Enforce, percent: 20, burst: 10 };

#[test]
fn a_fifth_of_the_requests_may_be_retried() {
    let (mut budget, start) = (Budget::new(&CONFIG, clock::now()), clock::now());
    spend(&mut budget, CONFIG, start);
    (0..1000).for_each(|_| budget.deposit(&CONFIG, start));
    assert_eq!(spend(&mut budget, CONFIG, start), 200);
}

#[test]
fn a_share_is_exact_whatever_it_is() {
    for percent in 0..=100 {
        let config = Config { percent, burst: 0, ..CONFIG };
        let start = clock::now();
        let mut budget = Budget::new(&config, start);
        (0..1000).for_each(|_| budget.deposit(&config, start));
        assert_eq!(spend(&mut budget, config, start), percent * 10, "{percent} %");
    }
}

#[test]
fn the_burst_is_there_from_the_start() {
    let start = clock::now();
    assert_eq!(spend(&mut Budget::new(&CONFIG, start), CONFIG, start), 10);
}

#[test]
fn it_says_how_many_it_would_grant() {
    let start = clock::now();
    let mut budget = Budget::new(&CONFIG, start);
    assert!(grants(&mut budget, CONFIG, start));
    assert_eq!(budget.tokens(&CONFIG, start), 9);
    assert_eq!(spend(&mut budget, CONFIG, start), 9);
    assert_eq!(budget.tokens(&CONFIG, start + Duration::from_secs(20)), 2);
}

#[test]
fn a_token_comes_in_every_ten_seconds_without_any_request() {
    let start = clock::now();
    let mut budget = Budget::new(&CONFIG, start);
    spend(&mut budget, CONFIG, start);
    let at = |millis| start + Duration::from_millis(millis);
    // Asking often must not lose what has not made up a thousandth yet.
    let granted = (0..=20_000).map(at).filter(|now| grants(&mut budget, CONFIG, *now));
    assert_eq!(granted.collect::<Vec<_>>(), [at(10_000), at(20_000)]);
}

#[test]
fn an_idle_service_saves_no_more_than_the_burst() {
    let start = clock::now();
    let mut budget = Budget::new(&CONFIG, start);
    assert_eq!(spend(&mut budget, CONFIG, start + Duration::from_hours(24)), 10);
}

#[test]
fn what_ten_seconds_of_requests_earn_can_be_saved_and_is_lost_with_them() {
    let start = clock::now();
    for (seconds, saved) in [(0, 200), (9, 200), (10, 10)] {
        let mut budget = Budget::new(&CONFIG, start);
        (0..1000).for_each(|_| budget.deposit(&CONFIG, start));
        let now = start + Duration::from_secs(seconds);
        assert_eq!(spend(&mut budget, CONFIG, now), saved, "after {seconds} s");
    }
}

#[test]
fn a_dead_service_gets_little_more_than_its_requests() {
    // Requests a second, seconds, and hundredths of a request that reach it for each one.
    for (rate, seconds, load) in [(1, 300, 133), (100, 10, 121), (1000, 60, 120)] {
        let start = clock::now();
        let mut budget = Budget::new(&CONFIG, start);
        let mut sent = 0;
        for request in 0..rate * seconds {
            let now = start + Duration::from_secs(1) * request / rate;
            budget.deposit(&CONFIG, now);
            sent += 1 + (0..2).filter(|_| grants(&mut budget, CONFIG, now)).count();
        }
        assert_eq!(sent * 100 / (rate * seconds) as usize, load, "{rate} a second");
    }
}

#[test]
fn what_is_observed_is_granted_and_told() {
    let config = Config { mode: Mode::Observe, burst: 1, ..CONFIG };
    let start = clock::now();
    let mut budget = Budget::new(&config, start);
    assert_eq!(budget.withdraw(&config, start), Verdict::Granted);
    assert_eq!(budget.withdraw(&config, start), Verdict::WouldRefuse);
    // It runs up no debt.
    let later = start + Duration::from_secs(10);
    assert_eq!(budget.withdraw(&config, later), Verdict::Granted);
}

#[test]
fn a_budget_that_is_off_refuses_nothing() {
    let config = Config { mode: Mode::Off, burst: 0, ..CONFIG };
    let start = clock::now();
    let mut budget = Budget::new(&config, start);
    assert!((0..100).all(|_| budget.withdraw(&config, start) == Verdict::Granted));
    assert_eq!(gate(&config, 1000, 1000), Verdict::Granted);
}

#[test]
fn what_was_granted_and_not_sent_comes_back_once() {
    let start = clock::now();
    let mut budget = Budget::new(&CONFIG, start);
    spend(&mut budget, CONFIG, start);
    budget.refund();
    assert_eq!(spend(&mut budget, CONFIG, start), 1);
    // More than may be saved never comes of it.
    (0..100).for_each(|_| budget.refund());
    assert_eq!(spend(&mut budget, CONFIG, start), 10);
}

#[test]
fn a_clock_running_backwards_forgets_nothing_and_earns_nothing() {
    let before = clock::now();
    let start = before + Duration::from_secs(30);
    let mut budget = Budget::new(&CONFIG, start);
    (0..1000).for_each(|_| budget.deposit(&CONFIG, start));
    assert_eq!(spend(&mut budget, CONFIG, before), 200);
    assert_eq!(spend(&mut budget, CONFIG, start), 0);
}

#[test]
fn retries_under_way_are_a_share_of_what_is_or_the_burst() {
    let open = |retries, tries| gate(&CONFIG, retries, tries) == Verdict::Granted;
    assert!(open(9, 9) && !open(10, 10), "an endpoint that dies with all in flight");
    assert!(open(9, 50) && !open(10, 54));
    assert!(open(19, 100) && !open(20, 100));
    let none = Config { burst: 0, ..CONFIG };
    assert_eq!(gate(&none, 0, 1), Verdict::Granted);
    assert_eq!(gate(&none, 1, 4), Verdict::Exhausted);
    let observing = Config { mode: Mode::Observe, ..CONFIG };
    assert_eq!(gate(&observing, 10, 10), Verdict::WouldRefuse);
}

/// Something that happens to a budget, so many milliseconds after the last.
#[derive(Clone, Copy, Debug)]
enum Event {
    Request(u64),
    Retry(u64),
    Abandon,
}

/// The plainest budget: it keeps a log of all requests, and counts it.
struct Model {
    config: Config,
    tokens: u64,
    requests: Vec<u64>,
    trickled: u64,
}

impl Model {
    fn capped(&mut self, now: u64) {
        let window = now / 1000;
        let recent = self.requests.iter().filter(|at| window < **at / 1000 + 10).count() as u64;
        let cap = (recent * u64::from(self.config.percent) * 10).max(self.burst());
        self.tokens = self.tokens.min(cap);
    }

    fn burst(&self) -> u64 {
        u64::from(self.config.burst) * 1000
    }

    fn deposit(&mut self, now: u64) {
        self.requests.push(now);
        self.tokens += u64::from(self.config.percent) * 10;
        self.capped(now);
    }

    fn withdraw(&mut self, now: u64) -> bool {
        self.tokens += now / 10 - self.trickled;
        self.trickled = now / 10;
        self.capped(now);
        let granted = 1000 <= self.tokens;
        self.tokens -= if granted { 1000 } else { 0 };
        granted
    }
}

fn event() -> impl Strategy<Value = Event> {
    let gap = prop_oneof![8 => Just(0_u64), 8 => 0..100_u64, 4 => 0..3_000_u64, 1 => 0..60_000_u64];
    prop_oneof![
        4 => gap.clone().prop_map(Event::Request),
        4 => gap.prop_map(Event::Retry),
        1 => Just(Event::Abandon),
    ]
}

proptest! {
    /// The bound of the module, in whole thousandths, at every instant.
    #[test]
    fn no_arrivals_break_the_bound(
        events in vec(event(), 1..150),
        percent in 0_u32..=100,
        burst in 0_u32..20,
    ) {
        let config = Config { percent, burst, ..CONFIG };
        let start = clock::now();
        let mut budget = Budget::new(&config, start);
        let (mut at, mut requests, mut spent) = (0, 0, 0_u64);
        for event in events {
            match event {
                Event::Request(gap) => {
                    (at, requests) = (at + gap, requests + 1);
                    budget.deposit(&config, start + Duration::from_millis(at));
                }
                Event::Retry(gap) => {
                    at += gap;
                    let now = start + Duration::from_millis(at);
                    spent += u64::from(grants(&mut budget, config, now));
                }
                Event::Abandon if 0 < spent => {
                    spent -= 1;
                    budget.refund();
                }
                Event::Abandon => (),
            }
            let earned = requests * u64::from(percent) * 10 + at / 10;
            prop_assert!(spent * 1000 <= u64::from(burst) * 1000 + earned);
        }
    }

    /// The slots say what a log of all requests would.
    #[test]
    fn it_grants_what_a_log_would(
        events in vec(event(), 1..150),
        percent in 0_u32..=100,
        burst in 0_u32..20,
    ) {
        let config = Config { percent, burst, ..CONFIG };
        let start = clock::now();
        let mut budget = Budget::new(&config, start);
        let tokens = u64::from(burst) * 1000;
        let mut model = Model { config, tokens, requests: Vec::new(), trickled: 0 };
        let mut at = 0;
        for event in events {
            match event {
                Event::Request(gap) => {
                    at += gap;
                    budget.deposit(&config, start + Duration::from_millis(at));
                    model.deposit(at);
                }
                Event::Retry(gap) => {
                    at += gap;
                    let granted = grants(&mut budget, config, start + Duration::from_millis(at));
                    prop_assert_eq!(granted, model.withdraw(at));
                }
                Event::Abandon => (),
            }
        }
    }

    /// A refusal at the gate is never for a share below the one configured.
    #[test]
    fn the_gate_keeps_the_share(retries in 0_u32..200, tries in 0_u32..1000, percent in 0_u32..=100) {
        let config = Config { percent, ..CONFIG };
        let granted = gate(&config, retries, tries) == Verdict::Granted;
        prop_assert_eq!(granted, retries < 10 || (retries + 1) * 100 <= tries * percent);
    }
}

fn grants(budget: &mut Budget, config: Config, now: Instant) -> bool {
    budget.withdraw(&config, now) == Verdict::Granted
}

/// How much there is.
fn spend(budget: &mut Budget, config: Config, now: Instant) -> u32 {
    let granted = (0..10_000).take_while(|_| grants(budget, config, now)).count();
    u32::try_from(granted).unwrap()
}
