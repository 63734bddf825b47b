//! Retries: as many as help, never of what is not safe to repeat, and never a storm.

use std::time::Duration;

use http::{Method, Request, Version};

use remora::clock;

use crate::{
    faults::{ATTEMPTS, CALLERS, Mood, RETRIES, TAKES, Three, about_orders, get, post},
    faults_policy::call,
    host::wait_until,
    http::{self as web, AnyBody},
    load::{Load, tally},
    pods::{ORDERS, ORDERS_LABEL, outbound},
    runner::Case,
};

pub(crate) const CASES: &[Case] = &[
    ("faults_a_storm_of_retries_stays_within_its_budget", storm),
    ("faults_a_rolling_restart_costs_no_idempotent_request", rolling_restart),
    ("faults_a_rolling_restart_of_whole_pods_costs_none_either", rolling_pods),
    ("faults_a_post_is_never_sent_twice", posts),
    ("faults_a_request_is_sent_again_with_all_of_its_body_or_not_at_all", replayed),
    ("faults_a_put_is_sent_again_where_a_document_says_so", puts),
    ("faults_an_endpoint_that_says_when_to_come_back_is_obeyed", deferred),
    ("faults_a_hedge_answers_for_an_endpoint_that_hangs", hedged),
    ("faults_a_grpc_call_is_sent_again_where_a_document_says_so", calls),
];

fn storm() {
    Three::each_way("", |three| {
        for it in &three.instances {
            it.be(Mood::Fails(503));
        }
        let load = three.load(get);
        load.go_on_for(2_000);
        let (sent, failed) = load.stop();
        assert_eq!(failed.len() as u64, sent, "an outage of all is one of the service");
        let tries = three.client.count(ATTEMPTS, &[ORDERS_LABEL]);
        assert!(three.requests().iter().sum::<u64>() <= tries, "{tries} and others' tries");
        // A fifth of the requests, and ten to begin with; one more for what time has added.
        assert!(tries * 10 <= sent * 12 + 110, "{tries} tries of {sent} requests");
        let labels = [ORDERS_LABEL, ("verdict", "exhausted")];
        assert!(0 < three.client.count(RETRIES, &labels), "the budget is not what held them");
        // And it ends when the outage does.
        for it in &three.instances {
            it.be(Mood::Serves(TAKES));
        }
        let load = three.load(get);
        let reached = || three.requests().iter().sum::<u64>();
        let before = reached();
        wait_until("the service is called again", || before + 50 <= reached());
        let (sent, failed) = load.stop();
        assert!((failed.len() as u64) < sent, "nobody is answered");
        assert!(failed.iter().all(|it| it == "503 breaker_open"), "{:?}", tally(&failed));
    });
}

const HEDGES: &str = "remora_hedges_total";

/// Five hundred requests a second.
fn steady(three: &Three) -> Load {
    let pace = Duration::from_secs(1) * CALLERS / 500;
    Load::paced(&three.web, outbound(), (CALLERS, pace), get)
}

fn rolling_restart() {
    let mut three = Three::plain("");
    let load = steady(&three);
    load.go_on_for(100);
    for which in 0..3 {
        three.instances[which].kill();
        load.go_on_for(300);
        three.instances[which].start();
        load.go_on_for(150);
    }
    // The last one was down while those before it, started again, answered for it.
    load.stop_without_failure();
}

fn rolling_pods() {
    let mut three = Three::meshed("");
    let load = steady(&three);
    load.go_on_for(100);
    for which in 0..3 {
        three.stop_sidecar(which);
        three.instances[which].kill();
        load.go_on_for(300);
        three.instances[which].start();
        three.start_sidecar(which);
        // As an orchestrator waits until one is ready, and callers have heard of it.
        three.instances[which].is_back();
    }
    load.stop_without_failure();
}

fn posts() {
    Three::each_way("", |mut three| {
        let load = three.load(post);
        for mood in [Mood::Resets, Mood::Fails(503), Mood::Cuts] {
            for which in 0..3 {
                load.go_on_for(50);
                three.instances[which].be(mood);
                load.go_on_for(50);
                three.instances[which].be(Mood::Serves(TAKES));
            }
        }
        for which in 0..3 {
            three.instances[which].kill();
            load.go_on_for(100);
            three.instances[which].start();
        }
        let (sent, failed) = load.stop();
        let seen = three.seen.lock().expect("no instance panics");
        let twice: Vec<_> = seen.iter().filter(|(_, times)| 1 < **times).collect();
        assert!(twice.is_empty(), "{twice:?}");
        // All were answered, or failed in a way that says that they may have been done.
        assert!(sent - failed.len() as u64 <= seen.len() as u64);
        let expected = ["502 reset", "503 ", "no answer"];
        let is_expected = |it: &String| expected.iter().any(|expected| it.starts_with(expected));
        assert!(failed.iter().all(is_expected), "{:?}", tally(&failed));
        assert!(!failed.is_empty(), "nothing went wrong");
    });
}

/// A request of `method` with a body of this many bytes.
fn upload(method: &'static str, bytes: usize) -> Request<AnyBody> {
    let mut request = web::post(Version::HTTP_11, ORDERS, "/upload", &"x".repeat(bytes));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
    request
}

