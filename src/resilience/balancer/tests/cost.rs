use super::{
    super::latency::{Baselines, Estimate},
    *,
};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_hundred_milliseconds_read_36_788_after_ten_seconds() {
    let now = origin();
    let mut estimate = Estimate::new(now);
    estimate.observe(0.1, now);
    assert!((estimate.read(now + 10_000 * MS) - 0.036_788).abs() < 1e-6);
}

#[test]
fn an_estimate_goes_up_at_once_and_comes_down_by_degrees() {
    let now = origin();
    let mut estimate = Estimate::new(now);
    estimate.observe(5.0, now);
    assert!((estimate.read(now) - 5.0).abs() < 1e-9);
    estimate.observe(0.0, now + 1_000 * MS);
    assert!((estimate.read(now + 1_000 * MS) - 5.0 * (-0.1_f64).exp()).abs() < 1e-9);
}

#[test]
fn what_has_not_been_heard_of_for_fifteen_seconds_is_as_usual() {
    let now = origin();
    let mut estimate = Estimate::new(now);
    estimate.observe(600.0, now);
    assert!(1.0 < estimate.read(now + 14_999 * MS));
    assert!(estimate.read(now + 15_000 * MS) <= 0.03);
}

#[test]
fn a_lower_sample_weighs_as_much_however_often_the_estimate_was_read() {
    let now = origin();
    let [mut read, mut unread] = [Estimate::new(now); 2];
    for estimate in [&mut read, &mut unread] {
        estimate.observe(1.0, now);
    }
    (0..1_000).for_each(|n| assert!(read.read(now + n * 5 * MS) <= 1.0));
    for estimate in [&mut read, &mut unread] {
        estimate.observe(0.5, now + 5_000 * MS);
    }
    let expected = (-0.5_f64).exp() + 0.5 * (1.0 - (-0.5_f64).exp());
    assert!((read.read(now + 5_000 * MS) - expected).abs() < 1e-9);
    assert!((unread.read(now + 5_000 * MS) - expected).abs() < 1e-9);
}

#[test]
fn a_baseline_begins_as_a_plain_mean_and_follows_within_minutes() {
    let (route, start) = (RouteId(3), origin());
    let mut baselines = Baselines::new();
    assert_eq!(baselines.get(route), None);
    for (n, took) in (1..).zip([10, 20, 30]) {
        baselines.observe(route, took * MS, start + n * MS);
    }
    assert_eq!(baselines.get(route), Some(20 * MS));
    assert_eq!(baselines.get(RouteId(4)), None);
    for n in 0..1_800 {
        baselines.observe(route, 200 * MS, start + n * 100 * MS);
    }
    let after = baselines.get(route).unwrap();
    assert!((180 * MS..201 * MS).contains(&after), "{after:?}");
}

#[test]
fn equal_costs_go_to_the_first_drawn() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2)]);
    for (draw, first) in [(0, at(1)), (u32::MAX, at(2))] {
        let ask = Ask {
            now: world.now,
            kind: Kind::First,
            route: RouteId::default(),
            avoid: None,
            key: None,
        };
        let pick = world.balancer.pick(ask, &mut || draw).unwrap();
        assert_eq!(pick.address, first.address);
        world.settle(pick.token, Outcome::Cancelled);
    }
}

#[test]
fn no_endpoint_is_compared_with_itself() {
    let endpoints = [1, 2, 3].map(|n| Endpoint { weight: n.into(), ..at(n) });
    let world = World::new(Algorithm::PeakEwma, &endpoints);
    let pool = world.balancer.groups[0].available();
    let mut state = 1;
    for _ in 0..1_000 {
        let first = pool.draw(draw(&mut state), [None, None]).unwrap();
        let second = pool.draw(draw(&mut state), [None, Some(first)]).unwrap();
        let third = pool.draw(draw(&mut state), [Some(second), Some(first)]).unwrap();
        assert!(first != second && second != third && first != third);
    }
}

#[test]
fn one_that_hangs_gets_less_than_a_hundredth_though_nothing_times_out() {
    let hung = at(2);
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), hung, at(3)]);
    let answers = |it| (it != hung.address).then_some((20 * MS, Outcome::Success));
    world.drive(10, answers);
    let share = world.drive(50, answers).get(&hung.address).copied().unwrap_or(0);
    assert!(share < 50, "{share} of 5000");
}

#[test]
fn one_that_fails_at_once_gets_less_than_a_twentieth() {
    let bad = at(3);
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2), bad]);
    let answers = |it| {
        Some(if it == bad.address { (MS, Outcome::Failure) } else { (20 * MS, Outcome::Success) })
    };
    let share = world.drive(60, answers).get(&bad.address).copied().unwrap_or(0);
    assert!(share < 300, "{share} of 6000");
}

#[test]
fn one_that_is_busy_is_left_alone_for_as_long_as_it_says_up_to_five_seconds() {
    for (after, most) in [(None, 0.25), (Some(1_000 * MS), 1.0), (Some(300_000 * MS), 5.0)] {
        let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2)]);
        let pick = world.pick(None).unwrap();
        let busy = Endpoint::new(pick.address);
        world.settle(pick.token, Outcome::Busy(after));
        let cost = world.slot(busy).estimate.read(world.now);
        assert!((cost - most).abs() < 1e-9, "{cost} for {after:?}");
        assert_eq!(world.shares(10).get(&busy.address), None);
    }
}

