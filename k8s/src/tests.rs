//! Against a stand-in that writes down each call, and against the real API server that
//! `REMORA_TEST_KUBECONFIG` names: the same steps, with the same outcomes.

mod stand_in;

use std::{collections::BTreeSet, env, fmt::Write as _, sync::Arc};

use expect_test::{ExpectFile, expect, expect_file};
use http::Method;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Namespace, ServiceAccount},
};
use kube::{
    api::{DeleteParams, ObjectMeta},
    config::{KubeConfigOptions, Kubeconfig},
};
use remora::drain::{self, Drain};
use serde_json::json;

use self::stand_in::{Fault, StandIn};
use super::*;

/// A step that takes longer has failed.
const SOON: Duration = Duration::from_secs(30);

const POLICY: &str = "remora.dev/policy=true";

const LEASE: &str = "remora-control";

const RECORD: Object<'_> = Object { kind: "state", name: "policy", secret: false };

const TOKEN: Object<'_> = Object { kind: "token", name: "a", secret: true };

async fn value(cluster: &Cluster, object: Object<'_>) -> Option<String> {
    let entry = cluster.get(object).await.unwrap();
    entry.map(|it| String::from_utf8_lossy(&it.0).into_owned())
}

async fn put(cluster: &Cluster, object: Object<'_>, value: &str, expected: Expected<'_>) -> String {
    cluster.put(object, value.as_bytes(), expected).await.unwrap().unwrap()
}

/// Runs `steps` against the stand-in, whose calls are compared, and against the real API
/// server, where there is one.
async fn check<F>(steps: impl Fn(Arc<Cluster>) -> F, calls: &ExpectFile)
where
    F: Future<Output = ()>,
{
    calls.assert_eq(&against_both(steps).await);
}

/// Each call of the steps, and the status of its answer.
async fn against_both<F>(steps: impl Fn(Arc<Cluster>) -> F) -> String
where
    F: Future<Output = ()>,
{
    if let Some(real) = Box::pin(real()).await {
        Box::pin(steps(Arc::clone(&real))).await;
        Box::pin(leave(&real)).await;
    }
    let it = StandIn::start().await;
    Box::pin(steps(cluster(&it.config, "one"))).await;
    it.transcript()
}

/// The real API server, where there is one, with a namespace of the test's own.
async fn real() -> Option<Arc<Cluster>> {
    let kubeconfig = Kubeconfig::read_from(env::var_os("REMORA_TEST_KUBECONFIG")?).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_namespace = format!("remora-test-{:08x}", rand::random::<u32>());
    let cluster = cluster(&config, "one");
    let metadata = ObjectMeta { name: Some(config.default_namespace), ..ObjectMeta::default() };
    let new = Namespace { metadata, ..Namespace::default() };
    Api::all(cluster.client.clone()).create(&PARAMS, &new).await.unwrap();
    Some(cluster)
}

async fn leave(real: &Cluster) {
    let namespaces = Api::<Namespace>::all(real.client.clone());
    namespaces.delete(&real.namespace, &DeleteParams::default()).await.unwrap();
}

fn cluster(config: &Config, replica: &str) -> Arc<Cluster> {
    Arc::new(Cluster::with(config.clone(), replica).unwrap())
}

#[tokio::test]
async fn a_write_replaces_what_it_expects_or_nothing() {
    let steps = async |cluster: Arc<Cluster>| {
        for object in [RECORD, TOKEN] {
            assert!(cluster.get(object).await.unwrap().is_none());
            let first = put(&cluster, object, "one", Expected::Absent).await;
            let taken = cluster.put(object, b"two", Expected::Absent).await.unwrap();
            assert_eq!(taken, None);
            let second = put(&cluster, object, "two", Expected::Version(&first)).await;
            let stale = cluster.put(object, b"three", Expected::Version(&first)).await.unwrap();
            assert_eq!(stale, None);
            let entry = cluster.get(object).await.unwrap().unwrap();
            assert_eq!((&entry.0[..], entry.1), (&b"two"[..], second));
            put(&cluster, object, "four", Expected::Any).await;
            assert_eq!(value(&cluster, object).await.as_deref(), Some("four"));
        }
        let absent = Object { name: "rotation", ..RECORD };
        let missing = cluster.put(absent, b"one", Expected::Version("1")).await.unwrap();
        assert_eq!(missing, None);
        put(&cluster, absent, "one", Expected::Any).await;
    };
    check(steps, &expect_file!["tests/writes.txt"]).await;
}

