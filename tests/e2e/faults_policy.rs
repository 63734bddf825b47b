//! Documents about breakers and limits: what they say is what happens.
//!
//! Endpoints take turns here, so that a breaker is all that keeps one from its third of the
//! requests.

use std::time::Duration;

use http::{HeaderValue, Request, Version, header::CONTENT_TYPE};

use remora::drain;

use crate::{
    faults::{ATTEMPTS, Mood, TAKES, TRANSITIONS, Three, about_orders, get},
    host::{Running, wait_until},
    http::{self as web, AnyBody},
    load::{Load, tally},
    pods::{ORDERS, ORDERS_LABEL, outbound},
    runner::Case,
};

pub(crate) const CASES: &[Case] = &[
    ("faults_a_breaker_opens_and_closes_as_its_document_says", breaker),
    ("faults_a_breaker_that_observes_only_counts", observed),
    ("faults_a_breaker_of_the_service_answers_in_its_place", of_the_service),
    ("faults_a_status_in_the_trailers_opens_the_breaker", trailers),
    ("faults_what_is_over_a_limit_waits_and_what_is_over_that_is_refused", limits),
    ("faults_one_endpoint_takes_no_more_than_its_limit", limit_of_one),
    ("faults_nobody_waits_for_room_longer_than_the_document_says", impatient),
];

const REPLIES: &str = "remora_local_replies_total";

const POOL_FULL: [(&str, &str); 2] = [ORDERS_LABEL, ("reason", "pool_full")];

const BREAKER: &str = "
  loadBalancer: {algorithm: RoundRobin}
  retries: {mode: off}
  breaker: {consecutiveFailures: 3, openFor: 500ms, maxOpenFor: 500ms}";

/// What became of the breakers, as often as `to`.
fn became(three: &Three, to: &str) -> u64 {
    three.client.count(TRANSITIONS, &[ORDERS_LABEL, ("to", to)])
}

/// Asserts that after three failures an instance sees but probes, of which one failed.
fn only_probed(three: &Three, which: usize) {
    three.client.until(TRANSITIONS, &[ORDERS_LABEL, ("to", "open")], |it| 2 <= it);
    let (seen, probes) = (three.instances[which].requests(), became(three, "half_open"));
    assert!(1 <= probes && seen <= 3 + probes, "{seen} requests, {probes} probes");
}

fn breaker() {
    let three = Three::plain(&about_orders(BREAKER));
    three.instances[0].be(Mood::Fails(500));
    let load = Load::start(&three.web, outbound(), 1, get);
    only_probed(&three, 0);
    three.instances[0].be(Mood::Serves(TAKES));
    three.client.until(TRANSITIONS, &[ORDERS_LABEL, ("to", "closed")], |it| 1 <= it);
    three.instances[0].is_back();
    let (_, failed) = load.stop();
    assert!((3..=16).contains(&failed.len()), "{:?}", tally(&failed));
    assert!(failed.iter().all(|it| it.starts_with("500 ")), "{:?}", tally(&failed));
}

fn observed() {
    // What would be left out as worse than its peers is another rule's.
    let document = BREAKER.replace("breaker: {", "breaker: {mode: observe, ");
    let document = format!("{document}\n  outlier: {{mode: observe}}");
    let three = Three::plain(&about_orders(&document));
    three.instances[0].be(Mood::Fails(500));
    let load = Load::start(&three.web, outbound(), 1, get);
    three.client.until("remora_would_eject_total", &[ORDERS_LABEL], |it| 1 <= it);
    let during = three.requests_during(&load, 300);
    assert!(during.iter().all(|it| (90..=110).contains(it)), "{during:?} is not one third each");
    let (_, failed) = load.stop();
    assert_eq!(failed.len() as u64, three.instances[0].requests());
    assert_eq!(became(&three, "open"), 0);
}

fn of_the_service() {
    let document = BREAKER.replace("breaker: {", "breaker: {scope: Service, ");
    let three = Three::plain(&about_orders(&document));
    three.instances.iter().for_each(|it| it.be(Mood::Fails(500)));
    let load = Load::start(&three.web, outbound(), 1, get);
    load.go_on_for(300);
    let (_, failed) = load.stop();
    let refused = failed.iter().filter(|it| *it == "503 breaker_open").count() as u64;
    let reached: u64 = three.requests().iter().sum();
    assert_eq!(refused + reached, failed.len() as u64);
    assert!((3..=30).contains(&reached), "{reached} of {} went through", failed.len());
    assert_eq!(three.client.count(REPLIES, &[ORDERS_LABEL, ("reason", "breaker_open")]), refused);
    three.instances.iter().for_each(|it| it.be(Mood::Serves(TAKES)));
    three.client.until(TRANSITIONS, &[ORDERS_LABEL, ("to", "half_open")], |it| {
        // There is no probe without a request.
        let _answer = three.send(|| get(0));
        1 <= it && became(&three, "closed") == 1
    });
}

