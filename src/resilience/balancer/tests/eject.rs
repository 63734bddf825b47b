use proptest::{collection::vec, prelude::*};

use super::{
    super::super::service::{Change, State, Why},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn seven_failures_in_a_row_eject_an_endpoint() {
    let mut world = World::of(&breakers(), &[at(1), at(2), at(3)]);
    world.fail(at(1), 6);
    assert_eq!(world.balancer.stats().ejected, 0);
    world.fail(at(1), 1);
    assert_eq!(world.balancer.stats(), Stats { available: 2, ejected: 1, ..Stats::default() });
    assert_eq!(world.shares(200).get(&at(1).address), None);
    let change = Change { address: Some(at(1).address), to: State::Open, why: Why::Consecutive };
    assert_eq!(world.balancer.changes(), Some(vec![change]));
    assert_eq!(world.balancer.changes(), None);
}

#[test]
fn the_next_first_try_probes_and_no_retry_does() {
    let mut world = World::of(&breakers(), &[at(1), at(2), at(3)]);
    world.fail(at(1), 7);
    world.now += SECOND * 6;
    for kind in [Kind::Again, Kind::Granted] {
        let pick = world.pick_as(kind);
        assert!(!pick.probe && pick.address != at(1).address);
        world.settle(pick.token, Outcome::Success);
    }
    let probe = world.pick(None).unwrap();
    assert!(probe.probe && !probe.panic && probe.address == at(1).address);
    let other = world.pick(None).unwrap();
    assert!(!other.probe && other.address != at(1).address, "one at a time");
    world.settle(other.token, Outcome::Success);
    world.settle(probe.token, Outcome::Failure);
    assert!(!world.pick(None).unwrap().probe, "it is open again");
    let whys: Vec<_> = world.balancer.changes().unwrap().iter().map(|it| it.why).collect();
    assert_eq!(whys, [Why::Consecutive, Why::Elapsed, Why::Probe]);
}

#[test]
fn a_probe_whose_client_leaves_makes_room_for_another() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail(at(1), 7);
    world.now += SECOND * 6;
    for _ in 0..5 {
        let probe = world.pick(None).unwrap();
        assert!(probe.probe);
        world.settle(probe.token, Outcome::Cancelled);
    }
}

#[test]
fn a_probe_that_cannot_connect_sets_its_endpoint_aside() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail(at(1), 7);
    world.now += SECOND * 6;
    let probe = world.pick(None).unwrap();
    world.settle(probe.token, Outcome::ConnectFailed);
    assert!(!world.pick(None).unwrap().probe);
    world.now += SET_ASIDE * 2;
    assert!(world.pick(None).unwrap().probe);
}

#[test]
fn what_succeeds_comes_back_by_degrees() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail(at(1), 7);
    world.now += SECOND * 6;
    let probe = world.pick(None).unwrap();
    world.settle(probe.token, Outcome::Success);
    let mut shares = Vec::new();
    loop {
        let slot = world.slot(at(1));
        if shares.last() != Some(&slot.share) {
            shares.push(slot.share);
        }
        if slot.share == 100 {
            break;
        }
        world.succeed(at(1));
    }
    assert_eq!(shares, [10, 25, 50, 100]);
    let last = world.balancer.changes().unwrap().pop().unwrap();
    assert_eq!((last.to, last.why), (State::Closed, Why::Recovered));
}

#[test]
fn of_two_one_is_ejected_and_never_both() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail(at(1), 7);
    assert!(!world.balancer.held_back(world.now));
    world.fail(at(2), 20);
    assert_eq!(world.balancer.stats().ejected, 1);
    assert_eq!(world.shares(100)[&at(2).address], 100);
    assert!(world.balancer.held_back(world.now));
    assert!(!world.balancer.held_back(world.now + SECOND * 10));
    let refused = world.balancer.changes().unwrap().pop().unwrap();
    assert_eq!((refused.address, refused.to), (Some(at(2).address), State::WouldOpen));
}

#[test]
fn the_only_one_is_never_ejected() {
    let mut world = World::of(&breakers(), &[at(1)]);
    world.fail(at(1), 50);
    assert_eq!(world.balancer.stats().ejected, 0);
    assert!(!world.pick(None).unwrap().panic);
    assert!(world.balancer.held_back(world.now));
}

#[test]
fn the_last_one_that_can_be_reached_is_not_ejected() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail_dial(at(1));
    world.fail(at(2), 10);
    assert_eq!(world.balancer.stats(), Stats { available: 1, set_aside: 1, ..Stats::default() });
}

