use proptest::{collection::vec, prelude::*};

use super::*;

mod world;

use world::{Phase, World};

const ENFORCED: Config = Config {
    mode: Mode::Enforce,
    initial: 100,
    min: 4,
    max: 1000,
    latency_floor: Duration::from_millis(50),
};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn the_less_important_is_shed_first() {
    let (mut limiter, start) = limiter(Config { initial: 10, ..ENFORCED });
    let mut admitted = |class| {
        let mut count = 0;
        while let Decision::Admit(_ticket) = limiter.admit(class, start) {
            count += 1;
        }
        count
    };
    assert_eq!(admitted(Class::Retried), 8);
    assert_eq!(admitted(Class::Default), 2);
    assert_eq!(admitted(Class::Critical), 2);
}

#[test]
fn even_the_least_limit_takes_one_of_each_class() {
    for class in [Class::Retried, Class::Default, Class::Critical] {
        let (mut limiter, start) = limiter(Config { initial: 1, min: 1, ..ENFORCED });
        assert!(matches!(limiter.admit(class, start), Decision::Admit(_)), "{class:?}");
    }
}

#[test]
fn what_calls_itself_critical_cannot_take_the_place_of_all_others() {
    let (mut limiter, start) = limiter(Config { initial: 10, ..ENFORCED });
    assert_eq!(hold(&mut limiter, 1_000, start).len(), 10);
    // Two critical ones are a fifth: what is above the limit is not for more of them.
    assert_eq!(limiter.admit(Class::Critical, start), Decision::Shed);
    let (mut limiter, start) = self::limiter(Config { initial: 10, ..ENFORCED });
    let mut ordinary = Vec::new();
    while let Decision::Admit(ticket) = limiter.admit(Class::Default, start) {
        ordinary.push(ticket);
    }
    for _ in 0..3 {
        let critical = hold(&mut limiter, 1_000, start);
        assert_eq!(critical.len(), 2);
        for ticket in critical {
            limiter.settle(ticket, Outcome::Dropped, start);
        }
    }
}

#[test]
fn other_bounds_leave_what_was_learnt() {
    let config = Config { initial: 10, ..ENFORCED };
    let (mut limiter, start) = limiter(config);
    let tickets = hold(&mut limiter, 8, start);
    window(&mut limiter, start, &[(Outcome::Done(ms(10)), 20)]);
    let before = limiter.stats();
    assert_eq!((before.limit, before.in_flight), (11, 8));
    limiter.configure(Config { max: 50, ..config }, MINUTE);
    assert_eq!(limiter.stats(), before);
    limiter.configure(Config { max: 9, ..config }, MINUTE);
    assert_eq!(limiter.stats(), Stats { limit: 9, ..before });
    limiter.configure(Config { initial: 7, ..config }, MINUTE);
    assert_eq!(limiter.stats(), Stats { limit: 7, ..before });
    drop(tickets);
}

#[test]
fn an_observer_takes_everything_on_and_says_what_it_would_not_have() {
    let (mut limiter, start) = limiter(Config { initial: 4, mode: Mode::Observe, ..ENFORCED });
    let would_shed = |it: &Decision| matches!(it, Decision::WouldShed(_));
    let decisions: Vec<_> = (0..6).map(|_| limiter.admit(Class::Default, start)).collect();
    assert_eq!(decisions.iter().filter(|it| would_shed(it)).count(), 2);
    assert_eq!(limiter.stats().in_flight, 6);
}

#[test]
fn one_slow_request_is_no_signal() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = start;
    for _ in 0..30 {
        at = window(&mut limiter, at, &[(Outcome::Done(ms(10)), 19)]);
    }
    let before = limiter.stats().limit;
    window(&mut limiter, at, &[(Outcome::Done(ms(10)), 19), (Outcome::Done(ms(900)), 1)]);
    assert_eq!(limiter.stats().limit, before);
}

#[test]
fn a_window_waits_for_ten_completions_but_no_longer_than_five_seconds() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut complete = |at: Duration| {
        for ticket in hold(&mut limiter, 1, start + at) {
            limiter.settle(ticket, Outcome::Done(ms(10)), start + at);
        }
        limiter.stats().base
    };
    for second in 0..5 {
        assert_eq!(complete(Duration::from_millis(second * 1_000)), Duration::ZERO);
    }
    assert_ne!(complete(Duration::from_secs(5)), Duration::ZERO);
}

