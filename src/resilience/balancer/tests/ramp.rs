use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_endpoint_that_is_added_gets_a_share_that_grows_with_its_age() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::Random, Algorithm::RoundRobin] {
        for (age, percent) in [(0, 10), (1, 10), (3, 30), (5, 50), (8, 80), (10, 100)] {
            let mut world = slow(algorithm, &[at(1), at(2), at(3)]);
            world.update(&[at(1), at(2), at(3), at(4)]);
            world.now += SECOND * age;
            let share = f64::from(world.shares(8_000)[&at(4).address]) / 8_000.0;
            let wanted = f64::from(percent) / f64::from(300 + percent);
            assert!((share - wanted).abs() < 0.015, "{algorithm:?} at {age} s: {share}");
        }
    }
}

#[test]
fn an_endpoint_that_looks_better_gets_no_more_than_twice_its_share() {
    let mut world = slow(Algorithm::PeakEwma, &[at(1), at(2)]);
    for _ in 0..2 {
        let pick = world.pick(None).unwrap();
        world.settle(pick.token, Outcome::Busy(Some(SECOND / 20)));
    }
    world.update(&[at(1), at(2), at(3)]);
    let share = world.shares(8_000)[&at(3).address];
    assert!((380..=760).contains(&share), "{share} of 8000, where 381 would be its share");
}

#[test]
fn an_endpoint_that_hangs_gives_way_to_one_however_new() {
    let mut world = slow(Algorithm::PeakEwma, &[at(1)]);
    let _hangs = world.pick(None).unwrap();
    world.now += SECOND;
    world.update(&[at(1), at(2)]);
    assert_eq!(world.shares(100)[&at(2).address], 100);
}

#[test]
fn the_first_endpoints_of_a_pool_are_not_new() {
    let mut world = slow(Algorithm::LeastRequest, &[at(1), at(2)]);
    world.fail_dial(at(1));
    world.balancer = slow(Algorithm::LeastRequest, &[]).balancer;
    world.update(&[at(1), at(2)]);
    let share = world.shares(1_000)[&at(1).address];
    assert!((450..=550).contains(&share), "{share}");
}

#[test]
fn endpoints_that_are_all_new_share_evenly() {
    let mut world = slow(Algorithm::PeakEwma, &[at(9)]);
    world.update(&[at(1), at(2), at(3), at(9)]);
    world.update(&[at(1), at(2), at(3)]);
    for share in world.shares(3_000).into_values() {
        assert!((900..=1_100).contains(&share), "{share}");
    }
}

#[test]
fn an_endpoint_that_was_set_aside_comes_back_by_degrees() {
    let mut world = slow(Algorithm::LeastRequest, &[at(1), at(2)]);
    world.fail_dial(at(1));
    world.now = world.set_aside(at(1).address).unwrap();
    let share = world.shares(4_000)[&at(1).address];
    assert!((300..=430).contains(&share), "{share}, not 4000 x 10 / 110");
    world.now += SECOND * 10;
    let share = world.shares(4_000)[&at(1).address];
    assert!((1_900..=2_100).contains(&share), "{share}");
}

#[test]
fn what_failed_before_an_endpoint_was_away_does_not_keep_it_away() {
    let mut world = slow(Algorithm::PeakEwma, &[at(1), at(2)]);
    let well = |_| Some((SECOND / 200, Outcome::Success));
    world.drive(5, well);
    // It dies with a request in hand, and comes back.
    let token = world.pick_of(at(1));
    world.settle(token, Outcome::Failure);
    world.fail_dial(at(1));
    world.now = world.set_aside(at(1).address).unwrap();
    let share = world.drive(2, well)[&at(1).address];
    assert!((5..=60).contains(&share), "{share} of 200, to begin with");
    world.drive(10, well);
    let share = world.drive(10, well)[&at(1).address];
    assert!((400..=600).contains(&share), "{share} of 1000");
}

fn slow(algorithm: Algorithm, endpoints: &[Endpoint]) -> World {
    let mut config = plain(algorithm);
    config.balancer.slow_start = SECOND * 10;
    World::of(&config, endpoints)
}
