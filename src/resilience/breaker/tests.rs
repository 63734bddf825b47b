use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const CONSECUTIVE: Config = Config {
    mode: Mode::Enforce,
    scope: Scope::Endpoint,
    consecutive_failures: Some(7),
    failure_percent: None,
    min_requests: 20,
    window: Duration::from_secs(10),
    open_for: Duration::from_secs(5),
    open_for_max: Duration::from_mins(1),
    probes: 1,
    probe_timeout: Duration::from_secs(10),
};
const RATIO: Config =
    Config { consecutive_failures: None, failure_percent: Some(50), ..CONSECUTIVE };

#[test]
fn the_seventh_failure_in_a_row_trips_and_the_sixth_does_not() {
    let mut it = Subject::new(CONSECUTIVE);
    for _ in 0..6 {
        assert_eq!(it.request(Outcome::Failure), Verdict::None);
    }
    assert_eq!(it.request(Outcome::Failure), Verdict::Trip(Why::Consecutive));
}

#[test]
fn a_success_ends_the_row() {
    let mut it = Subject::new(CONSECUTIVE);
    for outcome in [Outcome::Failure, Outcome::Success].repeat(20) {
        assert_eq!(it.request(outcome), Verdict::None);
    }
}

#[test]
fn an_excluded_request_keeps_the_row() {
    let mut it = Subject::new(CONSECUTIVE);
    for outcome in [Outcome::Failure, Outcome::Excluded].repeat(6) {
        assert_eq!(it.request(outcome), Verdict::None);
    }
    assert_eq!(it.request(Outcome::Failure), Verdict::Trip(Why::Consecutive));
}

#[test]
fn more_than_half_of_twenty_requests_failing_trips() {
    let mut it = Subject::new(RATIO);
    for outcome in [Outcome::Success, Outcome::Failure].repeat(10) {
        assert_eq!(it.request(outcome), Verdict::None, "exactly half");
    }
    assert_eq!(it.request(Outcome::Failure), Verdict::Trip(Why::Ratio));
    let (failed, total) = it.breaker.failures(&RATIO, it.now);
    assert_eq!((failed, total), (11, 21));
}

#[test]
fn a_share_of_nineteen_requests_says_nothing_and_of_twenty_it_does() {
    let mut it = Subject::new(RATIO);
    for _ in 0..19 {
        assert_eq!(it.request(Outcome::Failure), Verdict::None);
    }
    assert_eq!(it.request(Outcome::Failure), Verdict::Trip(Why::Ratio));
}

#[test]
fn failures_of_requests_that_began_before_the_window_do_not_count() {
    let mut it = Subject::new(RATIO);
    let early: Vec<_> = (0..40).map(|_| it.send()).collect();
    it.pass(10 * SECOND);
    for ticket in early {
        assert_eq!(it.settle(ticket, Outcome::Failure), Verdict::None);
    }
    assert_eq!(it.breaker.failures(&RATIO, it.now), (0, 0));
}

#[test]
fn nothing_trips_where_both_rules_are_off() {
    let mut it = Subject::new(Config { failure_percent: None, ..RATIO });
    for _ in 0..1_000 {
        assert_eq!(it.request(Outcome::Failure), Verdict::None);
    }
}

#[test]
fn a_wish_that_is_not_granted_is_repeated_a_second_later() {
    let mut it = Subject::new(CONSECUTIVE);
    it.until_it_wishes();
    for _ in 0..9 {
        it.pass(SECOND / 10);
        assert_eq!(it.request(Outcome::Failure), Verdict::None);
    }
    it.pass(SECOND / 10);
    assert_eq!(it.request(Outcome::Failure), Verdict::Trip(Why::Consecutive));
    assert_eq!(it.breaker.state(), State::Closed);
    assert_eq!(it.admits(), Admits::Yes);
}

#[test]
fn a_reason_found_elsewhere_opens_it_as_well() {
    let mut it = Subject::new(CONSECUTIVE);
    let wish = it.breaker.wish(&CONSECUTIVE, Why::Relative, it.now);
    assert_eq!(wish, Verdict::Trip(Why::Relative));
    let again = it.breaker.wish(&CONSECUTIVE, Why::Relative, it.now);
    assert_eq!(again, Verdict::None, "within the second");
    it.open(0);
    it.pass(SECOND);
    assert_eq!(it.breaker.wish(&CONSECUTIVE, Why::Relative, it.now), Verdict::None, "open");
}

