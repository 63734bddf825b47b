use proptest::{collection::vec, prelude::*};

use super::*;
use crate::clock;

const CONFIG: Config = Config { mode: Mode::Enforce, percent: 2 };

fn millis(it: u64) -> Duration {
    Duration::from_millis(it)
}

#[test]
fn nothing_is_hedged_before_a_hundred_answers_are_known() {
    let start = clock::now();
    let mut latencies = Latencies::new(start);
    for _ in 0..99 {
        latencies.record(&CONFIG, millis(10), start + REFRESH);
        assert_eq!(latencies.after(&CONFIG), None);
    }
    latencies.record(&CONFIG, millis(10), start + REFRESH * 2);
    assert!(latencies.after(&CONFIG).is_some());
}

#[test]
fn what_is_slower_than_all_but_the_share_is_hedged() {
    // 97 answers of 10 ms, 2 of 100 ms, 1 of a second.
    let known = |percent| {
        let config = Config { percent, ..CONFIG };
        let waits = [vec![millis(10); 97], vec![millis(100); 2], vec![millis(1000)]].concat();
        filled(config, &waits).after(&config).unwrap()
    };
    assert!((millis(1000)..millis(1250)).contains(&known(0)));
    assert!((millis(100)..millis(125)).contains(&known(1)));
    assert!((millis(100)..millis(125)).contains(&known(2)));
    assert!((millis(10)..millis(13)).contains(&known(3)));
}

#[test]
fn a_large_share_still_leaves_nineteen_in_twenty_alone() {
    let config = Config { percent: 20, ..CONFIG };
    let waits = [vec![millis(10); 90], vec![millis(100); 10]].concat();
    let after = filled(config, &waits).after(&config).unwrap();
    assert!((millis(100)..millis(125)).contains(&after));
}

#[test]
fn a_hedge_waits_a_millisecond_at_least() {
    let after = filled(CONFIG, &[Duration::from_micros(3); 100]).after(&CONFIG);
    assert_eq!(after, Some(millis(1)));
}

#[test]
fn what_is_older_than_two_halves_is_forgotten() {
    let mut latencies = filled(CONFIG, &[millis(10); 100]);
    let mut half = |latency| {
        let ends = latencies.ends;
        (0..50).for_each(|_| latencies.record(&CONFIG, latency, ends));
        latencies.after(&CONFIG).unwrap()
    };
    assert!((millis(400)..millis(500)).contains(&half(millis(400))));
    assert!((millis(400)..millis(500)).contains(&half(millis(10))));
    assert!((millis(10)..millis(13)).contains(&half(millis(10))));
}

#[test]
fn a_half_is_not_over_before_it_has_answers() {
    let start = clock::now();
    let mut latencies = Latencies::new(start);
    // One a second: the time is known after a hundred.
    for second in 1..=100 {
        latencies.record(&CONFIG, millis(20), start + Duration::from_secs(second));
    }
    assert!(latencies.after(&CONFIG).is_some());
}

#[test]
fn hedges_that_are_off_cost_and_do_nothing() {
    let off = Config { mode: Mode::Off, ..CONFIG };
    let start = clock::now();
    assert_eq!(filled(off, &[millis(10); 1000]).after(&off), None);
    assert_eq!(filled(CONFIG, &[millis(10); 1000]).after(&off), None);
    let mut budget = Budget::new(start);
    (0..1000).for_each(|_| budget.deposit(&off, start));
    assert_eq!(budget.withdraw(&off, start), Verdict::Exhausted);
    assert_eq!(budget.withdraw(&CONFIG, start), Verdict::Exhausted);
}

#[test]
fn hedges_are_a_share_of_the_requests_and_none_before_them() {
    let start = clock::now();
    let mut budget = Budget::new(start);
    assert_eq!(budget.withdraw(&CONFIG, start), Verdict::Exhausted);
    let later = start + Duration::from_hours(1);
    (0..100).for_each(|_| budget.deposit(&CONFIG, later));
    assert_eq!(granted(&mut budget, later), 2);
    budget.refund();
    assert_eq!(granted(&mut budget, later), 1);
}

#[test]
fn a_service_that_stood_still_has_ten_hedges_saved() {
    let start = clock::now();
    let mut budget = Budget::new(start);
    (0..10_000).for_each(|_| budget.deposit(&CONFIG, start));
    assert_eq!(granted(&mut budget, start + Duration::from_mins(1)), 10);
}

#[test]
fn hedges_that_are_observed_are_counted_within_the_same_share() {
    let observing = Config { mode: Mode::Observe, ..CONFIG };
    let start = clock::now();
    let mut budget = Budget::new(start);
    (0..50).for_each(|_| budget.deposit(&observing, start));
    assert_eq!(budget.withdraw(&observing, start), Verdict::WouldSend);
    assert_eq!(budget.withdraw(&observing, start), Verdict::Exhausted);
    assert!(filled(observing, &[millis(10); 100]).after(&observing).is_some());
}

#[test]
fn what_is_longer_than_the_last_bucket_is_counted_there() {
    assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    assert!(upper(BUCKETS - 1) > Duration::from_secs(30));
}

proptest! {
    /// Each bucket ends where the next begins, and is a quarter of its values wide at most.
    #[test]
    fn a_bucket_holds_what_it_says(micros in 0_u64..33_000_000) {
        let latency = Duration::from_micros(micros);
        let bucket = bucket(latency);
        prop_assert!(latency < upper(bucket));
        if let Some(before) = bucket.checked_sub(1) {
            prop_assert!(upper(before) <= latency);
            let width = upper(bucket).abs_diff(upper(before));
            prop_assert!(width <= upper(before) / 4 || width == Duration::from_micros(256));
        }
    }

    /// No more than the share is slower than the time to hedge after.
    #[test]
    fn no_more_than_the_share_is_hedged(
        waits in vec(0_u64..30_000, 100..300),
        percent in 1_u32..=20,
    ) {
        let config = Config { percent, ..CONFIG };
        let waits: Vec<_> = waits.into_iter().map(millis).collect();
        let after = filled(config, &waits).after(&config).unwrap();
        let slower = waits.iter().filter(|it| after <= **it).count();
        prop_assert!(slower * 100 <= waits.len() * percent as usize);
    }
}

/// What is known after these, all of one half.
fn filled(config: Config, waits: &[Duration]) -> Latencies {
    let start = clock::now();
    let mut latencies = Latencies::new(start);
    if let Some((last, others)) = waits.split_last() {
        for it in others {
            latencies.record(&config, *it, start);
        }
        latencies.record(&config, *last, start + REFRESH);
    }
    latencies
}

fn granted(budget: &mut Budget, now: Instant) -> usize {
    (0..100).filter(|_| budget.withdraw(&CONFIG, now) == Verdict::Granted).count()
}
