//! What documents mean, and what each mistake in them says.

use std::{path::Path, time::Duration};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use remora::{
    config::{self, Context, Loaded},
    policy::{Algorithm, Discovery, Mtls, PathMatch, ServiceName, TlsMode},
};

#[test]
fn each_example_policy_loads() {
    for entry in std::fs::read_dir("examples/policies").unwrap() {
        let path = entry.unwrap().path();
        let loaded = config::load(&path, &context("default", None)).unwrap();
        assert!(loaded.warnings.is_empty() && 0 < loaded.documents, "{}", path.display());
    }
}

#[test]
fn a_service_policy_says_how_callers_reach_a_service() {
    let loaded = examples("orders");
    let orders = &loaded.snapshot.services[&ServiceName::new("shop", "orders")];
    assert_eq!(orders.tls.mode, TlsMode::Strict);
    assert_eq!(*orders.tls.identities, ["spiffe://cluster.local/ns/shop/sa/orders".into()]);
    assert_eq!(orders.resilience.balancer.algorithm, Algorithm::LeastRequest);
    assert_eq!(orders.timeouts.request, Duration::from_secs(2));
    let payments = &loaded.snapshot.services[&ServiceName::new("", "payments.example.com")];
    let Discovery::Static(endpoints) = &payments.discovery else { panic!("{payments:?}") };
    assert_eq!(endpoints.endpoints().iter().map(|it| it.weight).collect::<Vec<_>>(), [3, 1]);
    let search = &loaded.snapshot.services[&ServiceName::new("shop", "search")];
    let name = "search-headless.shop.svc.cluster.local".into();
    assert_eq!(search.discovery, Discovery::Dns { name, port: Some(9200) });
}

#[test]
fn a_route_shares_the_requests_of_a_service() {
    let loaded = examples("orders");
    let routes = &loaded.snapshot.routes[&ServiceName::new("shop", "orders")];
    let rule = routes.find("/v1/items", 8080).unwrap();
    assert_eq!(&*rule.name, "orders/v1");
    assert_eq!(rule.path, PathMatch::Prefix("/v1".to_owned()));
    assert_eq!(rule.backends.iter().map(|it| it.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!(rule.request_timeout, Some(Duration::from_secs(2)));
    assert_eq!(rule.try_timeout, Some(Duration::from_millis(500)));
    assert_eq!(routes.find("/health", 8080).map(|it| &*it.name), Some("orders/health"));
    assert!(routes.find("/v1", 9090).is_none());
}

#[test]
fn a_call_of_a_grpc_method_is_routed_by_its_path() {
    let loaded = examples("orders");
    let routes = &loaded.snapshot.routes[&ServiceName::new("shop", "ledger")];
    let backend = |path| routes.find(path, 9000).map(|it| it.backends[0].service.to_string());
    assert_eq!(backend("/shop.v1.Ledger/Export").as_deref(), Some("shop/ledger-batch"));
    assert_eq!(backend("/shop.v1.Ledger/Get").as_deref(), Some("shop/ledger-v1"));
    assert_eq!(backend("/shop.v1.LedgerAdmin/Get").as_deref(), Some("shop/ledger"));
    assert_eq!(&*routes.find("/shop.v1.Ledger/Export", 9000).unwrap().name, "ledger/export");
}

#[test]
fn a_workload_gets_the_policy_of_its_account_or_else_of_its_namespace() {
    let general = examples("orders").snapshot.workload;
    assert_eq!((general.mtls_of(8080), general.mtls_of(9090)), (Mtls::Strict, Mtls::Permissive));
    assert!(general.opaque_ports.contains(&5432));
    let own = examples("reports").snapshot.workload;
    assert_eq!(own.request_timeout, Duration::from_mins(10));
    let elsewhere = config::load(Path::new("examples/policies"), &context("billing", None));
    assert_eq!(elsewhere.unwrap().snapshot.workload.mtls, Mtls::Permissive);
}

#[test]
fn a_route_of_another_namespace_is_for_the_callers_there_and_instead() {
    let route = |namespace: &str, backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {backend}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: orders, namespace: shop}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"
        )
    };
    let both = format!("{}---\n{}", route("shop", "theirs"), route("web", "ours"));
    let backend_for = |namespace: &str| {
        let loaded = config::load_bytes(both.as_bytes(), &context(namespace, None)).unwrap();
        let routes = &loaded.snapshot.routes[&ServiceName::new("shop", "orders")];
        routes.find("/", 80).unwrap().backends[0].service.to_string()
    };
    assert_eq!(backend_for("shop"), "shop/theirs");
    assert_eq!(backend_for("web"), "web/ours");
    assert_eq!(backend_for("billing"), "shop/theirs");
}

