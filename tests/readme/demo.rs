//! Demo: the commands of the README, each tried as it stands there, elsewhere.
//!
//! Folders and ports are other ones each time; control and the sidecar that asks it stay
//! until the end. What listens for good otherwise, needs curl, or builds is not tried.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write, pipe},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use remora::clock;

/// The folder of the examples.
const FOLDER: &str = "/tmp/demo";

/// The folder of the sidecar that asks control.
const STATE: &str = "/dev/shm/remora-demo";

/// The ports of the examples.
const PORTS: [&str; 5] = ["15030", "15031", "9000", "9001", "9002"];

/// The commands that end at once, of the sidecar's.
const TRIED: [&str; 5] = ["check", "defaults", "intercept print", "--help", "--grace soon"];

/// A place of its own, and what runs there.
pub(super) struct Demo {
    folder: tempfile::TempDir,
    state: tempfile::TempDir,
    ports: [String; 5],
    sidecar: Option<Child>,
}

impl Demo {
    pub(super) fn new() -> Self {
        // Bound together, so that no two are the same.
        let free = PORTS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        Self {
            folder: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir_in("/dev/shm").unwrap(),
            ports: free.map(|it| it.local_addr().unwrap().port().to_string()),
            sidecar: None,
        }
    }

    /// What a command says; `None` for one that is not tried, or stays.
    pub(super) fn say(&mut self, command: &str) -> Option<String> {
        let here = self.here(command);
        let said = if command.starts_with("remora-control serve") {
            self.serve(&here);
            return None;
        } else if command.starts_with("remora --identity control") {
            self.join(&here);
            return None;
        } else if command.starts_with("remora ") && TRIED.iter().any(|it| command.contains(it)) {
            shell(&here)
        } else {
            self.control(here.strip_prefix("remora-control ")?)
        };
        Some(said.replace(self.folder.path().to_str().unwrap(), FOLDER))
    }

    /// The command, with the folders and ports of this place.
    fn here(&self, command: &str) -> String {
        let mut here = command.replace(FOLDER, self.folder.path().to_str().unwrap());
        here = here.replace(STATE, self.state.path().to_str().unwrap());
        for (shown, ours) in PORTS.iter().zip(&self.ports) {
            here = here.replace(&format!(":{shown}"), &format!(":{ours}"));
        }
        here
    }

    /// Runs control, and returns when it listens.
    fn serve(&self, command: &str) {
        let policy = self.folder.path().join("policy");
        fs::create_dir(&policy).unwrap();
        fs::copy(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policies/orders.yaml"),
            policy.join("orders.yaml"),
        )
        .unwrap();
        let [listen, admin, ..] = &self.ports;
        let command = format!("{command} --listen 127.0.0.1:{listen} --admin 127.0.0.1:{admin}");
        let (said, mut out) = pipe().unwrap();
        let mut err = out.try_clone().unwrap();
        thread::spawn(move || remora_control::cli::run(words(&command), &mut out, &mut err));
        let mut first = String::new();
        BufReader::new(said).read_line(&mut first).unwrap();
        assert!(first.starts_with("serving `cluster.local` at "), "{first}");
    }

    /// Runs the sidecar, and returns when control has it.
    fn join(&mut self, command: &str) {
        let mut words = words(command);
        words.remove(0);
        let mut sidecar = Command::new(env!("CARGO_BIN_EXE_remora"));
        let mut sidecar = sidecar.args(words).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(sidecar.stderr.take().unwrap()).lines();
        let taken = |line: &str| line.contains("policy accepted");
        assert!(lines.any(|line| taken(&line.unwrap())), "the sidecar has ended");
        thread::spawn(move || lines.for_each(drop));
        self.sidecar = Some(sidecar);
        let status = format!("status --json --dir {}/ca", self.folder.path().display());
        let deadline = clock::now() + Duration::from_secs(20);
        while !self.control(&status).contains("\"accepted\": 1") {
            assert!(clock::now() < deadline, "{}", self.control(&status));
        }
    }

    /// Runs control's command line in this process.
    fn control(&self, args: &str) -> String {
        let (args, echo) = args.split_once("; ").unwrap_or((args, ""));
        let (args, file) = args.split_once(" > ").unwrap_or((args, ""));
        let mut args = format!("remora-control {args}");
        if ["status", "check", "rollback", "rotate"].iter().any(|it| args.contains(it)) {
            args += " --server https://127.0.0.1:";
            args += &self.ports[0];
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = remora_control::cli::run(words(&args), &mut out, &mut err);
        if !file.is_empty() {
            File::create(file).unwrap().write_all(&out).unwrap();
            out.clear();
        }
        out.extend(err);
        if !echo.is_empty() {
            let failed = code != std::process::ExitCode::SUCCESS;
            writeln!(out, "exit {}", u8::from(failed)).unwrap();
        }
        String::from_utf8(out).unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut sidecar) = self.sidecar.take() {
            // It may have ended; then there is nothing to end.
            let _ended = sidecar.kill().and_then(|()| sidecar.wait()).is_ok();
        }
    }
}

fn words(command: &str) -> Vec<OsString> {
    command.split_whitespace().map(OsString::from).collect()
}

/// Runs a command of the sidecar's that ends at once.
fn shell(command: &str) -> String {
    let bin = Path::new(env!("CARGO_BIN_EXE_remora")).parent().unwrap();
    let mut paths = vec![bin.to_owned()];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 2>&1; {command}")]);
    shell.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = shell.env("PATH", std::env::join_paths(paths).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
