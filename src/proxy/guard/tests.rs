use http::HeaderValue;

use super::*;
use crate::resilience::{limiter, rate::Rate};

const SECOND: Duration = Duration::from_secs(1);

const TWO: Rate = Rate { requests: 2, per: SECOND, burst: 2 };

#[test]
fn each_identity_has_a_rate_of_its_own() {
    let world = World::new(&workload(vec![limit("a", RateKey::Identity, TWO)]));
    assert_eq!(world.admitted(Some("spiffe://td/one"), 5), 2);
    assert_eq!(world.admitted(Some("spiffe://td/two"), 5), 2);
    // All without an identity share one.
    assert_eq!(world.admitted(None, 5), 2);
}

#[test]
fn whoever_says_two_names_has_none() {
    let by = RateKey::Header("x-api-key".into());
    let world = World::new(&workload(vec![limit("a", by, TWO)]));
    let keys = |keys: &[&'static str]| {
        let mut request = Request::get("/").body(()).unwrap();
        for key in keys {
            request.headers_mut().append("x-api-key", HeaderValue::from_static(key));
        }
        world.admit(None, &request).is_ok()
    };
    assert!(keys(&["one"]) && keys(&["one"]) && !keys(&["one"]));
    assert!(keys(&["two"]));
    // A fresh name before a used one makes no new bucket.
    assert!(keys(&["new", "one"]) && keys(&["newer", "one"]) && !keys(&["newest", "one"]));
    assert!(!keys(&[]));
}

#[test]
fn a_limit_concerns_the_requests_of_its_path() {
    let path = Some(PathMatch::Prefix("/v1".to_owned()));
    let world = World::new(&workload(vec![RateLimit { path, ..limit("a", RateKey::All, TWO) }]));
    let get = |path: &str| world.admit(None, &Request::get(path).body(()).unwrap());
    let told = |path: &str| get(path).map(|it| it.told.len()).ok();
    assert_eq!([told("/v1"), told("/v1/x?y"), told("/v1")], [Some(1), Some(1), None]);
    assert_eq!(told("/v10"), Some(0));
}

#[test]
fn a_limit_of_a_path_is_not_got_round_by_writing_it_another_way() {
    let path = Some(PathMatch::Prefix("/v1".to_owned()));
    let world = World::new(&workload(vec![RateLimit { path, ..limit("a", RateKey::All, TWO) }]));
    let told = |path: &str| {
        let pass = world.admit(None, &Request::get(path).body(()).unwrap());
        pass.map(|it| it.told.len()).ok()
    };
    assert_eq!([told("/%76%31/x"), told("//v1"), told("/v1/../admin")], [Some(1), Some(1), None]);
    assert_eq!(told("/%76%32"), Some(0));
}

#[test]
fn a_refusal_says_when_to_come_back_and_charges_no_other_limit() {
    let one = Rate { requests: 1, per: 10 * SECOND, burst: 1 };
    let limits = vec![limit("all", RateKey::All, TWO), limit("each", RateKey::Identity, one)];
    let world = World::new(&workload(limits));
    assert_eq!(world.admitted(Some("spiffe://td/one"), 100), 1);
    assert_eq!(world.admitted(Some("spiffe://td/two"), 1), 1);
    let denied = world.admit(Some("spiffe://td/two"), &get()).unwrap_err();
    let mut headers = HeaderMap::new();
    denied.tell(&mut headers, false);
    assert_eq!(headers["retry-after"], "10");
    let lines = |name| headers.get_all(name).iter().map(|it| it.to_str().unwrap());
    let policies = ["\"all\";q=2;w=1", "\"each\";q=1;w=10"];
    assert_eq!(lines("ratelimit-policy").collect::<Vec<_>>(), policies);
    assert_eq!(lines("ratelimit").next_back(), Some("\"each\";r=0;t=10"));
}

#[test]
fn a_grpc_caller_is_pushed_back_by_the_millisecond() {
    let rate = Rate { requests: 1, per: Duration::from_millis(1500), burst: 1 };
    let world = World::new(&workload(vec![limit("a", RateKey::All, rate)]));
    assert!(world.admit(None, &get()).is_ok());
    let mut headers = HeaderMap::new();
    world.admit(None, &get()).unwrap_err().tell(&mut headers, true);
    assert_eq!(headers["grpc-retry-pushback-ms"], "1500");
    assert!(!headers.contains_key("retry-after"));
}