#[tokio::test]
async fn a_removal_says_whether_it_was_there_so_that_one_of_two_wins() {
    let steps = async |cluster: Arc<Cluster>| {
        for (kind, secret) in [("token", true), ("generation", false)] {
            let [a, b] = ["a", "b"].map(|name| Object { kind, name, secret });
            for object in [b, a] {
                put(&cluster, object, "x", Expected::Absent).await;
            }
            assert_eq!(cluster.list(kind, secret).await.unwrap(), ["a", "b"]);
            assert!(cluster.remove(a).await.unwrap());
            assert!(!cluster.remove(a).await.unwrap());
            assert_eq!(cluster.list(kind, secret).await.unwrap(), ["b"]);
        }
        assert!(cluster.list("authority", true).await.unwrap().is_empty());
    };
    check(steps, &expect_file!["tests/removals.txt"]).await;
}

#[tokio::test]
async fn any_bytes_come_back_as_they_were() {
    let steps = async |cluster: Arc<Cluster>| {
        for (kind, secret) in [("state", false), ("authority", true)] {
            let object = Object { kind, name: "a", secret };
            for bytes in [&b"\xff\x00"[..], b"{\"text\": \"\xc3\xa9\"}", b""] {
                cluster.put(object, bytes, Expected::Any).await.unwrap().unwrap();
                assert_eq!(cluster.get(object).await.unwrap().unwrap().0[..], *bytes);
            }
        }
    };
    check(steps, &expect_file!["tests/bytes.txt"]).await;
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_made_once() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    it.fail(Method::POST, &[Fault::Unanswered]);
    let first = put(&cluster, RECORD, "one", Expected::Absent).await;
    it.fail(Method::PUT, &[Fault::Unanswered]);
    let second = put(&cluster, RECORD, "two", Expected::Version(&first)).await;
    assert_eq!(cluster.get(RECORD).await.unwrap().unwrap().1, second);
    expect_file!["tests/lost.txt"].assert_eq(&it.transcript());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_taken_for_that_of_another() {
    let it = StandIn::start().await;
    let (one, two) = (cluster(&it.config, "one"), cluster(&it.config, "two"));
    put(&two, RECORD, "two", Expected::Absent).await;
    it.fail(Method::POST, &[Fault::Unanswered]);
    assert_eq!(one.put(RECORD, b"one", Expected::Absent).await.unwrap(), None);
    assert_eq!(value(&one, RECORD).await.as_deref(), Some("two"));
}

#[tokio::test]
async fn a_removal_whose_answer_is_lost_is_an_error() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    put(&cluster, TOKEN, "x", Expected::Absent).await;
    it.fail(Method::DELETE, &[Fault::Unanswered]);
    assert!(cluster.remove(TOKEN).await.is_err());
}

#[tokio::test]
async fn an_api_server_that_is_busy_is_asked_again_and_not_for_ever() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    it.fail(Method::POST, &[Fault::Status(429), Fault::Status(503), Fault::Status(500)]);
    put(&cluster, RECORD, "one", Expected::Absent).await;
    it.fail(Method::GET, &[Fault::Status(503); 4]);
    let error = cluster.get(RECORD).await.unwrap_err();
    expect!["the API server answered 503: as the test wants it"].assert_eq(&error.to_string());
    it.fail(Method::GET, &[Fault::Status(403)]);
    let error = cluster.get(RECORD).await.unwrap_err();
    expect!["the API server answered 403: as the test wants it"].assert_eq(&error.to_string());
    assert_eq!(it.transcript().matches("-> 503").count(), 5);
    assert_eq!(value(&cluster, RECORD).await.as_deref(), Some("one"));
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_not_waited_for() {
    let it = StandIn::start().await;
    let mut cluster = Cluster::with(it.config.clone(), "one").unwrap();
    cluster.patience = Duration::from_millis(50);
    it.fail(Method::GET, &[Fault::Silence; 4]);
    let error = cluster.get(RECORD).await.unwrap_err();
    expect!["the API server did not answer in time"].assert_eq(&error.to_string());
}