/// A gRPC call of an empty message.
pub(crate) fn call(_: u64) -> Request<AnyBody> {
    let mut call = web::post(Version::HTTP_2, ORDERS, "/shop.Orders/Get", "\0\0\0\0\0");
    call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    call
}

fn trailers() {
    let three = Three::plain(&about_orders(BREAKER));
    three.instances.iter().for_each(|it| it.be(Mood::Trails(0)));
    // UNAVAILABLE, which nobody could know before the answer has ended.
    three.instances[2].be(Mood::Trails(14));
    let load = Load::start(&three.web, outbound(), 1, call);
    only_probed(&three, 2);
    three.instances[2].be(Mood::Trails(0));
    three.client.until(TRANSITIONS, &[ORDERS_LABEL, ("to", "closed")], |it| 1 <= it);
    three.instances[2].is_back();
    let (_, failed) = load.stop();
    assert!(failed.iter().all(|it| it == "200 grpc-status 14"), "{:?}", tally(&failed));
    let charged = three.client.count(ATTEMPTS, &[ORDERS_LABEL, ("outcome", "failure")]);
    assert_eq!(charged, failed.len() as u64);
}

/// Sends this many requests at once, each on a connection of its own; sorted, their statuses
/// and reasons.
fn burst(three: &Three, requests: u32) -> Running<Vec<(u16, String)>> {
    three.web.start(move || async move {
        let one = async || {
            let answer = web::fetch(Version::HTTP_11, outbound(), ORDERS, "/orders").await;
            let answer = answer.expect("there is an answer");
            let refused = answer.header("retry-after") == "1";
            assert_eq!(answer.status == 503, refused, "a refusal says when to come back");
            (answer.status, answer.header("x-remora-reason").to_owned())
        };
        let running: Vec<_> = (0..requests).map(|_| drain::spawn("one", one())).collect();
        let mut all = Vec::new();
        for it in running {
            all.push(it.await.expect("it does not panic"));
        }
        all.sort();
        all
    })
}

fn told(answers: &[(u16, &str)]) -> Vec<(u16, String)> {
    answers.iter().map(|(status, reason)| (*status, (*reason).to_owned())).collect()
}

fn limits() {
    let three = Three::plain(&about_orders(
        "\n  connections: {maxRequests: 4, maxPending: 3, pendingTimeout: 15s}",
    ));
    three.instances.iter().for_each(|it| it.be(Mood::Hangs));
    let answers = burst(&three, 9);
    three.client.until(REPLIES, &POOL_FULL, |it| it == 2);
    wait_until("those that may are sent", || three.requests().iter().sum::<u64>() == 4);
    three.instances.iter().for_each(|it| it.be(Mood::Serves(TAKES)));
    let (served, refused) = ((200, ""), (503, "pool_full"));
    let expected = [[served; 7].as_slice(), &[refused; 2]].concat();
    assert_eq!(answers.join(), told(&expected));
    // The room is given back.
    assert_eq!(burst(&three, 7).join(), told(&[served; 7]));
    assert_eq!(three.client.count(REPLIES, &POOL_FULL), 2);
}

fn limit_of_one() {
    let three = Three::plain(&about_orders(
        "\n  connections: {maxPerEndpoint: 1, maxPending: 1, pendingTimeout: 15s}",
    ));
    three.instances.iter().for_each(|it| it.be(Mood::Hangs));
    let answers = burst(&three, 5);
    three.client.until(REPLIES, &POOL_FULL, |it| it == 1);
    wait_until("each has one", || three.requests() == [1, 1, 1]);
    // The first that has room again takes the one that waits.
    three.instances[1].be(Mood::Serves(Duration::ZERO));
    wait_until("the one that waited is served", || three.instances[1].requests() == 2);
    assert_eq!(three.requests(), [1, 2, 1]);
    three.instances.iter().for_each(|it| it.be(Mood::Serves(TAKES)));
    let served = (200, "");
    assert_eq!(answers.join(), told(&[served, served, served, served, (503, "pool_full")]));
}

fn impatient() {
    let three = Three::plain(&about_orders(
        "\n  connections: {maxRequests: 1, maxPending: 10, pendingTimeout: 100ms}",
    ));
    three.instances.iter().for_each(|it| it.be(Mood::Hangs));
    let answers = burst(&three, 4);
    three.client.until(REPLIES, &POOL_FULL, |it| it == 3);
    three.instances.iter().for_each(|it| it.be(Mood::Serves(TAKES)));
    let refused = (503, "pool_full");
    assert_eq!(answers.join(), told(&[(200, ""), refused, refused, refused]));
    assert_eq!(three.requests().iter().sum::<u64>(), 1);
}
