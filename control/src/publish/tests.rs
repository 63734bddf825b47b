use std::{collections::BTreeMap, fs, path::Path};

use remora::{clock, config::catalogue::Files, drain, sync::wire::Generation};
use remora_certs::{
    authority::{self, Leaf, Plan},
    bundle::Bundle,
    signed,
};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::store::{Folder, Kind, Objects as _};

#[tokio::test]
async fn a_change_of_the_folder_is_handed_out_within_a_second() {
    let bench = Bench::new();
    bench.write("a.yaml", &workload("shop", "one"));
    let (publisher, _running) = bench.start(None).await;
    let first = eventually(&publisher, || shop(&publisher, "1")).await;
    assert_eq!((first.number, first.audience.as_str()), (1, SHOP));
    assert_eq!(first.files["a.yaml"], format!("# a.yaml:1\n{}", workload("shop", "one")));
    let since = clock::now();
    bench.write("a.yaml", &workload("shop", "two"));
    let second = eventually(&publisher, || shop(&publisher, "1").filter(|it| it.number == 2)).await;
    assert!(clock::now() - since < Duration::from_secs(1));
    assert!(second.files["a.yaml"].contains("two"));
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
}

#[tokio::test]
async fn files_of_elsewhere_are_followed_as_a_folder_is() {
    let bench = Bench::new();
    let files =
        |name| BTreeMap::from([("shop/policies/a.yaml".to_owned(), workload("shop", name))]);
    let (sender, receiver) = watch::channel(files("one"));
    let settings = Settings { source: Some(Source::Files(receiver)), canary: None };
    let publisher = Publisher::load(Arc::new(bench.store()), settings).await.unwrap();
    let task = drain::spawn("publisher", Arc::clone(&publisher).run(Vec::new));
    let _running = Running(task);
    let one = eventually(&publisher, || shop(&publisher, "1")).await;
    assert!(one.files["shop_policies_a.yaml"].starts_with("# shop/policies/a.yaml:1\n"));
    sender.send_replace(files("t w o"));
    let error = eventually(&publisher, || publisher.status().error).await;
    assert!(error.starts_with("shop/policies/a.yaml:3:"), "{error}");
    // Who keeps them may go.
    sender.send_replace(files("three"));
    drop(sender);
    eventually(&publisher, || shop(&publisher, "1").filter(|it| it.number == 2)).await;
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
}

#[tokio::test]
async fn an_envelope_is_signed_by_control_and_the_same_until_something_changes() {
    let bench = Bench::new();
    bench.write("a.yaml", &workload("shop", "one"));
    let (publisher, _running) = bench.start(None).await;
    eventually(&publisher, || shop(&publisher, "1")).await;
    let (signer, roots) = signer();
    let get = |services: &[&str]| {
        let services: Vec<_> = services.iter().map(|it| (*it).to_owned()).collect();
        publisher.envelope(&SHOP.parse().unwrap(), "1", &services, &signer).unwrap()
    };
    let (one, again) = (get(&["a.b", "c.d"]), get(&["c.d", "a.b", "a.b"]));
    assert!(Arc::ptr_eq(&one, &again));
    let signature = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        one.signature.as_bytes(),
    );
    let payload = one.payload.as_bytes();
    let by = signed::verify(payload, &signature.unwrap(), &one.chain, &roots, clock::wall());
    assert_eq!(by.as_ref(), Ok(signer.id()));
    let other = self::signer().0;
    let services = ["a.b".to_owned(), "c.d".to_owned()];
    let renewed = publisher.envelope(&SHOP.parse().unwrap(), "1", &services, &other).unwrap();
    assert_ne!(renewed.chain, one.chain);
    assert_eq!(renewed.payload, one.payload);
}

