//! Mesh: sidecars in front of hosts, with identities of one authority, and the routes from
//! one application to another through two of them.

use std::{
    fs::{self, Permissions},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use http::Version;
use remora::{clock, intercept};
use remora_certs::{
    authority::{self, Authority, Leaf, Plan},
    spiffe_id::SpiffeId,
};
use tempfile::TempDir;
use tokio::time;

use crate::{
    host::{Host, PATIENCE, config},
    http::fetch,
    metrics::Page,
    process::{Process, folder, remora},
    runner,
    topology::Topology,
};

/// The port of the sidecar that answers probes and scrapes.
pub(crate) const ADMIN: u16 = 15_020;
/// The port of the listener for the application's own calls.
pub(crate) const OUTBOUND: u16 = 15_001;
/// The port of the listener for the application's callers.
pub(crate) const INBOUND: u16 = 15_006;
/// The port callers know the application by.
pub(crate) const SERVICE: u16 = 8080;
/// The port of an application behind a sidecar in explicit mode.
pub(crate) const BEHIND: u16 = 9090;

const TRUST_DOMAIN: &str = "cluster.local";
const NAMESPACE: &str = "shop";

/// Between two looks at something there is no event for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// One trust domain: an authority and the folders it issues into.
#[derive(Debug)]
pub(crate) struct Mesh {
    folder: TempDir,
    authority: Authority,
}

impl Mesh {
    /// A new authority of `cluster.local`.
    pub(crate) fn new() -> Self {
        let folder = folder();
        let day = Duration::from_hours(24);
        let plan = Plan { trust_domain: TRUST_DOMAIN, root_life: 20 * day, issuer_life: 10 * day };
        let made = authority::create(&folder.path().join("ca"), &plan, clock::wall());
        for it in ["identities", "policies"] {
            let path = folder.path().join(it);
            fs::create_dir(&path).expect("the folder is new");
            // The user of the sidecar writes there: keys are for nobody else's eyes.
            let everybody = Permissions::from_mode(0o777);
            fs::set_permissions(&path, everybody).expect("it is ours");
        }
        Self { folder, authority: made.expect("an authority can be made") }
    }

    /// The SPIFFE ID of `account`.
    pub(crate) fn id(account: &str) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}")
    }

    /// Issues a certificate for `account` to the sidecar of `host`, in place of the one
    /// before, and says where it is.
    pub(crate) fn issue(&self, host: &Host, account: &str) -> PathBuf {
        let id: SpiffeId = Self::id(account).parse().expect("an id");
        let life = Duration::from_hours(24);
        let leaf = Leaf { id: &id, life, dns_names: &[], addresses: &[] };
        let now = clock::wall();
        let issued = self.authority.issue(&leaf, now).expect("the authority is valid");
        let into = self.folder.path().join("identities").join(host.name());
        let written = host.as_proxy().within(|| issued.write(&into, now));
        written.expect("the folder is writable");
        into
    }

    /// Writes a document for the sidecar of `host`, which has not been started yet.
    pub(crate) fn write_policy(&self, host: &Host, document: &str) {
        let folder = self.folder.path().join("policies").join(host.name());
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(folder.join("a.yaml"), document).expect("the folder is writable");
    }

    /// A sidecar of `host` in capture mode, for the workload `account`, when it is ready.
    pub(crate) fn captured(&self, host: &Host, account: &str, options: &[&str]) -> Sidecar {
        let sidecar = self.start(host, account, &[&["--mode", "capture"], options].concat());
        let applied = host.intercept(intercept::Command::Apply, &config());
        applied.unwrap_or_else(|it| panic!("{it}"));
        sidecar
    }

    /// A sidecar of `host` in explicit mode: in front of `app`, callers come to [`SERVICE`].
    pub(crate) fn explicit(&self, host: &Host, account: &str, options: &[&str]) -> Sidecar {
        let (inbound, app) =
            (format!("0.0.0.0:{SERVICE},[::]:{SERVICE}"), format!("127.0.0.1:{BEHIND}"));
        let mode = ["--mode", "explicit", "--inbound", &inbound, "--app", &app];
        self.start(host, account, &[&mode, options].concat())
    }

    fn start(&self, host: &Host, account: &str, options: &[&str]) -> Sidecar {
        let identity = self.issue(host, account);
        let policy = self.folder.path().join("policies").join(host.name());
        fs::create_dir_all(&policy).expect("the folder can be made");
        let mut command = remora();
        command.arg("--identity").arg(&identity).arg("--policy").arg(&policy);
        command.args(["--access-log", "all", "--namespace", NAMESPACE]).args(options);
        Sidecar::start(host, command)
    }
}

/// A running sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    host: Host,
    process: Process,
}

impl Sidecar {
    /// Starts `command` and waits until it is ready.
    fn start(host: &Host, command: Command) -> Self {
        let host = host.as_proxy();
        let process = host.spawn(command);
        host.listening(ADMIN);
        let sidecar = Self { host, process };
        sidecar.host.run(|| async {
            let mut look = time::interval(LOOK_AGAIN);
            while admin("/health/ready").await.0 != 200 {
                look.tick().await;
            }
        });
        sidecar
    }

    /// The process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// What it counts now.
    pub(crate) fn metrics(&self) -> Page {
        let (status, page) = self.host.run(|| admin("/metrics"));
        assert_eq!(status, 200);
        Page::new(page)
    }