#[test]
fn at_the_end_of_its_time_it_is_still_open_and_after_it_half_open() {
    let mut it = Subject::open_at(CONSECUTIVE, u32::MAX);
    it.now = it.breaker.until().unwrap();
    assert_eq!(it.admits(), Admits::No);
    assert_eq!((it.breaker.state(), it.breaker.share()), (State::Open, 0));
    it.pass(Duration::from_nanos(1));
    assert_eq!(it.admits(), Admits::Probe);
    assert_eq!((it.breaker.state(), it.breaker.share()), (State::HalfOpen, 0));
    assert_eq!(it.breaker.until(), None);
}

#[test]
fn a_success_from_before_the_trip_changes_nothing_when_half_open() {
    let mut it = Subject::new(CONSECUTIVE);
    let (early, late) = (it.send(), it.send());
    it.until_it_wishes();
    it.open(0);
    assert_eq!(it.settle(early, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.state(), State::Open);
    it.pass(6 * SECOND);
    assert_eq!(it.admits(), Admits::Probe);
    assert_eq!(it.settle(late, Outcome::Success), Verdict::None);
    assert_eq!((it.breaker.state(), it.breaker.share()), (State::HalfOpen, 0));
    assert_eq!(it.admits(), Admits::Probe, "its place was not taken either");
}

#[test]
fn what_is_sent_through_an_open_breaker_says_nothing() {
    let mut it = Subject::open_at(CONSECUTIVE, 0);
    for outcome in [Outcome::Success, Outcome::Failure] {
        let ticket = it.send();
        assert_eq!(it.settle(ticket, outcome), Verdict::None);
        assert_eq!(it.breaker.state(), State::Open);
    }
}

#[test]
fn as_many_probes_as_configured_are_under_way_at_once() {
    let mut it = Subject::half_open(Config { probes: 3, ..CONSECUTIVE });
    let probes: Vec<_> = (0..3).map(|_| it.probe()).collect();
    assert_eq!(it.admits(), Admits::No);
    for probe in &probes[1..] {
        assert_eq!(it.settle(*probe, Outcome::Success), Verdict::None);
        assert_eq!(it.admits(), Admits::No, "one that succeeded keeps its place");
    }
    assert_eq!(it.settle(probes[0], Outcome::Success), Verdict::None);
    assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, 10));
}

#[test]
fn a_probe_whose_client_left_gives_its_place_back() {
    let mut it = Subject::half_open(CONSECUTIVE);
    let mut probe = it.probe();
    assert_eq!(it.admits(), Admits::No);
    it.breaker.answered(&mut probe);
    assert_eq!(it.settle(probe, Outcome::Excluded), Verdict::None);
    let _second = it.probe();
    it.pass(10 * SECOND);
    assert_eq!(it.admits(), Admits::Probe, "the head of the first is forgotten with it");
    assert_eq!(it.breaker.share(), 0);
}

#[test]
fn a_failed_probe_opens_it_again_and_the_others_say_nothing() {
    let mut it = Subject::half_open(Config { probes: 2, ..CONSECUTIVE });
    let probes = [it.probe(), it.probe()];
    assert_eq!(it.settle(probes[0], Outcome::Failure), Verdict::Reopened);
    assert_eq!(it.breaker.state(), State::Open);
    assert_eq!(it.settle(probes[1], Outcome::Failure), Verdict::None);
}

