use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;

#[test]
fn an_empty_pool_has_nothing_to_pick() {
    let mut world = World::new(Algorithm::LeastRequest, &[]);
    assert!(world.pick(None).is_none());
}

#[test]
fn the_less_loaded_of_two_is_picked() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), at(2)]);
    for n in 0..10 {
        let picks = [(); 2].map(|()| world.pick(None).unwrap().address);
        assert_ne!(picks[0], picks[1], "round {n}");
    }
}

#[test]
fn idle_endpoints_share_by_weight() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::Random, Algorithm::RoundRobin] {
        let heavy = Endpoint { weight: 3, ..at(2) };
        let mut world = World::new(algorithm, &[at(1), heavy]);
        let shares = world.shares(4_000);
        let heavy = shares[&heavy.address];
        assert!((2_880..=3_120).contains(&heavy), "{algorithm:?} gave {heavy} of 4000");
    }
}

#[test]
fn busy_endpoints_share_by_weight() {
    let heavy = Endpoint { weight: 3, ..at(2) };
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), heavy]);
    let picks: Vec<_> = (0..400).map(|_| world.pick(None).unwrap()).collect();
    let heavy = picks.iter().filter(|it| it.address == heavy.address).count();
    assert!((295..=305).contains(&heavy), "{heavy} of 400");
}

#[test]
fn round_robin_takes_each_in_turn() {
    let mut world = World::new(Algorithm::RoundRobin, &[at(1), at(2), at(3)]);
    assert_eq!(world.shares(300).into_values().collect::<Vec<_>>(), [100; 3]);
}

#[test]
fn a_less_preferred_priority_is_used_only_when_no_better_one_is_available() {
    let spare = Endpoint { priority: 9, ..at(2) };
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), spare]);
    assert_eq!(world.shares(50)[&at(1).address], 50);
    world.fail_dial(at(1));
    assert_eq!(world.shares(50)[&spare.address], 50);
    world.now += SET_ASIDE * 5 / 4;
    assert_eq!(world.shares(50)[&at(1).address], 50);
}

#[test]
fn an_endpoint_to_avoid_is_used_when_it_is_the_only_one() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::Random, Algorithm::RoundRobin] {
        let mut world = World::new(algorithm, &[at(1), Endpoint { weight: 900, ..at(2) }]);
        for _ in 0..50 {
            assert_eq!(world.pick(Some(at(2).address)).unwrap().address, at(1).address);
        }
        world.balancer.update(&[at(2)].into_iter().collect());
        let pick = world.pick(Some(at(2).address)).unwrap();
        assert_eq!((pick.address, pick.panic), (at(2).address, false));
    }
}

#[test]
fn an_avoided_endpoint_gives_way_to_a_less_preferred_priority() {
    let spare = Endpoint { priority: 1, ..at(2) };
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), spare]);
    assert_eq!(world.pick(Some(at(1).address)).unwrap().address, spare.address);
}

#[test]
fn when_all_are_set_aside_one_is_picked_and_marked() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), at(2)]);
    world.fail_dial(at(1));
    world.fail_dial(at(2));
    let pick = world.pick(Some(at(1).address)).unwrap();
    assert!(pick.panic && pick.address == at(2).address);
    assert_eq!(world.balancer.stats(), Stats { available: 0, set_aside: 2, pending: 1 });
    world.balancer.settle(pick.token, Outcome::Success, world.now);
    let pick = world.pick(None).unwrap();
    assert!(!pick.panic && pick.address == at(2).address, "one success brings it back");
}

#[test]
fn a_set_aside_doubles_to_its_cap_and_a_success_resets_it() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), at(2)]);
    let expected = [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000];
    for wanted in expected {
        let away = world.time_set_aside(at(1)).as_millis();
        assert!((wanted * 3 / 4..=wanted * 5 / 4).contains(&away), "{away}, not {wanted} ms");
    }
    world.succeed(at(1));
    assert!(world.time_set_aside(at(1)) <= SET_ASIDE * 5 / 4);
}

#[test]
fn jitter_spreads_the_returns_evenly() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), at(2)]);
    let times: Vec<_> = (0..200)
        .map(|_| {
            let away = world.time_set_aside(at(1));
            world.succeed(at(1));
            away
        })
        .collect();
    let mean = times.iter().sum::<Duration>() / 200;
    assert!(mean.abs_diff(SET_ASIDE) < SET_ASIDE / 20, "{mean:?}");
    assert!(*times.iter().min().unwrap() < SET_ASIDE * 4 / 5);
    assert!(SET_ASIDE * 6 / 5 < *times.iter().max().unwrap());
}

#[test]
fn dials_that_fail_together_count_as_one() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1)]);
    let picks = [(); 10].map(|()| world.pick(None).unwrap());
    for pick in picks {
        world.balancer.settle(pick.token, Outcome::ConnectFailed, world.now);
    }
    world.now += SET_ASIDE * 5 / 4;
    assert!(!world.pick(None).unwrap().panic);
}

