//! Pods: applications with a sidecar each in explicit mode, and what they share.
//!
//! Every sidecar listens at the same ports of its host: callers at [`SERVICE`], the
//! application itself at [`OUTBOUND`], operators at [`ADMIN`]. What is asserted of one is
//! what an operator sees: metrics, health, the log.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use http::Version;
use remora::clock;
use remora_certs::{
    authority::{self, Authority, Issued, Leaf, Plan},
    folder::{self, File},
    spiffe_id::SpiffeId,
};
use tempfile::TempDir;
use tokio::{runtime, time};

use crate::{
    dns::Dns,
    host::{Host, PATIENCE},
    http::{self as web, Answer, App},
    process::{Process, remora},
    topology::Topology,
};

/// Where the application listens.
pub(crate) const APP: u16 = 9000;

/// Where its callers find its sidecar.
pub(crate) const SERVICE: u16 = 8080;

/// Where the application finds its own sidecar.
pub(crate) const OUTBOUND: u16 = 15_001;

/// Where operators do.
pub(crate) const ADMIN: u16 = 15_020;

/// How callers call the service of the pod `orders`.
pub(crate) const ORDERS: &str = "orders.shop:8080";

/// Its name in metrics.
pub(crate) const ORDERS_LABEL: (&str, &str) = ("service", "shop/orders");

/// The trust domain of every [`Mesh`].
pub(crate) const TRUST_DOMAIN: &str = "mesh.test";

/// The namespace of every account.
pub(crate) const NAMESPACE: &str = "shop";

const DAY: Duration = Duration::from_hours(24);

/// Between two looks at something there is no event for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// An authority and the folders it writes to.
#[derive(Debug)]
pub(crate) struct Mesh {
    dir: TempDir,
}

impl Mesh {
    /// A new root and issuer.
    pub(crate) fn new() -> Self {
        let dir = readable_dir();
        let plan = Plan { trust_domain: TRUST_DOMAIN, root_life: 20 * DAY, issuer_life: 10 * DAY };
        let made = authority::create(&dir.path().join("authority"), &plan, clock::wall());
        drop(made.expect("an authority can be made"));
        Self { dir }
    }

    /// The folder of the root's and issuer's files.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("authority")
    }

    /// The root's certificate.
    pub(crate) fn root(&self) -> String {
        fs::read_to_string(self.authority().join(authority::ROOT_CERTIFICATE)).expect("the root")
    }

    /// The folder that the sidecar of `account` watches.
    pub(crate) fn folder(&self, account: &str) -> PathBuf {
        self.dir.path().join(account)
    }

    /// A new certificate for `account`, not written yet.
    pub(crate) fn leaf(&self, account: &str) -> Issued {
        let id = SpiffeId::workload(TRUST_DOMAIN, NAMESPACE, account).expect("an id");
        let leaf = Leaf { id: &id, life: DAY, dns_names: &[], addresses: &[] };
        let authority = Authority::open(&self.authority()).expect("the authority");
        authority.issue(&leaf, clock::wall()).expect("a leaf can be issued")
    }

    /// Issues a new certificate for `account` into its folder.
    pub(crate) fn issue(&self, account: &str) -> PathBuf {
        self.write(account, &self.leaf(account), &self.root())
    }

    /// Writes a certificate of anybody's, and the roots to trust, into the folder of `account`.
    pub(crate) fn write(&self, account: &str, leaf: &Issued, roots: &str) -> PathBuf {
        let file = |name, content| File { name, content, secret: false };
        let files = [
            file("tls.crt", leaf.chain.as_bytes()),
            file("tls.key", leaf.key.as_bytes()),
            file("ca.crt", roots.as_bytes()),
        ];
        let folder = self.folder(account);
        folder::replace(&folder, &files, clock::wall()).expect("the folder can be written");
        folder
    }
}

/// A folder for files that sidecars read.
pub(crate) fn readable_dir() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let permissions = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.path(), permissions).expect("it is ours");
    dir
}

/// A sidecar that is not running yet.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    arguments: Vec<String>,
    without: Vec<&'static str>,
}

impl Setup {
    /// With this identity, and everything else by default.
    pub(crate) fn new(identity: &Path) -> Self {
        let setup = Self { arguments: Vec::new(), without: Vec::new() };
        setup.with("--identity", identity.to_str().expect("a plain path"))
    }

    /// Without mutual TLS.
    pub(crate) fn nobody() -> Self {
        Self { arguments: Vec::new(), without: Vec::new() }.with("--identity", "none")
    }

    /// With one more flag.
    pub(crate) fn with(mut self, flag: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// With a flag that has no value.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.arguments.push(flag.to_owned());
        self
    }

    /// Without a flag that it would have by default.
    pub(crate) fn without(mut self, flag: &'static str) -> Self {
        self.without.push(flag);
        self
    }

    /// The command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = remora();
        command.args(self.arguments());
        command
    }

    /// What it gives the program.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let given = |flag: &str| self.arguments.iter().any(|it| it == flag);
        let mut arguments = self.arguments.clone();
        for (flag, value) in [
            ("--app", format!("127.0.0.1:{APP}")),
            ("--inbound", format!("0.0.0.0:{SERVICE},[::]:{SERVICE}")),
            ("--outbound", format!("127.0.0.1:{OUTBOUND}")),
            ("--admin", format!("0.0.0.0:{ADMIN}")),
            ("--namespace", NAMESPACE.to_owned()),
            ("--access-log", "all".to_owned()),
            ("--lame-duck", "0s".to_owned()),
        ] {
            if !given(flag) && !self.without.contains(&flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments
    }

    /// Starts it on `host`, and returns when it is ready.
    pub(crate) fn start(&self, host: &Host) -> Sidecar {
        let sidecar = self.begin(host);
        sidecar.process.wait_for("ready to serve");
        sidecar
    }

    /// Starts it on `host`.
    pub(crate) fn begin(&self, host: &Host) -> Sidecar {
        Sidecar::new(host, host.spawn(self.command()))
    }
}

