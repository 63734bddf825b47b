use std::fmt::Display;

use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use super::*;
use crate::config::{Catalogue, Context, catalogue::Files};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_workload_makes_the_same_of_its_part_as_of_the_folder(
        documents in vec(made(), 0..14),
        split in 0_usize..4,
        namespace in 0..SPACES.len(),
        account in 0..ACCOUNTS.len(),
        calls in subsequence(services(), 0..4),
    ) {
        let (namespace, account) = (SPACES[namespace], ACCOUNTS[account]);
        let documents = without_contradictions(documents);
        let selection = selection(&files(&documents, split));
        let called = calls.iter().map(host).collect();
        let part = Files::new(&selection.select(Some(namespace), Some(account), &called));
        let context = Context {
            namespace: namespace.to_owned(),
            service_account: Some(account.to_owned()),
            zone: None,
        };
        let whole = files(&documents, split).load(&context).unwrap().snapshot;
        let part = part.load(&context).unwrap().snapshot;
        prop_assert_eq!(&part.workload, &whole.workload);
        // Whatever it may meet: what it calls, what its namespace speaks of, and where those
        // lead to.
        let mut met = calls;
        let own = documents.iter().filter(|it| it.namespace == namespace);
        met.extend(own.flat_map(|it| it.targets.iter().chain(&it.backends).cloned()));
        while let Some(service) = met.pop() {
            prop_assert_eq!(part.services.get(&service), whole.services.get(&service));
            prop_assert_eq!(part.routes.get(&service), whole.routes.get(&service));
            let applies = |it: &&Made| {
                it.targets.contains(&service)
                    && (it.namespace == namespace || *it.namespace == *service.namespace)
            };
            // Services only lead to those behind them: it ends.
            met.extend(documents.iter().filter(applies).flat_map(|it| it.backends.clone()));
        }
    }

    #[test]
    fn a_workload_is_not_told_of_what_it_has_nothing_to_do_with(
        documents in vec(made(), 0..14),
        namespace in 0..SPACES.len(),
    ) {
        let namespace = SPACES[namespace];
        let documents = without_contradictions(documents);
        let part = selection(&files(&documents, 2)).select(Some(namespace), Some("a"), &BTreeSet::new());
        let mentioned: Vec<_> = documents.iter().filter(|it| it.namespace == namespace).collect();
        let is_alone = mentioned.iter().all(|it| {
            it.targets.iter().chain(&it.backends).all(|it| *it.namespace == *namespace)
        });
        let part = Catalogue::new(&Files::new(&part)).unwrap().documents;
        if is_alone {
            prop_assert!(part.iter().all(|it| it.namespace == namespace), "{:?}", part);
        }
        let others = |it: &&Document| it.accounts.as_ref().is_some_and(|it| !it.iter().any(|it| it == "a"));
        prop_assert_eq!(part.iter().find(others), None);
    }
}

#[test]
fn every_document_says_where_it_comes_from() {
    let text = "# mine\n{apiVersion: remora.dev/v1alpha1, kind: WorkloadPolicy, \
                metadata: {name: a, namespace: shop}, spec: {}}";
    let both = format!("{text}\n--- # next\n{}", text.replace("e: a,", "e: b,"));
    let both = both.replace("name: b, namespace: shop", "name: b, namespace: web");
    let files =
        [("team/policies/a.yaml".to_owned(), both), ("b\nc.yaml".to_owned(), String::new())];
    let selection = selection(&Files::new(&files.into()));
    let shop = selection.select(Some("shop"), Some("a"), &BTreeSet::new());
    let expected = format!("# team/policies/a.yaml:1\n{text}\n");
    assert_eq!(shop, BTreeMap::from([("team_policies_a.yaml".to_owned(), expected.clone())]));
    let web = selection.select(Some("web"), None, &BTreeSet::new());
    let next = "# team/policies/a.yaml:3\n--- # next\n";
    assert!(web["team_policies_a.yaml"].starts_with(next));
    assert!(selection.select(None, Some("a"), &BTreeSet::new()).is_empty());
    let all = written(&selection.documents);
    assert!(all["team_policies_a.yaml"].starts_with(&format!("{expected}---\n{next}")));
}

#[test]
fn who_has_no_namespace_is_in_the_default_one() {
    let text = "{apiVersion: remora.dev/v1alpha1, kind: WorkloadPolicy, \
                metadata: {name: a, namespace: default}, spec: {}}";
    let selection = selection(&Files::new(&[("a.yaml".to_owned(), text.to_owned())].into()));
    assert_eq!(selection.select(None, None, &BTreeSet::new()).len(), 1);
    assert!(selection.select(Some("shop"), None, &BTreeSet::new()).is_empty());
}

#[test]
fn every_file_has_a_name_that_a_sidecar_takes() {
    for (name, expected) in [
        ("a.yaml", "a.yaml"),
        ("a.yml", "a.yml.yaml"),
        ("shop/a b\nä.yaml", "shop_a_b__.yaml"),
        ("..yaml", "_..yaml"),
        (".yaml", "_.yaml"),
        ("../a.yaml", "_.._a.yaml"),
    ] {
        assert_eq!(plain(name), expected);
    }
    assert_eq!(plain(&"x".repeat(300)).len(), NAME_MAX + ".yaml".len());
}

fn selection(files: &Files) -> Selection {
    Selection::new(Catalogue::new(files).unwrap().documents)
}