#[tokio::test]
async fn a_bad_folder_changes_nothing_and_says_why() {
    let bench = Bench::new();
    bench.write("a.yaml", &workload("shop", "one"));
    let (publisher, _running) = bench.start(None).await;
    eventually(&publisher, || shop(&publisher, "1")).await;
    bench.write("b.yaml", "apiVersion: remora.dev/v1alpha1\nkind: Servicepolicy\n");
    let error = eventually(&publisher, || publisher.status().error).await;
    let place = bench.policy.path().join("b.yaml");
    assert!(error.starts_with(&format!("{}:2:7: unknown kind", place.display())), "{error}");
    assert!(error.contains("\nhint: did you mean `ServicePolicy`?"), "{error}");
    assert_eq!(publisher.status().generation, 1);
    // Put right, it is what is handed out already.
    fs::remove_file(place).unwrap();
    eventually(&publisher, || publisher.status().error.is_none().then_some(())).await;
    assert_eq!(status(&publisher), (1, vec![1], None));
}

#[tokio::test]
async fn a_folder_that_is_empty_or_gone_is_no_order_to_forget_all() {
    let bench = Bench::new();
    bench.write("a.yaml", &workload("shop", "one"));
    let (publisher, _running) = bench.start(None).await;
    eventually(&publisher, || shop(&publisher, "1")).await;
    fs::remove_file(bench.policy.path().join("a.yaml")).unwrap();
    let error = eventually(&publisher, || publisher.status().error).await;
    assert!(error.contains("the policy folder is empty"), "{error}");
    fs::remove_dir(bench.policy.path()).unwrap();
    let gone = |error: &String| error.contains("the policy folder cannot be read");
    eventually(&publisher, || publisher.status().error.filter(gone)).await;
    assert_eq!(publisher.status().generation, 1);
    fs::create_dir(bench.policy.path()).unwrap();
    bench.write("a.yaml", "# nothing\n");
    eventually(&publisher, || shop(&publisher, "1").filter(|it| it.files.is_empty())).await;
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
}

#[tokio::test]
async fn a_rollback_is_a_new_number_that_holds_until_the_folder_changes() {
    let bench = Bench::new();
    let (publisher, running) = bench.published(&["one", "two", "three"]).await;
    let back = publisher.change(PolicyChange { rollback: None }).await.unwrap();
    assert_eq!((back.generation, back.history), (4, vec![4, 3, 2, 1]));
    assert!(back.error.unwrap().starts_with("rolled back: generation 4 has the documents of"));
    assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("two"));
    // Another step back, not forth again.
    let back = publisher.change(PolicyChange { rollback: None }).await.unwrap();
    assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("one"));
    assert_eq!(back.generation, 5);
    let none = publisher.change(PolicyChange { rollback: None }).await;
    assert!(matches!(none, Err(Error::NoneBefore)));
    let unknown = publisher.change(PolicyChange { rollback: Some(9) }).await;
    assert!(matches!(unknown, Err(Error::NotKept(9))));
    // The folder still has what was returned from, for us and for who comes after us.
    drop(running);
    let (publisher, _running) = bench.start(None).await;
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(publisher.status().generation, 5);
    bench.write("a.yaml", &workload("shop", "four"));
    eventually(&publisher, || shop(&publisher, "1").filter(|it| it.number == 6)).await;
    assert_eq!(status(&publisher), (6, vec![6, 5, 4, 3, 2, 1], None));
}

#[tokio::test]
async fn after_a_restart_the_same_content_has_the_same_number() {
    let bench = Bench::new();
    let (_, running) = bench.published(&["one", "two"]).await;
    drop(running);
    let publisher = bench.publisher(None).await;
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
    assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("two"));
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(publisher.status().generation, 2);
    // What was changed meanwhile is noticed.
    bench.write("a.yaml", &workload("shop", "three"));
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(publisher.status().generation, 3);
}

