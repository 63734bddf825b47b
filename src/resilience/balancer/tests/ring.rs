use super::*;

#[test]
fn a_key_stays_with_its_endpoint() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(10));
    let (before, after) = (world.owners(), world.owners());
    assert_eq!(before, after);
}

#[test]
fn keys_are_spread_by_weight() {
    let heavy = Endpoint { weight: 300, ..at(1) };
    let light = Endpoint { weight: 100, ..at(2) };
    let mut world = World::new(Algorithm::ConsistentHash, &[heavy, light]);
    let share = world.owners().iter().filter(|it| **it == heavy.address).count();
    assert!((700..=800).contains(&share), "{share} of 1000");
}

#[test]
fn an_endpoint_that_leaves_takes_only_its_own_keys() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(10));
    let before = world.owners();
    world.update(&pool(10)[1..]);
    let moved: Vec<_> = before.iter().zip(world.owners()).filter(|(a, b)| *a != b).collect();
    assert!(moved.iter().all(|(from, _)| **from == at(0).address));
    assert!((50..=150).contains(&moved.len()), "{} of 1000", moved.len());
    // Its keys are spread over those that stay, and come back with it.
    let heirs: std::collections::BTreeSet<_> = moved.iter().map(|(_, to)| *to).collect();
    assert!(5 <= heirs.len(), "{heirs:?}");
    world.update(&pool(10));
    assert_eq!(before, world.owners());
}

#[test]
fn an_endpoint_that_cannot_be_reached_loses_its_keys_to_the_next() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(10));
    let before = world.owners();
    let away = Endpoint::new(before[0]);
    world.fail_dial(away);
    for (from, to) in before.iter().zip(world.owners()) {
        assert!(*from == to || *from == away.address);
        assert_ne!(to, away.address);
    }
}

#[test]
fn the_endpoint_to_avoid_is_walked_past() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(3));
    for key in 0..100_u32 {
        let owner = world.owner(key, None);
        assert_ne!(world.owner(key, Some(owner)), owner);
    }
}

#[test]
fn no_endpoint_has_a_quarter_more_than_the_mean() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(10));
    // One key is all there is to hash: the worst that can be.
    let picks: Vec<_> =
        (0..400).map(|_| world.ask(RouteId::default(), None, Some(b"popular")).unwrap()).collect();
    let mut pending = BTreeMap::<_, u32>::new();
    for it in &picks {
        *pending.entry(it.address).or_default() += 1;
    }
    assert!(pending.values().all(|it| *it <= 50), "{pending:?}");
}

#[test]
fn without_a_key_two_choices_are_made() {
    let mut world = World::new(Algorithm::ConsistentHash, &pool(2));
    for n in 0..10 {
        let picks = [(); 2].map(|()| world.pick(None).unwrap().address);
        assert_ne!(picks[0], picks[1], "round {n}");
    }
}

#[test]
fn the_keys_of_a_new_endpoint_move_to_it_bit_by_bit_and_once() {
    let mut config = plain(Algorithm::ConsistentHash);
    config.balancer.slow_start = Duration::from_secs(10);
    let mut world = World::of(&config, &pool(4));
    world.update(&pool(5));
    let mut moved = Vec::new();
    for _ in 0..=10 {
        let now = world.owners();
        let has: Vec<_> = now.iter().map(|it| *it == at(4).address).collect();
        moved.push(has);
        world.now += Duration::from_secs(1);
    }
    for pair in moved.windows(2) {
        assert!(pair[0].iter().zip(&pair[1]).all(|(before, after)| !before || *after));
    }
    let counts: Vec<_> = moved.iter().map(|it| it.iter().filter(|it| **it).count()).collect();
    assert!(counts[0] * 5 < counts[10] && counts[5] * 3 < counts[10] * 2, "{counts:?}");
}

#[test]
fn extreme_weights_make_no_extreme_ring() {
    let [most, least] = [Endpoint { weight: u16::MAX, ..at(1) }, Endpoint { weight: 1, ..at(2) }];
    let mut world = World::new(Algorithm::ConsistentHash, &[most, least]);
    let share = world.owners().iter().filter(|it| **it == least.address).count();
    assert!((1..120).contains(&share), "{share} of 1000, at most a seventeenth");
}

impl World {
    /// Who owns each of a thousand keys.
    fn owners(&mut self) -> Vec<SocketAddr> {
        (0..1_000).map(|key| self.owner(key, None)).collect()
    }

    fn owner(&mut self, key: u32, avoid: Option<SocketAddr>) -> SocketAddr {
        let pick = self.ask(RouteId::default(), avoid, Some(&key.to_be_bytes())).unwrap();
        self.settle(pick.token, Outcome::Cancelled);
        pick.address
    }
}

fn pool(n: u8) -> Vec<Endpoint> {
    (0..n).map(at).collect()
}