#[test]
fn a_probe_that_says_nothing_is_replaced_after_its_time() {
    let mut it = Subject::half_open(CONSECUTIVE);
    let lost = it.probe();
    it.pass(Duration::from_millis(9_999));
    assert_eq!(it.admits(), Admits::No);
    it.pass(Duration::from_millis(1));
    let second = it.probe();
    assert_eq!(it.settle(lost, Outcome::Excluded), Verdict::None);
    assert_eq!(it.admits(), Admits::No, "its place was given back already");
    assert_eq!(it.settle(second, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 10);
}

#[test]
fn a_probe_given_up_too_early_still_counts() {
    let mut it = Subject::half_open(CONSECUTIVE);
    let (late, _second) = (it.probe(), it.pass(10 * SECOND));
    assert_eq!(it.admits(), Admits::Probe);
    assert_eq!(it.settle(late, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 10);
    let mut it = Subject::half_open(CONSECUTIVE);
    let (late, _second) = (it.probe(), it.pass(10 * SECOND));
    assert_eq!(it.admits(), Admits::Probe);
    assert_eq!(it.settle(late, Outcome::Failure), Verdict::Reopened);
}

#[test]
fn a_probe_that_streams_has_succeeded_when_its_time_is_over() {
    let mut it = Subject::half_open(Config { probes: 2, ..CONSECUTIVE });
    let mut stream = it.probe();
    it.breaker.answered(&mut stream);
    it.breaker.answered(&mut stream);
    let _silent = it.probe();
    assert_eq!(it.breaker.share(), 0, "its body may still fail");
    it.pass(10 * SECOND);
    assert_eq!(it.admits(), Admits::Probe, "one place for the one that said nothing");
    assert_eq!(it.settle(stream, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 0, "it has been counted");
    let third = it.probe();
    assert_eq!(it.settle(third, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 10);
}

#[test]
fn a_head_that_comes_too_late_is_not_counted_twice_with_its_body() {
    let mut it = Subject::half_open(CONSECUTIVE);
    let mut late = it.probe();
    it.pass(10 * SECOND);
    let _second = it.probe();
    it.breaker.answered(&mut late);
    assert_eq!(it.settle(late, Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 10, "the body counts, as the head did not");
}

#[test]
fn it_returns_by_steps_of_three_successes() {
    let mut it = Subject::half_open(CONSECUTIVE);
    let probe = it.probe();
    assert_eq!(it.settle(probe, Outcome::Success), Verdict::None);
    for share in [10, 25, 50] {
        for _ in 0..2 {
            assert_eq!((it.breaker.share(), it.breaker.state()), (share, State::HalfOpen));
            assert_eq!(it.request(Outcome::Success), Verdict::None);
            assert_eq!(it.request(Outcome::Excluded), Verdict::None);
        }
        assert_eq!(it.breaker.share(), share);
        let closed = if share == 50 { Verdict::Closed } else { Verdict::None };
        assert_eq!(it.request(Outcome::Success), closed);
    }
    assert_eq!((it.breaker.share(), it.breaker.state()), (100, State::Closed));
    assert_eq!(it.breaker.failures(&CONSECUTIVE, it.now), (0, 0));
}

#[test]
fn a_step_takes_as_many_successes_as_there_are_probes() {
    let mut it = Subject::in_ramp(Config { probes: 5, ..CONSECUTIVE });
    for _ in 0..4 {
        assert_eq!(it.request(Outcome::Success), Verdict::None);
        assert_eq!(it.breaker.share(), 10);
    }
    assert_eq!(it.request(Outcome::Success), Verdict::None);
    assert_eq!(it.breaker.share(), 25);
}

#[test]
fn a_failure_takes_the_return_a_step_back_and_then_opens_it() {
    let mut it = Subject::in_ramp(CONSECUTIVE);
    (0..5).for_each(|_| assert_eq!(it.request(Outcome::Success), Verdict::None));
    assert_eq!(it.breaker.share(), 25);
    assert_eq!(it.request(Outcome::Failure), Verdict::None);
    assert_eq!((it.breaker.share(), it.admits()), (10, Admits::Yes));
    (0..2).for_each(|_| assert_eq!(it.request(Outcome::Success), Verdict::None));
    assert_eq!(it.breaker.share(), 10, "a step begins anew");
    assert_eq!(it.request(Outcome::Failure), Verdict::Reopened);
    assert_eq!((it.breaker.state(), it.admits()), (State::Open, Admits::No));
}

#[test]
fn with_hardly_any_traffic_a_step_takes_no_longer_than_open_for() {
    let mut it = Subject::in_ramp(CONSECUTIVE);
    for share in [10, 25, 50] {
        assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, share));
        if share == 25 {
            assert_eq!(it.request(Outcome::Success), Verdict::None);
        }
        it.pass(Duration::from_millis(4_999));
        assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, share));
        it.pass(Duration::from_millis(1));
    }
    assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, 100));
    assert_eq!(it.breaker.state(), State::Closed);
}