#[tokio::test]
async fn the_last_ten_generations_are_kept() {
    let bench = Bench::new();
    let names: Vec<_> = (1..=12).map(|it| format!("policy-{it}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (publisher, _running) = bench.published(&names).await;
    let history: Vec<_> = (3..=12).rev().collect();
    assert_eq!(status(&publisher), (12, history, None));
    assert_eq!(bench.store().list(Kind::GENERATION).await.unwrap().len(), 10);
}

#[tokio::test]
async fn a_crash_between_the_documents_and_the_record_costs_nothing() {
    let bench = Bench::new();
    let (_, running) = bench.published(&["one"]).await;
    drop(running);
    // Others were kept as number 2, and not named any more.
    bench.keep("2-two").await;
    bench.write("a.yaml", &workload("shop", "three"));
    let publisher = bench.publisher(None).await;
    assert_eq!(publisher.status().generation, 1);
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
    assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("three"));
    let kept = bench.store().list(Kind::GENERATION).await.unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept[0].starts_with("1-") && kept[1].starts_with("2-") && kept[1] != "2-two");
}

#[tokio::test]
async fn what_another_replica_is_about_to_name_is_not_removed() {
    let bench = Bench::new();
    let (publisher, _running) = bench.published(&["one"]).await;
    // It read the record when its number was 2, or was 1.
    let (late, next) = ("2-abc", "3-abc");
    for name in [late, next] {
        bench.keep(name).await;
    }
    bench.write("a.yaml", &workload("shop", "two"));
    eventually(&publisher, || shop(&publisher, "1").filter(|it| it.number == 2)).await;
    let kept = bench.store().list(Kind::GENERATION).await.unwrap();
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert_eq!(kept[2], next);
    assert!(!kept.iter().any(|it| it == late));
}

#[tokio::test]
async fn numbers_go_above_what_a_sidecar_has_and_no_liar_can_use_them_up() {
    let bench = Bench::new();
    let publisher = bench.publisher(None).await;
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    bench.write("a.yaml", &workload("shop", "one"));
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(publisher.status().generation, 2);
    let heard = |numbers: &'static [u64]| {
        move || numbers.iter().map(|it| sidecar(0, *it, None)).collect::<Vec<_>>()
    };
    publisher.turn(None, &heard(&[u64::MAX])).await.unwrap();
    assert_eq!(publisher.status().generation, 2);
    // At once: until then, sidecars refuse whatever is published.
    publisher.turn(None, &heard(&[u64::MAX, 57, 3])).await.unwrap();
    assert_eq!(status(&publisher), (58, vec![58, 1], None));
    assert_eq!(shop(&publisher, "1").unwrap().number, 58);
    // Not again before its time.
    publisher.turn(None, &heard(&[58, 70])).await.unwrap();
    assert_eq!(publisher.status().generation, 58);
    publisher.seen.lock().raised = None;
    publisher.turn(None, &heard(&[58, 70])).await.unwrap();
    assert_eq!(status(&publisher), (71, vec![71, 1], None));
}

#[tokio::test]
async fn replicas_follow_the_record_and_any_may_roll_back() {
    let bench = Bench::new();
    let (leader, _running) = bench.published(&["one"]).await;
    let follower = bench.publisher(None).await;
    bench.write("a.yaml", &workload("shop", "two"));
    eventually(&leader, || shop(&leader, "1").filter(|it| it.number == 2)).await;
    follower.refresh().await.unwrap();
    assert_eq!(shop(&follower, "1"), shop(&leader, "1"));
    let back = follower.change(PolicyChange { rollback: Some(1) }).await.unwrap();
    assert_eq!(back.generation, 3);
    let three = eventually(&leader, || shop(&leader, "1").filter(|it| it.number == 3)).await;
    assert!(three.files["a.yaml"].contains("one"));
}

