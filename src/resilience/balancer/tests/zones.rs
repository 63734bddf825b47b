use super::*;
use crate::endpoint::Zone;

#[test]
fn idle_endpoints_that_are_near_get_everything() {
    let mut world = World::new(Algorithm::PeakEwma, &zones());
    assert_eq!(world.shares(1_000).keys().copied().collect::<Vec<_>>(), near());
}

#[test]
fn traffic_spills_once_the_near_ones_have_about_twice_as_much_to_do() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let mut world = World::new(algorithm, &zones());
        let mut picks = |n| -> usize {
            let picks: Vec<_> = (0..n).map(|_| world.pick(None).unwrap().address).collect();
            picks.iter().filter(|it| near().contains(it)).count()
        };
        assert_eq!(picks(2), 2, "{algorithm:?}");
        let share = picks(600);
        assert!((370..=430).contains(&share), "{algorithm:?}: {share} of 600, not two thirds");
    }
}

#[test]
fn one_that_is_near_and_hangs_loses_its_traffic_to_the_other_zone() {
    let [near, _, far, _] = zones();
    let mut world = World::new(Algorithm::PeakEwma, &[near, far]);
    let _hangs = world.pick(None).unwrap();
    world.now += Duration::from_secs(1);
    assert_eq!(world.shares(100)[&far.address], 100);
}

#[test]
fn with_nobody_near_the_others_share_evenly() {
    let [near, near_too, far, other] = zones();
    let mut world = World::new(Algorithm::PeakEwma, &[near, near_too, far, other]);
    world.fail_dial(near);
    world.fail_dial(near_too);
    let shares = world.shares(1_000);
    assert!((400..=600).contains(&shares[&far.address]), "{shares:?}");
    assert_eq!(shares[&far.address] + shares[&other.address], 1_000);
}

#[test]
fn the_one_to_avoid_gives_way_to_another_zone() {
    let [near, _, far, _] = zones();
    let mut world = World::new(Algorithm::PeakEwma, &[near, far]);
    assert_eq!(world.pick(Some(near.address)).unwrap().address, far.address);
}

#[test]
fn without_one_that_is_far_zones_make_no_difference() {
    let near = Endpoint { zone: Zone::Near, ..at(1) };
    let mut world = World::new(Algorithm::LeastRequest, &[near, at(2)]);
    let share = world.shares(1_000)[&near.address];
    assert!((450..=550).contains(&share), "{share}");
}

/// Two that are near, one that is far, and one of which nobody knows.
fn zones() -> [Endpoint; 4] {
    [
        Endpoint { zone: Zone::Near, ..at(1) },
        Endpoint { zone: Zone::Near, ..at(2) },
        Endpoint { zone: Zone::Far, ..at(3) },
        at(4),
    ]
}

fn near() -> Vec<SocketAddr> {
    vec![at(1).address, at(2).address]
}
