//! Policy: what is written into the folder holds, when it is right, and never otherwise.

use std::{fs, net::IpAddr, time::Duration};

use http::Version;
use remora::clock;
use remora_certs::folder::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    dns::Dns,
    host::Host,
    http::{self as web, App},
    load::Load,
    pods::{
        NAMESPACE, ORDERS, ORDERS_LABEL, Policy, SERVICE, Setup, Sidecar, call, eventually,
        outbound, policy, readable_dir,
    },
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("policy_is_read_after_a_rename_an_editor_and_a_write_in_place", saved),
    ("policy_is_read_after_a_swap_of_a_mounted_config_map", swapped),
    ("policy_with_a_mistake_leaves_the_last_good_one_in_force", mistake),
    ("policy_with_a_mistake_at_the_start_is_not_ready", mistake_at_start),
    ("policy_routes_by_exact_path_then_longest_prefix_by_weight", routes),
    ("policy_reloads_under_load_without_a_failure", reloads),
    ("policy_that_changes_after_the_endpoints_did_keeps_to_the_new_ones", moved),
    ("policy_time_limits_hold_for_request_and_try", limits),
    ("policy_idle_limit_ends_a_body_that_stands_still", idle),
];

const RELOADS: &str = "remora_policy_reloads_total";
const REQUESTS: &str = "remora_requests_total";

/// A caller whose sidecar has a policy, and two applications without one.
struct Callees {
    web: Host,
    dns: Dns,
    client: Sidecar,
    a: (Host, App),
    b: (Host, App),
}

impl Callees {
    fn with(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let [web, a, b] = Topology::of(["web", "a", "b"]);
        let dns = web.dns();
        dns.set("orders.shop", &[a.v4()], 1);
        dns.set("orders-a.shop", &[a.v4()], 1);
        dns.set("orders-b.shop", &[b.v4()], 1);
        let (a, b) = ((a.clone(), a.http_app(SERVICE)), (b.clone(), b.http_app(SERVICE)));
        let client = setup(Setup::nobody().with("--dns", &web.v4())).start(&web);
        Self { web, dns, client, a, b }
    }

    fn new(policy: &Policy) -> Self {
        Self::with(|it| it.with("--policy", &policy.path().display()))
    }

    /// The name of the host that answers for the orders.
    fn who(&self) -> String {
        call(&self.web, ORDERS, "/who").json()["host"].as_str().unwrap_or_default().to_owned()
    }

    fn until(&self, host: &str) {
        assert!(eventually(|| self.who() == host), "it is never `{host}`");
    }
}