/// How often a request reaches one of three instances that all fail, always with its body.
fn tries(three: &Three, method: &'static str, bytes: usize) -> u64 {
    three.instances.iter().for_each(|it| it.be(Mood::Fails(503)));
    three.seen.lock().expect("no instance panics").clear();
    let before: u64 = three.requests().iter().sum();
    assert_eq!(three.send(move || upload(method, bytes)).0, 503, "{method} of {bytes}");
    let tries = three.requests().iter().sum::<u64>() - before;
    let seen = three.seen.lock().expect("no instance panics");
    let whole: Vec<_> = seen.iter().map(|(body, times)| (body.len(), u64::from(*times))).collect();
    assert_eq!(whole, [(bytes, tries)], "{method} of {bytes}");
    tries
}

fn replayed() {
    let three = Three::plain("");
    assert_eq!(tries(&three, "GET", 40_000), 3);
    // What is kept for another try has its limit.
    assert_eq!(tries(&three, "GET", 100_000), 1);
    // RFC 9110, section 9.2.2, says that PUT is idempotent; that two of it can overtake
    // each other, it does not say.
    assert_eq!(tries(&three, "PUT", 1_000), 1);
    assert_eq!(tries(&three, "POST", 1_000), 1);
    three.policy.write("a.yaml", &about_orders("\n  retries: {methods: [PUT]}"));
    three.client.until("remora_policy_generation", &[], |it| it == 2);
    assert_eq!(tries(&three, "PUT", 60_000), 3);
    assert_eq!(tries(&three, "PUT", 100_000), 1);
    assert_eq!(tries(&three, "POST", 1_000), 1);
}

fn deferred() {
    let three = Three::plain("");
    let tries = |mood| {
        three.instances.iter().for_each(|it| it.be(mood));
        let before: u64 = three.requests().iter().sum();
        let began = clock::now();
        let (status, _) = three.send(|| get(0));
        (status, three.requests().iter().sum::<u64>() - before, clock::now() - began)
    };
    // A minute's limit has room for the seconds asked for, and none for an hour.
    for (code, seconds, expected) in [(503, 1, 3), (429, 1, 3), (503, 3_600, 1), (429, 3_600, 1)] {
        let (status, tries, took) = tries(Mood::Defers(code, seconds));
        assert_eq!((status, tries), (code, expected), "{code} after {seconds} s");
        assert!(Duration::from_secs(expected - 1) <= took, "{took:?}");
    }
    // Who does not say when is asked again at once, or not at all.
    assert_eq!(tries(Mood::Fails(429)).1, 1);
}

fn puts() {
    Three::each_way(&about_orders("\n  retries: {methods: [PUT]}"), |three| {
        three.instances[0].be(Mood::Fails(503));
        let load = three.load(|number| {
            let mut request = upload("PUT", 50_000);
            *request.body_mut() =
                web::post(Version::HTTP_11, ORDERS, "/", &format!("{number:050000}")).into_body();
            request
        });
        load.go_on_for(500);
        let (sent, failed) = load.stop();
        assert!(failed.len() as u64 * 100 <= sent, "of {sent} failed: {:?}", tally(&failed));
        let seen = three.seen.lock().expect("no instance panics");
        assert!(seen.keys().all(|it| it.len() == 50_000), "half a body was sent");
        assert_eq!(seen.len() as u64, sent);
        assert!(seen.values().any(|it| 1 < *it), "nothing was sent again");
    });
}

fn calls() {
    let document = "\n  retries: {methods: [POST], grpcCodes: [UNAVAILABLE]}";
    let three = Three::plain(&about_orders(document));
    three.instances.iter().for_each(|it| it.be(Mood::Trails(0)));
    three.instances[1].be(Mood::Refuses(14));
    let load = three.load(call);
    load.go_on_for(500);
    let (sent, failed) = load.stop();
    assert!(failed.len() as u64 * 100 <= sent, "of {sent} failed: {:?}", tally(&failed));
    assert!(0 < three.client.count(RETRIES, &[ORDERS_LABEL, ("verdict", "sent")]));
}

fn hedged() {
    let three = Three::plain(&about_orders("\n  hedge: {extra: 20%}"));
    let hedges = |result| three.client.count(HEDGES, &[ORDERS_LABEL, ("result", result)]);
    let load = three.load(get);
    // How long an answer takes is known when the slowest of them are overtaken.
    three.client.until(HEDGES, &[ORDERS_LABEL, ("result", "sent")], |it| 1 <= it);
    load.go_on_for(500);
    let won = hedges("won");
    // One after the other: any of them may be left alone for a while, for one slow answer.
    let mut turns = three.instances.iter().cycle().take(30);
    while hedges("won") == won {
        let instance = turns.next().expect("a hedge wins in one of thirty turns");
        instance.be(Mood::Hangs);
        load.go_on_for(100);
        instance.be(Mood::Serves(TAKES));
    }
    load.go_on_for(500);
    load.stop_without_failure();
    // What is not safe to repeat is not hedged.
    let load = three.load(post);
    let before = hedges("sent");
    load.go_on_for(500);
    load.stop_without_failure();
    assert_eq!(hedges("sent"), before);
    assert!(three.seen.lock().expect("no instance panics").values().all(|it| *it == 1));
}
