mod cost;
mod eject;
mod model;
mod ramp;
mod ring;
mod subset;
mod zones;

use std::collections::BTreeMap;

use super::{super::Mode, slot::SET_ASIDE, *};
use crate::endpoint::Endpoint;

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
        world.balancer.update(&[at(2)].into_iter().collect(), world.now);
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
    assert_eq!(
        world.balancer.stats(),
        Stats { available: 0, set_aside: 2, ejected: 0, pending: 1 }
    );
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
    world.balancer.update(&[at(1), at(2)].into_iter().collect(), world.now);
    assert_eq!(
        world.balancer.stats(),
        Stats { available: 1, set_aside: 1, ejected: 0, pending: 1 }
    );
    world.balancer.settle(held, Outcome::Success, world.now);
    assert_eq!(world.balancer.stats().pending, 0);
}

#[test]
fn a_token_of_an_endpoint_that_left_changes_nothing() {
    let mut world = World::new(Algorithm::LeastRequest, &[at(1)]);
    let (first, second) = (world.pick_of(at(1)), world.pick_of(at(1)));
    world.balancer.update(&EndpointSet::default(), world.now);
    world.balancer.settle(first, Outcome::ConnectFailed, world.now);
    // The same slot, first with another endpoint and then with the same again.
    world.balancer.update(&[at(2)].into_iter().collect(), world.now);
    world.balancer.update(&[at(1)].into_iter().collect(), world.now);
    world.balancer.settle(second, Outcome::ConnectFailed, world.now);
    assert_eq!(
        world.balancer.stats(),
        Stats { available: 1, set_aside: 0, ejected: 0, pending: 0 }
    );
}

struct World {
    balancer: Balancer,
    now: Instant,
    state: u64,
}

/// How a server of [`World::drive`] answers: after how long and how; never where `None`.
type Answers = Option<(Duration, Outcome)>;

impl World {
    /// No slow start and no breakers: what is counted are plain shares.
    fn new(algorithm: Algorithm, endpoints: &[Endpoint]) -> Self {
        Self::of(&plain(algorithm), endpoints)
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin: only differences are read")]
    fn of(config: &service::Config, endpoints: &[Endpoint]) -> Self {
        let now = Instant::now();
        let set = endpoints.iter().copied().collect();
        Self { balancer: Balancer::new(config, &set, now), now, state: 7 }
    }

    fn update(&mut self, endpoints: &[Endpoint]) {
        self.balancer.update(&endpoints.iter().copied().collect(), self.now);
    }

    fn pick(&mut self, avoid: Option<SocketAddr>) -> Option<Pick> {
        self.ask(RouteId::default(), avoid, None)
    }

    fn ask(
        &mut self,
        route: RouteId,
        avoid: Option<SocketAddr>,
        key: Option<&[u8]>,
    ) -> Option<Pick> {
        let ask = Ask { now: self.now, kind: Kind::First, route, avoid, key };
        let state = &mut self.state;
        self.balancer.pick(ask, &mut || draw(state))
    }

    fn settle(&mut self, token: Token, outcome: Outcome) {
        self.balancer.settle(token, outcome, self.now);
    }

    fn slot(&self, endpoint: Endpoint) -> &Slot {
        &self.balancer.slots[self.balancer.by_address[&endpoint.address] as usize]
    }

    /// Sends a request every ten milliseconds, for so many seconds, to servers that answer
    /// as this says; how many each got.
    fn drive(
        &mut self,
        seconds: u64,
        answers: impl Fn(SocketAddr) -> Answers,
    ) -> BTreeMap<SocketAddr, u32> {
        let mut shares = BTreeMap::new();
        let mut open: Vec<(Instant, Token, Outcome)> = Vec::new();
        for _ in 0..seconds * 100 {
            self.now += Duration::from_millis(10);
            for (_, token, outcome) in open.extract_if(.., |it| it.0 <= self.now) {
                self.balancer.settle(token, outcome, self.now);
            }
            let pick = self.pick(None).unwrap();
            *shares.entry(pick.address).or_default() += 1;
            if let Some((after, outcome)) = answers(pick.address) {
                open.push((self.now + after, pick.token, outcome));
            }
        }
        for (_, token, outcome) in open {
            self.settle(token, outcome);
        }
        shares
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
        self.slot(Endpoint::new(address)).until
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

fn plain(algorithm: Algorithm) -> service::Config {
    let mut config = service::Config::default();
    config.balancer = Config { algorithm, slow_start: Duration::ZERO, ..config.balancer };
    config.breaker.mode = Mode::Off;
    config.outlier.mode = Mode::Off;
    config
}

/// `SplitMix64`: short, and good enough to tell a skewed share from an even one.
fn draw(state: &mut u64) -> u32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from(mixed >> 32).unwrap()
}

fn at(last: u8) -> Endpoint {
    Endpoint::new(SocketAddr::from(([10, 0, 0, last], 80)))
}
