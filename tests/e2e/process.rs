//! Process: a program that runs as long as its handle, and whose output is shown when a
//! case fails.

use std::{
    fs::{self, File, Permissions},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, LazyLock, Mutex},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora::clock;
use tempfile::TempDir;

use crate::{host::PATIENCE, runner};

/// What is kept of the output; the rest of a long one is cut from its beginning.
const OUTPUT_BYTES: usize = 256 * 1024;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Standard output and error that have ended.
    ended: u8,
}

/// The program under test.
pub(crate) fn remora() -> Command {
    // Opened by us and named by its number, for the user of the sidecar may not be allowed
    // into the folder it was built in. It closes when the program has started.
    static BINARY: LazyLock<File> =
        LazyLock::new(|| File::open(env!("CARGO_BIN_EXE_remora")).expect("cargo built it"));
    let mut command = Command::new(format!("/proc/self/fd/{}", BINARY.as_raw_fd()));
    command.arg0("remora");
    command
}

/// A folder for the files of a case, which every user may read. Dropping it removes it.
pub(crate) fn folder() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let everybody = Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody).expect("it is ours");
    folder
}

impl Process {
    /// Starts `command` in the namespaces of the calling thread.
    pub(crate) fn start(host: &str, mut command: Command) -> Self {
        let name = format!("the program on {host}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|it| panic!("cannot start {name}: {it}"));
        let output = Arc::new(Output::default());
        read_on(child.stdout.take().expect("piped"), Arc::clone(&output));
        read_on(child.stderr.take().expect("piped"), Arc::clone(&output));
        Self { name, child, output }
    }

    /// All it has written so far, both streams as they came.
    pub(crate) fn output(&self) -> String {
        let state = self.output.state.lock().expect("no reader panics");
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    /// Waits until it has written `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        let state = self.output.state.lock().expect("no reader panics");
        let contains = |state: &State| String::from_utf8_lossy(&state.bytes).contains(text);
        let waiting = |state: &mut State| !contains(state) && state.ended < 2;
        let (state, _timeout) =
            self.output.changed.wait_timeout_while(state, PATIENCE, waiting).expect("no panic");
        let found = contains(&state);
        drop(state);
        assert!(found, "{} did not write `{text}`", self.name);
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("ids are small");
        kill(Pid::from_raw(id), signal).expect("it has not been waited for");
    }

    /// Waits for its end. It must end by itself, or have been told to.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        // Its streams end with it, which unlike its end can be waited for with a limit.
        let state = self.output.state.lock().expect("no reader panics");
        let waiting = |state: &mut State| state.ended < 2;
        let (state, timeout) =
            self.output.changed.wait_timeout_while(state, PATIENCE, waiting).expect("no panic");
        drop(state);
        assert!(!timeout.timed_out(), "{} did not end within {PATIENCE:?}", self.name);
        let began = clock::now();
        let status = self.child.wait().expect("it can be waited for");
        assert!(clock::now() - began < PATIENCE, "{} closed its output long ago", self.name);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails when it has ended already, which is what is wanted.
        let _gone = self.child.kill().and_then(|()| self.child.wait()).is_ok();
        if thread::panicking() {
            runner::say(&format!("\n--- output of {}\n{}---\n", self.name, self.output()));
        }
    }
}

/// Collects `stream` on a thread, until it ends.
fn read_on(mut stream: impl Read + Send + 'static, output: Arc<Output>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 8 * 1024];
        loop {
            let read = stream.read(&mut buffer).unwrap_or(0);
            let mut state = output.state.lock().expect("no reader panics");
            state.bytes.extend(buffer.get(..read).unwrap_or_default());
            let surplus = state.bytes.len().saturating_sub(OUTPUT_BYTES);
            state.bytes.drain(..surplus);
            state.ended += u8::from(read == 0);
            output.changed.notify_all();
            if read == 0 {
                return;
            }
        }
    });
}