#[test]
fn a_success_from_before_a_set_aside_does_not_end_it() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1)]);
    let early = world.pick(None).unwrap();
    world.fail_dial(at(1));
    world.balancer.settle(early.token, Outcome::Success, world.now);
    assert!(world.pick(None).unwrap().panic);
}

#[test]
fn an_update_keeps_what_is_known_of_those_in_both() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1), at(2), at(3)]);
    world.fail_dial(at(1));
    let held = world.pick_of(at(2));
    world.balancer.update(&[at(1), at(2)].into_iter().collect());
    assert_eq!(world.balancer.stats(), Stats { available: 1, set_aside: 1, pending: 1 });
    world.balancer.settle(held, Outcome::Success, world.now);
    assert_eq!(world.balancer.stats().pending, 0);
}

#[test]
fn a_token_of_an_endpoint_that_left_changes_nothing() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1)]);
    let (first, second) = (world.pick_of(at(1)), world.pick_of(at(1)));
    world.balancer.update(&EndpointSet::default());
    world.balancer.settle(first, Outcome::ConnectFailed, world.now);
    // The same slot, first with another endpoint and then with the same again.
    world.balancer.update(&[at(2)].into_iter().collect());
    world.balancer.update(&[at(1)].into_iter().collect());
    world.balancer.settle(second, Outcome::ConnectFailed, world.now);
    assert_eq!(world.balancer.stats(), Stats { available: 1, set_aside: 0, pending: 0 });
}

#[derive(Clone, Debug)]
enum Step {
    Pick { avoid: u8 },
    Settle { which: usize, outcome: Outcome },
    Wait { ms: u64 },
    Update { members: Vec<(u8, u16, u16)> },
}

/// The plainest account of the same pool.
#[derive(Default)]
struct Model {
    endpoints: BTreeMap<SocketAddr, Endpoint>,
    /// Tokens not settled, with how often their endpoint had left when they were made.
    open: Vec<(SocketAddr, u64, Token)>,
    left: BTreeMap<SocketAddr, u64>,
    /// Until when an endpoint may be set aside, however often its dials failed.
    aside: BTreeMap<SocketAddr, Instant>,
}

impl Model {
    fn update(&mut self, set: &EndpointSet) {
        self.endpoints = set.endpoints().iter().map(|it| (it.address, *it)).collect();
        for address in (0..6).map(|n| at(n).address).filter(|it| !set.contains(*it)) {
            self.aside.remove(&address);
            *self.left.entry(address).or_default() += 1;
        }
    }

    fn life(&self, address: SocketAddr) -> u64 {
        self.left.get(&address).copied().unwrap_or_default()
    }

    fn pending(&self) -> u64 {
        self.open.iter().filter(|(address, life, _)| self.life(*address) == *life).count() as u64
    }

