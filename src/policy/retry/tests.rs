use std::time::Duration;

use super::*;

const GET: Request = Request { method: Methods::GET, idempotency_key: false, retried: false };
const POST: Request = Request { method: Methods::POST, ..GET };
const DELETE: Request = Request { method: Methods::DELETE, ..GET };

const ASK: Verdict = Verdict::Ask { after: None };
const SOON: Asked = Asked::AtLeast(Duration::from_secs(1));

/// The first try of a request without a body.
fn first(failed: Failed) -> Try {
    Try { failed, said: Said::Nothing, tries: 1, at_hand: true, untouched: false, again: false }
}

/// The second, after a free one.
fn second(failed: Failed) -> Try {
    Try { tries: 2, again: true, ..first(failed) }
}

#[test]
fn what_never_reached_the_application_is_sent_once_more_whatever_it_is() {
    for policy in [policy(), off(), Policy { attempts: 0, ..policy() }] {
        for request in [GET, POST, Request { retried: true, ..POST }] {
            for failed in [Failed::Unsent, Failed::Unprocessed] {
                assert_eq!(verdict(&policy, request, first(failed)), Verdict::Again);
            }
        }
    }
}

#[test]
fn what_never_reached_the_application_a_second_time_has_its_price() {
    assert_eq!(verdict(&policy(), POST, second(Failed::Unsent)), ASK);
    assert_eq!(verdict(&off(), POST, second(Failed::Unsent)), Verdict::Final);
}

#[test]
fn what_costs_nothing_counts_as_a_try() {
    let late = |tries| Try { tries, ..first(Failed::Unsent) };
    assert_eq!(verdict(&policy(), GET, late(2)), Verdict::Again);
    assert_eq!(verdict(&policy(), GET, late(3)), Verdict::Limit);
    let none = Policy { attempts: 0, ..policy() };
    assert_eq!(verdict(&none, GET, late(1)), Verdict::Again);
    assert_eq!(verdict(&none, GET, late(2)), Verdict::Limit);
}

#[test]
fn what_a_reused_connection_lost_is_sent_once_more_if_that_can_do_no_harm() {
    let lost = first(Failed::ReusedReset);
    for name in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"] {
        let request = Request { method: Methods::of(name), ..GET };
        assert_eq!(verdict(&policy(), request, lost), Verdict::Again, "{name}");
    }
    for name in ["POST", "PATCH", "PURGE"] {
        let request = Request { method: Methods::of(name), ..GET };
        assert_eq!(verdict(&policy(), request, lost), Verdict::Unsafe, "{name}");
        // None of its body had been given away.
        let untouched = Try { untouched: true, ..lost };
        assert_eq!(verdict(&policy(), request, untouched), Verdict::Again, "{name}");
    }
    assert_eq!(verdict(&policy(), GET, second(Failed::ReusedReset)), ASK);
    assert_eq!(verdict(&policy(), DELETE, second(Failed::ReusedReset)), Verdict::Unsafe);
}

#[test]
fn a_safe_method_is_tried_again_within_the_budget() {
    let each = [
        Failed::Reset,
        Failed::TryTimeout,
        Failed::Status(502),
        Failed::Status(503),
        Failed::Status(504),
    ];
    for failed in each {
        assert_eq!(verdict(&policy(), GET, first(failed)), ASK, "{failed:?}");
        assert_eq!(verdict(&policy(), POST, first(failed)), Verdict::Unsafe, "{failed:?}");
        assert_eq!(verdict(&policy(), DELETE, first(failed)), Verdict::Unsafe, "{failed:?}");
    }
}

#[test]
fn a_method_that_is_declared_safe_is_taken_for_that() {
    let policy = Policy { methods: Methods::SAFE.and(Methods::DELETE), ..policy() };
    assert_eq!(verdict(&policy, DELETE, first(Failed::Reset)), ASK);
    assert_eq!(verdict(&policy, POST, first(Failed::Reset)), Verdict::Unsafe);
}

#[test]
fn an_unknown_method_is_never_declared_safe() {
    let policy = Policy { methods: Methods(0x7fff), ..policy() };
    let purge = Request { method: Methods::of("PURGE"), ..GET };
    assert_eq!(verdict(&policy, purge, first(Failed::Reset)), Verdict::Unsafe);
    assert_eq!(Methods::of("get"), Methods::OTHER);
}

#[test]
fn an_idempotency_key_counts_where_the_policy_trusts_it() {
    let keyed = Request { idempotency_key: true, ..POST };
    assert_eq!(verdict(&policy(), keyed, first(Failed::Reset)), Verdict::Unsafe);
    let trusting = Policy { idempotency_key: true, ..policy() };
    assert_eq!(verdict(&trusting, keyed, first(Failed::Reset)), ASK);
    assert_eq!(verdict(&trusting, POST, first(Failed::Reset)), Verdict::Unsafe);
}

