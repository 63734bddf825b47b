mod stand_in;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use http::StatusCode;
use remora_certs::{spiffe_id::SpiffeId, x509::fingerprint};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use self::stand_in::{DOMAIN, Mood, StandIn};
use super::*;
use crate::{
    clock,
    config::{self, Policies, settings::Control},
    drain::{self, Drain},
    identity::{self, Identity},
};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

const GOOD: &str = "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all}
spec: {mtls: {mode: strict}}
";

const BAD: &str = "kind: Nonsense\n";

/// A sidecar of `shop/web`, as far as it speaks with control.
struct Sidecar {
    state: TempDir,
    identity: Identity,
    policies: Policies,
    changed: Arc<Notify>,
    called: Arc<Mutex<Vec<String>>>,
    drain: Drain,
    metrics: Metrics,
    events: mpsc::Receiver<String>,
    running: JoinHandle<()>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn config(control: &StandIn, state: &Path) -> Config {
    Config {
        control: Control {
            host: "localhost".to_owned(),
            port: control.address.port(),
            token: Some(control.token()),
            roots: Some(control.roots()),
            id: None,
            instance: None,
        },
        source: Source::Control,
        state: state.to_owned(),
        instance: "web-0".to_owned(),
        inbound: Some("0.0.0.0:15006".parse().unwrap()),
        resolve: resolve_to(control.address),
        wall: wall(),
        pace: Pace { retry: (Duration::from_millis(2), Duration::from_millis(20)), ..quick() },
        seed: 7,
    }
}

fn quick() -> Pace {
    let long = Duration::from_secs(5);
    Pace { dial: long, answer: long, silence: long, settle: Duration::ZERO, ..Pace::default() }
}

fn resolve_to(address: SocketAddr) -> Resolve {
    Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) }))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it happens in time")
}

/// A state folder in which there is a certificate.
async fn joined(control: &StandIn) -> TempDir {
    let state = tempfile::tempdir().unwrap();
    let sync = Sync::new(config(control, state.path()), Metrics::new()).unwrap();
    within(sync.join(|reason| panic!("{reason}"))).await;
    state
}

impl Sidecar {
    async fn start(control: &StandIn) -> Self {
        Self::of(joined(control).await, control, |_| ())
    }

    fn of(state: TempDir, control: &StandIn, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(control, state.path());
        change(&mut config);
        let metrics = Metrics::new();
        let sync = Sync::new(config, metrics.clone()).unwrap();
        let identity = Identity::from_folder(&sync.identity_folder()).unwrap();
        let context = config::Context {
            namespace: "shop".to_owned(),
            service_account: Some("web".to_owned()),
            zone: None,
        };
        let (policies, _) = Policies::load(Some(&sync.policy_folder()), context);
        let (changed, called) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let (sender, events) = mpsc::channel(64);
        let (of_identity, of_policy) = (sender.clone(), sender);
        let services = Arc::clone(&called);
        let drain = Drain::new();
        let host = Host {
            identity: identity.clone(),
            policies: policies.clone(),
            drain: drain.clone(),
            services: Arc::new(move || services.lock().clone()),
            changed: Arc::clone(&changed),
            on_identity: Arc::new(move |event: &identity::Event| {
                let _full = of_identity.try_send(format!("{event:?}")).is_err();
            }),
            on_trouble: Arc::new(|_| ()),
            on_policy: Arc::new(move |event: &config::Event| {
                let _full = of_policy.try_send(format!("{event:?}")).is_err();
            }),
        };
        let running = drain::spawn("control", sync.run(host));
        Self { state, identity, policies, changed, called, drain, metrics, events, running }
    }

    fn page(&self) -> String {
        let mut page = Vec::new();
        self.metrics.render(&mut page);
        String::from_utf8(page).unwrap()
    }

