use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::{super::slot::SET_ASIDE_MAX, *};

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
                    world.balancer.update(&set, world.now);
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