    /// The most preferred priority of what is surely available, `avoid` left out.
    fn best_priority(&self, now: Instant, avoid: SocketAddr) -> Option<u16> {
        let there = self.endpoints.values().filter(|it| {
            it.address != avoid && self.aside.get(&it.address).is_none_or(|until| *until <= now)
        });
        there.map(|it| it.priority).min()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Never one that is set aside while another is there, never a worse priority than
    /// there is, never the one to avoid while there is another; and the count of pending
    /// requests is that of tokens not settled.
    #[test]
    fn picks_agree_with_a_plain_account(
        steps in vec(step(), 1..200),
        algorithm in algorithm(),
        seed: u64,
    ) {
        let mut world = World::new(algorithm, &[]);
        world.state = seed;
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Wait { ms } => world.now += Duration::from_millis(ms),
                Step::Update { members } => {
                    let set = members.iter().map(|(n, weight, priority)| Endpoint {
                        weight: *weight,
                        priority: *priority,
                        ..at(*n)
                    }).collect();
                    world.balancer.update(&set);
                    model.update(&set);
                }
                Step::Pick { avoid } => {
                    let avoid = at(avoid).address;
                    let Some(pick) = world.pick(Some(avoid)) else {
                        prop_assert!(model.endpoints.is_empty());
                        continue;
                    };
                    if let Some(best) = model.best_priority(world.now, avoid) {
                        prop_assert!(!pick.panic && pick.address != avoid);
                        prop_assert!(model.endpoints[&pick.address].priority <= best);
                    }
                    prop_assert_eq!(pick.panic, world.set_aside(pick.address).is_some());
                    model.open.push((pick.address, model.life(pick.address), pick.token));
                }
                Step::Settle { which, outcome } if !model.open.is_empty() => {
                    let (address, life, token) = model.open.swap_remove(which % model.open.len());
                    world.balancer.settle(token, outcome, world.now);
                    if outcome == Outcome::ConnectFailed && model.life(address) == life {
                        model.aside.insert(address, world.now + SET_ASIDE_MAX * 5 / 4);
                    }
                }
                Step::Settle { .. } => (),
            }
            let stats = world.balancer.stats();
            prop_assert_eq!(stats.pending, model.pending());
            prop_assert_eq!(stats.available + stats.set_aside, model.endpoints.len());
        }
    }

    /// Shares of idle endpoints follow the weights, whatever they are.
    #[test]
    fn shares_follow_the_weights(weights in vec(1_u16..20, 2..6), seed: u64) {
        let endpoints: Vec<_> = (0..).zip(&weights)
            .map(|(n, weight)| Endpoint { weight: *weight, ..at(n) }).collect();
        let mut world = World::new(Algorithm::LeastRequest, &endpoints);
        world.state = seed;
        let shares = world.shares(6_000);
        let total: u32 = weights.iter().map(|it| u32::from(*it)).sum();
        for it in &endpoints {
            let share = f64::from(shares.get(&it.address).copied().unwrap_or(0)) / 6_000.0;
            let wanted = f64::from(it.weight) / f64::from(total);
            prop_assert!((share - wanted).abs() < 0.035, "{} for {}", share, wanted);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        Just(Outcome::Success),
        Just(Outcome::Failure),
        Just(Outcome::ConnectFailed),
        Just(Outcome::Cancelled),
    ];
    prop_oneof![
        4 => (0_u8..8).prop_map(|avoid| Step::Pick { avoid }),
        4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::Settle { which, outcome }),
        1 => (0_u64..8_000).prop_map(|ms| Step::Wait { ms }),
        1 => vec((0_u8..6, 1_u16..5, 0_u16..3), 0..6).prop_map(|members| Step::Update { members }),
    ]
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![Just(Algorithm::LeastRequest), Just(Algorithm::RoundRobin), Just(Algorithm::Random),]
}

struct World {
    balancer: Balancer,
    now: Instant,
    state: u64,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin: only differences are read")]
    fn new(algorithm: Algorithm, endpoints: &[Endpoint]) -> Self {
        let set = endpoints.iter().copied().collect();
        Self { balancer: Balancer::new(algorithm, &set), now: Instant::now(), state: 7 }
    }

    fn pick(&mut self, avoid: Option<SocketAddr>) -> Option<Pick> {
        let state = &mut self.state;
        // SplitMix64: short, and good enough to tell a skewed share from an even one.
        let mut rng = || {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u32::try_from(mixed >> 32).unwrap()
        };
        self.balancer.pick(self.now, &mut rng, avoid)
    }

    /// The token of a pick of this endpoint; picks of others are settled.
    fn pick_of(&mut self, endpoint: Endpoint) -> Token {
        let others: Vec<_> =
            self.balancer.by_address.keys().copied().filter(|it| *it != endpoint.address).collect();
        for _ in 0..10_000 {
            let pick = self.pick(others.first().copied()).unwrap();
            if pick.address == endpoint.address {
                return pick.token;
            }
            self.balancer.settle(pick.token, Outcome::Cancelled, self.now);
        }
        panic!("{endpoint:?} is never picked");
    }

    fn succeed(&mut self, endpoint: Endpoint) {
        let token = self.pick_of(endpoint);
        self.balancer.settle(token, Outcome::Success, self.now);
    }

    fn fail_dial(&mut self, endpoint: Endpoint) {
        let token = self.pick_of(endpoint);
        self.balancer.settle(token, Outcome::ConnectFailed, self.now);
    }

    fn set_aside(&self, address: SocketAddr) -> Option<Instant> {
        self.balancer.slots[self.balancer.by_address[&address] as usize].until
    }

    /// How long a failed dial takes the endpoint out; ends when it is back.
    fn time_set_aside(&mut self, endpoint: Endpoint) -> Duration {
        self.fail_dial(endpoint);
        let began = self.now;
        let until = self.set_aside(endpoint.address).unwrap();
        self.now = until.checked_sub(Duration::from_nanos(1)).unwrap();
        assert_eq!(self.shares(20).get(&endpoint.address), None);
        self.now = until;
        assert!(self.shares(50).contains_key(&endpoint.address));
        until - began
    }

    /// How often each is picked when requests come one at a time.
    fn shares(&mut self, picks: u32) -> BTreeMap<SocketAddr, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..picks {
            let pick = self.pick(None).unwrap();
            *shares.entry(pick.address).or_default() += 1;
            self.balancer.settle(pick.token, Outcome::Cancelled, self.now);
        }
        shares
    }
}

fn at(last: u8) -> Endpoint {
    Endpoint::new(SocketAddr::from(([10, 0, 0, last], 80)))
}