#[tokio::test]
async fn what_cannot_be_used_any_more_is_published_anew() {
    let bench = Bench::new();
    let (_, running) = bench.published(&["one"]).await;
    drop(running);
    let [name] = &bench.store().list(Kind::GENERATION).await.unwrap()[..] else { panic!() };
    bench.keep(name).await;
    let publisher = bench.publisher(None).await;
    assert_eq!(shop(&publisher, "1"), None);
    assert_eq!(publisher.status().error.unwrap(), "generation `1` cannot be used");
    publisher.turn(Some(bench.reading()), &Vec::new).await.unwrap();
    assert_eq!(shop(&publisher, "1").unwrap().number, 2);
}

#[tokio::test]
async fn a_store_that_says_no_changes_nothing_and_is_said() {
    let bench = Bench::new();
    let (publisher, _running) = bench.published(&["one"]).await;
    // What cannot be written into: a file where the folder was.
    let generations = bench.dir.path().join("state/generation");
    fs::rename(&generations, bench.dir.path().join("aside")).unwrap();
    fs::write(&generations, "").unwrap();
    bench.write("a.yaml", &workload("shop", "two"));
    let error = eventually(&publisher, || publisher.status().error).await;
    assert!(error.contains("`generation/2-"), "{error}");
    assert_eq!(shop(&publisher, "1").unwrap().number, 1);
    fs::remove_file(&generations).unwrap();
    fs::rename(bench.dir.path().join("aside"), &generations).unwrap();
    eventually(&publisher, || shop(&publisher, "1").filter(|it| it.number == 2)).await;
    eventually(&publisher, || publisher.status().error.is_none().then_some(())).await;
}

#[tokio::test]
async fn a_canary_is_promoted_when_those_asked_have_taken_it() {
    let bench = Bench::new();
    let publisher = bench.publisher(CANARY).await;
    let fleet = |accepted| (0..10).map(|it| sidecar(it, accepted, None)).collect::<Vec<_>>();
    bench.write("a.yaml", &workload("shop", "one"));
    // The first is for all at once.
    publisher.turn(Some(bench.reading()), &|| fleet(0)).await.unwrap();
    assert_eq!((publisher.status().generation, publisher.status().canary), (1, None));
    bench.write("a.yaml", &workload("shop", "two"));
    publisher.turn(Some(bench.reading()), &|| fleet(1)).await.unwrap();
    let numbers = numbers(&publisher);
    let asked = numbers.iter().filter(|it| **it == 2).count();
    assert!(0 < asked && asked < 10, "{numbers:?}");
    publisher.turn(None, &|| fleet(1)).await.unwrap();
    let canary = wire::Canary { generation: 2, percent: 20, accepted: 0, asked };
    assert_eq!((publisher.status().generation, publisher.status().canary), (1, Some(canary)));
    // One after the other took it.
    let some = || fleet(1).into_iter().skip(1).chain([sidecar(0, 2, None)]).collect();
    publisher.turn(None, &some).await.unwrap();
    assert_eq!(publisher.status().generation, if asked == 1 && numbers[0] == 2 { 2 } else { 1 });
    publisher.turn(None, &|| fleet(2)).await.unwrap();
    assert_eq!(status(&publisher), (2, vec![2, 1], None));
    assert_eq!(self::numbers(&publisher), [2; 10]);
}

#[tokio::test]
async fn a_canary_that_one_refuses_is_stopped_and_not_tried_again() {
    let bench = Bench::new();
    let publisher = bench.publisher(CANARY).await;
    for name in ["one", "two"] {
        bench.write("a.yaml", &workload("shop", name));
        let fleet = || (0..10).map(|it| sidecar(it, 1, None)).collect();
        publisher.turn(Some(bench.reading()), &fleet).await.unwrap();
    }
    let asked = numbers(&publisher).iter().position(|it| *it == 2).unwrap();
    // Who takes over in the midst of it goes on with it.
    let publisher = bench.publisher(CANARY).await;
    let refusal = Some("a.yaml:1:1: wrong");
    let fleet = || (0..10).map(|it| sidecar(it, 1, refusal.filter(|_| it == asked))).collect();
    publisher.turn(Some(bench.reading()), &fleet).await.unwrap();
    let (generation, history, error) = status(&publisher);
    assert_eq!((generation, history), (3, vec![3]));
    let error = error.unwrap();
    let expected = format!(
        "generation 2 was stopped: `{SHOP}` (orders-{asked}) refused it: a.yaml:1:1: wrong"
    );
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(numbers(&publisher), [3; 10]);
    assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("one"));
    // The folder still has it, for us and for who comes after us.
    for _ in 0..2 {
        let publisher = bench.publisher(CANARY).await;
        publisher.turn(Some(bench.reading()), &fleet).await.unwrap();
        assert_eq!(publisher.status().generation, 3);
        assert!(publisher.status().error.unwrap().starts_with("generation 2 was stopped"));
    }
}