#[test]
fn a_limit_that_observes_counts_and_lets_in() {
    let rule = RateLimit { mode: Mode::Observe, ..limit("a", RateKey::All, TWO) };
    let world = World::new(&workload(vec![rule]));
    assert_eq!(world.admitted(None, 5), 5);
    assert_eq!(world.would_reject("rate_limited"), 3);
    assert!(world.admit(None, &get()).unwrap().told.is_empty());
}

#[test]
fn a_busy_workload_sheds_and_forbids_to_try_again() {
    let world = World::new(&busy(Mode::Enforce, 2));
    let held: Vec<_> = (0..5).filter_map(|_| world.admit(None, &get()).ok()).collect();
    assert_eq!(held.len(), 2);
    let mut headers = HeaderMap::new();
    world.admit(None, &get()).unwrap_err().tell(&mut headers, false);
    for (name, value) in [("x-shed", "concurrency"), ("x-remora-retry", "no"), ("retry-after", "1")]
    {
        assert_eq!(headers[name], value);
    }
    drop(held);
    assert!(world.admit(None, &get()).is_ok());
}

#[test]
fn a_request_is_in_flight_until_the_head_of_its_answer() {
    let world = World::new(&busy(Mode::Enforce, 1));
    let mut pass = world.admit(None, &get()).unwrap();
    assert!(world.admit(None, &get()).is_err());
    pass.answered(&mut HeaderMap::new(), world.start);
    assert!(world.admit(None, &get()).is_ok());
}

#[test]
fn a_caller_in_a_hurry_has_nobody_shed() {
    let mut world = World::new(&busy(Mode::Enforce, 10));
    for _ in 0..20 {
        for _ in 0..10 {
            let mut pass = world.admit(None, &get()).unwrap();
            pass.failed(Failure::DeadlineExpired, &mut HeaderMap::new());
        }
        world.start += SECOND;
    }
    let held: Vec<_> = (0..20).filter_map(|_| world.admit(None, &get()).ok()).collect();
    assert_eq!(held.len(), 10);
}

#[test]
fn a_busy_workload_that_is_observed_takes_everything_on() {
    let world = World::new(&busy(Mode::Observe, 2));
    let held: Vec<_> = (0..5).filter_map(|_| world.admit(None, &get()).ok()).collect();
    assert_eq!((held.len(), world.would_reject("overloaded")), (5, 3));
}

#[test]
fn retries_are_shed_first_and_probes_last() {
    let world = World::new(&busy(Mode::Enforce, 10));
    let retried = Facts { retried: true, ..world.facts() };
    let guard = world.guard.as_ref().unwrap();
    let fill = |request: &Request<()>, facts: &Facts| {
        let admitted = (0..20).map_while(|_| guard.admit(None, request, facts).ok());
        admitted.collect::<Vec<_>>()
    };
    let retries = fill(&get(), &retried);
    let others = fill(&get(), &world.facts());
    let probe = Request::get("/").header("user-agent", "kube-probe/1.33").body(()).unwrap();
    let probes = fill(&probe, &world.facts());
    assert_eq!((retries.len(), others.len(), probes.len()), (8, 2, 2));
    // A mesh peer is no kubelet.
    let peer = Some("spiffe://td/one");
    assert_eq!(class(peer, &probe, &world.facts()), Class::Default);
    let grpc = Facts { grpc: true, retried: true, ..world.facts() };
    assert_eq!(class(peer, &Request::post(HEALTH).body(()).unwrap(), &grpc), Class::Critical);
}

#[test]
fn what_may_never_be_answered_is_not_counted() {
    let world = World::new(&busy(Mode::Enforce, 1));
    let guard = world.guard.as_ref().unwrap();
    let grpc = Facts { grpc: true, ..world.facts() };
    let streams: Vec<_> = (0..5).map(|_| guard.admit(None, &get(), &grpc).unwrap()).collect();
    assert!(streams.iter().all(|it| it.held.is_none()));
    let timed = Facts { ends: Some(world.start + SECOND), ..grpc };
    assert!(guard.admit(None, &get(), &timed).unwrap().held.is_some());
}