#[test]
fn text_that_is_not_yaml_says_where() {
    check(
        "syntax",
        &expect![[r#"
        tests/config/syntax.yaml:4:5: not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
        hint: check indentation, quotes and brackets just before this place"#]],
    );
}

#[test]
fn a_document_that_is_none_says_what_is_missing() {
    check(
        "structure",
        &expect![[r#"
            tests/config/structure.yaml:1:1: a document is a map
            hint: begin with `apiVersion:`, `kind:`, `metadata:` and `spec:`
            tests/config/structure.yaml:3:1: ServicePolicy has no `apiVersion`
            hint: write `apiVersion: remora.dev/v1alpha1`
            tests/config/structure.yaml:7:1: the document has no `kind`
            hint: add `kind: ServicePolicy`; the kinds are HTTPRoute, ServicePolicy, WorkloadPolicy, GRPCRoute
            tests/config/structure.yaml:10:13: unknown apiVersion `remora.dev/v1` of ServicePolicy
            hint: write `apiVersion: remora.dev/v1alpha1`
            tests/config/structure.yaml:16:7: unknown kind `ServicePolcy`
            hint: did you mean `ServicePolicy`?
            tests/config/structure.yaml:19:7: unknown kind `ConfigMap`
            hint: one of: HTTPRoute, ServicePolicy, WorkloadPolicy, GRPCRoute
            tests/config/structure.yaml:22:7: not supported yet: AuthorizationPolicy
            hint: remove it until a later version
            tests/config/structure.yaml:25:1: WorkloadPolicy has no `metadata`
            hint: add `metadata: {name: orders}`
            tests/config/structure.yaml:25:1: WorkloadPolicy has no `spec`
            hint: add `spec: {}`
            tests/config/structure.yaml:30:18: `Upper` is not the name of an object
            hint: use lower-case letters, digits, `-` and `.`
            tests/config/structure.yaml:30:36: `a.b` is not a namespace
            hint: use lower-case letters, digits and `-`, at most 63 of them
            tests/config/structure.yaml:30:56: expected text, found the number `1`
            hint: put quotes around it if it is meant as text
            tests/config/structure.yaml:30:60: unknown key `lables` in metadata
            hint: did you mean `labels`?
            tests/config/structure.yaml:31:5: expected a map for spec, found nothing
            hint: write `key: value` pairs"#]],
    );
}

#[test]
fn a_key_that_means_nothing_is_refused() {
    check(
        "keys",
        &expect![[r#"
            tests/config/keys.yaml:6:3: unknown key `timeout` in spec
            hint: did you mean `timeouts`?
            tests/config/keys.yaml:7:14: unknown key `reqest` in timeouts
            hint: did you mean `request`?
            tests/config/keys.yaml:8:23: key `mode` comes twice
            hint: remove one; the first is at line 8
            tests/config/keys.yaml:9:3: merge keys are not supported
            hint: write the merged keys out
            tests/config/keys.yaml:10:5: a key is one word
            hint: write `key: value`
            tests/config/keys.yaml:12:3: unknown key `quite-something-else` in spec
            hint: one of: targetRefs, tls, loadBalancer, timeouts, retries, retryBudget, hedge, breaker, outlier, admission, connections, discovery
            tests/config/keys.yaml:12:33: tags are not supported
            hint: remove it; quotes make a value text"#]],
    );
}

#[test]
fn a_value_that_does_not_fit_is_refused() {
    check(
        "types",
        &expect![[r#"
            tests/config/types.yaml:5:38: expected text, found the number `80`
            hint: put quotes around it if it is meant as text
            tests/config/types.yaml:5:50: unknown value `Pod`
            hint: one of: Service
            tests/config/types.yaml:5:73: unknown group `apps`
            hint: write `group: ""`, the group of Service
            tests/config/types.yaml:6:8: expected a map for tls, found a list
            hint: write `key: value` pairs
            tests/config/types.yaml:7:29: unknown value `LeastRequests`
            hint: did you mean `LeastRequest`?
            tests/config/types.yaml:8:23: `2` is not a duration
            hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
            tests/config/types.yaml:8:35: duration `0s` is zero
            hint: leave it out to get the default; zero does not mean off
            tests/config/types.yaml:8:45: duration `48h` is over a day
            hint: the longest is `24h`
            tests/config/types.yaml:10:27: `1.2.3.4` is not an address and port
            hint: write `10.0.0.7:8080` or `[fd00::7]:8080`
            tests/config/types.yaml:10:69: `0` is not in the range
            hint: write a whole number from 1 to 65535
            tests/config/types.yaml:10:83: endpoint `1.2.3.4:80` comes twice
            hint: remove one; the first is at line 10
            tests/config/types.yaml:16:15: the list is empty
            hint: add an item, or remove the key
            tests/config/types.yaml:17:15: unknown value `yes`
            hint: one of: auto, strict, off
            tests/config/types.yaml:17:33: `spiffe://cluster.local` is not a SPIFFE ID
            hint: write `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`
            tests/config/types.yaml:17:59: the text is empty
            hint: write a value, or remove the key
            tests/config/types.yaml:18:15: expected a map for loadBalancer, found nothing
            hint: write `key: value` pairs
            tests/config/types.yaml:19:23: `soon` is not a duration
            hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
            tests/config/types.yaml:19:38: expected a duration, found a list
            hint: write it as `250ms`, `2s` or `1h`
            tests/config/types.yaml:20:14: discovery says `dns` and `srv`
            hint: write exactly one of `dns`, `srv`, `endpoints`
            tests/config/types.yaml:20:27: `a b` is not a DNS name
            hint: write a name such as `orders.shop.svc.cluster.local`
            tests/config/types.yaml:20:40: `70000` is not in the range
            hint: write a whole number from 1 to 65535
            tests/config/types.yaml:20:53: srv has no `name`
            hint: add `name: _http._tcp.orders.shop.svc.cluster.local`
            tests/config/types.yaml:26:38: `orders.billing` is a service of another namespace
            hint: move the document to namespace `billing`
            tests/config/types.yaml:27:14: discovery says nothing
            hint: write exactly one of `dns`, `srv`, `endpoints`
            tests/config/types.yaml:33:16: unknown value `off`
            hint: one of: permissive, strict
            tests/config/types.yaml:33:29: `http` is not a port
            hint: write a port from 1 to 65535 and its mode: `"8080": strict`
            tests/config/types.yaml:33:49: unknown value `strikt`
            hint: did you mean `strict`?
            tests/config/types.yaml:34:23: `0` is not in the range
            hint: write a whole number from 1 to 65535
            tests/config/types.yaml:34:26: expected a whole number, found `x`
            hint: write a whole number from 1 to 65535
            tests/config/types.yaml:34:31: port `5432` comes twice
            hint: remove one"#]],
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_and_not_passed_over() {
    check(
        "later",
        &expect![[r#"
            tests/config/later.yaml:6:3: not supported yet: `healthCheck` of spec
            hint: remove it until a later version
            tests/config/later.yaml:12:48: not supported yet: `share` of a rate limit
            hint: remove it until a later version
            tests/config/later.yaml:19:3: not supported yet: `hostnames` of spec
            hint: remove it until a later version
            tests/config/later.yaml:21:5: not supported yet: a parent of kind Gateway
            hint: remove it until a later version
            tests/config/later.yaml:22:46: not supported yet: `sectionName` of a parent
            hint: remove it until a later version
            tests/config/later.yaml:24:5: not supported yet: `filters` of a rule
            hint: remove it until a later version
            tests/config/later.yaml:25:5: not supported yet: `sessionPersistence` of a rule
            hint: remove it until a later version
            tests/config/later.yaml:27:21: not supported yet: a path of type RegularExpression
            hint: remove it until a later version
            tests/config/later.yaml:28:8: not supported yet: `headers` of a match
            hint: remove it until a later version
            tests/config/later.yaml:28:21: not supported yet: `queryParams` of a match
            hint: remove it until a later version
            tests/config/later.yaml:28:38: not supported yet: `method` of a match
            hint: remove it until a later version
            tests/config/later.yaml:29:46: not supported yet: `filters` of a backend
            hint: remove it until a later version
            tests/config/later.yaml:35:3: not supported yet: `hostnames` of spec
            hint: remove it until a later version
            tests/config/later.yaml:38:5: not supported yet: `filters` of a rule
            hint: remove it until a later version
            tests/config/later.yaml:40:23: not supported yet: a method of type RegularExpression
            hint: remove it until a later version
            tests/config/later.yaml:41:16: not supported yet: a method of any service
            hint: remove it until a later version
            tests/config/later.yaml:42:8: not supported yet: `headers` of a match
            hint: remove it until a later version"#]],
    );
}

#[test]
fn a_route_that_means_nothing_is_refused() {
    check(
        "route",
        &expect![[r#"
            tests/config/route.yaml:5:16: a parent has no `group`
            hint: add `group: ""`
            tests/config/route.yaml:5:16: a parent has no `kind`
            hint: add `kind: Service`
            tests/config/route.yaml:8:29: unknown value `Prefix`
            hint: one of: Exact, PathPrefix
            tests/config/route.yaml:8:65: `v1` is not a path
            hint: begin with `/`; no `//`, `/./`, `/../`, `%2f`, `?`, `#` or spaces
            tests/config/route.yaml:8:86: `/a/../b` is not a path
            hint: begin with `/`; no `//`, `/./`, `/../`, `%2f`, `?`, `#` or spaces
            tests/config/route.yaml:9:48: `backendRequest` is longer than `request`
            hint: a try is part of its request: choose it shorter
            tests/config/route.yaml:10:11: rule `a` comes twice
            hint: give each rule of a route its own name
            tests/config/route.yaml:12:7: a backend has no `port`
            hint: add `port: 8080`
            tests/config/route.yaml:13:42: `-1` is not in the range
            hint: write a whole number from 0 to 1000000
            tests/config/route.yaml:14:42: `1000001` is not in the range
            hint: write a whole number from 0 to 1000000
            tests/config/route.yaml:15:14: `orders.shop` is not the name of a Service
            hint: use lower-case letters, digits and `-`, at most 63 of them
            tests/config/route.yaml:16:14: unknown kind `Bucket` of a backend
            hint: write `kind: Service`, or leave it out
            tests/config/route.yaml:20:18: `shop/orders` has rules of HTTPRoute and of GRPCRoute at one port
            hint: choose one kind for all of them; the first is at tests/config/route.yaml:3:18
            tests/config/route.yaml:27:23: unknown value `Prefix`
            hint: one of: Exact
            tests/config/route.yaml:27:40: `shop/Orders` is not the name of a gRPC service
            hint: write it with its package: `shop.v1.Orders`
            tests/config/route.yaml:27:61: `Get-Order` is not the name of a gRPC method
            hint: use letters, digits and `_`: `GetOrder`
            tests/config/route.yaml:28:16: a method match names neither service nor method
            hint: write `method: {service: shop.v1.Orders}`, or remove `method`
            tests/config/route.yaml:29:8: unknown key `path` in a match
            hint: one of: method
            tests/config/route.yaml:30:5: unknown key `timeouts` in a rule
            hint: one of: name, matches, backendRefs
            tests/config/route.yaml:34:18: `shop/stock` has rules of GRPCRoute and of HTTPRoute at one port
            hint: choose one kind for all of them; the first is at tests/config/route.yaml:20:18
            tests/config/route.yaml:44:20: the list is empty
            hint: add an item, or remove the key
            tests/config/route.yaml:44:31: the list is empty
            hint: add an item, or remove the key"#]],
    );
}

#[test]
fn what_comes_twice_names_both_places() {
    check(
        "duplicates",
        &expect![[r#"
        tests/config/duplicates.yaml:8:18: ServicePolicy `shop/orders` comes twice
        hint: rename or remove one; the first is at tests/config/duplicates.yaml:3:18
        tests/config/duplicates.yaml:14:21: service `shop/carts` has two ServicePolicies
        hint: put both into one document; the first is at tests/config/duplicates.yaml:9:21
        tests/config/duplicates.yaml:23:18: namespace `shop` has two WorkloadPolicies
        hint: put both into one document; the first is at tests/config/duplicates.yaml:18:18
        tests/config/duplicates.yaml:29:54: service account `shop/a` has two WorkloadPolicies
        hint: put both into one document; the first is at tests/config/duplicates.yaml:29:21"#]],
    );
}

#[test]
fn a_small_file_cannot_become_a_large_one() {
    check(
        "bomb",
        &expect![[r#"
        tests/config/bomb.yaml:5:32: more than 100000 values in one file, aliases written out
        hint: split the file, or write less with aliases"#]],
    );
}

#[test]
fn what_looks_like_a_mistake_is_a_warning() {
    let path = "tests/config/warnings.yaml";
    let loaded = config::load(Path::new(path), &context("shop", None)).unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    expect![[r#"
        tests/config/warnings.yaml:6:32: nobody is checked: `tls.mode` is `off`
        hint: remove `identities`, or choose `auto` or `strict`
        tests/config/warnings.yaml:15:32: `backendRequest` never fires: the request may take 500ms
        hint: choose it well below the request timeout
        tests/config/warnings.yaml:16:15: never taken: an earlier rule of `shop/orders` is the same
        hint: remove one; the first is at tests/config/warnings.yaml:15:5
        tests/config/warnings.yaml:17:18: no backend has a weight: every request of this rule is refused
        hint: give one of them a weight above 0
        tests/config/warnings.yaml:25:41: a `POST` that was answered too late is sent twice
        hint: be sure that two do what one does, or use `idempotencyKey: true`
        tests/config/warnings.yaml:25:63: 4 tries of 600ms do not fit into the 2s of the request
        hint: choose fewer `attempts` or a shorter `perTryTimeout`
        tests/config/warnings.yaml:26:24: a service that fails gets twice its load
        hint: a ratio of `20%` cures what retries can cure
        tests/config/warnings.yaml:27:12: nothing opens this breaker
        hint: leave out one of `consecutiveFailures: off` and `failureRatio: off`
        tests/config/warnings.yaml:28:25: all endpoints but one may be left out, and that one gets all requests
        hint: it would not stand for long: choose `50%`
        tests/config/warnings.yaml:29:33: `pendingTimeout` never fires: the request may take 2s
        hint: choose it well below `timeouts.request`
        tests/config/warnings.yaml:43:23: nothing is sent again
        hint: write `mode: off`, which says so
        tests/config/warnings.yaml:51:12: `retry` does nothing: `retries` of `shop/stock` are off
        hint: remove it, or `mode: off` from the ServicePolicy
        tests/config/warnings.yaml:52:45: 3 tries of 1s do not fit into the 2s of the request
        hint: choose fewer `attempts` or a shorter `backendRequest`"#]].assert_eq(&warnings.join("\n"));
}

#[test]
fn what_kubectl_prints_is_accepted() {
    let printed = b"
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata:
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}
  creationTimestamp: '2025-01-01T00:00:00Z'
  generation: 1
  name: all
  namespace: shop
  resourceVersion: '1'
  uid: 00000000-0000-0000-0000-000000000000
spec: {}
status: {}
";
    assert_eq!(config::load_bytes(printed, &context("shop", None)).unwrap().documents, 1);
}

#[test]
fn files_without_documents_are_an_empty_policy() {
    let loaded = config::load_bytes(b"# nothing\n---\n---\n", &context("shop", None)).unwrap();
    assert_eq!((loaded.files, loaded.documents), (1, 0));
}

proptest! {
    /// No bytes make the reader panic.
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _result = config::load_bytes(&bytes, &context("shop", None));
    }

    /// Nor does a good file with a piece cut out or something else put in; and whatever is
    /// found has its place in the file.
    #[test]
    fn every_error_of_a_broken_file_has_its_place(
        file in 0_usize..6,
        from in 0.0..1.0,
        cut in 0_usize..40,
        put in "[ \\n:,{}\\[\\]a0&*\"#-]{0,5}",
    ) {
        let names = ["orders", "canary", "workloads", "discovery", "resilience", "grpc"];
        let name = names[file];
        let mut text = std::fs::read_to_string(format!("examples/policies/{name}.yaml")).unwrap();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place somewhere in a short ASCII text"
        )]
        let from = (text.len() as f64 * from) as usize;
        let to = (from + cut).min(text.len());
        text.replace_range(from..to, &put);
        if let Err(errors) = config::load_bytes(text.as_bytes(), &context("shop", None)) {
            let lines: Vec<_> = text.lines().collect();
            for problem in errors.problems() {
                let (line, column) = (problem.place.line, problem.place.column);
                prop_assert!((1..=lines.len() + 1).contains(&line), "{}", problem);
                let length = lines.get(line - 1).map_or(0, |it| it.chars().count());
                prop_assert!((1..=length + 1).contains(&column), "{}", problem);
            }
        }
    }
}

pub(super) fn check(fixture: &str, expected: &Expect) {
    let path = format!("tests/config/{fixture}.yaml");
    let errors = config::load(Path::new(&path), &context("shop", None)).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

fn examples(account: &str) -> Loaded {
    config::load(Path::new("examples/policies"), &context("shop", Some(account))).unwrap()
}

pub(super) fn context(namespace: &str, account: Option<&str>) -> Context {
    Context {
        namespace: namespace.to_owned(),
        service_account: account.map(str::to_owned),
        zone: None,
    }
}