#[test]
fn two_completions_in_five_seconds_say_nothing() {
    let (mut limiter, start) = limiter(ENFORCED);
    let at = window(&mut limiter, start + 4 * WINDOW, &[(Outcome::Timeout, 2)]);
    assert_eq!((limiter.stats().base, limiter.stats().limit), (Duration::ZERO, 100));
    assert!(start + WINDOW_MAX <= at);
}

#[test]
fn more_than_a_twentieth_of_timeouts_lowers_the_limit() {
    for (timeouts, expected) in [(1, 21), (2, 17)] {
        let (mut limiter, start) = limiter(Config { initial: 20, ..ENFORCED });
        // Twenty at once, so that the limit is what was in flight.
        let tickets = hold(&mut limiter, 20, start);
        for (index, ticket) in tickets.into_iter().enumerate() {
            let outcome = if index < timeouts { Outcome::Timeout } else { Outcome::Done(ms(10)) };
            limiter.settle(ticket, outcome, start + ms(10));
        }
        limiter_turn(&mut limiter, start + WINDOW);
        assert_eq!(limiter.stats().limit, expected, "{timeouts} timeouts");
    }
}

#[test]
fn a_limit_that_is_hardly_used_does_not_grow() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = start;
    for _ in 0..10 {
        at = window(&mut limiter, at, &[(Outcome::Done(ms(10)), 50)]);
    }
    assert_eq!(limiter.stats().limit, 100);
}

#[test]
fn the_limit_stays_within_its_bounds() {
    let config = Config { initial: 6, min: 5, max: 7, ..ENFORCED };
    let (mut limiter, start) = limiter(config);
    let mut at = start;
    for (latency, windows, expected) in [(ms(10), 10, 7), (ms(29_000), 3, 5)] {
        for _ in 0..windows {
            let tickets = hold(&mut limiter, 5, at);
            for ticket in tickets {
                limiter.settle(ticket, Outcome::Timeout, at);
            }
            at = window(&mut limiter, at, &[(Outcome::Done(latency), 200)]);
        }
        assert_eq!(limiter.stats().limit, expected);
    }
}

#[test]
fn a_base_is_the_mean_of_ten_windows_then_falls_soon_and_rises_slowly() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = start;
    let p50 = |latency| {
        let mut histogram = Histogram::default();
        histogram.add(latency);
        histogram.median()
    };
    let (fast, slow) = (p50(ms(10)), p50(ms(30)));
    for latency in [ms(10), ms(30)].repeat(5) {
        at = window(&mut limiter, at, &[(Outcome::Done(latency), 10)]);
    }
    let mean = (fast + slow) / 2;
    let off = |base: Duration, expected: Duration| base.abs_diff(expected).as_micros();
    assert!(off(limiter.stats().base, mean) < 5, "{:?}", limiter.stats());
    let before = limiter.stats().base;
    at = window(&mut limiter, at, &[(Outcome::Done(ms(30)), 10)]);
    assert!(off(limiter.stats().base, before + slow.abs_diff(before) / 600) < 5);
    let before = limiter.stats().base;
    window(&mut limiter, at, &[(Outcome::Done(ms(10)), 10)]);
    assert!(off(limiter.stats().base + before.abs_diff(fast) / 10, before) < 5);
}

#[test]
fn latency_at_the_least_limit_is_what_the_workload_takes() {
    let (mut limiter, start) = limiter(Config { initial: 4, ..ENFORCED });
    let mut at = start;
    for _ in 0..20 {
        at = window(&mut limiter, at, &[(Outcome::Done(ms(10)), 10)]);
    }
    for bad in 1..=5 {
        assert!(limiter.stats().base < ms(20), "{bad}");
        at = window(&mut limiter, at, &[(Outcome::Done(ms(400)), 10)]);
    }
    assert!(ms(300) < limiter.stats().base);
}

#[test]
fn a_caller_that_left_early_says_nothing_and_one_that_waited_long_does() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = start;
    for _ in 0..10 {
        at = window(&mut limiter, at, &[(Outcome::Done(ms(10)), 10)]);
    }
    for (patience, is_bad) in [(ms(40), false), (ms(900), true)] {
        let before = limiter.stats().limit;
        let tickets = hold(&mut limiter, 50, at);
        for ticket in tickets {
            limiter.settle(ticket, Outcome::Dropped, at + patience);
        }
        at = window(&mut limiter, at, &[(Outcome::Done(ms(10)), 10)]);
        assert_eq!(limiter.stats().limit < before, is_bad, "{patience:?}");
    }
}

#[test]
fn callers_that_leave_early_do_not_hide_slow_answers() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = learnt(&mut limiter, start, ms(10));
    let before = limiter.stats().limit;
    at = window(&mut limiter, at, &[(Outcome::Done(ms(900)), 10), (Outcome::Dropped, 50)]);
    assert!(limiter.stats().limit < before, "{at:?}");
}