/// A document that makes `address` the one endpoint of the orders.
fn leads_to(address: IpAddr) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\n\
         kind: ServicePolicy\n\
         metadata: {{name: orders}}\n\
         spec:\n  \
           targetRefs: [{{kind: Service, name: orders}}]\n  \
           discovery: {{endpoints: [{{address: \"{address}:{SERVICE}\"}}]}}\n"
    )
}

fn saved() {
    let policy = policy(&[]);
    let pods = Callees::new(&policy);
    let (a, b) = (leads_to(pods.a.0.v4()), leads_to(pods.b.0.v4()));
    assert_eq!(pods.who(), "a");
    let file = policy.path().join("orders.yaml");
    // By a rename over what was there, or nothing.
    policy.write("orders.yaml", &b);
    pods.until("b");
    policy.write("orders.yaml", &a);
    pods.until("a");
    // In place.
    fs::write(&file, &b).unwrap();
    pods.until("b");
    // As `vim` does: the old one is kept aside until the new one is there.
    let aside = policy.path().join("orders.yaml~");
    fs::rename(&file, &aside).unwrap();
    fs::write(&file, &a).unwrap();
    fs::remove_file(&aside).unwrap();
    pods.until("a");
    policy.write("orders.yaml", &b);
    pods.until("b");
    fs::remove_file(&file).unwrap();
    pods.until("a");
    assert_eq!(pods.client.count(RELOADS, &[("result", "rejected")]), 0);
}

fn swapped() {
    let dir = readable_dir();
    let mounted = dir.path().join("policy");
    let mount = |text: &str| {
        let file = File { name: "orders.yaml", content: text.as_bytes(), secret: false };
        folder::replace(&mounted, &[file], clock::wall()).unwrap();
    };
    mount("");
    let pods = Callees::with(|it| it.with("--policy", &mounted.display()));
    for (address, host) in [(pods.b.0.v4(), "b"), (pods.a.0.v4(), "a"), (pods.b.0.v4(), "b")] {
        mount(&leads_to(address));
        pods.until(host);
    }
}

fn mistake() {
    let policy = policy(&[]);
    let pods = Callees::new(&policy);
    policy.write("orders.yaml", &leads_to(pods.b.0.v4()));
    pods.until("b");
    let generation = pods.client.count("remora_policy_generation", &[]);
    let wrong = leads_to(pods.a.0.v4()).replace("  discovery:", "  discovry:");
    policy.write("orders.yaml", &wrong);
    pods.client.until(RELOADS, &[("result", "rejected")], |it| it == 1);
    assert_eq!(pods.who(), "b");
    assert_eq!(pods.client.count("remora_policy_generation", &[]), generation);
    let ready = pods.client.admin("/health/ready");
    assert_eq!(ready.status, 200);
    let note = ready.json()["notes"][0].clone();
    assert_eq!(note["condition"], "policy", "{}", ready.text());
    let detail = note["detail"].as_str().unwrap();
    assert!(detail.contains("orders.yaml:6:3") && detail.contains("discovry"), "{detail}");
    pods.client.log(&["policy refused", "orders.yaml:6:3", "`discovery`"]);
    policy.write("orders.yaml", &leads_to(pods.a.0.v4()));
    pods.until("a");
    assert_eq!(pods.client.count("remora_policy_generation", &[]), generation + 1);
    assert_eq!(pods.client.count(RELOADS, &[("result", "rejected")]), 1);
    let ready = pods.client.admin("/health/ready").json();
    assert_eq!(ready["notes"].as_array().map(Vec::len), Some(0), "{ready}");
}

fn mistake_at_start() {
    let policy = policy(&[("orders.yaml", "kind: Nonsense\n")]);
    let pods = Callees::new(&policy);
    let ready = pods.client.admin("/health/ready");
    assert_eq!(ready.status, 503);
    let missing = ready.json()["missing"][0].clone();
    assert_eq!(missing["condition"], "policy", "{}", ready.text());
    assert!(missing["detail"].as_str().unwrap().contains("orders.yaml:1:"), "{missing}");
    assert_eq!(pods.client.admin("/health/startup").status, 503);
    assert_eq!(pods.client.admin("/health/live").status, 200);
    policy.write("orders.yaml", &leads_to(pods.b.0.v4()));
    assert!(eventually(|| pods.client.admin("/health/ready").status == 200));
    assert_eq!(pods.client.admin("/health/startup").status, 200);
    assert_eq!(pods.who(), "b");
}

fn routes() {
    let policy = policy(&[(
        "orders.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders, port: 8080}]
  rules:
  - name: shares
    matches: [{path: {type: PathPrefix, value: /status}}]
    backendRefs:
    - {name: orders-a, port: 8080, weight: 90}
    - {name: orders-b, port: 8080, weight: 10}
  - name: exact
    matches: [{path: {type: Exact, value: /status/201}}]
    backendRefs: [{name: orders-b, port: 8080}]
  - name: nobody
    matches: [{path: {value: /nobody}}]
    backendRefs: [{name: orders-b, port: 8080, weight: 0}]
",
    )]);
    let pods = Callees::new(&policy);
    let load = Load::start(&pods.web, outbound(), 8, |_| {
        web::get(Version::HTTP_11, ORDERS, "/status/200?x=1")
    });
    load.go_on_for(1_000);
    let sent = load.stop_without_failure();
    let (a, b) = (pods.a.1.requests(), pods.b.1.requests());
    assert_eq!(a + b, sent);
    // More than five standard deviations from a tenth.
    assert!(sent < b * 20 && b * 100 < sent * 16, "{b} of {sent}");
    let shares = [("route", "orders/shares"), ORDERS_LABEL, ("code", "2xx")];
    assert_eq!(pods.client.count(REQUESTS, &shares), sent);
    // The exact match goes before the prefix, a query is no part of a path, and a prefix
    // ends with a segment.
    for _ in 0..10 {
        assert_eq!(call(&pods.web, ORDERS, "/status/201?y").status, 201);
    }
    assert_eq!((pods.a.1.requests(), pods.b.1.requests()), (a, b + 10));
    assert_eq!(call(&pods.web, ORDERS, "/statuses").status, 404);
    assert_eq!(pods.client.count(REQUESTS, &[("route", "default"), ("code", "4xx")]), 1);
    let nobody = call(&pods.web, ORDERS, "/nobody/at/all");
    assert_eq!((nobody.status, nobody.header("x-remora-reason")), (503, "no_endpoints"));
    assert_eq!(nobody.header("retry-after"), "1");
}

fn reloads() {
    let policy = policy(&[]);
    let pods = Callees::with(|it| {
        it.with("--policy", &policy.path().display()).with("--access-log", "failures")
    });
    let texts = [leads_to(pods.a.0.v4()), leads_to(pods.b.0.v4()), String::new()];
    let load =
        Load::start(&pods.web, outbound(), 8, |_| web::get(Version::HTTP_11, ORDERS, "/who"));
    // Edits that come close together are one reload: how many a machine makes in the time of
    // some reloads is its affair.
    let reloads = || pods.client.count(RELOADS, &[("result", "accepted")]);
    for edit in 0.. {
        policy.write("orders.yaml", &texts[edit % 3]);
        load.go_on_for(40);
        if 200 <= edit && 5 < reloads() {
            break;
        }
    }
    policy.write("orders.yaml", &texts[1]);
    pods.until("b");
    load.stop_without_failure();
    assert_eq!(pods.client.count(RELOADS, &[("result", "rejected")]), 0);
    assert!(0 < pods.a.1.requests() && 0 < pods.b.1.requests());
}

fn moved() {
    let policy = policy(&[]);
    let pods = Callees::new(&policy);
    assert_eq!(pods.who(), "a");
    // For as long as this test takes, nobody asks again.
    pods.dns.set("orders.shop", &[pods.b.0.v4()], 3600);
    let asked = pods.dns.queries();
    assert!(eventually(|| asked + 2 <= pods.dns.queries()), "nobody asks again");
    policy.write(
        "orders.yaml",
        "apiVersion: remora.dev/v1alpha1\n\
         kind: ServicePolicy\n\
         metadata: {name: orders}\n\
         spec:\n  \
           targetRefs: [{kind: Service, name: orders}]\n  \
           timeouts: {request: 20s}\n",
    );
    pods.client.until(RELOADS, &[("result", "accepted")], |it| 1 <= it);
    // No request has come in between.
    assert_eq!(pods.who(), "b");
}

fn limits() {
    let policy = policy(&[(
        "orders.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders}
spec:
  parentRefs: [{group: \"\", kind: Service, name: orders}]
  rules:
  - name: request
    matches: [{path: {value: /never}}]
    timeouts: {request: 150ms}
  - name: try
    matches: [{path: {value: /slow}}]
    timeouts: {request: 10s, backendRequest: 150ms}
",
    )]);
    let pods = Callees::new(&policy);
    pods.dns.set("orders.shop", &[pods.a.0.v4(), pods.b.0.v4()], 1);
    let answer = call(&pods.web, ORDERS, "/never");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (504, "request_timeout"));
    pods.client.log(&[
        "\"reason\":\"request_timeout\"",
        "\"route\":\"orders/request\"",
        "\"upstream\":",
    ]);
    let (a, b) = (pods.a.1.requests(), pods.b.1.requests());
    assert_eq!(a + b, 1);
    // A try that takes too long is followed by another elsewhere, where that is safe.
    let answer = call(&pods.web, ORDERS, "/slow?ms=5000");
    assert_eq!((answer.status, answer.header("x-remora-reason")), (504, "try_timeout"));
    let (a, b) = (pods.a.1.requests() - a, pods.b.1.requests() - b);
    assert!(a + b == 3 && a.abs_diff(b) == 1, "{a} and {b}");
    pods.client.log(&["\"reason\":\"try_timeout\"", "\"attempts\":3"]);
    let answer = pods.web.run(|| async {
        let mut client = web::Client::connect(Version::HTTP_11, outbound()).await.unwrap();
        let request = web::post(Version::HTTP_11, ORDERS, "/slow?ms=5000", "once");
        client.send(request).await.unwrap()
    });
    assert_eq!((answer.status, answer.header("x-remora-reason")), (504, "try_timeout"));
    assert_eq!(pods.a.1.requests() + pods.b.1.requests(), a + b + 2);
    let timeouts = [ORDERS_LABEL, ("outcome", "timeout")];
    assert_eq!(pods.client.count("remora_attempts_total", &timeouts), 5);
    // Both limits end at the answer's head.
    assert_eq!(call(&pods.web, ORDERS, "/slow?ms=1").status, 200);
}

fn idle() {
    let policy = policy(&[(
        "orders.yaml",
        "
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {name: orders}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {idle: 150ms}
",
    )]);
    let pods = Callees::new(&policy);
    assert_eq!(pods.client.count("remora_policy_generation", &[]), 1, "{NAMESPACE}");
    let _stuck = pods.a.0.tcp_server(SERVICE + 1, |mut stream| async move {
        let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
        // Not before it is asked: an answer to nothing is no answer.
        let mut asked = [0; 1024];
        let _asked = stream.read(&mut asked).await.is_ok();
        let _begun = stream.write_all(begun).await.is_ok();
        let mut rest = Vec::new();
        let _ended = stream.read_to_end(&mut rest).await.is_ok();
    });
    let began = clock::now();
    let broken = pods.web.run(|| async {
        web::fetch(Version::HTTP_11, outbound(), "orders.shop:8081", "/").await.is_err()
    });
    assert!(broken, "half a body was taken for a whole one");
    assert!(Duration::from_millis(150) <= clock::now() - began);
    pods.client.log(&["\"reason\":\"idle_timeout\"", "\"status\":200"]);
}
