//! Server: a `serve` of the real program on ports of its own, killed when dropped.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

/// A server that runs.
pub(super) struct Server {
    pub(super) process: Child,
    pub(super) url: String,
    /// Open as long as it may say more.
    _said: BufReader<ChildStdout>,
}

impl Server {
    /// Makes the authority `ca` in `dir` and serves it; returns when it listens.
    pub(super) fn start(dir: &Path, arguments: &[&Path]) -> Self {
        let authority = dir.join("ca");
        let made = control().args(["init", "--dir"]).arg(&authority).output().unwrap();
        assert!(made.status.success());
        let mut process = control()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log", "off"])
            .args(["--dir".as_ref(), authority.as_path()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self { process, url, _said: said }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails when it has ended already, which is what is wanted.
        let _gone = self.process.kill().and_then(|()| self.process.wait()).is_ok();
    }
}

pub(super) fn control() -> Command {
    Command::new(env!("CARGO_BIN_EXE_remora-control"))
}