#[test]
fn dials_that_fail_and_answers_that_ask_for_peace_eject_nobody() {
    let mut world = World::of(&breakers(), &[at(1), at(2), at(3)]);
    for outcome in [Outcome::Busy(None), Outcome::ConnectFailed, Outcome::Cancelled] {
        for _ in 0..30 {
            let token = world.pick_of(at(1));
            world.settle(token, outcome);
            world.now += SECOND * 13;
        }
    }
    assert_eq!(world.balancer.stats().ejected, 0);
}

#[test]
fn in_observe_mode_nobody_is_ejected_and_it_is_told() {
    let mut config = breakers();
    (config.breaker.mode, config.outlier.mode) = (Mode::Observe, Mode::Observe);
    let mut world = World::of(&config, &[at(1), at(2), at(3)]);
    world.fail(at(1), 10);
    assert_eq!(world.balancer.stats().ejected, 0);
    let change =
        Change { address: Some(at(1).address), to: State::WouldOpen, why: Why::Consecutive };
    assert_eq!(world.balancer.changes(), Some(vec![change]));
    assert!(!world.balancer.held_back(world.now), "nothing was to be enforced");
}

#[test]
fn an_endpoint_much_worse_than_its_peers_is_ejected_for_it() {
    for own in [Mode::Enforce, Mode::Observe, Mode::Off] {
        let mut config = breakers();
        config.breaker.mode = own;
        let mut world = World::of(&config, &[at(1), at(2), at(3), at(4)]);
        // A third: too few for the rules of one endpoint alone.
        world.traffic(90, |n, it| it == at(1).address && n % 3 == 0);
        let stats = world.balancer.stats();
        assert_eq!((stats.ejected, stats.available), (1, 3), "{own:?}");
        let first = world.balancer.changes().unwrap()[0];
        assert_eq!((first.address, first.why), (Some(at(1).address), Why::Relative));
    }
}

#[test]
fn endpoints_that_all_fail_alike_are_no_outliers() {
    let mut world = World::of(&breakers(), &[at(1), at(2), at(3), at(4)]);
    world.traffic(300, |n, _| n % 3 == 0);
    assert_eq!(world.balancer.stats().ejected, 0);
    assert!(!world.balancer.held_back(world.now));
}

#[test]
fn breakers_of_the_service_leave_endpoints_alone() {
    let mut config = breakers();
    config.breaker.scope = breaker::Scope::Service;
    config.outlier.mode = Mode::Off;
    let mut world = World::of(&config, &[at(1), at(2), at(3)]);
    world.fail(at(1), 50);
    assert_eq!(world.balancer.stats().ejected, 0);
    assert_eq!(world.balancer.changes(), None);
}

#[test]
fn a_mode_that_no_longer_enforces_lets_everybody_back() {
    let mut config = breakers();
    let mut world = World::of(&config, &[at(1), at(2), at(3)]);
    world.fail(at(1), 7);
    (config.breaker.mode, config.outlier.mode) = (Mode::Observe, Mode::Observe);
    world.balancer.configure(&config, world.now);
    assert_eq!(world.balancer.stats().available, 3);
}

#[test]
fn when_healthy_ones_leave_the_cap_lets_others_back() {
    let mut world = World::of(&breakers(), &[at(1), at(2), at(3), at(4)]);
    world.fail(at(1), 7);
    world.fail(at(2), 7);
    assert_eq!(world.balancer.stats().ejected, 2);
    world.update(&[at(1), at(2)]);
    let stats = world.balancer.stats();
    assert_eq!((stats.ejected, stats.available), (1, 1));
}

#[test]
fn with_everybody_away_one_is_picked_and_marked_and_the_callers_hold_back() {
    let mut world = World::of(&breakers(), &[at(1), at(2)]);
    world.fail(at(1), 7);
    world.fail_dial(at(2));
    assert_eq!(world.balancer.stats().available, 0);
    assert!(world.pick(None).unwrap().panic);
    assert!(world.balancer.held_back(world.now));
}

#[test]
fn the_latest_sixteen_changes_are_kept() {
    let mut world = World::of(&breakers(), &[at(1)]);
    for _ in 0..40 {
        world.fail(at(1), 7);
        world.now += SECOND * 2;
    }
    assert_eq!(world.balancer.changes().unwrap().len(), 16);
}