#[test]
fn one_accident_costs_an_endpoint_seconds_and_failures_in_a_row_more() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2)]);
    let pick = world.pick(None).unwrap();
    let unlucky = Endpoint::new(pick.address);
    world.settle(pick.token, Outcome::Failure);
    let cost = |world: &World| world.slot(unlucky).estimate.read(world.now);
    assert!((cost(&world) - 0.25).abs() < 1e-9);
    world.now += Duration::from_secs(7);
    assert!(cost(&world) < 0.03, "{}", cost(&world));
    for (row, expected) in [(2, 0.5), (3, 1.0), (4, 2.0), (5, 4.0), (6, 5.0), (7, 5.0)] {
        let mut estimate = world.slot(unlucky).estimate;
        for _ in 1..row {
            estimate.punish(0.0, world.now);
        }
        assert!((estimate.read(world.now) - expected).abs() < 1e-9, "{row}");
    }
}

#[test]
fn a_slow_route_does_not_poison_its_endpoint() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2)]);
    let report = RouteId(1);
    for _ in 0..50 {
        for (route, took) in [(RouteId::default(), 5 * MS), (report, 3_000 * MS)] {
            let pick = world.ask(route, None, None).unwrap();
            world.now += took;
            world.settle(pick.token, Outcome::Success);
        }
    }
    for endpoint in [at(1), at(2)] {
        let cost = world.slot(endpoint).estimate.read(world.now);
        assert!(cost < 0.031, "{cost} after answers as quick as ever");
    }
    // And a report that has waited for a second is not yet late.
    let pick = world.ask(report, None, None).unwrap();
    world.now += 1_000 * MS;
    let lines = world.slot(Endpoint::new(pick.address)).lines;
    let (since, route) = world.balancer.waiting.firsts(&lines).next().unwrap();
    let age = world.balancer.baselines.wait(route, world.now - since);
    assert!((0.009..0.011).contains(&age), "{age}");
}

#[test]
fn a_request_that_always_waits_long_hides_none_that_does_not() {
    let (poll, hung) = (RouteId(1), at(1));
    let mut world = World::new(Algorithm::PeakEwma, &[hung, at(2)]);
    for (route, took) in [(poll, 60_000 * MS), (RouteId::default(), 5 * MS)] {
        let pick = world.ask(route, None, None).unwrap();
        world.now += took;
        world.settle(pick.token, Outcome::Success);
    }
    let _waits = world.ask(poll, Some(at(2).address), None).unwrap();
    world.now += 10_000 * MS;
    let other = world.pick(Some(hung.address)).unwrap();
    world.settle(other.token, Outcome::Busy(Some(100 * MS)));
    assert_eq!(world.shares(10)[&hung.address], 10);
    let _hangs = world.ask(RouteId::default(), Some(at(2).address), None).unwrap();
    world.now += 100 * MS;
    assert_eq!(world.shares(10).get(&hung.address), None);
}

#[test]
fn a_stream_is_no_hang() {
    let streaming = at(1);
    let mut world = World::new(Algorithm::PeakEwma, &[streaming, at(2)]);
    let mut pick = world.pick(Some(at(2).address)).unwrap();
    world.now += 30 * MS;
    world.balancer.answered(&mut pick.token, world.now);
    let answers = |_| Some((30 * MS, Outcome::Success));
    world.drive(30, answers);
    let share = world.drive(30, answers)[&streaming.address];
    assert!((900..1_500).contains(&share), "{share} of 3000");
    let estimate = world.slot(streaming).estimate.read(world.now);
    world.settle(pick.token, Outcome::Success);
    let after = world.slot(streaming).estimate.read(world.now);
    assert!((estimate - after).abs() < 1e-9, "an answer is sampled once");
}

#[test]
fn a_client_that_leaves_says_nothing_unless_it_had_waited_long() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1)]);
    let quick = world.pick(None).unwrap();
    world.now += MS;
    world.settle(quick.token, Outcome::Cancelled);
    assert!(world.slot(at(1)).estimate.read(world.now) < 0.03);
    let slow = world.pick(None).unwrap();
    world.now += 700 * MS;
    world.settle(slow.token, Outcome::Cancelled);
    assert!((world.slot(at(1)).estimate.read(world.now) - 0.7).abs() < 1e-9);
    assert_eq!(world.balancer.baseline(RouteId::default()), None);
}

#[test]
fn a_stream_that_its_client_ends_says_nothing() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1)]);
    let mut pick = world.pick(None).unwrap();
    world.now += 30 * MS;
    world.balancer.answered(&mut pick.token, world.now);
    world.now += 60_000 * MS;
    world.settle(pick.token, Outcome::Cancelled);
    assert!(world.slot(at(1)).estimate.read(world.now) < 0.03);
}

#[test]
fn the_quicker_gets_more() {
    let mut world = World::new(Algorithm::PeakEwma, &[at(1), at(2)]);
    let answers = |it| {
        let took = if it == at(1).address { 20 * MS } else { 80 * MS };
        Some((took, Outcome::Success))
    };
    let shares = world.drive(60, answers);
    assert!(shares[&at(2).address] * 2 < shares[&at(1).address], "{shares:?}");
}

fn origin() -> Instant {
    World::new(Algorithm::Random, &[]).now
}
