//! What is refused, with which word, and what is written down of it.

use std::{fs, time::Duration};

use hyper::Method;
use remora::{
    clock,
    resilience::rate::Rate,
    sync::{server::STRANGERS_MAX, wire},
};
use remora_certs::{
    authority::{Key, Plan, create},
    csr,
};
use serde_json::{Value, json};

use super::{
    super::auth::{Limit, Limits},
    WEB,
    world::{DAY, Odd, World, until},
};
use crate::{issuing, rotation::Record, store::Expected};

#[tokio::test]
async fn a_token_is_good_for_one_key() {
    let world = World::new().await;
    let token = world.token(WEB, DAY).await;
    let mut stranger = world.stranger().await;
    let request = csr::Request::new(&WEB.parse().unwrap(), Key::P256).unwrap();
    let body = json!({"csr": request.pem(), "instance": "web-1"});
    for _ in 0..2 {
        // Again, as when the answer was lost.
        stranger.sign(Some(&token), &body).await.member(&request);
    }
    let thief = stranger.sign(Some(&token), &asks(WEB, "web-1")).await;
    assert_eq!(thief.reason(), (401, "token_used"));
    let last = world.audit().pop().unwrap();
    let facts = [&last["event"], &last["reason"], &last["proof"], &last["id"]];
    assert_eq!(facts, ["refused", "token_used", "join_token", WEB]);
    assert_eq!(last["token"].as_str().unwrap().len(), 16);
    // Neither the secret nor anything signed with it is written down.
    let log = fs::read_to_string(world.path().join("state/audit.jsonl")).unwrap();
    assert!(!log.contains(&token) && !log.contains("BEGIN"), "{log}");
}

#[tokio::test]
async fn no_proof_no_certificate() {
    let world = World::new().await;
    let expired = world.token(WEB, Duration::from_secs(0)).await;
    let mut stranger = world.stranger().await;
    for (token, reason) in [
        (None, "unproved"),
        (Some("remora-join-x"), "token_unknown"),
        (Some(expired.as_str()), "token_expired"),
        (Some("eyJhbGciOiJSUzI1NiJ9.e30.x"), "token_kind"),
    ] {
        let answer = stranger.sign(token, &asks(WEB, "web-1")).await;
        assert_eq!(answer.reason(), (401, reason));
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.body["hint"].as_str().unwrap().is_empty());
        assert_eq!(world.audit().pop().unwrap()["reason"], reason);
    }
    for (method, path) in [
        (Method::GET, format!("{}?instance=a", wire::WATCH)),
        (Method::POST, wire::REPORT.to_owned()),
        (Method::GET, wire::SIDECARS.to_owned()),
        (Method::GET, wire::POLICY.to_owned()),
        (Method::POST, wire::POLICY.to_owned()),
        (Method::GET, wire::ROTATION.to_owned()),
    ] {
        assert_eq!(stranger.call(method, &path, "{}").await.reason(), (401, "unproved"));
    }
}

