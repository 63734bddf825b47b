//! Pods with control: sidecars that get certificates and policy from `remora-control serve`.

use std::{
    cell::RefCell,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use remora::clock;
use remora_certs::authority::{self, Plan};
use tempfile::TempDir;

use crate::{
    control::FLAG,
    dns::Dns,
    host::Host,
    http::{Answer, App},
    pods::{APP, ORDERS, Policy, Setup, Sidecar, TRUST_DOMAIN, call, policy, readable_dir},
    process::Process,
    topology::Topology,
};

/// Where the API is.
const API: u16 = 15_030;

/// A control, its authority and its folder of policy.
#[derive(Debug)]
pub(crate) struct Control {
    host: Host,
    dir: TempDir,
    /// What it publishes.
    pub(crate) policy: Policy,
    leaf_life: &'static str,
    process: RefCell<Option<Process>>,
}

impl Control {
    /// A new authority, served on `host`; certificates of workloads last for `leaf_life`.
    pub(crate) fn start(host: &Host, leaf_life: &'static str) -> Self {
        let dir = readable_dir();
        let day = std::time::Duration::from_hours(24);
        let plan = Plan { trust_domain: TRUST_DOMAIN, root_life: 20 * day, issuer_life: 10 * day };
        let made = authority::create(&dir.path().join("authority"), &plan, clock::wall());
        fs::write(dir.path().join("roots.pem"), made.expect("an authority").root_pem())
            .expect("the folder is ours");
        let (host, policy, process) = (host.clone(), policy(&[]), RefCell::new(None));
        let control = Self { host, dir, policy, leaf_life, process };
        control.start_again();
        control
    }

    /// Starts it where it was killed.
    pub(crate) fn start_again(&self) {
        let policy = self.policy.path().display().to_string();
        let listen = format!("0.0.0.0:{API}");
        let process = self.command(&[
            "serve",
            "--policy",
            &policy,
            "--listen",
            &listen,
            "--leaf-life",
            self.leaf_life,
        ]);
        self.host.listening(API);
        *self.process.borrow_mut() = Some(process);
    }

    /// Kills it as the kernel would that is out of memory.
    pub(crate) fn kill(&self) {
        let mut process = self.process.borrow_mut().take().expect("it runs");
        process.signal(Signal::SIGKILL);
        assert!(!process.wait().success());
    }

    /// Runs another of its commands to its end, and returns what it wrote.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let server = format!("https://127.0.0.1:{API}");
        let of_server: &[&str] = match arguments.first() {
            Some(&"token") => &[],
            _ => &["--server", &server],
        };
        let mut process = self.command(&[arguments, of_server].concat());
        assert!(process.wait().success(), "{}", process.output());
        process.output()
    }

    fn command(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new("/proc/self/exe");
        command.arg(FLAG).args(arguments).arg("--dir").arg(self.authority());
        self.host.spawn(command)
    }

    /// The folder of its authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("authority")
    }

    /// The file of the roots that sidecars begin with.
    pub(crate) fn roots(&self) -> PathBuf {
        self.dir.path().join("roots.pem")
    }

    /// Where its API is.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host.v4(), API)
    }

    /// A sidecar of `account` with a new token, that keeps what it gets in `state`.
    pub(crate) fn setup(&self, account: &str, state: &State) -> Setup {
        let create = ["token", "create", "--namespace", "shop", "--service-account", account];
        let said = self.run(&create);
        // Both streams are in it, as they came.
        let from = said.find("remora-join-").map(|at| said.split_at(at).1).expect("a token");
        let token = from.split_whitespace().next().expect("a token");
        let file = self.dir.path().join(format!("{account}.token"));
        fs::write(&file, token).expect("the folder is ours");
        Setup::new(Path::new("control"))
            .with("--control", &format!("https://{}", self.address()))
            .with("--control-token", &file.display())
            .with("--control-ca", &self.roots().display())
            .with("--state", &state.path().display())
            .with("--instance", &format!("{account}-0"))
    }

    /// What it knows of its sidecars.
    pub(crate) fn status(&self) -> serde_json::Value {
        let said = self.run(&["status", "--json"]);
        serde_json::from_str(&said).unwrap_or_else(|it| panic!("{it}: {said}"))
    }
}

/// A folder in memory. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct State {
    dir: TempDir,
}

impl State {
    /// A folder with room for `size`, as `mount -o size=` has it.
    pub(crate) fn of(size: &str) -> Self {
        let dir = readable_dir();
        let options = format!("size={size},mode=0777");
        mount(Some("state"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("memory can be mounted");
        Self { dir }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Takes what room there is left; returns the file to remove.
    pub(crate) fn fill(&self) -> PathBuf {
        let file = self.dir.path().join("filling");
        // It ends with an error when there is no room any more, which is what is wanted.
        let _full = fs::write(&file, vec![0; 8 << 20]).is_err();
        file
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Only a mount that is gone already cannot be removed.
        let _gone = umount2(self.dir.path(), MntFlags::MNT_DETACH).is_ok();
    }
}

/// The pods `web`, which calls, and `orders`, which answers, both with certificates of
/// control on a host of its own.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// Who calls.
    pub(crate) web: Host,
    /// Who answers.
    pub(crate) orders: Host,
    /// Where control is.
    pub(crate) away: Host,
    /// Control.
    pub(crate) control: Control,
    /// The sidecar of `web`, and how it was started.
    pub(crate) client: (Option<Sidecar>, Setup),
    /// The sidecar of `orders`, and how it was started.
    pub(crate) server: (Option<Sidecar>, Setup),
    /// What they keep: of `web`, of `orders`.
    pub(crate) states: [State; 2],
    /// The application of `orders`.
    _app: App,
    _dns: Dns,
}

impl Fleet {
    /// Both ready, with certificates that last for `leaf_life`.
    pub(crate) fn new(leaf_life: &'static str) -> Self {
        let [web, orders, away] = Topology::of(["web", "orders", "control"]);
        let control = Control::start(&away, leaf_life);
        let dns = web.dns();
        dns.set("orders.shop", &[orders.v4()], 1);
        let app = orders.http_app(APP);
        let states = [State::of("4m"), State::of("4m")];
        let setup = |account, state| control.setup(account, state).with("--dns", &web.v4());
        let client = setup("web", &states[0]);
        let server = setup("orders", &states[1]);
        let client = (Some(client.start(&web)), client);
        let server = (Some(server.start(&orders)), server);
        Self { web, orders, away, control, client, server, states, _app: app, _dns: dns }
    }

    /// The sidecar of `web`.
    pub(crate) fn client(&self) -> &Sidecar {
        self.client.0.as_ref().expect("it runs")
    }

    /// The sidecar of `orders`.
    pub(crate) fn server(&self) -> &Sidecar {
        self.server.0.as_ref().expect("it runs")
    }

    /// Asks the orders for `path`, as the application `web` does.
    pub(crate) fn get(&self, path: &'static str) -> Answer {
        call(&self.web, ORDERS, path)
    }

    /// Ends both sidecars and starts them again.
    pub(crate) fn restart_sidecars(&mut self) {
        for (host, (sidecar, setup)) in
            [(&self.web, &mut self.client), (&self.orders, &mut self.server)]
        {
            drop(sidecar.take());
            *sidecar = Some(setup.start(host));
        }
    }

    /// Waits until both sidecars hear control, or hear it not.
    pub(crate) fn until_connected(&self, connected: bool) {
        for sidecar in [self.client(), self.server()] {
            sidecar.until("remora_control_connected", &[], |it| it == u64::from(connected));
        }
    }
}
