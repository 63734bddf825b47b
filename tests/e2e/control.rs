//! Control: the control binary on a host of its own, and pods that live by it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    host::Host,
    pods::{Setup, Sidecar},
    process::Process,
};

/// The first argument of this binary when it is to be control.
pub(crate) const FLAG: &str = "--remora-control";

/// Where control listens.
const PORT: u16 = 15_030;

/// Everybody has to prove who they are.
const STRICT: &str = "\
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all, namespace: shop}
spec:
  mtls: {mode: strict}
";

/// Is control, where `arguments` ask for it.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Option<ExitCode> {
    arguments.next().filter(|it| it == FLAG)?;
    let line = std::iter::once("remora-control".to_owned()).chain(arguments).map(Into::into);
    Some(remora_control::cli::run(line, &mut std::io::stdout(), &mut std::io::stderr()))
}

/// An authority, and the server that may be up.
#[derive(Debug)]
pub(crate) struct Control {
    host: Host,
    /// In memory, where keys of sidecars have to be.
    dir: TempDir,
    server: Option<Process>,
}

impl Control {
    /// Makes an authority, and serves.
    pub(crate) fn start(host: &Host) -> Self {
        let dir = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a folder in memory");
        let mut control = Self { host: host.clone(), dir, server: None };
        let policy = control.path("policy");
        fs::create_dir(&policy).expect("a new folder");
        fs::write(policy.join("all.yaml"), STRICT).expect("it can be written");
        let (code, said) = control.command(&["init"]);
        assert_eq!(code, 0, "{said}");
        control.serve();
        control
    }

    /// Serves, again.
    pub(crate) fn serve(&mut self) {
        let (listen, policy) = (format!("0.0.0.0:{PORT}"), self.path("policy"));
        let mut command = self.line(&["serve", "--listen", &listen, "--admin", "127.0.0.1:0"]);
        command.arg("--policy").arg(policy);
        let server = self.host.spawn(command);
        server.wait_for("serving `");
        self.server = Some(server);
    }

    /// Ends the server, without giving it a chance to notice.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("it serves");
        server.signal(Signal::SIGKILL);
        server.wait();
    }

    /// Runs a command of an operator to its end: its exit code, and what it said.
    pub(crate) fn command(&self, arguments: &[&str]) -> (i32, String) {
        ended(self.begin(arguments))
    }

    /// Starts a command of an operator.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Process {
        self.host.spawn(self.line(arguments))
    }

    /// The step of the rotation that is written down; none before the first.
    pub(crate) fn step(&self) -> String {
        let record = fs::read(self.path("authority/state/state/rotation")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        record["step"].as_str().unwrap_or_default().to_owned()
    }

    /// Starts a sidecar that joins by a token, and returns when it is ready.
    pub(crate) fn sidecar(&self, host: &Host, account: &str, dns: IpAddr) -> Sidecar {
        let id = ["--namespace", "shop", "--service-account", account];
        let mut create = self.line(&[&["token", "create"][..], &id].concat());
        // The token is what goes to standard output; the rest is for people.
        let said = create.output().expect("it can be started");
        assert!(said.status.success(), "{said:?}");
        let file = |name: &str| self.path(&format!("{account}.{name}"));
        fs::write(file("token"), said.stdout).expect("it can be written");
        let control = format!("https://{}:{PORT}", self.host.v4());
        Setup::new(Path::new("control"))
            .with("--control", &control)
            .with("--control-token", &file("token").display())
            .with("--control-ca", &self.path("authority/root.crt").display())
            .with("--state", &file("state").display())
            .with("--instance", account)
            .with("--access-log", "failures")
            .with("--dns", &dns)
            .start(host)
    }

    fn line(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(FLAG).args(arguments).arg("--dir").arg(self.path("authority"));
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Waits for the end of a command.
pub(crate) fn ended(mut command: Process) -> (i32, String) {
    let code = command.wait().code().expect("nobody kills it");
    (code, command.output())
}
