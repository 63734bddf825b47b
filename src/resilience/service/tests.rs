use proptest::prelude::*;

use super::{
    super::{backoff, breaker::Scope},
    *,
};
use crate::clock;

/// A service with two endpoints, and a clock.
struct World {
    service: Service,
    now: Instant,
    state: u32,
}

impl World {
    fn new(config: Config) -> Self {
        Self::with(config, 2)
    }

    fn with(config: Config, endpoints: u8) -> Self {
        let at = |it| crate::endpoint::Endpoint::new(SocketAddr::from(([10, 0, 0, it], 80)));
        let set = (1..=endpoints).map(at).collect();
        let now = clock::now();
        Self { service: Service::new(config, &set, now), now, state: 7 }
    }

    fn pick(&mut self, kind: Kind) -> Result<Pick, Refused> {
        self.pick_on(kind, RouteId::default())
    }

    fn pick_on(&mut self, kind: Kind, route: RouteId) -> Result<Pick, Refused> {
        let ask = Ask { now: self.now, kind, route, avoid: None, key: None };
        let state = &mut self.state;
        self.service.pick(ask, &mut || draw(state))
    }

    fn request(&mut self, outcome: Outcome) -> Result<(), Refused> {
        self.request_on(outcome, RouteId::default())
    }

    fn request_on(&mut self, outcome: Outcome, route: RouteId) -> Result<(), Refused> {
        let pick = self.pick_on(Kind::First, route)?;
        self.now += Duration::from_millis(1);
        self.service.settle(pick.token, outcome, self.now);
        Ok(())
    }

    fn retry(&mut self, left: Option<Duration>) -> Grant {
        let (route, backoff) = (RouteId::default(), backoff::Config::default());
        let wish = Wish { number: 1, route, backoff, after: None, left };
        let state = &mut self.state;
        self.service.retry(wish, self.now, &mut || draw(state))
    }
}

/// The next of an even sequence of draws.
fn draw(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state
}

fn scoped(scope: Scope) -> Config {
    let breaker = breaker::Config { scope, ..breaker::Config::default() };
    Config { breaker, ..Config::default() }
}

#[test]
fn a_try_is_late_by_what_answers_on_its_route_take() {
    let mut world = World::new(Config::default());
    let late = |world: &mut World, ms| {
        let token = world.pick(Kind::First).unwrap().token;
        let now = world.now + Duration::from_millis(ms);
        let is_late = world.service.is_late(&token, now);
        world.service.settle(token, Outcome::Cancelled, world.now);
        is_late
    };
    assert_eq!([249, 250].map(|ms| late(&mut world, ms)), [false, true]);
    // An answer after a millisecond, and failures, which say nothing of it.
    for outcome in [Outcome::Success, Outcome::Failure, Outcome::Failure] {
        world.request(outcome).unwrap();
    }
    assert_eq!([2, 3].map(|ms| late(&mut world, ms)), [false, true]);
}

#[test]
fn a_retry_is_paid_for_until_there_is_nothing_left() {
    let mut world = World::new(Config::default());
    for _ in 0..10 {
        assert!(matches!(world.retry(None), Grant::After(_)));
        let pick = world.pick(Kind::Granted).unwrap();
        world.service.settle(pick.token, Outcome::Success, world.now);
    }
    assert_eq!(world.retry(None), Grant::Exhausted);
    for _ in 0..5 {
        world.request(Outcome::Success).unwrap();
    }
    assert!(matches!(world.retry(None), Grant::After(_)));
}

#[test]
fn a_budget_that_observes_refuses_nothing_and_says_what_it_would_have() {
    let budget = budget::Config { mode: Mode::Observe, ..budget::Config::default() };
    let mut world = World::new(Config { budget, ..Config::default() });
    for _ in 0..10 {
        assert!(matches!(world.retry(None), Grant::After(_)));
        let pick = world.pick(Kind::Granted).unwrap();
        world.service.settle(pick.token, Outcome::Success, world.now);
    }
    assert_eq!(world.service.changes(), None);
    assert!(matches!(world.retry(None), Grant::After(_)));
    let change = Change { address: None, to: State::WouldExhaust, why: Why::Spent };
    assert_eq!(world.service.changes(), Some(vec![change]));
    world.service.abandon();
}

#[test]
fn a_grant_that_is_abandoned_costs_nothing() {
    let mut world = World::new(Config::default());
    for _ in 0..100 {
        assert!(matches!(world.retry(None), Grant::After(_)));
        world.service.abandon();
    }
    assert_eq!(world.service.granted(), 0);
}

#[test]
fn no_retry_is_sent_that_cannot_end_in_time() {
    let mut world = World::new(Config::default());
    for _ in 0..20 {
        let pick = world.pick(Kind::First).unwrap();
        world.now += Duration::from_millis(400);
        world.service.settle(pick.token, Outcome::Success, world.now);
    }
    assert_eq!(world.retry(Some(Duration::from_millis(350))), Grant::Deadline);
    assert!(matches!(world.retry(Some(Duration::from_secs(1))), Grant::After(_)));
}

#[test]
fn a_breaker_of_the_service_refuses_its_requests_and_lets_probes_close_it() {
    let mut world = World::new(scoped(Scope::Service));
    for _ in 0..7 {
        world.request(Outcome::Failure).unwrap();
    }
    assert_eq!(world.request(Outcome::Success), Err(Refused::BreakerOpen));
    let opened = world.service.changes().unwrap();
    let open = Change { address: None, to: State::Open, why: Why::Consecutive };
    assert!(opened.contains(&open), "{opened:?}");
    world.now += Duration::from_secs(6);
    // It comes back by degrees: most of the first requests are refused still.
    assert_eq!(world.request(Outcome::Success), Ok(()));
    let sent = (0..400).filter(|_| world.request(Outcome::Success).is_ok()).count();
    assert!((300..400).contains(&sent), "{sent}");
    let closed = world.service.changes().unwrap();
    assert_eq!(closed.last().map(|it| it.to), Some(State::Closed), "{closed:?}");
}