#[test]
fn a_status_is_retried_where_it_is_listed() {
    for code in [200, 404, 500, 501, 505] {
        assert_eq!(verdict(&policy(), GET, first(Failed::Status(code))), Verdict::Final, "{code}");
    }
    let listed = Policy { codes: [500, 501].into(), ..policy() };
    assert_eq!(verdict(&listed, GET, first(Failed::Status(500))), ASK);
    assert_eq!(verdict(&listed, GET, first(Failed::Status(503))), Verdict::Final);
    // What is not implemented now will not be in a moment.
    assert_eq!(verdict(&listed, GET, first(Failed::Status(501))), Verdict::Final);
}

#[test]
fn a_full_endpoint_is_asked_again_only_when_it_says_when() {
    let full = first(Failed::Status(429));
    assert_eq!(verdict(&policy(), GET, full), Verdict::Final);
    let told = Try { said: Said::After(SOON), ..full };
    assert_eq!(verdict(&policy(), GET, told), Verdict::Ask { after: Some(SOON) });
    let unlisted = Policy { codes: [503].into(), ..policy() };
    assert_eq!(verdict(&unlisted, GET, told), Verdict::Final);
}

#[test]
fn a_grpc_status_is_retried_where_it_is_listed_and_the_method_allowed() {
    let (unavailable, unknown) = (first(Failed::Grpc(14)), first(Failed::Grpc(2)));
    assert_eq!(verdict(&policy(), POST, unavailable), Verdict::Unsafe);
    let safe = Policy { methods: Methods::SAFE.and(Methods::POST), ..policy() };
    assert_eq!(verdict(&safe, POST, unavailable), ASK);
    assert_eq!(verdict(&safe, POST, unknown), Verdict::Final);
    assert_eq!(verdict(&safe, POST, first(Failed::Grpc(255))), Verdict::Final);
}

#[test]
fn the_answer_that_forbids_another_try_is_obeyed() {
    let told = Try { said: Said::Never, ..first(Failed::Status(503)) };
    assert_eq!(verdict(&policy(), GET, told), Verdict::Forbidden);
}

#[test]
fn a_free_try_is_forbidden_too() {
    let tried = Try { said: Said::Never, ..first(Failed::Unprocessed) };
    assert_eq!(verdict(&policy(), GET, tried), Verdict::Forbidden);
    assert_eq!(verdict(&off(), GET, tried), Verdict::Final);
}

#[test]
fn the_wait_an_answer_asks_for_is_passed_on() {
    for asked in [SOON, Asked::Exactly(Duration::ZERO)] {
        let told = Try { said: Said::After(asked), ..first(Failed::Status(503)) };
        assert_eq!(verdict(&policy(), GET, told), Verdict::Ask { after: Some(asked) });
    }
}

#[test]
fn a_retry_is_not_retried_along_a_chain() {
    let inner = Request { retried: true, ..GET };
    for failed in [Failed::Reset, Failed::TryTimeout, Failed::Status(503)] {
        assert_eq!(verdict(&policy(), inner, first(failed)), Verdict::Chain);
    }
}

#[test]
fn a_request_has_as_many_tries_as_the_policy_says() {
    for attempts in 0..=5 {
        let policy = Policy { attempts, ..policy() };
        let after = |tries| verdict(&policy, GET, Try { tries, ..first(Failed::Reset) });
        assert!((1..=attempts).all(|it| after(it) == ASK));
        assert_eq!(after(attempts + 1), Verdict::Limit);
    }
}

#[test]
fn a_body_that_is_gone_is_never_sent_again() {
    for failed in [Failed::Unsent, Failed::Unprocessed, Failed::ReusedReset, Failed::Reset] {
        let gone = Try { at_hand: false, ..first(failed) };
        assert_eq!(verdict(&policy(), GET, gone), Verdict::Unsafe, "{failed:?}");
    }
}

#[test]
fn what_no_other_try_can_mend_is_final() {
    assert_eq!(verdict(&policy(), GET, first(Failed::Final)), Verdict::Final);
}

#[test]
fn a_policy_that_is_off_tries_only_what_was_never_seen() {
    for failed in [Failed::Reset, Failed::TryTimeout, Failed::Status(503)] {
        assert_eq!(verdict(&off(), GET, first(failed)), Verdict::Final);
    }
    assert_eq!(verdict(&off(), GET, first(Failed::ReusedReset)), Verdict::Again);
}

#[test]
fn a_policy_that_observes_says_what_it_would_ask_for() {
    let observing = Policy { mode: Mode::Observe, ..policy() };
    assert_eq!(verdict(&observing, GET, first(Failed::Reset)), Verdict::Would);
    assert_eq!(verdict(&observing, GET, first(Failed::Unsent)), Verdict::Again);
    // It would not have asked for these.
    assert_eq!(verdict(&observing, POST, first(Failed::Reset)), Verdict::Unsafe);
    let last = Try { tries: 3, ..first(Failed::Reset) };
    assert_eq!(verdict(&observing, GET, last), Verdict::Limit);
}

fn policy() -> Policy {
    Policy::default()
}

fn off() -> Policy {
    Policy { mode: Mode::Off, ..policy() }
}