#[test]
fn an_endpoint_that_hangs_goes_no_further_with_time() {
    let mut it = Subject::in_ramp(CONSECUTIVE);
    let mut hangs = it.send();
    it.pass(60 * SECOND);
    assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, 10));
    it.breaker.answered(&mut hangs);
    assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, 25), "a stream is an answer");
}

#[test]
fn each_time_it_opens_for_twice_as_long_up_to_the_maximum() {
    let mut it = Subject::open_at(CONSECUTIVE, u32::MAX);
    for seconds in [5, 10, 20, 40, 60, 60, 60] {
        let open_for = it.breaker.until().unwrap() - it.now;
        assert_eq!(open_for.as_millis().div_ceil(100), seconds * 10);
        it.pass(open_for + SECOND);
        let probe = it.probe();
        assert_eq!(it.settle(probe, Outcome::Failure), Verdict::Reopened);
    }
}

#[test]
fn the_jitter_is_uniform_between_half_and_all_at_the_maximum_too() {
    for (opened, seconds) in [(0, 5.0), (2, 20.0), (u32::MAX, 60.0)] {
        let times: Vec<_> = (0..1_000_u32)
            .map(|it| {
                let mut subject = Subject::new(CONSECUTIVE);
                subject.breaker.opened = opened;
                subject.open(it * (u32::MAX / 999));
                (subject.breaker.until().unwrap() - subject.now).as_secs_f64() / seconds
            })
            .collect();
        let mean = times.iter().sum::<f64>() / 1_000.0;
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        assert!((mean - 0.75).abs() < 0.001, "{mean}");
        assert!((least - 0.5).abs() < 0.001 && (most - 1.0).abs() < 0.001, "{least} {most}");
    }
}

#[test]
fn once_closed_for_the_maximum_it_opens_as_for_the_first_time() {
    for (closed_for, seconds) in [(59 * SECOND, 10), (60 * SECOND, 5)] {
        let mut it = Subject::in_ramp(CONSECUTIVE);
        while it.request(Outcome::Success) != Verdict::Closed {}
        assert_eq!(it.breaker.state(), State::Closed);
        it.pass(closed_for);
        it.open(u32::MAX);
        let open_for = it.breaker.until().unwrap() - it.now;
        assert_eq!(open_for.as_millis().div_ceil(100), seconds * 10, "{closed_for:?}");
    }
}

#[test]
fn observe_says_what_it_would_do_and_does_not() {
    let config = Config { mode: Mode::Observe, ..CONSECUTIVE };
    let mut it = Subject::new(config);
    (0..6).for_each(|_| assert_eq!(it.request(Outcome::Failure), Verdict::None));
    assert_eq!(it.request(Outcome::Failure), Verdict::WouldOpen(Why::Consecutive));
    it.open(0);
    assert_eq!((it.breaker.state(), it.admits()), (State::Closed, Admits::Yes));
    it.pass(Duration::from_millis(4_999));
    assert_eq!(it.request(Outcome::Failure), Verdict::None, "it would still be open");
    it.pass(Duration::from_millis(1));
    assert_eq!(it.request(Outcome::Failure), Verdict::WouldOpen(Why::Consecutive));
}

#[test]
fn off_does_nothing() {
    let mut it = Subject::new(Config { mode: Mode::Off, ..CONSECUTIVE });
    for _ in 0..100 {
        assert_eq!(it.request(Outcome::Failure), Verdict::None);
    }
    assert_eq!(it.breaker.wish(&it.config, Why::Relative, it.now), Verdict::None);
    assert_eq!(it.breaker.failures(&it.config, it.now), (0, 0));
}

#[test]
fn a_mode_that_no_longer_enforces_closes_it_at_once() {
    for mode in [Mode::Observe, Mode::Off] {
        let mut it = Subject::half_open(CONSECUTIVE);
        let probe = it.probe();
        it.config.mode = mode;
        assert_eq!(it.settle(probe, Outcome::Failure), Verdict::None);
        assert_eq!((it.admits(), it.breaker.share()), (Admits::Yes, 100));
    }
}

#[test]
fn an_endpoint_does_not_pay_much_for_it() {
    assert!(size_of::<Breaker>() <= 200, "{}", size_of::<Breaker>());
    assert!(size_of::<Ticket>() <= 16, "{}", size_of::<Ticket>());
}