#[tokio::test]
async fn a_connection_that_is_dead_is_given_up_with_its_call() {
    let it = StandIn::start().await;
    let mut cluster = Cluster::with(it.config.clone(), "one").unwrap();
    cluster.patience = Duration::from_millis(50);
    assert!(cluster.get(RECORD).await.unwrap().is_none());
    // What comes by the same connection waits behind it.
    it.fail(Method::GET, &[Fault::Silence]);
    assert!(cluster.get(RECORD).await.unwrap().is_none());
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_told_in_one_line() {
    let it = StandIn::start().await;
    let mut config = it.config.clone();
    config.cluster_url = "https://127.0.0.1:1".parse().unwrap();
    let error = cluster(&config, "one").list("state", false).await.unwrap_err();
    expect!["cannot reach the API server: client error (Connect): tcp connect error: Connection refused (os error 111)"].assert_eq(&error.to_string());
    // Nobody vouches for this one's certificate.
    config.cluster_url = it.config.cluster_url.clone();
    config.root_cert = Some(Vec::new());
    let error = cluster(&config, "one").list("state", false).await.unwrap_err();
    expect!["cannot reach the API server: client error (Connect): invalid peer certificate: UnknownIssuer"].assert_eq(&error.to_string());
}

#[tokio::test]
async fn one_replica_leads_until_it_gives_the_lease_back_or_is_gone() {
    let steps = async |one: Arc<Cluster>| {
        let two = Cluster {
            client: one.client.clone(),
            namespace: one.namespace.clone(),
            replica: "two_1".to_owned(),
            leading: watch::Sender::default(),
            changes: watch::Sender::default(),
            reviews: Semaphore::new(1),
            patience: PATIENCE,
        };
        let (mut by_one, mut by_two) = (None, None);
        let leads = || (one.leads(), two.leads());
        assert_eq!(leads(), (false, false));
        one.step(LEASE, &mut by_one).await.unwrap();
        two.step(LEASE, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
        one.step(LEASE, &mut by_one).await.unwrap();
        two.step(LEASE, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
        // It ends cleanly.
        one.release(by_one.take()).await;
        two.step(LEASE, &mut by_two).await.unwrap();
        one.step(LEASE, &mut by_one).await.unwrap();
        assert_eq!(leads(), (false, true));
        // It is gone, and nothing was heard of it for long enough.
        let (_, since) = by_one.as_mut().unwrap();
        *since = since.checked_sub(lease::LIFE).unwrap();
        one.step(LEASE, &mut by_one).await.unwrap();
        assert!(one.leads());
        two.step(LEASE, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
    };
    check(steps, &expect_file!["tests/lease.txt"]).await;
}

#[tokio::test]
async fn a_leader_that_cannot_write_stops_before_its_lease_ends() {
    let it = StandIn::start().await;
    let one = cluster(&it.config, "one");
    let mut seen = None;
    one.step(LEASE, &mut seen).await.unwrap();
    it.fail(Method::GET, &[Fault::Status(503)]);
    assert!(one.step(LEASE, &mut seen).await.is_err());
    let until = one.leading.borrow().unwrap();
    assert!(until < clock::now() + lease::LEAD, "it was not put off");
    one.leading.send_replace(Some(clock::now()));
    assert!(!one.leads());
}

#[tokio::test]
async fn an_election_ends_with_the_drain_and_frees_the_lease() {
    let it = StandIn::start().await;
    let (one, two, drain) = (cluster(&it.config, "one"), cluster(&it.config, "two"), Drain::new());
    let mut leading = one.leading.subscribe();
    drain::spawn("election", Arc::clone(&one).stand(LEASE, drain.clone()));
    timeout(SOON, leading.wait_for(Option::is_some)).await.unwrap().unwrap();
    drain.begin();
    // A process ends as soon as this does.
    timeout(SOON, drain.idle()).await.unwrap();
    assert!(!one.leads());
    two.step(LEASE, &mut None).await.unwrap();
    assert!(two.leads());
}

/// A ConfigMap with documents.
fn documents(name: &str, labelled: bool, data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    let label = ("remora.dev/policy".to_owned(), "true".to_owned());
    let labels = labelled.then(|| [label].into());
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() };
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

#[tokio::test]
async fn policy_is_each_document_of_each_configmap_with_the_label() {
    let steps = async |cluster: Arc<Cluster>| {
        let api: Api<ConfigMap> = cluster.api();
        let params = PARAMS;
        let shop = documents("shop", true, &[("orders.yaml", "a"), ("README.md", "not policy")]);
        api.create(&params, &shop).await.unwrap();
        let mut policy = cluster.follow(POLICY).await.unwrap();
        assert_eq!(listed(&policy), ["shop/orders.yaml=a"]);
        // Another one, then a change, then its removal; one without the label is none.
        api.create(&params, &documents("other", false, &[("x.yaml", "x")])).await.unwrap();
        api.create(&params, &documents("more", true, &[("b.yml", "b")])).await.unwrap();
        changed(&mut policy, &["more/b.yml=b", "shop/orders.yaml=a"]).await;
        let shop = documents("shop", true, &[("orders.yaml", "c")]);
        api.replace("shop", &params, &shop).await.unwrap();
        changed(&mut policy, &["more/b.yml=b", "shop/orders.yaml=c"]).await;
        api.delete("shop", &DeleteParams::default()).await.unwrap();
        changed(&mut policy, &["more/b.yml=b"]).await;
    };
    // The next watch and the next change may be in any order.
    let calls = against_both(steps).await;
    let calls: BTreeSet<_> = calls.lines().filter(|it| !it.starts_with("->")).collect();
    let calls: Vec<_> = calls.into_iter().collect();
    expect_file!["tests/policy.txt"].assert_eq(&calls.join("\n"));
}

#[tokio::test]
async fn a_watch_that_ends_or_is_too_old_begins_anew_and_loses_nothing() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    let api: Api<ConfigMap> = cluster.api();
    let mut policy = cluster.follow(POLICY).await.unwrap();
    it.forget();
    api.create(&PARAMS, &documents("a", true, &[("a.yaml", "a")])).await.unwrap();
    it.fail(Method::GET, &[Fault::Status(410), Fault::Status(503)]);
    it.forget();
    changed(&mut policy, &["a/a.yaml=a"]).await;
    api.create(&PARAMS, &documents("b", true, &[("b.yaml", "b")])).await.unwrap();
    changed(&mut policy, &["a/a.yaml=a", "b/b.yaml=b"]).await;
}

/// The documents, once they are these.
async fn changed(policy: &mut watch::Receiver<Documents>, expected: &[&str]) {
    let as_expected = policy.wait_for(|it| lines(it) == expected);
    let found = timeout(SOON, as_expected).await.is_ok();
    assert!(found, "{:?} is not {expected:?}", listed(policy));
}

fn listed(policy: &watch::Receiver<Documents>) -> Vec<String> {
    lines(&policy.borrow())
}

fn lines(files: &Documents) -> Vec<String> {
    files.iter().map(|(name, text)| format!("{name}={text}")).collect()
}

#[tokio::test]
async fn a_record_that_another_replica_writes_is_told_of() {
    let steps = async |cluster: Arc<Cluster>| {
        let mut changes = cluster.changes();
        cluster.follow("remora.dev/kind=state").await.unwrap();
        put(&cluster, RECORD, "{}", Expected::Absent).await;
        timeout(SOON, changes.changed()).await.unwrap().unwrap();
    };
    let _calls_in_any_order = against_both(steps).await;
}

#[tokio::test]
async fn a_text_is_published_when_it_differs() {
    let steps = async |cluster: Arc<Cluster>| {
        let place = Place { name: "remora-bundle", key: "ca.crt", others: Vec::new() };
        for roots in ["one", "one", "two"] {
            cluster.publish(cluster.namespace(), &place, roots).await.unwrap();
            let found: ConfigMap = cluster.api().get("remora-bundle").await.unwrap();
            assert_eq!(found.data.unwrap()["ca.crt"], roots);
        }
    };
    check(steps, &expect_file!["tests/bundle.txt"]).await;
}

#[tokio::test]
async fn a_token_proves_whose_it_is_to_whom_it_is_for() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    let user = |name: &str| json!({ "username": name });
    let good = json!({
        "authenticated": true,
        "audiences": ["remora.dev/control"],
        "user": {
            "username": "system:serviceaccount:shop:orders",
            "extra": { "authentication.kubernetes.io/pod-name": ["orders-1"] },
        },
    });
    it.review("good", good.clone());
    let mut other = good.clone();
    other["audiences"] = json!(["another"]);
    it.review("other", other);
    let mut old = good.clone();
    old.as_object_mut().unwrap().remove("audiences");
    it.review("old", old);
    let mut person = good.clone();
    person["user"] = user("alice\n");
    it.review("person", person);
    let mut unbound = good;
    unbound["user"] = user("system:serviceaccount:shop:orders");
    it.review("unbound", unbound);
    let mut answers = String::new();
    for token in ["good", "unbound", "other", "old", "person", "wrong"] {
        let answer = cluster.review(token, "remora.dev/control").await;
        writeln!(answers, "{token}: {answer:?}").unwrap();
    }
    it.fail(Method::POST, &[Fault::Status(403)]);
    let answer = cluster.review("good", "remora.dev/control").await;
    writeln!(answers, "unasked: {answer:?}").unwrap();
    expect![[r#"
        good: Ok(Account { namespace: "shop", name: "orders", pod: Some("orders-1") })
        unbound: Ok(Account { namespace: "shop", name: "orders", pod: None })
        other: Err(Token("it is not for `remora.dev/control`"))
        old: Err(Token("it is not for `remora.dev/control`"))
        person: Err(Token("`alice\\n` is no service account"))
        wrong: Err(Token("no such token"))
        unasked: Err(Unasked("the API server answered 403: as the test wants it"))
    "#]]
    .assert_eq(&answers);
    expect_file!["tests/reviews.txt"].assert_eq(&it.transcript());
}

#[tokio::test]
async fn a_real_token_is_of_its_account_and_pod_and_for_its_audience() {
    let Some(real) = real().await else { return };
    let params = PARAMS;
    let accounts: Api<ServiceAccount> = real.api();
    let name = Some("orders".to_owned());
    let metadata = ObjectMeta { name, ..ObjectMeta::default() };
    let account = ServiceAccount { metadata: metadata.clone(), ..ServiceAccount::default() };
    accounts.create(&params, &account).await.unwrap();
    let mut answers = Vec::new();
    for audience in ["remora.dev/control", "another"] {
        let spec = TokenRequestSpec { audiences: vec![audience.to_owned()], ..Default::default() };
        let request = TokenRequest { metadata: metadata.clone(), spec, status: None };
        let made = accounts.create_token_request("orders", &params, &request).await.unwrap();
        answers.push(real.review(&made.status.unwrap().token, "remora.dev/control").await);
    }
    let namespace = real.namespace.clone();
    let account = Account { namespace, name: "orders".to_owned(), pod: None };
    assert_eq!(answers.remove(0).unwrap(), account);
    assert!(matches!(&answers[0], Err(Refused::Token(why)) if why.contains("audience")));
    leave(&real).await;
}