#[derive(Clone, Debug)]
enum Step {
    Pick,
    Settle { which: usize, outcome: Outcome },
    Answer { which: usize },
    Wait { ms: u64 },
    Update { members: Vec<u8> },
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens: no more are ejected than the cap allows, the last never, a probe
    /// goes where nothing else does, and what is pending is what is not settled.
    #[test]
    fn the_cap_holds_whatever_happens(steps in vec(step(), 1..400), percent in 0_u32..=100, seed: u64) {
        let mut config = breakers();
        config.outlier.max_ejected_percent = percent;
        config.breaker.consecutive_failures = Some(2);
        let rules = config.outlier;
        let mut members: Vec<_> = (0..4).map(at).collect();
        let mut world = World::of(&config, &members);
        world.state = seed;
        let mut open: Vec<Token> = Vec::new();
        for step in steps {
            match step {
                Step::Wait { ms } => world.now += Duration::from_millis(ms),
                Step::Update { members: new } => {
                    members = new.into_iter().map(at).collect();
                    world.update(&members);
                }
                Step::Pick => {
                    let Some(pick) = world.pick(None) else { continue };
                    let slot = world.slot(Endpoint::new(pick.address));
                    prop_assert_eq!(pick.probe || pick.panic, slot.share == 0);
                    open.push(pick.token);
                }
                Step::Answer { which } if !open.is_empty() => {
                    let which = which % open.len();
                    world.balancer.answered(&mut open[which], world.now);
                }
                Step::Settle { which, outcome } if !open.is_empty() => {
                    let token = open.swap_remove(which % open.len());
                    world.settle(token, outcome);
                }
                Step::Answer { .. } | Step::Settle { .. } => (),
            }
            let n = members.iter().map(|it| it.address).collect::<std::collections::BTreeSet<_>>().len();
            let stats = world.balancer.stats();
            prop_assert!(stats.ejected <= super::super::super::outlier::max_ejected(&rules, n));
            prop_assert!(n == 0 || stats.ejected < n);
            prop_assert!(stats.available <= n && n <= stats.available + stats.ejected + stats.set_aside);
            let slot = |it: &Token| &world.balancer.slots[it.slot as usize];
            let pending = open.iter().filter(|it| slot(it).generation == it.generation);
            prop_assert_eq!(stats.pending, pending.count() as u64);
            for group in &world.balancer.groups {
                let listed = group.available().slots().iter();
                let load: u32 = listed.map(|it| world.balancer.slots[*it as usize].pending).sum();
                prop_assert_eq!(group.load(), load);
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        2 => Just(Outcome::Success),
        4 => Just(Outcome::Failure),
        1 => Just(Outcome::Busy(None)),
        1 => Just(Outcome::ConnectFailed),
        1 => Just(Outcome::Cancelled),
    ];
    prop_oneof![
        8 => Just(Step::Pick),
        8 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::Settle { which, outcome }),
        3 => any::<usize>().prop_map(|which| Step::Answer { which }),
        3 => (0_u64..8_000).prop_map(|ms| Step::Wait { ms }),
        1 => vec(0_u8..6, 0..6).prop_map(|members| Step::Update { members }),
    ]
}

impl World {
    fn pick_as(&mut self, kind: Kind) -> Pick {
        let route = RouteId::default();
        let ask = Ask { now: self.now, kind, route, avoid: None, key: None };
        let state = &mut self.state;
        self.balancer.pick(ask, &mut || draw(state)).unwrap()
    }

    /// So many failures in a row of one endpoint.
    fn fail(&mut self, endpoint: Endpoint, times: u32) {
        for _ in 0..times {
            let token = self.pick_of(endpoint);
            self.settle(token, Outcome::Failure);
        }
    }

    /// So many requests to each of all endpoints in a few seconds, which fail as this says.
    fn traffic(&mut self, each: u32, fails: impl Fn(u32, SocketAddr) -> bool) {
        let all: Vec<_> = self.balancer.by_address.keys().copied().collect();
        for n in 0..each {
            for address in &all {
                let slot = self.slot(Endpoint::new(*address));
                if slot.share == 0 {
                    continue;
                }
                let token = self.pick_of(Endpoint::new(*address));
                let failed = fails(n, *address);
                self.settle(token, if failed { Outcome::Failure } else { Outcome::Success });
            }
            self.now += Duration::from_millis(50);
        }
    }
}

/// Breakers, and neither latency nor slow start.
fn breakers() -> service::Config {
    let mut config = service::Config::default();
    config.balancer.algorithm = Algorithm::Random;
    config.balancer.slow_start = Duration::ZERO;
    config
}