/// A running sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    host: Host,
    /// Its process.
    pub(crate) process: Process,
}

impl Sidecar {
    /// The sidecar of `host`, which is `process`.
    pub(crate) fn new(host: &Host, process: Process) -> Self {
        Self { host: host.clone(), process }
    }

    /// What admin says about `path`.
    pub(crate) fn admin(&self, path: &'static str) -> Answer {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ADMIN);
        self.host.run(move || async move {
            web::fetch(Version::HTTP_11, to, "admin", path).await.expect("admin answers")
        })
    }

    /// The sum of all samples of `name` that have these labels.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let page = self.admin("/metrics");
        let of_name = page.text().lines().filter_map(|it| it.strip_prefix(name));
        let matching = of_name.filter_map(|rest| {
            let (found, value) = rest.rsplit_once(' ')?;
            let exact = found.is_empty() || found.starts_with('{');
            let has = |(key, value): &(&str, &str)| found.contains(&format!("{key}=\"{value}\""));
            (exact && labels.iter().all(has)).then(|| value.parse::<f64>().expect("a number"))
        });
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a count")]
        let sum = matching.sum::<f64>() as u64;
        sum
    }

    /// Waits until [`Self::count`] is what is wanted.
    pub(crate) fn until(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(u64) -> bool) {
        let mut last = 0;
        let reached = eventually(|| {
            last = self.count(name, labels);
            wanted(last)
        });
        assert!(reached, "`{name}` {labels:?} is {last} and stays so");
    }

    /// Waits until the log has a line with all of `words`, and returns it.
    pub(crate) fn log(&self, words: &[&str]) -> String {
        let mut line = None;
        let found = eventually(|| {
            let output = self.process.output();
            line = output
                .lines()
                .find(|it| words.iter().all(|word| it.contains(word)))
                .map(Into::into);
            line.is_some()
        });
        assert!(found, "no line of the log has {words:?}");
        line.unwrap_or_default()
    }

    /// How many lines of the log have all of `words`.
    pub(crate) fn logged(&self, words: &[&str]) -> usize {
        let output = self.process.output();
        output.lines().filter(|it| words.iter().all(|word| it.contains(word))).count()
    }
}

/// Looks until `done`, no longer than anything may take.
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let runtime = runtime::Builder::new_current_thread().enable_time().build();
    let end = clock::now() + PATIENCE;
    runtime.expect("a runtime").block_on(async {
        let mut look = time::interval(LOOK_AGAIN);
        while clock::now() < end {
            look.tick().await;
            if done() {
                return true;
            }
        }
        false
    })
}

/// The pods `web`, which calls, and `orders`, which answers, and a name server.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The authority of both.
    pub(crate) mesh: Mesh,
    /// The name server of both.
    pub(crate) dns: Dns,
    /// Who calls.
    pub(crate) web: Host,
    /// Who answers.
    pub(crate) orders: Host,
    /// The sidecar of `web`.
    pub(crate) client: Sidecar,
    /// The sidecar of `orders`.
    pub(crate) server: Sidecar,
    /// The application of `orders`.
    pub(crate) app: App,
}

impl Pair {
    /// Both with an identity and no policy.
    pub(crate) fn new() -> Self {
        Self::with(|it| it, |it| it)
    }

    /// With more flags for the caller's and for the other sidecar.
    pub(crate) fn with(
        client: impl FnOnce(Setup) -> Setup,
        server: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let [web, orders] = Topology::of(["web", "orders"]);
        let (mesh, dns) = (Mesh::new(), web.dns());
        dns.set("orders.shop", &[orders.v4()], 1);
        let app = orders.http_app(APP);
        let setup = |account: &str| Setup::new(&mesh.issue(account)).with("--dns", &web.v4());
        let server = server(setup("orders")).start(&orders);
        let client = client(setup("web")).start(&web);
        Self { mesh, dns, web, orders, client, server, app }
    }

    /// Asks the orders for `path`, as the application `web` does.
    pub(crate) fn get(&self, path: &'static str) -> Answer {
        call(&self.web, ORDERS, path)
    }
}

/// Asks the service `name` for `path` from the application on `host`, by its sidecar.
pub(crate) fn call(host: &Host, name: &str, path: &'static str) -> Answer {
    let name = name.to_owned();
    let got = host.run(move || async move {
        let got = web::fetch(Version::HTTP_11, outbound(), &name, path).await;
        got.map_err(|it| it.to_string())
    });
    got.unwrap_or_else(|it| panic!("no answer to `{path}`: {it}"))
}

/// A folder of policy documents.
#[derive(Debug)]
pub(crate) struct Policy {
    dir: TempDir,
}

/// A folder with these documents.
pub(crate) fn policy(files: &[(&str, &str)]) -> Policy {
    let policy = Policy { dir: readable_dir() };
    for (name, text) in files {
        policy.write(name, text);
    }
    policy
}

impl Policy {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes one document in place of the one before, by a rename.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.path().join(format!(".{name}.new"));
        fs::write(&beside, text).expect("the folder can be written");
        fs::rename(&beside, self.path().join(name)).expect("the folder can be written");
    }
}

/// Where an application finds its sidecar.
pub(crate) fn outbound() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), OUTBOUND)
}

/// Where callers find that of `address`.
pub(crate) fn inbound(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, SERVICE)
}
