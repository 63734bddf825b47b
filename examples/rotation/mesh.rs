//! Mesh: control, and sidecars that get their certificates and their policy from it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use remora::clock;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

use crate::{Result, child::Child, load};

/// Sidecars of orders, and of web.
pub(crate) const ORDERS: usize = 20;
pub(crate) const WEBS: usize = 4;

/// Sidecars renew after 60 to 80 % of it: once in some 4 seconds.
pub(crate) const LEAF_LIFE: &str = "6s";

/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Nobody but the mesh reaches anybody of it.
const STRICT: &str = "\
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all, namespace: shop}
spec:
  mtls: {mode: strict}
";

/// All that runs. Dropping it ends it.
pub(crate) struct Mesh {
    // The first to be dropped: nobody is left to write into the folder.
    sidecars: Vec<Sidecar>,
    /// Dropped to be killed.
    control: Option<Child>,
    /// Where control is, at last as at first.
    address: SocketAddr,
    folder: TempDir,
}

struct Sidecar {
    _process: Child,
    name: String,
    inbound: SocketAddr,
    outbound: SocketAddr,
}

impl Mesh {
    /// Starts everything, and waits until every sidecar has its certificate and policy.
    pub(crate) async fn start() -> Result<Self> {
        // Keys of sidecars go to memory only, and to this folder.
        let folder = tempfile::Builder::new().prefix("remora-rotation-").tempdir_in("/dev/shm")?;
        let path = folder.path();
        let authority = text(&path.join("authority"));
        command(["init", "--dir", &authority]).await??;
        fs::create_dir(path.join("policy"))?;
        fs::write(path.join("policy/all.yaml"), STRICT)?;
        let (control, address) = control(path, (Ipv4Addr::LOCALHOST, 0).into()).await?;
        let control = Some(control);
        let mut mesh = Self { sidecars: Vec::new(), control, address, folder };
        let mut starting = Vec::new();
        for (account, count) in [("orders", ORDERS), ("web", WEBS)] {
            for number in 1..=count {
                let name = format!("{account}-{number}");
                starting.push((mesh.begin(account, &name).await?, name));
            }
        }
        for (process, name) in starting {
            mesh.sidecars.push(mesh.begun(process, name).await?);
        }
        mesh.write_policy(1)?;
        mesh.has_generation(2).await?;
        Ok(mesh)
    }

    /// Where the applications of web find their sidecars.
    pub(crate) fn webs(&self) -> Vec<SocketAddr> {
        let webs = self.sidecars.iter().filter(|it| it.name.starts_with("web"));
        webs.map(|it| it.outbound).collect()
    }

    /// Certificates that were asked for with the one before: written down for each.
    pub(crate) async fn renewals(&self) -> Result<u64> {
        let log = self.folder.path().join("authority/state/audit.jsonl");
        let log = spawn_blocking(|| fs::read_to_string(log)).await??;
        let issued = log.lines().filter(|it| it.contains("\"event\":\"issued\""));
        Ok(u64::try_from(issued.filter(|it| !it.contains("\"proof\":\"join_token\"")).count())?)
    }