#[tokio::test]
async fn nobody_gets_the_name_of_another() {
    let world = World::new().await;
    let (other, operator) = ("spiffe://cluster.local/ns/shop/sa/db", world.operator());
    let token = world.token(WEB, DAY).await;
    let mut stranger = world.stranger().await;
    let refused = stranger.sign(Some(&token), &asks(other, "web-1")).await;
    assert_eq!(refused.reason(), (403, "other_id"));
    let line = world.audit().pop().unwrap();
    assert_eq!((&line["id"], &line["reason"]), (&json!(WEB), &json!("other_id")));
    assert!(line["error"].as_str().unwrap().contains(other));
    // The token was not spent.
    assert_eq!(stranger.sign(Some(&token), &asks(WEB, "web-1")).await.status, 200);
    let member = world.join(WEB, "web-2").await;
    let refused = world.client(&member).await.sign(None, &asks(other, "web-2")).await;
    assert_eq!(refused.reason(), (403, "other_id"));
    for path in [wire::CONTROL_PATH, wire::OPERATOR_PATH] {
        let id = format!("spiffe://cluster.local{path}");
        let token = world.token(&id, DAY).await;
        let refused = stranger.sign(Some(&token), &asks(&id, "a")).await;
        assert_eq!(refused.reason(), (403, "reserved_id"));
    }
    let refused = world.client(&operator).await.sign(None, &asks(operator.id.as_str(), "a")).await;
    assert_eq!(refused.reason(), (403, "reserved_id"));
    let foreign = world.token("spiffe://elsewhere/ns/shop/sa/web", DAY).await;
    let refused = stranger.sign(Some(&foreign), &asks(WEB, "web-1")).await;
    assert_eq!(refused.reason(), (403, "foreign_id"));
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let csr = csr::Request::new(&member.id, Key::P256).unwrap();
    let long = "x".repeat(254);
    for (body, reason) in [
        (json!({"csr": "-----BEGIN", "instance": "a"}), (400, "bad_csr")),
        (json!({"csr": csr.pem(), "instance": ""}), (400, "bad_instance")),
        (json!({"csr": csr.pem(), "instance": "a\nb"}), (400, "bad_instance")),
        (json!({"csr": csr.pem(), "instance": long}), (400, "bad_instance")),
        (json!({"csr": csr.pem()}), (400, "bad_body")),
        (json!({"csr": "x".repeat(64 * 1024), "instance": "a"}), (413, "too_large")),
    ] {
        assert_eq!(client.sign(None, &body).await.reason(), reason);
    }
    for (method, path, reason) in [
        (Method::GET, "/", (404, "no_such_call")),
        (Method::DELETE, wire::CERTIFICATES, (405, "bad_method")),
        (Method::DELETE, wire::POLICY, (405, "bad_method")),
        (Method::GET, wire::WATCH, (400, "bad_instance")),
        (Method::POST, wire::REPORT, (400, "bad_body")),
        (Method::GET, wire::SIDECARS, (403, "not_operator")),
        (Method::POST, wire::POLICY, (403, "not_operator")),
    ] {
        let answer = client.call(method.clone(), path, "{").await;
        assert_eq!(answer.reason(), reason, "{method} {path}");
        if reason.0 == 405 {
            let allowed = if path == wire::POLICY { "GET, POST" } else { "POST" };
            assert_eq!(answer.headers["allow"], allowed);
        }
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let few = |burst| Limit::new(Rate { requests: 1, per: Duration::from_hours(1), burst });
    let limits =
        Limits { strangers: few(3), certificates: few(2), calls: few(1), ..Limits::default() };
    let world = World::odd(Odd { limits, ..Odd::default() }).await;
    let mut stranger = world.stranger().await;
    let (member, db) =
        (world.join(WEB, "a").await, world.join("spiffe://cluster.local/ns/shop/sa/db", "a").await);
    assert_eq!(stranger.get(wire::BUNDLE).await.status, 200);
    let refused = stranger.get(wire::BUNDLE).await;
    assert_eq!(refused.reason(), (429, "rate_limited"));
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    // By identity: one and the same on any connection, and each its own.
    assert_eq!(world.client(&member).await.sign(None, &asks(WEB, "a")).await.status, 200);
    let lines = world.audit().len();
    let refused = world.client(&member).await.sign(None, &asks(WEB, "b")).await;
    assert_eq!(refused.reason(), (429, "rate_limited"));
    assert_eq!(world.audit().len(), lines, "a flood does not fill the disk");
    assert_eq!(world.client(&db).await.sign(None, &asks(db.id.as_str(), "a")).await.status, 200);
    let report = json!({"instance": "a", "version": "", "inbound": null, "bundle": 1,
        "certificate": {"serial": "", "not_after": 0, "issuer": ""},
        "policy": {"received": 0, "accepted": 0}})
    .to_string();
    let mut client = world.client(&member).await;
    assert_eq!(client.call(Method::POST, wire::REPORT, &report).await.status, 204);
    let refused = client.call(Method::POST, wire::REPORT, &report).await;
    assert_eq!(refused.reason(), (429, "rate_limited"));
}

#[tokio::test]
async fn without_a_record_there_is_no_certificate_and_what_runs_runs_on() {
    let world = World::publishing().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    let (fleet, aside) = (world.path().join("state/fleet"), world.path().join("aside"));
    fs::rename(&fleet, &aside).unwrap();
    fs::write(&fleet, "in the way").unwrap();
    let refused = client.sign(None, &asks(WEB, "web-2")).await;
    assert_eq!(refused.reason(), (503, "store_failed"));
    assert_eq!(refused.headers["retry-after"], "5");
    assert_eq!(world.audit().pop().unwrap()["reason"], "store_failed");
    assert_eq!(world.page("/health/live").await.0, 200);
    // As soon as there is room it goes on, and the stream has never noticed.
    fs::remove_file(&fleet).unwrap();
    fs::rename(&aside, &fleet).unwrap();
    assert_eq!(client.sign(None, &asks(WEB, "web-2")).await.status, 200);
    world.policy("a.yaml", &policy("shop", "1s"));
    lines.having("1s").await;
}

#[tokio::test]
async fn without_an_audit_line_there_is_no_certificate() {
    let world = World::new().await;
    fs::remove_file(world.path().join("state/audit.jsonl")).unwrap();
    // A disk that is full, of the kernel's own make.
    std::os::unix::fs::symlink("/dev/full", world.path().join("state/audit.jsonl")).unwrap();
    world.run.abort();
    let world = World::on(world.dir, Odd::default()).await;
    let token = world.token(WEB, DAY).await;
    let refused = world.stranger().await.sign(Some(&token), &asks(WEB, "web-1")).await;
    assert_eq!(refused.reason(), (503, "store_failed"));
    let page = world.page("/metrics").await.1;
    assert!(page.contains("remora_control_store_failures_total 1"), "{page}");
}

#[tokio::test]
async fn a_root_that_is_retired_vouches_for_nobody_even_on_an_open_connection() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    retire(&world).await;
    // The last it hears; then nobody vouches for it.
    assert!(lines.news().await.is_none());
    let refused = client.sign(None, &asks(WEB, "web-1")).await;
    assert_eq!(refused.reason(), (401, "bad_certificate"));
    assert!(world.page("/metrics").await.1.contains("dropped_total{reason=\"untrusted\"} 1"));
}