#[test]
fn a_breaker_of_a_route_leaves_the_other_routes_alone() {
    let mut world = World::new(scoped(Scope::Route));
    for _ in 0..7 {
        world.request_on(Outcome::Failure, RouteId(1)).unwrap();
        world.request_on(Outcome::Success, RouteId(2)).unwrap();
    }
    assert_eq!(world.request_on(Outcome::Success, RouteId(1)), Err(Refused::BreakerOpen));
    assert_eq!(world.request_on(Outcome::Success, RouteId(2)), Ok(()));
}

#[test]
fn a_service_that_fails_as_a_whole_is_still_asked_now_and_then() {
    let mut world = World::with(Config::default(), 1);
    let results: Vec<_> = (0..2000).map(|_| world.request(Outcome::Failure)).collect();
    let sent = results[1000..].iter().filter(|it| it.is_ok()).count();
    assert!((150..300).contains(&sent), "{sent} of 1000");
    assert!(results.contains(&Err(Refused::BreakerOpen)));
}

#[test]
fn a_single_endpoint_that_fails_every_third_request_gets_all_of_them() {
    let mut world = World::with(Config::default(), 1);
    for number in 0..3000 {
        let outcome = if number % 3 == 0 { Outcome::Failure } else { Outcome::Success };
        assert_eq!(world.request(outcome), Ok(()), "{number}");
    }
}

#[test]
fn no_more_is_under_way_than_the_limits_allow() {
    let limits = Limits { requests: 3, per_endpoint: 2, ..Limits::default() };
    let mut world = World::new(Config { limits, ..Config::default() });
    let picks: Vec<_> = (0..3).map(|_| world.pick(Kind::First).unwrap()).collect();
    assert_eq!(world.pick(Kind::First).unwrap_err(), Refused::Full);
    for endpoint in [1, 2] {
        let at = SocketAddr::from(([10, 0, 0, endpoint], 80));
        assert!(picks.iter().filter(|it| it.address == at).count() <= 2);
    }
    for pick in picks {
        world.service.settle(pick.token, Outcome::Success, world.now);
    }
    assert!(world.pick(Kind::First).is_ok());
}

#[test]
fn what_is_known_outlives_a_change_of_what_does_not_concern_it() {
    let mut world = World::new(scoped(Scope::Service));
    for _ in 0..7 {
        world.request(Outcome::Failure).unwrap();
    }
    let limits = Limits { requests: 5, ..Limits::default() };
    world.service.configure(Config { limits, ..scoped(Scope::Service) }, world.now);
    assert_eq!(world.request(Outcome::Success), Err(Refused::BreakerOpen));
}

#[test]
fn a_hedge_is_sent_once_latencies_are_known_and_there_is_a_budget() {
    let hedge = hedge::Config { mode: Mode::Enforce, percent: 5 };
    let mut world = World::new(Config { hedge, ..Config::default() });
    assert_eq!(world.service.hedge_after(), None);
    for _ in 0..400 {
        let pick = world.pick(Kind::First).unwrap();
        world.now += Duration::from_millis(20);
        world.service.settle(pick.token, Outcome::Success, world.now);
    }
    let after = world.service.hedge_after().unwrap();
    assert!((Duration::from_millis(10)..Duration::from_millis(40)).contains(&after), "{after:?}");
    assert_eq!(world.service.hedge(world.now), hedge::Verdict::Granted);
    assert_eq!(world.service.granted(), 1);
    world.service.abandon();
    // One that observes sends none, and says so.
    let hedge = hedge::Config { mode: Mode::Observe, percent: 5 };
    let mut world = World::new(Config { hedge, ..Config::default() });
    for _ in 0..400 {
        world.request(Outcome::Success).unwrap();
    }
    assert_eq!(world.service.hedge(world.now), hedge::Verdict::WouldSend);
    let change = Change { address: None, to: State::WouldHedge, why: Why::Late };
    assert_eq!(world.service.changes(), Some(vec![change]));
}

proptest! {
    /// Whatever happens to tries, the counts of what is under way are those of the tokens.
    #[test]
    fn what_is_under_way_is_what_was_not_settled(steps in proptest::collection::vec(0_u8..6, 1..300)) {
        let mut world = World::with(Config::default(), 3);
        let mut open = Vec::new();
        for step in steps {
            world.now += Duration::from_millis(u64::from(step) * 7);
            match step {
                0 | 1 => open.extend(world.pick(Kind::First).ok().map(|it| (it, false))),
                2 => if matches!(world.retry(None), Grant::After(_)) {
                    match world.pick(Kind::Granted) {
                        Ok(pick) => open.push((pick, true)),
                        Err(_) => world.service.abandon(),
                    }
                },
                _ => if let Some((pick, _)) = open.pop() {
                    let outcomes =
                        [Outcome::Success, Outcome::Failure, Outcome::ConnectFailed];
                    world.service.settle(pick.token, outcomes[usize::from(step) - 3], world.now);
                },
            }
            prop_assert_eq!(world.service.stats().pending, open.len() as u64);
            let granted = open.iter().filter(|(_, it)| *it).count();
            prop_assert_eq!(world.service.granted() as usize, granted);
        }
    }
}
