//! One bad endpoint of three: how much of the traffic it still gets, and who notices.

use std::time::Duration;

use http::Version;

use crate::{
    faults::{ATTEMPTS, CALLERS, Mood, RETRIES, TAKES, TRANSITIONS, Three, get},
    http as web,
    load::tally,
    pods::{ORDERS, ORDERS_LABEL},
    runner::Case,
};

pub(crate) const CASES: &[Case] = &[
    ("faults_a_killed_endpoint_costs_no_idempotent_request", killed),
    ("faults_a_hung_endpoint_gets_next_to_nothing_with_a_time_limit", hung),
    ("faults_a_hung_endpoint_gets_next_to_nothing_with_none", hung_for_ever),
    ("faults_a_vanished_host_gets_next_to_nothing_either", vanished),
    ("faults_an_endpoint_that_fails_fast_attracts_nothing", fast_failures),
    ("faults_a_slow_endpoint_gets_much_less_than_its_share", slow),
    ("faults_an_endpoint_that_refuses_is_left_alone", refusing),
    ("faults_a_response_cut_in_the_middle_is_charged_and_not_sent_again", cut),
];

/// One try may take a second: much longer than one does, on a busy machine, too.
const TIME_LIMIT: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    timeouts: {request: 10s, backendRequest: 1s}
";

fn killed() {
    Three::each_way("", |mut three| {
        let load = three.load(get);
        assert!(three.requests_during(&load, 300).iter().all(|it| 0 < *it));
        three.instances[0].kill();
        let others = three.requests_during(&load, 600);
        assert_eq!(others[0], 0, "{others:?}");
        three.instances[0].start();
        load.go_on_for(300);
        load.stop_without_failure();
        let retries = |verdict| three.client.count(RETRIES, &[ORDERS_LABEL, ("verdict", verdict)]);
        assert!(0 < retries("sent") + retries("free"), "nothing was sent again");
    });
}

fn hung() {
    Three::each_way(TIME_LIMIT, |three| {
        let load = three.load(get);
        load.go_on_for(300);
        three.instances[0].be(Mood::Hangs);
        load.go_on_for(300);
        three.gets_less(&load, 2_000, (0, 1));
        three.instances[0].be(Mood::Serves(TAKES));
        let (_, failed) = load.stop();
        // Of those in hand when it hung, all of which run out of time at once, only some may be
        // sent again at the same time.
        assert!(failed.len() <= CALLERS as usize, "{:?}", tally(&failed));
    });
}

fn hung_for_ever() {
    let three = Three::plain("");
    let load = three.load(get);
    load.go_on_for(300);
    three.instances[0].be(Mood::Hangs);
    let stuck = three.requests_during(&load, 300)[0];
    assert!(stuck <= u64::from(CALLERS) / 2, "{stuck} of {CALLERS} callers are stuck");
    three.gets_less(&load, 2_000, (0, 1));
    // Those that wait are answered, late, when it recovers.
    three.instances[0].be(Mood::Serves(TAKES));
    load.stop_without_failure();
}

fn vanished() {
    Three::each_way(TIME_LIMIT, |three| {
        let load = three.load(get);
        load.go_on_for(300);
        let host = &three.instances[0].host;
        host.unplug();
        load.go_on_for(300);
        // It can't say what it gets: it would all be lost.
        let outcomes = ["timeout", "connect_failed", "failure"];
        let lost = || {
            let count = |it| three.client.count(ATTEMPTS, &[ORDERS_LABEL, ("outcome", it)]);
            outcomes.map(count).iter().sum::<u64>()
        };
        let before = lost();
        load.go_on_for(2_000);
        let lost = lost() - before;
        assert!(lost < 20, "{lost} of 2000 went to a host that is gone");
        host.plug();
        let (_, failed) = load.stop();
        assert!(failed.len() <= CALLERS as usize, "{:?}", tally(&failed));
    });
}

fn fast_failures() {
    Three::each_way("", |three| {
        three.instances[1].be(Mood::Fails(503));
        let load = three.load(get);
        // From the very first request on: what it costs to find out is part of it.
        three.gets_less(&load, 2_000, (1, 5));
        three.gets_less(&load, 1_000, (1, 1));
        let (sent, failed) = load.stop();
        assert!(failed.len() as u64 * 100 <= sent, "of {sent} failed: {:?}", tally(&failed));
        three.instances[1].be(Mood::Serves(TAKES));
    });
}

fn slow() {
    let three = Three::plain("");
    // So long that what the machine adds does not matter.
    let takes = Duration::from_millis(10);
    three.instances.iter().for_each(|it| it.be(Mood::Serves(takes)));
    three.instances[2].be(Mood::Serves(20 * takes));
    let load = three.load(get);
    load.go_on_for(300);
    three.gets_less(&load, 2_000, (2, 10));
    load.stop_without_failure();
    // It is slow, not broken.
    assert_eq!(three.client.count(TRANSITIONS, &[ORDERS_LABEL, ("to", "open")]), 0);
}

fn refusing() {
    let mut three = Three::plain("");
    three.instances[1].kill();
    // A POST too: nobody has seen it.
    let load = three.load(|number| match number % 2 {
        0 => get(number),
        _ => web::post(Version::HTTP_11, ORDERS, "/pay", "one coin"),
    });
    load.go_on_for(2_000);
    let refused = three.client.count(ATTEMPTS, &[ORDERS_LABEL, ("outcome", "connect_failed")]);
    assert!(0 < refused && refused <= 50, "{refused} tries were refused");
    load.stop_without_failure();
}

fn cut() {
    let three = Three::plain("");
    three.instances[0].be(Mood::Cuts);
    let load = three.load(get);
    load.go_on_for(300);
    three.gets_less(&load, 2_000, (0, 1));
    let (sent, failed) = load.stop();
    let during = three.requests();
    // Each is seen to have broken off, and is sent to nobody else.
    assert!(failed.iter().all(|it| it.starts_with("no answer")), "{:?}", tally(&failed));
    assert_eq!(failed.len() as u64, during[0]);
    assert_eq!(during.iter().sum::<u64>(), sent);
    let charged = three.client.count(ATTEMPTS, &[ORDERS_LABEL, ("outcome", "failure")]);
    assert_eq!(charged, during[0]);
}
