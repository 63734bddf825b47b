//! Child: this program, started again as one of the processes of the mesh.
//!
//! `EXAMPLE --child PARENT ROLE ARGS…` is the sidecar (`remora`), control
//! (`remora-control`) or one of the applications; so the example needs no other binary.
//! Children do not outlive the parent, however it ends: the kernel kills them.

use std::{
    ffi::OsString,
    fs::File,
    io::{stderr, stdout},
    net::TcpListener,
    os::fd::OwnedFd,
    path::Path,
    process::{self, Command, ExitCode, Stdio},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

use crate::Result;

const FLAG: &str = "--child";

/// A running child. Dropping it kills it, which it is given no chance to notice.
#[derive(Debug)]
pub(crate) struct Child(process::Child);

impl Child {
    /// Starts this program in `role`; what it says goes to the end of `log`. It finds
    /// `listener`, if there is one, as its standard input.
    pub(crate) fn start<S: Into<OsString>>(
        role: &str,
        args: impl IntoIterator<Item = S>,
        log: &Path,
        listener: Option<TcpListener>,
    ) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([FLAG, &process::id().to_string(), role]);
        command.args(args.into_iter().map(Into::into));
        command.stdin(listener.map_or_else(Stdio::null, |it| OwnedFd::from(it).into()));
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn()?))
    }

    /// Waits until it has ended by itself.
    pub(crate) fn success(mut self) -> Result<bool> {
        Ok(self.0.wait()?.success())
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().map_or(true, |it| it.is_some())
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Either fails when it has ended already, which is what is wanted.
        let _gone = self.0.kill().and_then(|()| self.0.wait()).is_ok();
    }
}

/// An application: what it is told, to its exit code.
type App = fn(&mut dyn Iterator<Item = String>) -> ExitCode;

/// Is the child that `args` ask for, `app` where that is no part of Remora; `None` where they
/// ask for none.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>, app: App) -> Option<ExitCode> {
    let mut args = args.into_iter();
    args.next().filter(|it| it == FLAG)?;
    let parent = args.next()?.to_str()?.parse().ok()?;
    let role = args.next()?.into_string().ok()?;
    if !dies_with(Pid::from_raw(parent)) {
        return Some(ExitCode::FAILURE);
    }
    // A program's arguments begin with its own name.
    let line = std::iter::once(role.clone().into()).chain(args);
    Some(match &*role {
        "remora" => remora::cli::run(line, &mut stdout(), &mut stderr()),
        "remora-control" => remora_control::cli::run(line, &mut stdout(), &mut stderr()),
        _ => app(&mut line.filter_map(|it| it.into_string().ok())),
    })
}

/// Asks the kernel to kill this process when `parent` ends; not when it has ended already.
fn dies_with(parent: Pid) -> bool {
    prctl::set_pdeathsig(Signal::SIGKILL).is_ok() && getppid() == parent
}