#[test]
fn the_odds_of_a_return_are_as_documented() {
    for (failing_percent, low, high) in [(10, 0.55, 0.61), (30, 0.04, 0.06), (60, 0.0, 0.001)] {
        let mut random = 1_u64;
        let returned = (0..10_000).filter(|_| {
            let mut it = Subject::half_open(CONSECUTIVE);
            while it.breaker.state() == State::HalfOpen {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let fails = (random >> 33) % 100 < failing_percent;
                let outcome = if fails { Outcome::Failure } else { Outcome::Success };
                let _verdict = it.request(outcome);
            }
            it.breaker.state() == State::Closed
        });
        let share = f64::from(u32::try_from(returned.count()).unwrap()) / 10_000.0;
        assert!((low..=high).contains(&share), "{failing_percent} % failing: {share}");
    }
}

/// A breaker with its settings and its clock.
struct Subject {
    config: Config,
    breaker: Breaker,
    now: Instant,
}

impl Subject {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin: only differences are read")]
    fn new(config: Config) -> Self {
        let now = Instant::now();
        Self { config, breaker: Breaker::new(now), now }
    }

    fn open_at(config: Config, draw: u32) -> Self {
        let mut it = Self::new(config);
        it.open(draw);
        it
    }

    fn half_open(config: Config) -> Self {
        let mut it = Self::open_at(config, 0);
        it.pass(3 * SECOND);
        assert_eq!(it.admits(), Admits::Probe);
        it
    }

