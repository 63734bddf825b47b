//! Guards: what a workload takes on, as its callers and its operator see it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Response, Version};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use remora::drain;
use tokio::{sync::Mutex, time};

use crate::{
    grpc::{self, ping},
    host::{Host, Service},
    http::{self as web, Answer},
    load::{Load, tally},
    pods::{
        APP, Mesh, ORDERS, ORDERS_LABEL, Pair, Policy, Setup, Sidecar, call, eventually, inbound,
        outbound, policy,
    },
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("guards_a_rate_is_exact_and_each_identity_has_its_own", identities),
    ("guards_a_rate_by_header_tells_values_apart_and_paths_from_others", headers),
    ("guards_a_reload_keeps_what_callers_have_used", reload),
    ("guards_an_observed_rate_counts_and_lets_in", observed),
    ("guards_a_grpc_caller_is_refused_in_its_own_terms", in_grpc),
    ("guards_an_overloaded_application_comes_back_by_itself", overload),
    ("guards_an_observed_overload_is_counted_and_logged", observed_overload),
];

const REPLIES: &str = "remora_local_replies_total";

const WOULD_REJECT: &str = "remora_would_reject_total";

const INBOUND: (&str, &str) = ("direction", "inbound");

/// A policy of the orders' workload.
fn guards(spec: &str) -> Policy {
    policy(&[("orders.yaml", &document(spec))])
}

fn document(spec: &str) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {{name: orders}}\n\
         spec:\n{spec}\n"
    )
}

fn guarded(policy: &Policy) -> Pair {
    Pair::with(|it| it, |it| it.with("--policy", &policy.path().display()))
}

/// Asks the orders' sidecar for `path` as a client without one, with these fields.
fn ask(pair: &Pair, path: &'static str, fields: &'static [(&'static str, &'static str)]) -> Answer {
    let to = inbound(pair.orders.v4());
    pair.web.run(move || async move {
        let mut client = web::Client::connect(Version::HTTP_11, to).await.unwrap();
        let mut request = web::get(Version::HTTP_11, ORDERS, path);
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        client.send(request).await.unwrap()
    })
}

fn identities() {
    let policy = guards("  rateLimits: [{name: per-caller, by: identity, requests: 3, per: 1h}]\n");
    let [web, mobile, orders] = Topology::of(["web", "mobile", "orders"]);
    let (mesh, dns) = (Mesh::new(), web.dns());
    dns.set("orders.shop", &[orders.v4()], 1);
    let app = orders.http_app(APP);
    let setup = |account: &str| Setup::new(&mesh.issue(account)).with("--dns", &web.v4());
    let server = setup("orders").with("--policy", &policy.path().display()).start(&orders);
    let _callers = [("web", &web), ("mobile", &mobile)].map(|(it, host)| setup(it).start(host));
    for left in ["2", "1", "0"] {
        let answer = call(&web, ORDERS, "/who");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), "\"per-caller\";q=3;w=3600");
        let state = answer.header("ratelimit");
        assert!(state.starts_with(&format!("\"per-caller\";r={left};t=")), "{state}");
    }
    let refused = call(&web, ORDERS, "/who");
    assert_eq!((refused.status, refused.header("x-remora-reason")), (429, "rate_limited"));
    // A third of an hour, less what has passed since the first.
    let after: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1_180..=1_200).contains(&after), "{after}");
    assert_eq!(refused.header("ratelimit"), format!("\"per-caller\";r=0;t={after}"));
    assert_eq!((app.requests(), call(&mobile, ORDERS, "/who").status), (3, 200));
    let counted = [INBOUND, ORDERS_LABEL, ("reason", "rate_limited")];
    assert_eq!(server.count(REPLIES, &counted), 1);
    server.log(&["\"direction\":\"inbound\"", "\"reason\":\"rate_limited\"", "\"status\":429"]);
}

fn headers() {
    let policy = guards(
        "  rateLimits: [{by: header, header: X-Api-Key, path: /who, requests: 1, per: 1h}]\n",
    );
    let pair = guarded(&policy);
    let (one, two): (&[_], &[_]) = (&[("x-api-key", "one")], &[("x-api-key", "two")]);
    assert_eq!(ask(&pair, "/who?x=1", one).status, 200);
    assert_eq!(ask(&pair, "/who", one).status, 429);
    assert_eq!(ask(&pair, "/who", two).status, 200);
    // Two values are none, and whoever has none shares with the others.
    assert_eq!(ask(&pair, "/who", &[("x-api-key", "three"), ("x-api-key", "two")]).status, 200);
    assert_eq!(ask(&pair, "/who", &[]).status, 429);
    let other = ask(&pair, "/status/200", one);
    assert_eq!((other.status, other.header("ratelimit")), (200, ""));
}

fn reload() {
    let limits = "  rateLimits: [{by: all, requests: 2, per: 1h}]\n";
    let policy = guards(limits);
    let pair = guarded(&policy);
    let statuses = || [(); 2].map(|()| ask(&pair, "/who", &[]).status);
    let loaded = |text: &str, generation: u64| {
        policy.write("orders.yaml", &document(text));
        pair.server.until("remora_policy_generation", &[], |it| it == generation);
    };
    assert_eq!(statuses(), [200, 200]);
    assert_eq!(statuses(), [429, 429]);
    loaded(&format!("{limits}  concurrency: {{max: 50}}\n  timeouts: {{request: 5s}}\n"), 2);
    assert_eq!(statuses(), [429, 429]);
    assert_eq!(pair.server.count("remora_concurrency_limit", &[ORDERS_LABEL]), 50);
    loaded("  rateLimits: [{by: all, requests: 1, per: 1h}]\n", 3);
    assert_eq!(statuses(), [200, 429]);
    loaded("  mtls: {}\n", 4);
    assert_eq!(statuses(), [200, 200]);
}