    /// Waits until its metrics have the line.
    async fn shows(&self, line: &str) {
        within(async {
            while !self.page().contains(line) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Ends it, and leaves its state.
    fn stop(mut self) -> TempDir {
        std::mem::replace(&mut self.state, tempfile::tempdir().unwrap())
    }
}

#[tokio::test]
async fn a_token_is_exchanged_for_a_certificate() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    let identity = Identity::from_folder(&identity_folder(state.path())).unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://td/ns/shop/sa/web");
    let mode =
        |path: &str| fs::metadata(state.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("identity/tls.key"), mode("identity")), (0o600, 0o700));
    assert_eq!(control.state.heard.lock().by_token, 1);
}

#[tokio::test]
async fn a_sidecar_with_a_certificate_needs_no_control_to_start() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    control.stop();
    let sync = Sync::new(config(&control, state.path()), Metrics::new()).unwrap();
    within(sync.join(|reason| panic!("{reason}"))).await;
}

#[tokio::test]
async fn a_sidecar_with_nothing_says_what_it_waits_for() {
    let mut control = StandIn::start().await;
    control.stop();
    let state = tempfile::tempdir().unwrap();
    let sync = Sync::new(config(&control, state.path()), Metrics::new()).unwrap();
    let (sender, mut reasons) = mpsc::channel(1);
    let joining = sync.join(move |reason| {
        let _full = sender.try_send(reason.to_owned()).is_err();
    });
    let mending = async {
        let reason = reasons.recv().await.unwrap();
        assert!(reason.contains("cannot be reached"), "{reason}");
        control.start_again().await;
    };
    within(async { tokio::join!(joining, mending) }).await;
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_sent_again_as_it_was() {
    let control = StandIn::start().await;
    control.be(Mood { loses: 1, ..Mood::default() });
    let state = tempfile::tempdir().unwrap();
    let mut config = config(&control, state.path());
    config.pace.answer = Duration::from_millis(200);
    let sync = Sync::new(config, Metrics::new()).unwrap();
    within(sync.join(|_| ())).await;
    let heard = control.state.heard.lock();
    assert!(heard.requests.len() > 1 && heard.requests.iter().all(|it| *it == heard.requests[0]));
}

#[tokio::test]
async fn each_certificate_has_a_key_of_its_own() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    let key = || fs::read(identity_folder(state.path()).join("tls.key")).unwrap();
    let first = key();
    let sync = Sync::new(config(&control, state.path()), Metrics::new()).unwrap();
    within(sync.obtain(None)).await.unwrap();
    assert!(first != key());
    let heard = control.state.heard.lock();
    assert_ne!(heard.requests[0], heard.requests[1]);
    assert_eq!(heard.by_token, 1, "a certificate proves who asks for the next");
}

#[tokio::test]
async fn what_is_not_our_certificate_replaces_nothing() {
    let other = SpiffeId::workload(DOMAIN, "shop", "other").unwrap();
    let moods = [
        Mood { id: Some(other), ..Mood::default() },
        Mood { key_of_another: true, ..Mood::default() },
        Mood { life: Some(Duration::ZERO), ..Mood::default() },
    ];
    let control = StandIn::start().await;
    let state = joined(&control).await;
    let files = || Material::load(&identity_folder(state.path()), clock::wall());
    let before = files().unwrap().serial();
    for mood in moods {
        control.be(mood.clone());
        let sync = Sync::new(config(&control, state.path()), Metrics::new()).unwrap();
        assert!(within(sync.obtain(None)).await.is_err(), "{mood:?}");
        assert_eq!(files().unwrap().serial(), before, "{mood:?}");
    }
}