#[test]
fn latency_below_the_floor_is_never_overload() {
    let (mut limiter, start) = limiter(ENFORCED);
    let mut at = learnt(&mut limiter, start, ms(1));
    for (latency, is_bad) in [(ms(40), false), (ms(60), true)] {
        let before = limiter.stats().limit;
        at = window(&mut limiter, at, &[(Outcome::Done(latency), 20)]);
        assert_eq!(limiter.stats().limit < before, is_bad, "{latency:?}");
    }
}

#[test]
fn over_half_of_the_timeout_is_overload_however_usual() {
    let start = crate::clock::now();
    let mut limiter = Limiter::new(ENFORCED, ms(200), start);
    let mut at = learnt(&mut limiter, start, ms(80));
    for (latency, is_bad) in [(ms(90), false), (ms(115), true)] {
        let before = limiter.stats().limit;
        at = window(&mut limiter, at, &[(Outcome::Done(latency), 20)]);
        assert_eq!(limiter.stats().limit < before, is_bad, "{latency:?}");
    }
}

#[test]
fn a_good_window_between_bad_ones_begins_the_count_anew() {
    let (mut limiter, start) = limiter(Config { initial: 4, ..ENFORCED });
    let mut at = learnt(&mut limiter, start, ms(10));
    for latency in [[ms(400); 4].as_slice(), &[ms(10)], &[ms(400); 4]].concat() {
        at = window(&mut limiter, at, &[(Outcome::Done(latency), 10)]);
        assert!(limiter.stats().base < ms(20));
    }
}

#[test]
fn what_was_in_flight_when_a_window_began_was_in_flight_in_it() {
    let (mut limiter, start) = limiter(Config { initial: 20, ..ENFORCED });
    let tickets = hold(&mut limiter, 15, start);
    let at = window(&mut limiter, start, &[(Outcome::Done(ms(10)), 10)]);
    assert_eq!(limiter.stats().limit, 21);
    for ticket in tickets {
        limiter.settle(ticket, Outcome::Done(ms(10)), at);
    }
    limiter_turn(&mut limiter, at + WINDOW);
    assert_eq!(limiter.stats().limit, 22);
}

#[test]
fn overload_by_half_keeps_the_goodput_of_what_can_be_done() {
    for seed in 1..=3 {
        for gives_up in [Outcome::Timeout, Outcome::Dropped] {
            let load = |at| if at < MINUTE { 240.0 } else { 600.0 };
            let mut world = World { load: &load, gives_up, ..World::new(seed) };
            let Phase { goodput, p99, .. } = world.run(ENFORCED, 2 * MINUTE, 3 * MINUTE);
            assert!((395.0..=408.0).contains(&goodput), "seed {seed}: {goodput}/s");
            assert!(p99 < ms(500), "seed {seed}: {p99:?}");
        }
    }
}

#[test]
fn without_a_limit_overload_by_half_leaves_hardly_any_goodput() {
    let load = |at| if at < MINUTE { 240.0 } else { 600.0 };
    let mut world = World { load: &load, ..World::new(1) };
    let unlimited = Config { mode: Mode::Observe, ..ENFORCED };
    let Phase { goodput, .. } = world.run(unlimited, 2 * MINUTE, 3 * MINUTE);
    assert!(goodput < 10.0, "{goodput}/s");
}

#[test]
fn a_workload_five_times_slower_still_does_what_it_can() {
    for seed in 1..=3 {
        let service = |at| if at < MINUTE { 0.020 } else { 0.100 };
        let mut world = World { service: &service, ..World::new(seed) };
        let Phase { goodput, .. } = world.run(ENFORCED, 2 * MINUTE, 3 * MINUTE);
        assert!((77.0..=83.0).contains(&goodput), "seed {seed}: {goodput}/s");
    }
}

#[test]
fn a_healthy_surge_is_not_shed() {
    for seed in 1..=3 {
        let load = |at| if at < MINUTE { 50.0 } else { 250.0 };
        let mut world = World { load: &load, ..World::new(seed) };
        let Phase { shed, .. } = world.run(ENFORCED, MINUTE, 3 * MINUTE);
        assert_eq!(shed, 0, "seed {seed}");
    }
}

#[test]
fn three_times_the_latency_without_a_queue_is_not_shed() {
    for seed in 1..=3 {
        let service = |at| if at < MINUTE { 0.020 } else { 0.060 };
        let mut world = World { service: &service, workers: 10_000, ..World::new(seed) };
        let Phase { shed, .. } = world.run(ENFORCED, MINUTE, 3 * MINUTE);
        assert_eq!(shed, 0, "seed {seed}");
    }
}

