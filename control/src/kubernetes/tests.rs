//! Against a stand-in that writes down each call, and against the real API server that
//! `REMORA_TEST_KUBECONFIG` names: the same steps, with the same outcomes.

mod stand_in;

use std::{collections::BTreeSet, env, fmt::Write as _, sync::Arc, time::Duration};

use expect_test::{ExpectFile, expect, expect_file};
use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Namespace, Secret, ServiceAccount},
};
use kube::{
    Api, Config,
    api::{DeleteParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use remora::drain::Drain;
use remora_certs::authority::{self, Authority, Lives};
use serde_json::json;
use tokio::time::timeout;

use self::stand_in::{Fault, StandIn};
use super::{review::Account, *};
use crate::issuing::Issuing;
use crate::store::{self, Expected, Key, Kind, Kubernetes, Store};

/// A step that takes longer has failed.
const SOON: Duration = Duration::from_secs(30);

fn store(cluster: &Arc<Cluster>) -> Store {
    Store::Kubernetes(Kubernetes::new(Arc::clone(cluster)))
}

async fn value(store: &Store, key: &Key) -> Option<String> {
    let entry = store.get(key).await.unwrap();
    entry.map(|it| String::from_utf8_lossy(&it.value).into_owned())
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
    Api::all(cluster.client.clone()).create(&PostParams::default(), &new).await.unwrap();
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
        let store = store(&cluster);
        for key in [Kind::State.key("policy"), Kind::Token.key("a")] {
            assert!(store.get(&key).await.unwrap().is_none());
            let first = store.put(&key, b"one", &Expected::Absent).await.unwrap();
            let taken = store.put(&key, b"two", &Expected::Absent).await;
            assert!(matches!(taken, Err(store::Error::Conflict(_))));
            let second = store.put(&key, b"two", &Expected::Version(first.clone())).await.unwrap();
            let stale = store.put(&key, b"three", &Expected::Version(first)).await;
            assert!(matches!(stale, Err(store::Error::Conflict(_))));
            let entry = store.get(&key).await.unwrap().unwrap();
            assert_eq!((&entry.value[..], entry.version), (&b"two"[..], second));
            store.put(&key, b"four", &Expected::Any).await.unwrap();
            assert_eq!(value(&store, &key).await.as_deref(), Some("four"));
        }
        let absent = Kind::State.key("rotation");
        let gone = Expected::Version(store::Version("1".to_owned()));
        let missing = store.put(&absent, b"one", &gone).await;
        assert!(matches!(missing, Err(store::Error::Conflict(_))));
        store.put(&absent, b"one", &Expected::Any).await.unwrap();
    };
    check(steps, &expect_file!["tests/writes.txt"]).await;
}

#[tokio::test]
async fn a_removal_says_whether_it_was_there_so_that_one_of_two_wins() {
    let steps = async |cluster: Arc<Cluster>| {
        let store = store(&cluster);
        for kind in [Kind::Token, Kind::Generation] {
            for name in ["b", "a"] {
                store.put(&kind.key(name), b"x", &Expected::Absent).await.unwrap();
            }
            assert_eq!(store.list(kind).await.unwrap(), ["a", "b"]);
            assert!(store.remove(&kind.key("a")).await.unwrap());
            assert!(!store.remove(&kind.key("a")).await.unwrap());
            assert_eq!(store.list(kind).await.unwrap(), ["b"]);
        }
        assert!(store.list(Kind::Authority).await.unwrap().is_empty());
    };
    check(steps, &expect_file!["tests/removals.txt"]).await;
}

#[tokio::test]
async fn any_bytes_come_back_as_they_were() {
    let steps = async |cluster: Arc<Cluster>| {
        let store = store(&cluster);
        for key in [Kind::State.key("a"), Kind::Authority.key("a")] {
            for bytes in [&b"\xff\x00"[..], b"{\"text\": \"\xc3\xa9\"}", b""] {
                store.put(&key, bytes, &Expected::Any).await.unwrap();
                assert_eq!(store.get(&key).await.unwrap().unwrap().value[..], *bytes);
            }
        }
    };
    check(steps, &expect_file!["tests/bytes.txt"]).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_in_words() {
    let it = StandIn::start().await;
    let store = store(&cluster(&it.config, "one"));
    let large = vec![b'x'; (1 << 20) + 1];
    let error = store.put(&Kind::State.key("a"), &large, &Expected::Any).await.unwrap_err();
    expect!["cannot write `state/a`: it has 1048577 bytes, and Kubernetes keeps 1048576"]
        .assert_eq(&error.to_string());
    assert_eq!(it.transcript(), "");
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_made_once() {
    let it = StandIn::start().await;
    let store = store(&cluster(&it.config, "one"));
    let key = Kind::State.key("a");
    it.fail(Method::POST, &[Fault::Unanswered]);
    let first = store.put(&key, b"one", &Expected::Absent).await.unwrap();
    it.fail(Method::PUT, &[Fault::Unanswered]);
    let second = store.put(&key, b"two", &Expected::Version(first)).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().version, second);
    expect_file!["tests/lost.txt"].assert_eq(&it.transcript());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_taken_for_that_of_another() {
    let it = StandIn::start().await;
    let (one, two) = (store(&cluster(&it.config, "one")), store(&cluster(&it.config, "two")));
    let key = Kind::State.key("a");
    two.put(&key, b"two", &Expected::Absent).await.unwrap();
    it.fail(Method::POST, &[Fault::Unanswered]);
    let late = one.put(&key, b"one", &Expected::Absent).await;
    assert!(matches!(late, Err(store::Error::Conflict(_))), "{late:?}");
    assert_eq!(value(&one, &key).await.as_deref(), Some("two"));
}

#[tokio::test]
async fn a_removal_whose_answer_is_lost_is_an_error() {
    let it = StandIn::start().await;
    let store = store(&cluster(&it.config, "one"));
    let key = Kind::Token.key("a");
    store.put(&key, b"x", &Expected::Absent).await.unwrap();
    it.fail(Method::DELETE, &[Fault::Unanswered]);
    assert!(matches!(store.remove(&key).await, Err(store::Error::Failed { .. })));
}

#[tokio::test]
async fn an_api_server_that_is_busy_is_asked_again_and_not_for_ever() {
    let it = StandIn::start().await;
    let store = store(&cluster(&it.config, "one"));
    let key = Kind::State.key("a");
    it.fail(Method::POST, &[Fault::Status(429), Fault::Status(503), Fault::Status(500)]);
    store.put(&key, b"one", &Expected::Absent).await.unwrap();
    it.fail(Method::GET, &[Fault::Status(503); 4]);
    let error = store.get(&key).await.map(|_| ()).unwrap_err();
    expect!["cannot read `state/a`: the API server answered 503: as the test wants it"]
        .assert_eq(&error.to_string());
    it.fail(Method::GET, &[Fault::Status(403)]);
    let error = store.get(&key).await.map(|_| ()).unwrap_err();
    expect!["cannot read `state/a`: the API server answered 403: as the test wants it"]
        .assert_eq(&error.to_string());
    assert_eq!(it.transcript().matches("-> 503").count(), 5);
    assert_eq!(value(&store, &key).await.as_deref(), Some("one"));
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_not_waited_for() {
    let it = StandIn::start().await;
    let mut cluster = Cluster::with(it.config.clone(), "one").unwrap();
    cluster.patience = Duration::from_millis(50);
    let store = store(&Arc::new(cluster));
    it.fail(Method::GET, &[Fault::Silence; 4]);
    let error = store.get(&Kind::State.key("a")).await.map(|_| ()).unwrap_err();
    expect!["cannot read `state/a`: the API server did not answer in time"]
        .assert_eq(&error.to_string());
}

#[tokio::test]
async fn an_api_server_that_is_not_there_is_told_in_one_line() {
    let it = StandIn::start().await;
    let mut config = it.config.clone();
    config.cluster_url = "https://127.0.0.1:1".parse().unwrap();
    let error = store(&cluster(&config, "one")).list(Kind::State).await.unwrap_err();
    expect!["cannot list `state/*`: cannot reach the API server: client error (Connect): tcp connect error: Connection refused (os error 111)"].assert_eq(&error.to_string());
    // Nobody vouches for this one's certificate.
    config.cluster_url = it.config.cluster_url.clone();
    config.root_cert = Some(Vec::new());
    let error = store(&cluster(&config, "one")).list(Kind::State).await.unwrap_err();
    expect!["cannot list `state/*`: cannot reach the API server: client error (Connect): invalid peer certificate: UnknownIssuer"].assert_eq(&error.to_string());
}

#[tokio::test]
async fn one_replica_leads_until_it_gives_the_lease_back_or_is_gone() {
    let steps = async |one: Arc<Cluster>| {
        let two = Arc::new(Cluster {
            client: one.client.clone(),
            namespace: one.namespace.clone(),
            replica: "two_1".to_owned(),
            leading: watch::Sender::default(),
            changes: watch::Sender::default(),
            reviews: Semaphore::new(1),
            patience: PATIENCE,
        });
        let (mut by_one, mut by_two) = (None, None);
        let leads = || (one.leads(), two.leads());
        assert_eq!(leads(), (false, false));
        lease::step(&one, &mut by_one).await.unwrap();
        lease::step(&two, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
        lease::step(&one, &mut by_one).await.unwrap();
        lease::step(&two, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
        // It ends cleanly.
        one.leading.send_replace(None);
        lease::release(&one).await.unwrap();
        lease::step(&two, &mut by_two).await.unwrap();
        lease::step(&one, &mut by_one).await.unwrap();
        assert_eq!(leads(), (false, true));
        // It is gone, and nothing was heard of it for long enough.
        let since = &mut by_one.as_mut().unwrap().since;
        *since = since.checked_sub(lease::LIFE).unwrap();
        lease::step(&one, &mut by_one).await.unwrap();
        assert!(one.leads());
        lease::step(&two, &mut by_two).await.unwrap();
        assert_eq!(leads(), (true, false));
    };
    check(steps, &expect_file!["tests/lease.txt"]).await;
}

#[tokio::test]
async fn a_leader_that_cannot_write_stops_before_its_lease_ends() {
    let it = StandIn::start().await;
    let one = cluster(&it.config, "one");
    let mut seen = None;
    lease::step(&one, &mut seen).await.unwrap();
    it.fail(Method::GET, &[Fault::Status(503)]);
    assert!(lease::step(&one, &mut seen).await.is_err());
    let until = one.leading.borrow().unwrap();
    assert!(until < clock::now() + lease::LEAD, "it was not put off");
    one.leading.send_replace(Some(clock::now()));
    assert!(!one.leads());
}

#[tokio::test]
async fn an_election_ends_with_the_drain_and_frees_the_lease() {
    let it = StandIn::start().await;
    let (one, two, drain) = (cluster(&it.config, "one"), cluster(&it.config, "two"), Drain::new());
    let standing = tokio::join!(lease::stand(Arc::clone(&one), drain.clone()), async {
        let mut leading = one.leading.subscribe();
        leading.wait_for(Option::is_some).await.unwrap();
        drain.begin();
    });
    assert_eq!(standing, ((), ()));
    assert!(!one.leads());
    lease::step(&two, &mut None).await.unwrap();
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
        let params = PostParams::default();
        let shop = documents("shop", true, &[("orders.yaml", "a"), ("README.md", "not policy")]);
        api.create(&params, &shop).await.unwrap();
        let mut policy = cluster.policy().await.unwrap();
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
    let mut policy = cluster.policy().await.unwrap();
    it.forget();
    api.create(&PostParams::default(), &documents("a", true, &[("a.yaml", "a")])).await.unwrap();
    it.fail(Method::GET, &[Fault::Status(410), Fault::Status(503)]);
    it.forget();
    changed(&mut policy, &["a/a.yaml=a"]).await;
    api.create(&PostParams::default(), &documents("b", true, &[("b.yaml", "b")])).await.unwrap();
    changed(&mut policy, &["a/a.yaml=a", "b/b.yaml=b"]).await;
}

/// The documents, once they are these.
async fn changed(policy: &mut watch::Receiver<BTreeMap<String, String>>, expected: &[&str]) {
    let as_expected = policy.wait_for(|it| lines(it) == expected);
    let found = timeout(SOON, as_expected).await.is_ok();
    assert!(found, "{:?} is not {expected:?}", listed(policy));
}

fn listed(policy: &watch::Receiver<BTreeMap<String, String>>) -> Vec<String> {
    lines(&policy.borrow())
}

fn lines(files: &BTreeMap<String, String>) -> Vec<String> {
    files.iter().map(|(name, text)| format!("{name}={text}")).collect()
}

#[tokio::test]
async fn a_record_that_another_replica_writes_is_told_of() {
    let steps = async |cluster: Arc<Cluster>| {
        let drain = Drain::new();
        let mut changes = cluster.changes();
        cluster.start(&drain).await.unwrap();
        let store = store(&cluster);
        changes.mark_unchanged();
        store.put(&Kind::State.key("rotation"), b"{}", &Expected::Absent).await.unwrap();
        timeout(SOON, changes.changed()).await.unwrap().unwrap();
        drain.begin();
    };
    let _calls_in_any_order = against_both(steps).await;
}

#[tokio::test]
async fn the_bundle_is_written_when_it_differs() {
    let steps = async |cluster: Arc<Cluster>| {
        for roots in ["one", "one", "two"] {
            cluster.publish_bundle(&[], roots).await.unwrap();
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
    let long = "x".repeat(16 * 1024 + 1);
    assert!(matches!(cluster.review(&long, "any").await, Err(Refused::Token(_))));
    assert_eq!(it.transcript(), "");
}

#[tokio::test]
async fn a_real_token_is_of_its_account_and_pod_and_for_its_audience() {
    let Some(real) = real().await else { return };
    let params = PostParams::default();
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

/// What an authority of cert-manager's is in: a Secret with these keys.
fn issuer(name: &str, keys: &[&str], made: &Authority) -> Secret {
    let pem = made.to_pem();
    let text = |key: &str| match key {
        "tls.crt" => pem.issuer.clone(),
        "tls.key" => pem.key.to_string(),
        _ => pem.root.clone(),
    };
    let data = keys.iter().map(|it| ((*it).to_owned(), ByteString(text(it).into_bytes())));
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Secret { metadata, data: Some(data.collect()), ..Secret::default() }
}

fn fresh(trust_domain: &str) -> Authority {
    let lives = Lives { root: Duration::from_hours(48), issuer: Duration::from_hours(24) };
    authority::fresh(trust_domain, lives, clock::wall()).unwrap()
}

#[tokio::test]
async fn replicas_that_begin_at_once_have_one_authority() {
    let it = StandIn::start().await;
    let replicas = ["one", "two", "three"].map(|name| cluster(&it.config, name));
    let begin = |cluster: &Arc<Cluster>| {
        let (cluster, store) = (Arc::clone(cluster), store(cluster));
        async move {
            let first = First { trust_domain: "shop.example", secret: None };
            cluster.begin(&store, first, clock::wall()).await.unwrap();
            Issuing::read(&store, clock::wall()).await.unwrap().issuer
        }
    };
    let [one, two, three] = &replicas;
    let issuers = tokio::join!(begin(one), begin(two), begin(three));
    assert_eq!((&issuers.0, &issuers.0), (&issuers.1, &issuers.2));
    // Those of the losers are gone, and who begins later takes up what there is.
    assert_eq!(store(one).list(Kind::Authority).await.unwrap(), [issuers.0.get(..16).unwrap()]);
    assert_eq!(begin(three).await, issuers.0);
}

#[tokio::test]
async fn an_issuer_of_cert_managers_is_taken_over() {
    let it = StandIn::start().await;
    let cluster = cluster(&it.config, "one");
    let (store, params) = (store(&cluster), PostParams::default());
    let (made, other) = (fresh("shop.example"), fresh("shop.example"));
    let mut mixed = issuer("mixed", &["tls.crt", "tls.key"], &made);
    let others = issuer("mixed", &["ca.crt"], &other).data.unwrap();
    mixed.data.as_mut().unwrap().extend(others);
    let api = cluster.api();
    for secret in [
        issuer("whole", &["tls.crt", "tls.key", "ca.crt"], &made),
        issuer("rootless", &["tls.crt", "tls.key"], &made),
        mixed,
    ] {
        api.create(&params, &secret).await.unwrap();
    }
    let begin = async |name| {
        let first = First { trust_domain: "cluster.local", secret: Some(name) };
        cluster.begin(&store, first, clock::wall()).await
    };
    let mut errors = String::new();
    for name in ["absent", "rootless", "mixed"] {
        let error = begin(name).await.unwrap_err();
        writeln!(errors, "{error}\nhint: {}", error.hint()).unwrap();
    }
    expect![[r"
        cannot read secret `absent`: the API server answered 404: not found
        hint: check the API server, and what control's service account may: k8s/control/rbac.yaml
        secret `rootless` has no `ca.crt`
        hint: --issuer-secret takes a cert-manager Certificate's with `isCA: true`
        secret `mixed`: `issuer.crt`: a sidecar would refuse certificates below `the issuer of shop.example`: invalid peer certificate: UnknownIssuer
        hint: --issuer-secret takes a cert-manager Certificate's with `isCA: true`
    "]].assert_eq(&errors);
    assert!(store.list(Kind::Authority).await.unwrap().is_empty());
    begin("whole").await.unwrap();
    let issuing = Issuing::read(&store, clock::wall()).await.unwrap();
    assert_eq!(issuing.issuer, made.issuer_fingerprint());
    assert_eq!(issuing.authority.trust_domain(), "shop.example");
}