const SPACES: [&str; 3] = ["shop", "store", "web"];
const ACCOUNTS: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "y", "z"];

/// A document that was made up.
#[derive(Clone, Debug)]
struct Made {
    kind: &'static str,
    namespace: &'static str,
    targets: Vec<ServiceName>,
    backends: Vec<ServiceName>,
    accounts: Option<Vec<&'static str>>,
    milliseconds: u16,
}

/// All services there are, in an order in which each leads to later ones only.
fn services() -> Vec<ServiceName> {
    let all = NAMES.iter().flat_map(|name| SPACES.map(|space| ServiceName::new(space, name)));
    all.chain([ServiceName::new("", "api.example.com")]).collect()
}

fn made() -> impl Strategy<Value = Made> {
    let inside = services().len() - 1;
    let targets = subsequence((0..inside).collect::<Vec<_>>(), 1..3);
    let accounts = option::of(subsequence(ACCOUNTS.to_vec(), 1..=2));
    let parts = (0..4_u8, 0..SPACES.len(), targets, vec(0..inside, 0..3), accounts, 1..999_u16);
    parts.prop_map(move |(kind, space, targets, backends, accounts, milliseconds)| {
        let (namespace, all) = (SPACES[space], services());
        let last = targets.iter().max().copied().unwrap_or(0);
        let backends = backends.into_iter().filter(|it| last < *it).map(|it| all[it].clone());
        let targets: Vec<_> = targets.into_iter().map(|it| all[it].clone()).collect();
        let own = targets.iter().map(|it| ServiceName::new(namespace, &it.name)).collect();
        let (kind, targets) = match kind {
            0 => ("WorkloadPolicy", Vec::new()),
            1 => ("ServicePolicy", own),
            2 => ("ServicePolicy", vec![all[inside].clone()]),
            _ => ("HTTPRoute", targets),
        };
        let backends = if kind == "HTTPRoute" { backends.collect() } else { Vec::new() };
        let accounts = accounts.filter(|_| kind == "WorkloadPolicy");
        Made { kind, namespace, targets, backends, accounts, milliseconds }
    })
}

/// Leaves out what no folder may have: two answers to one question.
fn without_contradictions(documents: Vec<Made>) -> Vec<Made> {
    let mut claimed = HashSet::new();
    let mut good = documents;
    good.retain(|it| {
        let claims: Vec<_> = match (it.kind, &it.accounts) {
            ("HTTPRoute", _) => Vec::new(),
            ("WorkloadPolicy", None) => vec![it.namespace.to_owned()],
            ("WorkloadPolicy", Some(accounts)) => {
                accounts.iter().map(|account| format!("{} {account}", it.namespace)).collect()
            }
            _ => it.targets.iter().map(ToString::to_string).collect(),
        };
        let is_new = claims.iter().collect::<HashSet<_>>().len() == claims.len()
            && claims.iter().all(|it| !claimed.contains(it));
        if is_new {
            claimed.extend(claims);
        }
        is_new
    });
    good
}

/// The documents, dealt out to files.
fn files(documents: &[Made], split: usize) -> Files {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for (index, it) in documents.iter().enumerate() {
        let file = files.entry(format!("{}.yaml", index % (split + 1))).or_default();
        let separator = if file.is_empty() { "" } else { "---\n" };
        *file += separator;
        *file += &it.text(index);
    }
    Files::new(&files)
}

fn host(service: &ServiceName) -> String {
    match &*service.namespace {
        "" => service.name.to_string(),
        namespace => format!("{}.{namespace}", service.name),
    }
}

impl Made {
    fn text(&self, index: usize) -> String {
        let Self { kind, namespace, milliseconds, .. } = self;
        let api = if *kind == "HTTPRoute" {
            "gateway.networking.k8s.io/v1"
        } else {
            "remora.dev/v1alpha1"
        };
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let names = |name: &dyn Display, kind: &str| format!("{{kind: {kind}, name: {name}}}");
        let spec = match *kind {
            "HTTPRoute" => {
                let reference =
                    |it: &ServiceName| format!("name: {}, namespace: {}", it.name, it.namespace);
                let parent = |it| format!("{{group: '', kind: Service, {}}}", reference(it));
                let backend = |it| format!("{{{}, port: 80}}", reference(it));
                let (parents, backends) = (
                    list(self.targets.iter().map(parent).collect()),
                    list(self.backends.iter().map(backend).collect()),
                );
                let to = if self.backends.is_empty() {
                    String::new()
                } else {
                    format!(", backendRefs: {backends}")
                };
                format!(
                    "{{parentRefs: {parents}, rules: [{{matches: [{{path: {{value: /{index}}}}}]{to}}}]}}"
                )
            }
            "ServicePolicy" => {
                let targets = self.targets.iter().map(|it| names(&it.name, "Service")).collect();
                format!("{{targetRefs: {}, timeouts: {{idle: {milliseconds}s}}}}", list(targets))
            }
            _ => {
                let targets = self.accounts.as_ref().map(|it| {
                    let names = it.iter().map(|it| names(it, "ServiceAccount")).collect();
                    format!("targetRefs: {}, ", list(names))
                });
                let targets = targets.unwrap_or_default();
                format!("{{{targets}timeouts: {{request: {milliseconds}s}}}}")
            }
        };
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: d{index}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    }
}