#[tokio::test]
async fn a_canary_ends_with_a_rollback_or_when_the_folder_returns_to_what_all_have() {
    let bench = Bench::new();
    for returns in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench { dir, policy: tempfile::tempdir().unwrap() };
        let publisher = bench.publisher(CANARY).await;
        let fleet = || (0..10).map(|it| sidecar(it, 1, None)).collect();
        for name in ["one", "two"] {
            bench.write("a.yaml", &workload("shop", name));
            publisher.turn(Some(bench.reading()), &fleet).await.unwrap();
        }
        assert!(publisher.status().canary.is_some());
        if returns {
            bench.write("a.yaml", &workload("shop", "one"));
            publisher.turn(Some(bench.reading()), &fleet).await.unwrap();
        } else {
            publisher.change(PolicyChange { rollback: None }).await.unwrap();
        }
        let (generation, _, error) = status(&publisher);
        assert_eq!((generation, error.is_none()), (3, returns));
        assert_eq!(numbers(&publisher), [3; 10]);
        assert!(shop(&publisher, "1").unwrap().files["a.yaml"].contains("one"));
    }
    drop(bench);
}

/// Prints what it costs to put policy together for many; no promise hangs on it.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "a measurement is to be read")]
async fn a_thousand_workloads_get_an_envelope_each() {
    let bench = Bench::new();
    let text: String = (0..1_000).map(|it| service(&format!("n{}", it % 50), it)).collect();
    bench.write("a.yaml", &text);
    let publisher = bench.publisher(None).await;
    let begun = clock::now();
    let reading = bench.reading();
    let read = begun.elapsed();
    publisher.turn(Some(reading), &Vec::new).await.unwrap();
    let (signer, _) = signer();
    let begun = clock::now();
    let envelopes: Vec<_> = (0..1_000)
        .map(|it| {
            let id = format!("spiffe://cluster.local/ns/n{}/sa/a{it}", it % 50);
            let services = [format!("s{it}.n{}", it % 50), format!("s{}.n1", it * 50 % 1_000 + 1)];
            publisher.envelope(&id.parse().unwrap(), "1", &services, &signer).unwrap()
        })
        .collect();
    let bytes: usize = envelopes.iter().map(|it| it.payload.len()).sum();
    let (text, mean) = (text.len() / 1024, bytes / envelopes.len());
    println!(
        "{text} KiB read in {read:?}; 1,000 envelopes of {mean} bytes in {:?}",
        begun.elapsed()
    );
    assert!(envelopes.iter().all(|it| it.payload.contains("# a.yaml:")));
}

const SHOP: &str = "spiffe://cluster.local/ns/shop/sa/orders";

const CANARY: Option<Canary> = Some(Canary { percent: 20, wait: Duration::from_mins(1) });

/// A store, and a folder of policy.
struct Bench {
    dir: TempDir,
    policy: TempDir,
}