#[tokio::test]
async fn nobody_but_control_is_believed() {
    let (control, other) = (StandIn::start().await, StandIn::start().await);
    let state = tempfile::tempdir().unwrap();
    let asked = async |config: Config| {
        let sync = Sync::new(config, Metrics::new()).unwrap();
        within(sync.obtain(None)).await.unwrap_err().words()
    };
    let mut elsewhere = config(&control, state.path());
    elsewhere.resolve = resolve_to(other.address);
    let error = asked(elsewhere).await;
    assert!(error.contains("our roots do not vouch for it"), "{error}");
    let workload = SpiffeId::workload(DOMAIN, "shop", "web").unwrap();
    control.be(Mood { calls_itself: Some(workload.clone()), ..Mood::default() });
    let error = asked(config(&control, state.path())).await;
    assert!(error.contains("is not expected here"), "{error}");
    assert_eq!(other.state.heard.lock().requests.len(), 0, "no token leaves for a stranger");
    let mut named = config(&control, state.path());
    named.control.id = Some(workload);
    within(Sync::new(named, Metrics::new()).unwrap().obtain(None)).await.unwrap();
}

#[tokio::test]
async fn a_report_says_what_is_in_use() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    let report = within(control.report(|_| true)).await;
    let material = sidecar.identity.material();
    assert_eq!(report.instance, "web-0");
    assert_eq!(report.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(report.inbound, Some("0.0.0.0:15006".parse().unwrap()));
    assert_eq!(report.certificate.issuer, control.state.authority.lock().issuer_fingerprint());
    assert_eq!(report.certificate.not_after, material.svid.not_after().as_secs());
    assert_eq!((report.bundle, report.policy.accepted), (1, 0));
    assert_eq!((report.services, report.last_error), (Vec::new(), None));
    sidecar.shows("remora_control_connected 1\n").await;
}

#[tokio::test]
async fn a_service_that_is_called_is_told_at_once() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    within(control.report(|_| true)).await;
    sidecar.called.lock().extend(["orders.shop".to_owned(), "a.b".to_owned()]);
    sidecar.changed.notify_one();
    let report = within(control.report(|it| !it.services.is_empty())).await;
    assert_eq!(report.services, ["a.b", "orders.shop"]);
}

#[tokio::test]
async fn no_report_is_larger_than_control_reads() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    let label = "x".repeat(63);
    sidecar.called.lock().extend((0..5_000).map(|it| format!("{it:05}-{label}.{label}")));
    sidecar.changed.notify_one();
    let report = within(control.report(|it| !it.services.is_empty())).await;
    assert!(100 < report.services.len() && serde_json::to_vec(&report).unwrap().len() < 64 * 1024);
}

#[tokio::test]
async fn policy_is_in_force_as_soon_as_it_is_sent() {
    let control = StandIn::start().await;
    let mut sidecar = Sidecar::start(&control).await;
    control.say(&wire::Message::Policy(control.policy(3, &[("a.yaml", GOOD)])));
    within(control.report(|it| it.policy.accepted == 3)).await;
    assert_eq!(sidecar.policies.generation(), 2);
    assert!(within(sidecar.events.recv()).await.unwrap().starts_with("Accepted"));
    assert!(sidecar.page().contains("remora_control_generation 3\n"));
    // A file that is gone is gone from the folder.
    control.say(&wire::Message::Policy(control.policy(4, &[("b.yaml", GOOD)])));
    within(control.report(|it| it.policy.accepted == 4)).await;
    let names = fs::read_dir(policy_folder(sidecar.state.path())).unwrap();
    let names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
    assert!(names.iter().any(|it| it == "b.yaml") && !names.iter().any(|it| it == "a.yaml"));
}

#[tokio::test]
async fn a_watch_resumes_at_the_policy_in_force() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    let policy = control.policy(3, &[("a.yaml", GOOD), ("b.yaml", "")]);
    let has = Some(fingerprint(policy.payload.as_bytes()));
    control.say(&wire::Message::Policy(policy.clone()));
    within(control.report(|it| it.policy.accepted == 3)).await;
    // What is refused is not in force.
    control.say(&wire::Message::Policy(control.policy(4, &[("a.yaml", BAD)])));
    within(control.report(|it| it.policy.error.is_some())).await;
    control.state.lines.send_replace(Vec::new());
    control.disconnect();
    assert_eq!(within(control.watches(2)).await, [None, has.clone()]);
    let state = sidecar.stop();
    control.forget_reports();
    let mut again = Sidecar::of(state, &control, |_| ());
    assert_eq!(within(control.watches(3)).await[2], has);
    // It does the same with nothing sent as with what it has.
    for called in ["orders.shop", "users.shop"] {
        let report = within(control.report(|_| true)).await;
        let expected = wire::Policy { received: 3, accepted: 3, error: None };
        assert_eq!((report.policy, again.policies.generation()), (expected, 1));
        assert!(again.page().contains("remora_control_generation 3\n"));
        control.say(&wire::Message::Policy(policy.clone()));
        again.called.lock().push(called.to_owned());
        again.changed.notify_one();
        within(control.report(|it| it.services.iter().any(|it| it == called))).await;
    }
    assert!(again.events.try_recv().is_err(), "nothing has changed");
}