    /// Waits until what it counts is as `expected` says, and returns it.
    pub(crate) fn metrics_when(&self, expected: impl Fn(&Page) -> bool) -> Page {
        let began = clock::now();
        loop {
            let page = self.metrics();
            if expected(&page) {
                return page;
            }
            assert!(clock::now() - began < PATIENCE, "still counted:\n{page}");
        }
    }

    /// Asserts that it came to no harm.
    pub(crate) fn is_well(&self) {
        let page = self.metrics();
        assert_eq!(page.sum("remora_panics_total", &[]), 0, "a panic was caught");
    }

    /// Its lines in the access log for `path` so far, as JSON.
    pub(crate) fn access_log(&self, path: &str) -> Vec<serde_json::Value> {
        let output = self.process.output();
        let lines = output.lines().filter_map(|it| serde_json::from_str(it).ok());
        lines.filter(|it: &serde_json::Value| it["path"] == path).collect()
    }

    /// Bytes of memory it has in use.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).expect("a line");
        let kib = line.trim().strip_suffix(" kB").and_then(|it| it.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }
}

/// Status and body of the admin server of this host.
async fn admin(path: &str) -> (u16, String) {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
    let answer = fetch(Version::HTTP_11, at, "admin", path).await;
    let answer = answer.unwrap_or_else(|it| panic!("no answer from the admin server: {it}"));
    (answer.status, answer.text().to_owned())
}

/// How connections get to the sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By packet rules.
    Capture,
    /// By address.
    Explicit,
}

/// Two hosts, `web` and `orders`, each with a sidecar.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) mode: Mode,
    pub(crate) client: Host,
    pub(crate) server: Host,
    pub(crate) near: Sidecar,
    pub(crate) far: Sidecar,
    _mesh: Mesh,
}

/// One way from an application to another.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The mode and the family.
    pub(crate) name: String,
    /// Where the client connects to.
    pub(crate) to: SocketAddr,
    /// Whom it asks for.
    pub(crate) authority: String,
}

impl Pair {
    /// Both sidecars in one mode; the application of the server goes to
    /// [`Pair::app_port`].
    pub(crate) fn new(mode: Mode) -> Self {
        let [client, server] = Topology::of(["web", "orders"]);
        let mesh = Mesh::new();
        let (near, far) = match mode {
            Mode::Capture => {
                (mesh.captured(&client, "web", &[]), mesh.captured(&server, "orders", &[]))
            }
            Mode::Explicit => {
                (mesh.explicit(&client, "web", &[]), mesh.explicit(&server, "orders", &[]))
            }
        };
        Self { mode, client, server, near, far, _mesh: mesh }
    }

    /// Both sidecars in explicit mode, and the near ends of tunnels to the application of
    /// the server: one for each family.
    pub(crate) fn tunnelled() -> (Self, [SocketAddr; 2]) {
        let [client, server] = Topology::of(["web", "orders"]);
        let mesh = Mesh::new();
        let [v4, v6] = server.addresses().map(|it| SocketAddr::new(it, SERVICE));
        let ends = [7004, 7006].map(|it| SocketAddr::from((Ipv4Addr::LOCALHOST, it)));
        let tunnels = format!("{}={v4},{}={v6}", ends[0], ends[1]);
        let near = mesh.explicit(&client, "web", &["--tcp", &tunnels]);
        let far = mesh.explicit(&server, "orders", &[]);
        (Self { mode: Mode::Explicit, client, server, near, far, _mesh: mesh }, ends)
    }

    /// The port the application of the server listens on.
    pub(crate) fn app_port(&self) -> u16 {
        match self.mode {
            Mode::Capture => SERVICE,
            Mode::Explicit => BEHIND,
        }
    }

    /// The way over each family.
    pub(crate) fn routes(&self) -> [Route; 2] {
        self.routes_to(SERVICE)
    }

    /// The way to another port of the server; only in capture mode is there one.
    pub(crate) fn routes_to(&self, port: u16) -> [Route; 2] {
        self.server.addresses().map(|address| {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let there = SocketAddr::new(address, port);
            let outbound: std::net::IpAddr = match address {
                std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                std::net::IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            let to = match self.mode {
                Mode::Capture => there,
                Mode::Explicit => SocketAddr::new(outbound, OUTBOUND),
            };
            let name = format!("{:?} mode over {family}", self.mode);
            Route { name, to, authority: there.to_string() }
        })
    }

    /// Runs `check` for each route; which one failed is said.
    pub(crate) fn each_route(&self, check: impl Fn(Route)) {
        for route in self.routes() {
            each(&route.name, || check(route.clone()));
        }
        self.near.is_well();
        self.far.is_well();
    }
}

/// Runs one row of a table of cases; its name is said if it fails.
pub(crate) fn each(name: &str, check: impl FnOnce()) {
    /// Says it when dropped in a panic.
    struct Row<'a>(&'a str);
    impl Drop for Row<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                runner::say(&format!("\n--- failed: {}\n", self.0));
            }
        }
    }
    let _row = Row(name);
    check();
}

/// Runs `check` for a pair in each mode.
pub(crate) fn both_modes(check: impl Fn(&Pair)) {
    for mode in [Mode::Capture, Mode::Explicit] {
        check(&Pair::new(mode));
    }
}
