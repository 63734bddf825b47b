use std::collections::BTreeSet;

use super::*;
use crate::endpoint::Zone;

#[test]
fn up_to_fifty_endpoints_are_all_used() {
    assert_eq!(World::new(Algorithm::PeakEwma, &pool(0..50)).used().len(), 50);
}

#[test]
fn of_more_than_fifty_a_dozen_is_used() {
    assert_eq!(World::new(Algorithm::PeakEwma, &pool(0..51)).used().len(), 12);
}

#[test]
fn only_those_that_leave_make_room() {
    let mut world = World::new(Algorithm::PeakEwma, &pool(0..100));
    let before = world.used();
    world.update(&pool(10..110));
    let after = world.used();
    let stayed: BTreeSet<_> = (10..110).map(|n| at(n).address).collect();
    // Of those that were used and stayed, one is only given up for a new one ahead of it.
    let entered = after.difference(&before).filter(|it| at(100).address <= **it).count();
    let lost = before.intersection(&stayed).filter(|it| !after.contains(it)).count();
    assert!(lost <= entered, "{lost} lost, {entered} entered");
    assert!(before.intersection(&after).count() >= 8, "{before:?} {after:?}");
}

#[test]
fn clients_use_different_ones() {
    let mut used = BTreeSet::new();
    for seed in 0..40 {
        let mut config = plain(Algorithm::PeakEwma);
        config.balancer.seed = seed;
        used.extend(World::of(&config, &pool(0..100)).used());
    }
    assert!(95 <= used.len(), "{} of 100 by 40 clients", used.len());
}

#[test]
fn load_widens_the_subset_and_its_end_shrinks_it() {
    let mut world = World::new(Algorithm::PeakEwma, &pool(0..100));
    let mut open: Vec<_> = (0..60).map(|_| world.pick(None).unwrap().token).collect();
    let pass = |world: &mut World, seconds: u32| {
        for _ in 0..seconds * 10 {
            world.now += Duration::from_millis(100);
            let pick = world.pick(None).unwrap();
            world.settle(pick.token, Outcome::Success);
        }
        world.used().len()
    };
    let wide = pass(&mut world, 120);
    assert!((53..=69).contains(&wide), "{wide} for 60 under way");
    world.update(&pool(1..101));
    assert_eq!(world.used().len(), wide, "another set does not shrink it");
    for token in open.drain(..) {
        world.balancer.settle(token, Outcome::Success, world.now);
    }
    assert_eq!(pass(&mut world, 120), 12);
}

#[test]
fn when_the_whole_subset_is_away_the_rest_is_used() {
    let mut world = World::new(Algorithm::PeakEwma, &pool(0..100));
    let used = world.used();
    while !world.used().is_disjoint(&used) {
        let pick = world.pick(None).unwrap();
        assert!(!pick.panic);
        world.settle(pick.token, Outcome::ConnectFailed);
    }
    assert_eq!(world.used().len(), 88);
}

#[test]
fn a_subset_has_some_of_each_zone() {
    let endpoints: Vec<_> = pool(0..90)
        .into_iter()
        .zip([Zone::Near, Zone::Far, Zone::Far].into_iter().cycle())
        .map(|(it, zone)| Endpoint { zone, ..it })
        .collect();
    let mut world = World::new(Algorithm::PeakEwma, &endpoints);
    let zone = |it: &SocketAddr| endpoints.iter().find(|e| e.address == *it).unwrap().zone;
    let used = world.used();
    let near = used.iter().filter(|it| zone(it) == Zone::Near).count();
    assert_eq!((near, used.len()), (12, 24));
}

#[test]
fn endpoints_of_different_weights_are_all_used() {
    let mut endpoints = pool(0..100);
    endpoints[7].weight = 2;
    assert_eq!(World::new(Algorithm::PeakEwma, &endpoints).used().len(), 100);
}

impl World {
    /// Where requests are drawn from.
    fn used(&mut self) -> BTreeSet<SocketAddr> {
        let slots = &self.balancer.slots;
        let drawn = self.balancer.groups[0].available().slots();
        drawn.iter().map(|it| slots[*it as usize].endpoint.address).collect()
    }
}

fn pool(which: std::ops::Range<u8>) -> Vec<Endpoint> {
    which.map(at).collect()
}