#[test]
fn a_reload_keeps_what_its_own_settings_did_not_change() {
    let world = World::new(&workload(vec![
        limit("same", RateKey::Identity, TWO),
        limit("other", RateKey::All, TWO),
    ]));
    let buckets = |it: &Option<Arc<Guard>>, index: usize| {
        Arc::clone(&it.as_ref().unwrap().limits[index].buckets)
    };
    let before = &world.guard;
    let mut policy = workload(vec![
        limit("new", RateKey::Header("a".into()), TWO),
        limit("other", RateKey::All, Rate { burst: 9, ..TWO }),
        RateLimit { mode: Mode::Observe, ..limit("renamed", RateKey::Identity, TWO) },
    ]);
    policy.concurrency.max = 7;
    let after = world.load(&policy, 2);
    assert!(Arc::ptr_eq(&buckets(before, 0), &buckets(&after, 2)));
    assert!(!Arc::ptr_eq(&buckets(before, 1), &buckets(&after, 1)));
    let busy = |it: &Option<Arc<Guard>>| it.as_ref().unwrap().busy.clone().unwrap();
    assert!(Arc::ptr_eq(&busy(before), &busy(&after)));
    assert_eq!(busy(before).state.lock().limiter.stats().limit, 7);
    // Another worker, that has not heard of it yet.
    let late = world.load(&workload(Vec::new()), 1);
    assert!(Arc::ptr_eq(after.as_ref().unwrap(), late.as_ref().unwrap()));
}

#[test]
fn a_workload_without_guards_has_none() {
    let mut policy = busy(Mode::Off, 1);
    policy.rate_limits = vec![RateLimit { mode: Mode::Off, ..limit("a", RateKey::All, TWO) }];
    assert!(World::new(&policy).guard.is_none());
}

/// A guard and its surroundings.
struct World {
    guards: Guards,
    guard: Option<Arc<Guard>>,
    metrics: Metrics,
    start: Instant,
}

impl World {
    fn new(policy: &WorkloadPolicy) -> Self {
        let (guards, metrics, start) = (Guards::default(), Metrics::new(), clock::now());
        let mut world = Self { guards, guard: None, metrics, start };
        world.guard = world.load(policy, 1);
        world
    }

    fn load(&self, policy: &WorkloadPolicy, generation: u64) -> Option<Arc<Guard>> {
        let label = "shop/orders".into();
        self.guards.of((policy, generation), (&label, &self.metrics), self.start)
    }

    fn admit(&self, peer: Option<&str>, request: &Request<()>) -> Result<Pass, Denied> {
        self.guard.as_ref().unwrap().admit(peer, request, &self.facts())
    }

    /// How many of `count` requests of `peer` are let in.
    fn admitted(&self, peer: Option<&str>, count: usize) -> usize {
        (0..count).filter(|_| self.admit(peer, &get()).is_ok()).count()
    }

    fn would_reject(&self, reason: &str) -> u64 {
        let mut page = Vec::new();
        self.metrics.render(&mut page);
        let page = String::from_utf8(page).unwrap();
        let labels =
            format!("{{direction=\"inbound\",reason=\"{reason}\",service=\"shop/orders\"}}");
        let line = format!("remora_would_reject_total{labels} ");
        page.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    fn facts(&self) -> Facts {
        Facts::new(http::Version::HTTP_11, [127, 0, 0, 1].into(), self.start)
    }
}

fn get() -> Request<()> {
    Request::get("/").body(()).unwrap()
}

fn limit(name: &str, by: RateKey, rate: Rate) -> RateLimit {
    RateLimit { name: name.into(), mode: Mode::Enforce, by, path: None, rate }
}

fn workload(rate_limits: Vec<RateLimit>) -> WorkloadPolicy {
    WorkloadPolicy { rate_limits, ..WorkloadPolicy::default() }
}

fn busy(mode: Mode, initial: u32) -> WorkloadPolicy {
    let concurrency = limiter::Config { mode, initial, min: 1, ..limiter::Config::default() };
    WorkloadPolicy { concurrency, ..WorkloadPolicy::default() }
}