#[test]
fn ten_times_the_latency_without_a_queue_is_shed_for_a_minute_at_the_most() {
    for seed in 1..=3 {
        let service = |at| if at < MINUTE { 0.020 } else { 0.200 };
        let mut world = World { service: &service, workers: 10_000, ..World::new(seed) };
        let Phase { offered, shed, .. } = world.run(ENFORCED, 2 * MINUTE, 4 * MINUTE);
        assert!(shed * 100 < offered, "seed {seed}: {shed} of {offered}");
    }
}

#[test]
fn a_tiny_workload_is_kept_busy_and_no_more() {
    for seed in 1..=3 {
        let load = |at| if at < MINUTE { 20.0 } else { 80.0 };
        let mut world = World { load: &load, workers: 1, ..World::new(seed) };
        let Phase { goodput, .. } = world.run(ENFORCED, 2 * MINUTE, 3 * MINUTE);
        assert!((47.0..=52.0).contains(&goodput), "seed {seed}: {goodput}/s");
    }
}

proptest! {
    /// Whatever happens, the limit is within its bounds, and what is in flight is what was
    /// taken on and not settled.
    #[test]
    fn a_limit_is_within_its_bounds_and_nothing_in_flight_is_lost(
        steps in vec((0_u64..700, 0_u8..5, 0_u64..40_000), 1..300),
    ) {
        let (mut limiter, mut now) = limiter(Config { initial: 10, min: 3, max: 20, ..ENFORCED });
        let mut held = Vec::new();
        for (wait, what, latency) in steps {
            now += ms(wait);
            let class = [Class::Retried, Class::Default, Class::Critical][usize::from(what % 3)];
            let outcomes = [Outcome::Done(ms(latency)), Outcome::Timeout, Outcome::Dropped];
            match what {
                0..=2 => match limiter.admit(class, now) {
                    Decision::Admit(ticket) => held.push(ticket),
                    Decision::Shed => {}
                    Decision::WouldShed(_) => prop_assert!(false, "it enforces"),
                },
                _ => while held.len() > usize::from(what) {
                    let ticket = held.swap_remove(held.len() / 2);
                    limiter.settle(ticket, outcomes[(latency % 3) as usize], now);
                },
            }
            let Stats { limit, in_flight, .. } = limiter.stats();
            prop_assert!((3..=20).contains(&limit), "{}", limit);
            prop_assert_eq!(usize::try_from(in_flight).unwrap(), held.len());
        }
    }

    /// The median is within a sixteenth of the exact one.
    #[test]
    fn a_median_is_off_by_a_sixteenth_at_the_most(mut latencies in vec(9_000_u64..200_000_000_000, 1..99)) {
        let mut histogram = Histogram::default();
        for latency in &latencies {
            histogram.add(Duration::from_nanos(*latency));
        }
        latencies.sort_unstable();
        let exact = latencies[(latencies.len() - 1) / 2];
        let found = u64::try_from(histogram.median().as_nanos()).unwrap();
        prop_assert!(found.abs_diff(exact) <= exact / 16 + 1, "{} for {}", found, exact);
    }
}

fn limiter(config: Config) -> (Limiter, Instant) {
    let start = crate::clock::now();
    (Limiter::new(config, MINUTE, start), start)
}

/// Ten windows of this latency and more.
fn learnt(limiter: &mut Limiter, mut at: Instant, latency: Duration) -> Instant {
    for _ in 0..12 {
        at = window(limiter, at, &[(Outcome::Done(latency), 10)]);
    }
    at
}

/// One after the other, so many requests that end so; then the end of the window.
fn window(limiter: &mut Limiter, at: Instant, ends: &[(Outcome, u32)]) -> Instant {
    for (outcome, count) in ends {
        for _ in 0..*count {
            for ticket in hold(limiter, 1, at) {
                limiter.settle(ticket, *outcome, at);
            }
        }
    }
    limiter_turn(limiter, at + WINDOW)
}

fn limiter_turn(limiter: &mut Limiter, at: Instant) -> Instant {
    limiter.turn(at);
    at
}

fn hold(limiter: &mut Limiter, count: usize, at: Instant) -> Vec<Ticket> {
    let admitted = (0..count).filter_map(|_| match limiter.admit(Class::Critical, at) {
        Decision::Admit(ticket) | Decision::WouldShed(ticket) => Some(ticket),
        Decision::Shed => None,
    });
    admitted.collect()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}