/// Trusts another root than everybody has a certificate of.
async fn retire(world: &World) {
    let other = tempfile::tempdir().unwrap();
    let plan = Plan { trust_domain: "cluster.local", root_life: DAY * 9, issuer_life: DAY * 8 };
    let authority = create(other.path(), &plan, clock::wall()).unwrap();
    let (store, live) = (&*world.control.store, &world.control.live);
    let mut record = Record::first(issuing::keep(store, &authority).await.unwrap());
    record.bundle.sequence = 2;
    store.put_json(&Record::key(), &record, Expected::Any).await.unwrap();
    live.follow(store, clock::wall()).await.unwrap();
}

/// What a certificate is asked for with.
fn asks(id: &str, instance: &str) -> Value {
    let request = csr::Request::new(&id.parse().unwrap(), Key::P256).unwrap();
    json!({"csr": request.pem(), "instance": instance})
}

/// A document that is good.
pub(super) fn policy(namespace: &str, timeout: &str) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: ServicePolicy\n\
         metadata: {{name: web, namespace: {namespace}}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: web}}]\n  timeouts: {{request: {timeout}}}\n"
    )
}

#[tokio::test]
async fn strangers_however_many_do_not_keep_out_who_has_a_certificate() {
    let world = World::new().await;
    let member = world.join(WEB, "a").await;
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS_MAX + 8 {
        strangers.push(world.try_stranger().await);
    }
    let refused = async || world.page("/metrics").await.1.contains("{result=\"refused\"}");
    until("strangers are refused", refused).await;
    assert_eq!(world.client(&member).await.get(wire::BUNDLE).await.status, 200);
}