fn observed() {
    let policy = guards("  rateLimits: [{by: identity, requests: 2, per: 1h, mode: observe}]\n");
    let pair = guarded(&policy);
    let answers = [(); 5].map(|()| pair.get("/who"));
    assert!(answers.iter().all(|it| it.status == 200 && it.header("ratelimit").is_empty()));
    let counted = [INBOUND, ORDERS_LABEL, ("reason", "rate_limited")];
    assert_eq!(pair.server.count(WOULD_REJECT, &counted), 3);
    assert_eq!(pair.server.count(REPLIES, &counted), 0);
}

fn in_grpc() {
    let policy = guards("  rateLimits: [{by: identity, requests: 1, per: 1h}]\n");
    let [web, orders] = Topology::of(["web", "orders"]);
    let (mesh, dns) = (Mesh::new(), web.dns());
    dns.set("orders.shop", &[orders.v4()], 1);
    let _app = orders.grpc_app(APP);
    let setup = |account: &str| Setup::new(&mesh.issue(account)).with("--dns", &web.v4());
    let _server = setup("orders").with("--policy", &policy.path().display()).start(&orders);
    let _client = setup("web").start(&web);
    let refused = web.run(|| async {
        let mut client = grpc::Client::connect(outbound(), ORDERS).await.unwrap();
        client.unary(tonic::Request::new(ping("first", 0))).await.unwrap();
        client.unary(tonic::Request::new(ping("second", 0))).await.unwrap_err()
    });
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    let said = |name: &str| refused.metadata().get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(said("x-remora-reason"), "rate_limited");
    let wait: u32 = said("grpc-retry-pushback-ms").parse().unwrap();
    assert!((3_580_000..=3_600_000).contains(&wait), "{wait}");
}

/// Work that takes a while, one piece after the other, whether somebody waits for it or not.
const WORK: Duration = Duration::from_millis(20);

/// An application of one worker.
fn worker(host: &Host) -> Service {
    let turn = Arc::new(Mutex::new(()));
    host.tcp_server(APP, move |stream| {
        let turn = Arc::clone(&turn);
        let answer = service_fn(move |_: Request<Incoming>| {
            let turn = Arc::clone(&turn);
            let working = drain::spawn("work", async move {
                let _turn = turn.lock().await;
                time::sleep(WORK).await;
            });
            async move {
                let _done = working.await.is_ok();
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        });
        async move {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            let _ended = connection.await.is_ok();
        }
    })
}

/// The orders, whose one worker is asked for three times what it can do.
fn overloaded(policy: &Policy) -> (Sidecar, Load, Service) {
    let [web, orders] = Topology::of(["web", "orders"]);
    let app = worker(&orders);
    let setup = Setup::nobody().with("--policy", &policy.path().display());
    let server = setup.with("--access-log", "off").start(&orders);
    let load = Load::paced(&web, inbound(orders.v4()), (60, 20 * WORK), |_| {
        web::get(Version::HTTP_11, ORDERS, "/")
    });
    (server, load, app)
}

const APP_LABEL: (&str, &str) = ("service", "shop/app");

fn overload() {
    let policy = guards(
        "  timeouts: {request: 500ms}\n  concurrency: {mode: enforce, initial: 40, min: 2}\n",
    );
    let (server, load, _app) = overloaded(&policy);
    let limit = || server.count("remora_concurrency_limit", &[APP_LABEL]);
    // A queue as long as the limit takes 40 * 20 ms at first, and must take half of 500 ms.
    assert!(eventually(|| limit() <= 16), "the limit stays at {}", limit());
    let ends = || {
        let shed = server.count(REPLIES, &[APP_LABEL, ("reason", "overloaded")]);
        let late = server.count(REPLIES, &[APP_LABEL, ("reason", "request_timeout")]);
        let done = server.count("remora_requests_total", &[APP_LABEL, ("code", "2xx")]);
        (shed, late, done)
    };
    // What was taken on before is still worked at; then all that is taken on is done in time.
    let recovered = (0..20).any(|_| {
        let before = ends();
        load.go_on_for(200);
        let after = ends();
        let (shed, late, done) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        0 < shed && late == 0 && 200 < done * 5
    });
    assert!(recovered, "it is still late: {:?}, the limit is {}", ends(), limit());
    server.log(&["\"WARN\"", "\"workload is over its limit: shed\""]);
    let (_, failed) = load.stop();
    let failed = tally(&failed);
    let kinds: Vec<_> = failed.keys().copied().collect();
    assert_eq!(kinds, ["503 overloaded", "504 request_timeout"]);
}

fn observed_overload() {
    let policy = guards("  concurrency: {mode: observe, initial: 2, max: 2, min: 1}\n");
    let (server, load, _app) = overloaded(&policy);
    load.go_on_for(100);
    load.stop_without_failure();
    assert!(0 < server.count(WOULD_REJECT, &[INBOUND, APP_LABEL, ("reason", "overloaded")]));
    assert_eq!(server.count(REPLIES, &[APP_LABEL]), 0);
    server.until("remora_concurrency_in_flight", &[APP_LABEL], |it| it == 0);
    server.log(&["\"INFO\"", "\"workload is over its limit\"", "\"limit\":2"]);
    // Once, and not for each.
    assert_eq!(server.logged(&["workload is over its limit"]), 1);
}