/// A publisher at work, until it is dropped.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), policy: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) {
        let partial = self.policy.path().join("partial");
        fs::write(&partial, text).unwrap();
        fs::rename(partial, self.policy.path().join(name)).unwrap();
    }

    fn reading(&self) -> Reading {
        Content::read(&Files::read(self.policy.path()))
    }

    /// Keeps documents that no record names.
    async fn keep(&self, name: &str) {
        let key = Kind::GENERATION.key(name);
        self.store().put(&key, b"[]", store::Expected::Any).await.unwrap();
    }

    fn store(&self) -> Folder {
        Folder::new(self.dir.path())
    }

    async fn publisher(&self, canary: Option<Canary>) -> Arc<Publisher> {
        let source = Some(Source::Folder(self.policy.path().to_owned()));
        Publisher::load(Arc::new(self.store()), Settings { source, canary }).await.unwrap()
    }

    async fn start(&self, canary: Option<Canary>) -> (Arc<Publisher>, Running) {
        let publisher = self.publisher(canary).await;
        let task = drain::spawn("publisher", Arc::clone(&publisher).run(Vec::new));
        (publisher, Running(task))
    }

    /// A publisher at work that has published these, one after the other.
    async fn published(&self, names: &[&str]) -> (Arc<Publisher>, Running) {
        let publisher = self.publisher(None).await;
        for name in names {
            self.write("a.yaml", &workload("shop", name));
            publisher.turn(Some(self.reading()), &Vec::new).await.unwrap();
        }
        self.start(None).await
    }
}

/// What `get` has, as soon as it has something.
async fn eventually<T>(publisher: &Publisher, mut get: impl FnMut() -> Option<T>) -> T {
    let mut changes = publisher.changes();
    let waiting = async {
        loop {
            if let Some(found) = get() {
                return found;
            }
            // Not everything that is said is a change of what is handed out.
            let _late = timeout(Duration::from_millis(20), changes.changed()).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap()
}

fn status(publisher: &Publisher) -> (u64, Vec<u64>, Option<String>) {
    let PolicyStatus { generation, canary, history, error } = publisher.status();
    assert_eq!(canary, None);
    (generation, history, error)
}

fn shop(publisher: &Publisher, instance: &str) -> Option<Generation> {
    let sent = publisher.envelope(&SHOP.parse().unwrap(), instance, &[], &signer().0)?;
    Some(serde_json::from_str(&sent.payload).unwrap())
}

/// The number that each of ten instances gets.
fn numbers(publisher: &Publisher) -> Vec<u64> {
    (0..10).map(|it| shop(publisher, &format!("orders-{it}")).unwrap().number).collect()
}

/// An instance that took generation `accepted`, and refused the next one for `error`.
fn sidecar(index: usize, accepted: u64, error: Option<&str>) -> Sidecar {
    let received = accepted + u64::from(error.is_some());
    let policy = wire::Policy { received, accepted, error: error.map(str::to_owned) };
    let instance = format!("orders-{index}");
    let report = wire::Report { instance, policy, ..wire::Report::default() };
    Sidecar { id: SHOP.into(), connected: true, seen: 0, not_after: 0, peer: None, report }
}

fn workload(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: WorkloadPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{mtls: {{mode: strict}}}}\n"
    )
}

fn service(namespace: &str, index: usize) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: ServicePolicy\n\
         metadata: {{name: s{index}, namespace: {namespace}}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: s{index}}}]\n  timeouts: {{request: 2s}}\n---\n"
    )
}

/// Control's identity, and who vouches for it.
fn signer() -> (Svid, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    let (life, now) = (Duration::from_hours(1), clock::wall());
    let plan = Plan { trust_domain: "cluster.local", root_life: life * 3, issuer_life: life * 2 };
    let authority = authority::create(&Path::join(dir.path(), "ca"), &plan, now).unwrap();
    let id = format!("spiffe://cluster.local{}", wire::CONTROL_PATH).parse().unwrap();
    let leaf = Leaf { id: &id, life, dns_names: &[], addresses: &[] };
    let issued = authority.issue(&leaf, now).unwrap();
    let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
    (svid, Bundle::from_pem(issued.roots.as_bytes()).unwrap())
}