    fn in_ramp(config: Config) -> Self {
        let mut it = Self::half_open(config);
        (0..config.probes).for_each(|_| assert_eq!(it.request(Outcome::Success), Verdict::None));
        assert_eq!(it.breaker.share(), 10);
        it
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn admits(&mut self) -> Admits {
        self.breaker.admits(&self.config, self.now)
    }

    fn send(&mut self) -> Ticket {
        self.breaker.acquire(&self.config, self.now, u32::MAX)
    }

    fn probe(&mut self) -> Ticket {
        assert_eq!(self.admits(), Admits::Probe);
        self.send()
    }

    fn settle(&mut self, ticket: Ticket, outcome: Outcome) -> Verdict {
        self.breaker.settle(&self.config, ticket, outcome, self.now)
    }

    fn request(&mut self, outcome: Outcome) -> Verdict {
        let ticket = self.send();
        self.settle(ticket, outcome)
    }

    fn until_it_wishes(&mut self) {
        while self.request(Outcome::Failure) == Verdict::None {}
    }

    fn open(&mut self, draw: u32) {
        self.breaker.open(&self.config, self.now, draw);
    }
}

/// Something that happens to a breaker.
#[derive(Clone, Copy, Debug)]
enum Event {
    Pass(Duration),
    /// A request comes, and is sent if it may.
    Request,
    /// The head of a response to one of those under way comes.
    Answer(usize),
    /// One of those under way ends.
    End(usize, Outcome),
    /// One of those under way never ends.
    Leak(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        2 => Just(Outcome::Success),
        4 => Just(Outcome::Failure),
        1 => Just(Outcome::Excluded)
    ];
    prop_oneof![
        2 => (0_u64..4_000).prop_map(|it| Event::Pass(Duration::from_millis(it))),
        6 => Just(Event::Request),
        1 => any::<usize>().prop_map(Event::Answer),
        5 => (any::<usize>(), outcome).prop_map(|(at, outcome)| Event::End(at, outcome)),
        1 => any::<usize>().prop_map(Event::Leak),
    ]
}

proptest! {
    /// While closed, against a log of every request: it wishes to open exactly when either
    /// rule says so and it has not done so within the second.
    #[test]
    fn it_trips_exactly_when_a_rule_says_so(
        events in vec(event(), 1..150),
        consecutive in 2_u32..6,
        percent in 1_u32..=100,
    ) {
        let config = Config {
            consecutive_failures: Some(consecutive),
            failure_percent: Some(percent),
            min_requests: 5,
            ..CONSECUTIVE
        };
        let mut it = Subject::new(config);
        let origin = it.now;
        let bucket = |at: Instant| (at - origin).as_secs();
        let (mut under_way, mut ended, mut wished) = (Vec::new(), Vec::new(), None);
        for event in events {
            match event {
                Event::Pass(time) => it.pass(time),
                Event::Request => under_way.push((it.now, it.send())),
                Event::End(at, outcome) if !under_way.is_empty() => {
                    let (began, ticket) = under_way.swap_remove(at % under_way.len());
                    if outcome != Outcome::Excluded {
                        ended.push((began, outcome));
                    }
                    let row = ended.iter().rev().take_while(|it| it.1 == Outcome::Failure).count();
                    let live: Vec<_> =
                        ended.iter().filter(|e| bucket(it.now) < bucket(e.0) + 10).collect();
                    let failed = live.iter().filter(|e| e.1 == Outcome::Failure).count();
                    let ratio = live.len() >= 5 && failed * 100 > percent as usize * live.len();
                    let why = match (row >= consecutive as usize, ratio) {
                        (true, _) => Some(Why::Consecutive),
                        (false, true) => Some(Why::Ratio),
                        (false, false) => None,
                    };
                    let due = wished.is_none_or(|at: Instant| at + SECOND <= it.now);
                    let expected = match why {
                        Some(why) if outcome == Outcome::Failure && due => {
                            wished = Some(it.now);
                            Verdict::Trip(why)
                        }
                        _ => Verdict::None,
                    };
                    prop_assert_eq!(it.settle(ticket, outcome), expected);
                }
                Event::Answer(_) | Event::End(..) | Event::Leak(_) => (),
            }
        }
    }

    /// Whatever happens: there are never more probes than configured within their time, what
    /// is left of an earlier state changes nothing, and no place is lost for ever.
    #[test]
    fn no_probe_leaks_and_nothing_stale_counts(
        events in vec(event(), 1..150),
        probes in 1_u32..4,
    ) {
        let config = Config { probes, consecutive_failures: Some(3), ..CONSECUTIVE };
        let mut it = Subject::new(config);
        // Each with how many changes of state there had been.
        let (mut under_way, mut changes) = (Vec::<(u32, Instant, Ticket)>::new(), 0);
        let mut leaked = Vec::new();
        for event in events {
            let before = it.breaker.generation;
            match event {
                Event::Pass(time) => it.pass(time),
                Event::Request => {
                    let admits = it.admits();
                    changes += u32::from(it.breaker.generation != before);
                    if admits != Admits::No {
                        under_way.push((changes, it.now, it.send()));
                    }
                    if it.breaker.state() == State::HalfOpen && it.breaker.share() == 0 {
                        let young = |(change, sent, _): &&(u32, Instant, Ticket)| {
                            *change == changes && it.now - *sent < config.probe_timeout
                        };
                        let all = under_way.iter().chain(&leaked).filter(young).count();
                        prop_assert!(all <= probes as usize);
                    }
                }
                Event::Answer(at) if !under_way.is_empty() => {
                    let at = at % under_way.len();
                    it.breaker.answered(&mut under_way[at].2);
                }
                Event::Leak(at) if !under_way.is_empty() => {
                    leaked.push(under_way.swap_remove(at % under_way.len()));
                }
                Event::End(at, outcome) if !under_way.is_empty() => {
                    let (change, _, ticket) = under_way.swap_remove(at % under_way.len());
                    let as_it_was = (change != changes).then(|| format!("{:?}", it.breaker));
                    let verdict = it.settle(ticket, outcome);
                    if let Some(as_it_was) = as_it_was {
                        prop_assert_eq!(verdict, Verdict::None);
                        prop_assert_eq!(as_it_was, format!("{:?}", it.breaker));
                    }
                    if matches!(verdict, Verdict::Trip(_)) {
                        it.open(0);
                    }
                    changes += u32::from(it.breaker.generation != before);
                }
                Event::Answer(_) | Event::Leak(_) | Event::End(..) => (),
            }
        }
        // From here on everything that is sent succeeds; what is under way never ends.
        let healthy = (0..200).any(|_| {
            it.pass(SECOND);
            if it.admits() != Admits::No {
                let _verdict = it.request(Outcome::Success);
            }
            it.breaker.share() == 100
        });
        prop_assert!(healthy, "{:?}", it.breaker);
    }
}
