//! Against the stand-in for the API server.

#[expect(dead_code, reason = "the tests beside it use the rest")]
#[path = "../../../k8s/src/tests/stand_in.rs"]
mod stand_in;

use std::fmt::Write as _;

use expect_test::expect;
use http::Method;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
};

use self::stand_in::{Fault, StandIn};
use super::*;
use crate::{
    issuing::Names,
    store::{self, Expected, Kind, Objects, Store},
};

fn cluster(config: &Config, replica: &str) -> Arc<Cluster> {
    Arc::new(Cluster::with(config.clone(), replica).unwrap())
}

fn options(trust_domain: &str, issuer_secret: Option<&str>) -> Options {
    Options {
        namespace: None,
        issuer_secret: issuer_secret.map(str::to_owned),
        trust_domain: trust_domain.to_owned(),
        replica: None,
        audience: String::new(),
        bundle_namespaces: Vec::new(),
    }
}

#[tokio::test]
async fn a_store_says_what_it_could_not_do_and_why() {
    let it = StandIn::start().await;
    let store: Arc<Store> = cluster(&it.config, "one");
    let key = Kind::STATE.key("policy");
    let first = store.put(&key, b"one", Expected::Absent).await.unwrap();
    store.put(&key, b"two", Expected::Version(&first)).await.unwrap();
    for expected in [Expected::Absent, Expected::Version(&first)] {
        let lost = store.put(&key, b"three", expected).await;
        assert!(matches!(lost, Err(store::Error::Conflict(it)) if it == key));
    }
    store.put(&key, b"four", Expected::Any).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().0[..], b"four"[..]);
    assert_eq!(store.list(Kind::STATE).await.unwrap(), ["policy"]);
    it.fail(Method::GET, &[Fault::Status(403); 2]);
    let read = store.get(&key).await.map(|_| ()).unwrap_err();
    let listed = store.list(Kind::STATE).await.unwrap_err();
    expect![[r"
        cannot read `state/policy`: the API server answered 403: as the test wants it
        cannot list `state/*`: the API server answered 403: as the test wants it
    "]]
    .assert_eq(&format!("{read}\n{listed}\n"));
    assert!(store.remove(&key).await.unwrap() && !store.remove(&key).await.unwrap());
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
    let begun = async |cluster: &Arc<Cluster>| {
        let options = options("shop.example", None);
        options.begin(cluster).await.unwrap();
        let now = clock::wall();
        let issuing = Issuing::read(&**cluster, &Names::default(), now).await.unwrap();
        issuing.record.signs.fingerprint
    };
    let [one, two, three] = &replicas;
    let issuers = tokio::join!(begun(one), begun(two), begun(three));
    assert_eq!((&issuers.0, &issuers.0), (&issuers.1, &issuers.2));
    // Those of the losers are gone, and who begins later takes up what there is.
    assert_eq!(
        Objects::list(&**one, Kind::AUTHORITY).await.unwrap(),
        [issuers.0.get(..16).unwrap()]
    );
    assert_eq!(begun(three).await, issuers.0);
}

#[tokio::test]
async fn an_issuer_of_cert_managers_is_taken_over() {
    let it = StandIn::start().await;
    let (cluster, params) = (cluster(&it.config, "one"), PostParams::default());
    let (made, other) = (fresh("shop.example"), fresh("shop.example"));
    let mut mixed = issuer("mixed", &["tls.crt", "tls.key"], &made);
    let others = issuer("mixed", &["ca.crt"], &other).data.unwrap();
    mixed.data.as_mut().unwrap().extend(others);
    let client = Client::try_from(it.config.clone()).unwrap();
    let api = Api::namespaced(client, "remora");
    for secret in [
        issuer("whole", &["tls.crt", "tls.key", "ca.crt"], &made),
        issuer("rootless", &["tls.crt", "tls.key"], &made),
        mixed,
    ] {
        api.create(&params, &secret).await.unwrap();
    }
    let begun = async |name| {
        let options = options("cluster.local", Some(name));
        options.begin(&cluster).await
    };
    let mut errors = String::new();
    for name in ["absent", "rootless", "mixed"] {
        let error = begun(name).await.unwrap_err();
        writeln!(errors, "{error}\nhint: {}", error.hint).unwrap();
    }
    expect![[r"
        cannot read secret `absent`: the API server answered 404: not found
        hint: check the API server, and what control's service account may: k8s/control/rbac.yaml
        secret `rootless` has no `ca.crt`
        hint: --issuer-secret takes a cert-manager Certificate's with `isCA: true`
        secret `mixed`: `issuer.crt`: a sidecar would refuse certificates below `the issuer of shop.example`: invalid peer certificate: UnknownIssuer
        hint: --issuer-secret takes a cert-manager Certificate's with `isCA: true`
    "]].assert_eq(&errors);
    assert!(Objects::list(&*cluster, Kind::AUTHORITY).await.unwrap().is_empty());
    begun("whole").await.unwrap();
    let issuing = Issuing::read(&*cluster, &Names::default(), clock::wall()).await.unwrap();
    assert_eq!(issuing.record.signs.fingerprint, made.issuer_fingerprint());
    assert_eq!(issuing.authority.trust_domain(), "shop.example");
}