#[tokio::test]
async fn policy_that_is_gone_or_changed_is_not_said_to_be_there() {
    let changes: [fn(&Path); 4] = [
        |state| fs::remove_file(policy_folder(state).join("a.yaml")).unwrap(),
        |state| fs::write(policy_folder(state).join("a.yaml"), "").unwrap(),
        |state| fs::remove_dir_all(policy_folder(state)).unwrap(),
        |state| fs::remove_file(state.join("sync.json")).unwrap(),
    ];
    for change in changes {
        let control = StandIn::start().await;
        let sidecar = Sidecar::start(&control).await;
        let policy = control.policy(3, &[("a.yaml", GOOD)]);
        let has = fingerprint(policy.payload.as_bytes());
        control.say(&wire::Message::Policy(policy.clone()));
        within(control.report(|it| it.policy.accepted == 3)).await;
        control.state.lines.send_replace(Vec::new());
        let state = sidecar.stop();
        change(state.path());
        let again = Sidecar::of(state, &control, |_| ());
        assert_ne!(within(control.watches(2)).await[1], Some(has));
        control.say(&wire::Message::Policy(policy));
        let file = policy_folder(again.state.path()).join("a.yaml");
        within(async {
            while fs::read_to_string(&file).ok().as_deref() != Some(GOOD) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn control_hears_what_is_called_before_it_is_asked_for_policy() {
    let control = StandIn::start().await;
    let _sidecar = Sidecar::start(&control).await;
    within(control.watches(1)).await;
    let calls = control.state.heard.lock().calls.clone();
    assert_eq!(calls[..3], [wire::CERTIFICATES, wire::REPORT, wire::WATCH]);
}

#[tokio::test]
async fn an_empty_first_policy_is_told_as_one() {
    let control = StandIn::start().await;
    let mut sidecar = Sidecar::start(&control).await;
    control.say(&wire::Message::Policy(control.policy(1, &[])));
    within(control.report(|it| it.policy.accepted == 1)).await;
    assert!(within(sidecar.events.recv()).await.unwrap().starts_with("Accepted"));
    control.say(&wire::Message::Policy(control.policy(2, &[])));
    within(control.report(|it| it.policy.accepted == 2)).await;
    assert!(sidecar.events.try_recv().is_err(), "nothing has changed");
}

#[tokio::test]
async fn policy_that_is_not_ours_leaves_the_old_in_force() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    control.say(&wire::Message::Policy(control.policy(5, &[("a.yaml", GOOD)])));
    within(control.report(|it| it.policy.accepted == 5)).await;
    let web = "/ns/shop/sa/web";
    let own = "/ns/remora/sa/control";
    let mut tampered = control.policy(6, &[("a.yaml", "")]);
    tampered.payload = tampered.payload.replace("\"number\":6", "\"number\":7");
    for (envelope, words) in [
        (control.policy(4, &[]), "generation 4, and 5 is in force"),
        (tampered, "not signed by control"),
        (control.policy_by(web, "shop/web", 6, &[]), "which is not control"),
        (control.policy_by(own, "shop/other", 6, &[]), "is for `spiffe://td/ns/shop/sa/other`"),
        (control.policy(6, &[("../a.yaml", GOOD)]), "not a plain name"),
        (control.policy(6, &[("a.yaml", BAD)]), "a.yaml:1:"),
    ] {
        control.say(&wire::Message::Policy(envelope));
        let is_it = |it: &wire::Report| it.policy.error.iter().any(|it| it.contains(words));
        let report = within(control.report(is_it)).await;
        assert_eq!(report.policy.accepted, 5, "{words}");
        assert_eq!(sidecar.policies.generation(), 2, "{words}");
    }
    // The loader's own refusal is not in the folder either: a restart begins with the old.
    let state = sidecar.stop();
    control.state.lines.send_replace(Vec::new());
    let again = Sidecar::of(state, &control, |_| ());
    assert_eq!(again.policies.status().last_error, None);
    assert_eq!(again.policies.generation(), 1);
}

#[tokio::test]
async fn an_older_generation_is_refused_after_a_restart_too() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    control.say(&wire::Message::Policy(control.policy(5, &[("a.yaml", GOOD)])));
    within(control.report(|it| it.policy.accepted == 5)).await;
    let state = sidecar.stop();
    control.state.lines.send_replace(Vec::new());
    control.forget_reports();
    let again = Sidecar::of(state, &control, |_| ());
    assert_eq!(again.policies.generation(), 1, "the folder is read at once");
    control.say(&wire::Message::Policy(control.policy(4, &[])));
    let report = within(control.report(|it| it.policy.error.is_some())).await;
    assert_eq!((report.policy.accepted, report.policy.received), (5, 5));
}

#[tokio::test]
async fn new_roots_are_used_together_with_the_certificate() {
    let control = StandIn::start().await;
    let mut sidecar = Sidecar::start(&control).await;
    within(control.report(|_| true)).await;
    control.rotate();
    let bundle = control.state.bundle.lock().clone();
    control.say(&wire::Message::Bundle(bundle.clone()));
    within(control.report(|it| it.bundle == 2)).await;
    assert_eq!(sidecar.identity.material().roots.roots().len(), 2);
    assert!(within(sidecar.events.recv()).await.unwrap().starts_with("Rotated"));
    // Those that no start could read again change nothing, nor those that do not vouch for us.
    let roots = format!("{}{}", bundle.roots, "#".repeat(256 * 1024));
    control.say(&wire::Message::Bundle(wire::Bundle { sequence: 3, roots }));
    within(control.report(|it| it.last_error.is_some())).await;
    let state = identity_folder(sidecar.state.path());
    assert_eq!(Material::load(&state, clock::wall()).unwrap().roots.roots().len(), 2);
    control.say(&wire::Message::Bundle(bundle));
    within(control.report(|it| it.last_error.is_none())).await;
    let new_only = control.state.authority.lock().root_pem().to_owned();
    control.say(&wire::Message::Bundle(wire::Bundle { sequence: 3, roots: new_only.clone() }));
    let report = within(control.report(|it| it.last_error.is_some())).await;
    assert_eq!(report.bundle, 2, "{:?}", report.last_error);
    // With a certificate of the new issuer they do.
    let issuer = control.state.authority.lock().issuer_fingerprint().to_owned();
    control.say(&wire::Message::Renew { issuer: issuer.clone(), within: 0 });
    within(control.report(|it| it.certificate.issuer == issuer)).await;
    control.say(&wire::Message::Bundle(wire::Bundle { sequence: 4, roots: new_only }));
    within(control.report(|it| it.bundle == 4 && it.last_error.is_none())).await;
    assert_eq!(sidecar.identity.material().roots.roots().len(), 1);
}

#[tokio::test]
async fn a_sidecar_says_that_it_leaves() {
    let control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    within(control.report(|it| !it.leaving)).await;
    sidecar.drain.begin();
    within(control.report(|it| it.leaving)).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends() {
    let control = StandIn::start().await;
    control.be(Mood { life: Some(Duration::from_secs(3)), ..Mood::default() });
    let sidecar = Sidecar::start(&control).await;
    let first = sidecar.identity.material().serial();
    within(control.report(|it| it.certificate.serial == first)).await;
    within(control.report(|it| it.certificate.serial != first)).await;
    assert!(sidecar.page().contains("remora_certificate_renewals_total{result=\"ok\"} 1\n"));
    assert_eq!(control.state.heard.lock().by_token, 1);
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_replaced_by_the_token() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    let mut late = config(&control, state.path());
    // A clock that is two days ahead: the certificate has ended for it, and new ones have, too.
    late.wall = Arc::new(|| clock::wall() + Duration::from_hours(48));
    let sync = Sync::new(late, Metrics::new()).unwrap();
    let error = within(sync.obtain(None)).await.unwrap_err().words();
    // It even sees that control's own has ended.
    assert!(error.contains("expired"), "{error}");
    drop(sync);
    control.be(Mood { life: Some(Duration::from_secs(2)), ..Mood::default() });
    let sync = Sync::new(config(&control, state.path()), Metrics::new()).unwrap();
    within(sync.obtain(None)).await.unwrap();
    let folder = sync.identity_folder();
    within(async {
        while Material::load(&folder, clock::wall()).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    control.be(Mood::default());
    within(sync.join(|reason| panic!("{reason}"))).await;
    assert_eq!(control.state.heard.lock().by_token, 2);
}

#[tokio::test]
async fn a_folder_that_somebody_else_put_there_is_not_used() {
    let control = StandIn::start().await;
    let (state, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(elsewhere.path(), identity_folder(state.path())).unwrap();
    let error = Sync::new(config(&control, state.path()), Metrics::new()).unwrap_err();
    assert!(error.to_string().ends_with("it is a link, and should be a folder"), "{error}");
}

#[tokio::test]
async fn clocks_may_differ_by_five_minutes() {
    let skews: [fn() -> Duration; 2] = [
        || clock::wall() + Duration::from_secs(295),
        || clock::wall().saturating_sub(Duration::from_secs(295)),
    ];
    for skew in skews {
        let control = StandIn::start().await;
        let state = tempfile::tempdir().unwrap();
        let mut skewed = config(&control, state.path());
        skewed.wall = Arc::new(skew);
        within(Sync::new(skewed, Metrics::new()).unwrap().join(|reason| panic!("{reason}"))).await;
        let sidecar = Sidecar::of(state, &control, |it| it.wall = Arc::new(skew));
        control.say(&wire::Message::Policy(control.policy(1, &[("a.yaml", GOOD)])));
        within(control.report(|it| it.policy.accepted == 1)).await;
        assert_eq!(sidecar.policies.generation(), 2);
        assert_eq!(control.state.heard.lock().requests.len(), 1, "nothing to renew yet");
    }
}

#[tokio::test]
async fn control_that_comes_back_is_found_again() {
    let mut control = StandIn::start().await;
    let sidecar = Sidecar::start(&control).await;
    sidecar.shows("remora_control_connected 1\n").await;
    control.stop();
    control.forget_reports();
    sidecar.shows("remora_control_connected 0\n").await;
    control.start_again().await;
    within(control.report(|_| true)).await;
    assert_eq!(control.state.heard.lock().by_token, 1, "the certificate is good still");
}

#[tokio::test]
async fn control_that_holds_the_line_is_given_up() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    control.be(Mood { is_mute: true, ..Mood::default() });
    let sidecar = Sidecar::of(state, &control, |it| it.pace.dial = Duration::from_millis(20));
    within(async {
        while control.state.heard.lock().watches.is_empty() {
            if sidecar.page().contains("remora_control_connected 0\n") {
                control.be(Mood::default());
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_is_silent_is_given_up() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    let sidecar = Sidecar::of(state, &control, |it| it.pace.silence = Duration::from_millis(50));
    within(control.watches(3)).await;
    drop(sidecar);
}

#[tokio::test]
async fn a_certificate_that_control_does_not_know_is_replaced_by_the_token() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    // As after a rotation that this sidecar has slept through.
    control.rotate();
    {
        let mut bundle = control.state.bundle.lock();
        bundle.roots = control.state.authority.lock().root_pem().to_owned();
        fs::write(control.roots(), &bundle.roots).unwrap();
    }
    let _sidecar = Sidecar::of(state, &control, |_| ());
    let issuer = control.state.authority.lock().issuer_fingerprint().to_owned();
    within(control.report(|it| it.certificate.issuer == issuer)).await;
    assert_eq!(control.state.heard.lock().by_token, 2);
}

#[tokio::test]
async fn a_report_that_is_refused_does_not_end_the_watch() {
    let control = StandIn::start().await;
    let state = joined(&control).await;
    control.be(Mood { refuses_reports: true, ..Mood::default() });
    let sidecar = Sidecar::of(state, &control, |_| ());
    control.say(&wire::Message::Policy(control.policy(1, &[("a.yaml", GOOD)])));
    within(async {
        while sidecar.policies.generation() != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    control.be(Mood::default());
    within(control.report(|it| it.policy.accepted == 1)).await;
    assert_eq!(control.state.heard.lock().watches.len(), 1);
}

#[tokio::test]
async fn a_refused_renewal_is_told_and_tried_again() {
    let control = StandIn::start().await;
    control.be(Mood { life: Some(Duration::from_secs(4)), ..Mood::default() });
    let sidecar = Sidecar::start(&control).await;
    let first = sidecar.identity.material().serial();
    control.be(Mood { refuses: Some(StatusCode::TOO_MANY_REQUESTS), ..Mood::default() });
    let report = within(control.report(|it| it.last_error.is_some())).await;
    assert!(report.last_error.unwrap().contains("not today"));
    control.be(Mood::default());
    let renewed = |it: &wire::Report| it.certificate.serial != first && it.last_error.is_none();
    within(control.report(renewed)).await;
    within(control.watches(2)).await;
}

#[tokio::test]
async fn what_is_not_understood_is_passed_over() {
    let control = StandIn::start().await;
    let _sidecar = Sidecar::start(&control).await;
    control.say_line(r#"{"type":"tomorrow","much":true}"#.to_owned());
    control.say_line("not json".to_owned());
    control.say(&wire::Message::Policy(control.policy(1, &[("a.yaml", GOOD)])));
    within(control.report(|it| it.policy.accepted == 1)).await;
    assert_eq!(control.state.heard.lock().watches.len(), 1);
}

#[tokio::test]
async fn a_line_without_end_is_given_up() {
    let control = StandIn::start().await;
    control.say_line("x".repeat(wire::BYTES_MAX + (1 << 20)));
    let _sidecar = Sidecar::start(&control).await;
    within(control.watches(2)).await;
}

#[tokio::test]
async fn somebody_elses_certificate_is_used_and_not_written() {
    let control = StandIn::start().await;
    let (state, elsewhere) = (tempfile::tempdir().unwrap(), joined(&control).await);
    let folder = identity_folder(elsewhere.path());
    let certificate = fs::read(folder.join("tls.crt")).unwrap();
    let source = Source::Folder(folder.clone());
    let sidecar = Sidecar::of(state, &control, |it| it.source = source);
    let bundle = control.state.bundle.lock().clone();
    control.say(&wire::Message::Renew { issuer: "00".to_owned(), within: 0 });
    control.say(&wire::Message::Bundle(wire::Bundle { sequence: 9, ..bundle }));
    control.say(&wire::Message::Policy(control.policy(1, &[("a.yaml", GOOD)])));
    let report = within(control.report(|it| it.policy.accepted == 1)).await;
    assert_eq!(report.bundle, 9, "the same roots are those in use");
    assert_eq!(control.state.heard.lock().requests.len(), 1);
    assert_eq!(fs::read(folder.join("tls.crt")).unwrap(), certificate);
    assert!(!identity_folder(sidecar.state.path()).exists());
}
