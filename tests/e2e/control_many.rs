//! Many: five hundred sidecars of one control, in one process.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use remora::{
    clock,
    config::{self, Policies, settings},
    drain::{self, Drain},
    identity::Identity,
    sync::{self, Host, Pace, Source, Sync},
    telemetry::Metrics,
};
use remora_certs::{
    authority::{Authority, Leaf},
    spiffe_id::SpiffeId,
};
use tokio::{sync::Notify, time};

use crate::{
    pods::TRUST_DOMAIN,
    pods_control::{Control, State},
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] =
    &[("control_500_sidecars_connect_renew_and_get_a_push", five_hundred)];

const COUNT: usize = 500;

/// How long each step may take, for all of them and on a machine that is slow.
const PATIENCE: Duration = Duration::from_mins(2);

const POLICY: &str = "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all, namespace: shop}
spec: {mtls: {mode: strict}}
";

/// What they have done so far, all together.
#[derive(Debug, Default)]
struct Done {
    rotated: AtomicUsize,
    accepted: AtomicUsize,
    changed: Notify,
}

impl Done {
    fn one_more(&self, of: &AtomicUsize) {
        of.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
    }

    async fn until(&self, what: &str, of: &AtomicUsize, wanted: usize) -> Duration {
        let began = clock::now();
        let all = async {
            while of.load(Ordering::SeqCst) < wanted {
                self.changed.notified().await;
            }
        };
        let done = time::timeout(PATIENCE, all).await;
        assert!(done.is_ok(), "{what}: {} of {wanted}", of.load(Ordering::SeqCst));
        clock::now() - began
    }
}

fn five_hundred() {
    let [many, away] = Topology::of(["many", "control"]);
    let control = Control::start(&away, "1h");
    let state = State::of("64m");
    let authority = Authority::open(&control.authority()).unwrap();
    let folders: Vec<_> = (0..COUNT).map(|it| state.path().join(it.to_string())).collect();
    for (number, folder) in folders.iter().enumerate() {
        // So short that it is renewed at once.
        let id = SpiffeId::workload(TRUST_DOMAIN, "shop", &format!("w{number}")).unwrap();
        let life = Duration::from_mins(20);
        let leaf = Leaf { id: &id, life, dns_names: &[], addresses: &[] };
        let issued = authority.issue(&leaf, clock::wall().saturating_sub(life * 9 / 10)).unwrap();
        let folder = sync::identity_folder(folder);
        fs::create_dir_all(&folder).unwrap();
        issued.write(&folder, clock::wall()).unwrap();
    }
    let (address, roots) = (control.address(), control.roots());
    let work = move || async move {
        let (done, metrics) = (Arc::<Done>::default(), Metrics::new());
        let running: Vec<_> = folders
            .iter()
            .map(|it| drain::spawn("sidecar", sidecar(it, address, &roots, &done, &metrics)))
            .collect();
        let renewed = done.until("renewed", &done.rotated, COUNT).await;
        // The first generation is that of the empty folder.
        done.until("first policy", &done.accepted, COUNT).await;
        control.policy.write("all.yaml", POLICY);
        let pushed = done.until("pushed", &done.accepted, 2 * COUNT).await;
        running.iter().for_each(tokio::task::JoinHandle::abort);
        crate::runner::say(&format!("(renewed in {renewed:.1?}, pushed in {pushed:.1?}) "));
    };
    many.start_for(3 * PATIENCE, work).join();
}

/// A sidecar as far as control sees it.
fn sidecar(
    folder: &Path,
    address: SocketAddr,
    roots: &Path,
    done: &Arc<Done>,
    metrics: &Metrics,
) -> impl Future<Output = ()> + Send + use<> {
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let config = sync::Config {
        control: settings::Control {
            host: address.ip().to_string(),
            port: address.port(),
            token: None,
            roots: Some(roots.to_owned()),
            id: None,
            instance: None,
        },
        source: Source::Control,
        state: folder.to_owned(),
        instance: format!("w{name}-0"),
        inbound: None,
        resolve: Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) })),
        wall: sync::wall(),
        // One thread does the handshakes of them all, and control's beside it.
        pace: Pace {
            dial: Duration::from_secs(30),
            retry: (Duration::from_secs(1), Duration::from_secs(5)),
            ..Pace::default()
        },
        seed: name.parse().unwrap(),
    };
    let sync = Sync::new(config, metrics.clone()).unwrap();
    let identity = Identity::from_folder(&sync.identity_folder()).unwrap();
    let context = config::Context {
        namespace: "shop".to_owned(),
        service_account: Some(format!("w{name}")),
        zone: None,
    };
    let (policies, _) = Policies::load(Some(&sync.policy_folder()), context);
    let (of_identity, of_policy) = (Arc::clone(done), Arc::clone(done));
    sync.run(Host {
        identity,
        policies,
        drain: Drain::new(),
        services: Arc::new(Vec::new),
        changed: Arc::new(Notify::new()),
        on_identity: Arc::new(move |_| of_identity.one_more(&of_identity.rotated)),
        on_trouble: Arc::new(|_| ()),
        on_policy: Arc::new(move |event| {
            if matches!(event, config::Event::Accepted { .. }) {
                of_policy.one_more(&of_policy.accepted);
            }
        }),
    })
}