    /// Waits for so many of them; says how many there are.
    pub(crate) async fn renewed(&self, count: u64) -> Result<u64> {
        let started = clock::now();
        while clock::now() - started < PATIENCE {
            let renewals = self.renewals().await?;
            if count <= renewals {
                return Ok(renewals);
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(format!("there are no {count} renewals").into())
    }

    /// Has control replace the root; what comes of it is known later.
    pub(crate) fn rotate(&self) -> JoinHandle<Result<String>> {
        let [dir, server] = self.operator();
        command(["rotate", "--prove", "--root", "--dir", &dir, "--server", &server])
    }

    /// Kills control as soon as a rotation is under way, and starts it again.
    pub(crate) async fn kill_control(&mut self) -> Result<()> {
        let record = self.folder.path().join("authority/state/state/rotation");
        let started = clock::now();
        while fs::read_to_string(&record)?.contains("\"step\":\"rest\"") {
            if PATIENCE < clock::now() - started {
                return Err("no rotation begins".into());
            }
            sleep(LOOK_AGAIN / 10).await;
        }
        self.control = None;
        let (again, _) = control(self.folder.path(), self.address).await?;
        self.control = Some(again);
        Ok(())
    }

    /// Gives the first of orders more weight; says which generation that makes, when every
    /// sidecar has it.
    pub(crate) async fn edit_policy(&self) -> Result<u64> {
        let old = self.generation().await?;
        self.write_policy(3)?;
        self.has_generation(old + 1).await?;
        Ok(old + 1)
    }

    /// The generation of policy, where it is with every sidecar.
    pub(crate) async fn generation(&self) -> Result<u64, String> {
        let [dir, server] = self.operator();
        let said = command(["status", "--json", "--dir", &dir, "--server", &server]).await;
        let said = said.map_err(|it| it.to_string()).and_then(|it| it.map_err(|it| it.to_string()));
        let all: Value = serde_json::from_str(&said?).map_err(|it| it.to_string())?;
        let all = &all["sidecars"];
        let number = all["generation"].as_u64().ok_or("no generation")?;
        let has = |it: &&Value| {
            it["connected"] == true
                && it["report"]["policy"]["accepted"] == number
                && it["report"]["certificate"]["issuer"] == all["issuer"]
                && it["report"]["bundle"] == all["bundle"]
        };
        let have = all["sidecars"].as_array().map_or(0, |them| them.iter().filter(has).count());
        if have == self.sidecars.len() {
            Ok(number)
        } else {
            Err(format!("{have} of {} sidecars on generation {number}", self.sidecars.len()))
        }
    }

    /// Keeps the files, for whoever wants to know what happened; says where.
    pub(crate) fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    async fn has_generation(&self, number: u64) -> Result<()> {
        let (started, mut last) = (clock::now(), Ok(0));
        while clock::now() - started < PATIENCE {
            last = self.generation().await;
            if last.as_ref().is_ok_and(|it| number <= *it) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(last.map_or_else(|it| it, |it| format!("generation {it}, not {number}")).into())
    }

    /// Starts a sidecar that joins by a token.
    async fn begin(&self, account: &str, name: &str) -> Result<Child> {
        let [dir, server] = self.operator();
        let id = ["--namespace", "shop", "--service-account", account];
        let token = ["token", "create", "--dir", &dir].into_iter().chain(id);
        let (path, app) = (self.path(name), load::orders().await?.to_string());
        fs::create_dir(&path)?;
        let (secret, state) = (text(&path.join("token")), text(&path.join("state")));
        fs::write(&secret, command(token).await??)?;
        let (anywhere, root) = ("127.0.0.1:0", text(&self.path("authority/root.crt")));
        let args = [
            ("--identity", "control"),
            ("--control", &server),
            ("--control-token", &secret),
            ("--control-ca", &root),
            ("--state", &state),
            ("--instance", name),
            ("--app", &app),
            ("--inbound", anywhere),
            ("--outbound", anywhere),
            ("--admin", anywhere),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag, value]);
        Child::start("remora", args, &path.join("log"), None)
    }

    /// Waits until a sidecar says that it is ready.
    async fn begun(&self, mut process: Child, name: String) -> Result<Sidecar> {
        let (log, started) = (self.path(&name).join("log"), clock::now());
        while clock::now() - started < PATIENCE && !process.has_ended() {
            let said = fs::read_to_string(&log)?;
            let listener = |purpose| listener(&said, purpose);
            if let (Some(inbound), Some(outbound)) = (listener("inbound"), listener("outbound"))
                && said.contains("ready to serve")
            {
                return Ok(Sidecar { _process: process, name, inbound, outbound });
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(format!("{name} does not get ready: {}", fs::read_to_string(log)?).into())
    }

    /// Writes where orders is, and who it has to be.
    fn write_policy(&self, weight: u32) -> Result<()> {
        let orders = self.sidecars.iter().filter(|it| it.name.starts_with("orders"));
        let endpoints = orders.enumerate().map(|(at, it)| {
            let weight = if at == 0 { weight } else { 1 };
            format!("    - {{address: \"{}\", weight: {weight}}}\n", it.inbound)
        });
        let policy = format!(
            "\
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {{name: orders, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: orders}}]
  tls: {{mode: strict, identities: [\"spiffe://cluster.local/ns/shop/sa/orders\"]}}
  discovery:
    endpoints:
{}",
            endpoints.collect::<String>()
        );
        let new = self.path("orders.yaml.new");
        fs::write(&new, policy)?;
        Ok(fs::rename(new, self.path("policy/orders.yaml"))?)
    }

    /// Who asks control, and where it is.
    fn operator(&self) -> [String; 2] {
        [text(&self.path("authority")), format!("https://{}", self.address)]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Starts control, and waits until it says where it serves.
async fn control(folder: &Path, address: SocketAddr) -> Result<(Child, SocketAddr)> {
    let (dir, policy) = (text(&folder.join("authority")), text(&folder.join("policy")));
    let (log, listen) = (folder.join("control.log"), address.to_string());
    let args = [
        ["--dir", &dir],
        ["--policy", &policy],
        ["--listen", &listen],
        ["--admin", "127.0.0.1:0"],
        ["--leaf-life", LEAF_LIFE],
    ];
    let before = fs::read_to_string(&log).unwrap_or_default().len();
    let args = std::iter::once("serve").chain(args.into_iter().flatten());
    let mut process = Child::start("remora-control", args, &log, None)?;
    let started = clock::now();
    while clock::now() - started < PATIENCE && !process.has_ended() {
        let said = fs::read_to_string(&log)?;
        let said = said.get(before..).unwrap_or_default();
        if let Some((_, rest)) = said.split_once(" at https://")
            && let Some((address, _)) = rest.split_once('\n')
        {
            return Ok((process, address.parse()?));
        }
        sleep(LOOK_AGAIN / 10).await;
    }
    Err(format!("control does not start: {}", fs::read_to_string(log)?).into())
}

/// Runs a command of control to its end: what it printed.
fn command<'a>(args: impl IntoIterator<Item = &'a str>) -> JoinHandle<Result<String>> {
    let args = std::iter::once("remora-control").chain(args);
    let args: Vec<_> = args.map(|it| it.to_owned().into()).collect();
    spawn_blocking(move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = remora_control::cli::run(args, &mut out, &mut err);
        let out = String::from_utf8(out)?;
        if code == ExitCode::SUCCESS {
            return Ok(out);
        }
        Err(format!("{out}{}", String::from_utf8_lossy(&err)).into())
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Where a sidecar says that it listens.
fn listener(log: &str, purpose: &str) -> Option<SocketAddr> {
    let mut lines = log.lines().filter_map(|it| serde_json::from_str::<Value>(it).ok());
    let listening = lines.find(|it| it["message"] == "listening" && it["purpose"] == purpose);
    listening?["address"].as_str()?.parse().ok()
}
