//! World: user, network and mount namespaces that this binary may do in as it likes.
//!
//! A first process starts a second one, which makes a user namespace; the first gives it
//! user ids, for only a process outside of it may; then the second makes a network and
//! a mount namespace, in which it is root.
//!
//! The rules under test tell the sidecar from its application by user (`meta skuid`),
//! which the kernel compares as seen from the user namespace that owns the network
//! namespace. How many users there are depends on who runs the tests:
//!
//! - **root** ([`Uids::Many`]) maps 0 to 65535 to themselves; the sidecar is 2102;
//! - **anybody else** ([`Uids::One`]) may map but their own user, nor does a nested
//!   namespace get another: all sockets of the machine are of one user, and the rules
//!   would let everything pass as the sidecar's. So the sidecar is this one user, and the
//!   application is known by a second address of the host instead, which test-side
//!   sockets are bound to ([`crate::tcp::connect`]); a table in front of the one under
//!   test, made of its own rules without those about users, redirects these
//!   ([`crate::host::Host::intercept`]). Everything else is the same.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, ExitCode, Stdio},
    sync::OnceLock,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::Signal},
    unistd::{getegid, geteuid},
};

/// The argument that tells the second process from the first.
const INSIDE: &str = "--inside-namespaces";

static UIDS: OnceLock<Uids> = OnceLock::new();

/// The users there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uids {
    /// 0 to 65535.
    Many,
    /// 0.
    One,
}

/// Where this process is.
#[derive(Debug)]
pub(crate) enum Side {
    /// In the namespaces.
    Inside,
    /// Outside; the process inside has ended with this code.
    Outside(ExitCode),
}

/// The users there are in this run.
pub(crate) fn uids() -> Uids {
    *UIDS.get().expect("the world was entered")
}

/// The user the sidecar runs as.
pub(crate) fn proxy_uid() -> u32 {
    match uids() {
        Uids::Many => 2102,
        Uids::One => 0,
    }
}

/// Goes inside. There must be no other thread yet.
pub(crate) fn enter() -> Result<Side, String> {
    if !std::env::args().any(|it| it == INSIDE) {
        return outside().map(Side::Outside).map_err(|it| format!("cannot run the tests: {it}"));
    }
    let uids = inside().map_err(|it| {
        format!(
            "no namespaces for the end-to-end tests: {it}\n\
             hint: run them as root, or let users make namespaces: \
             `sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
             kernel.apparmor_restrict_unprivileged_userns=0` (those that exist), and in a \
             container allow `unshare` in its seccomp profile"
        )
    })?;
    UIDS.get_or_init(|| uids);
    Ok(Side::Inside)
}

/// Starts the process inside, gives it its users, and waits for its end.
fn outside() -> io::Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let mut ready = [0];
    // An end of file means that it gave up, and has said why.
    if ours.read_exact(&mut ready).is_ok() {
        let answer = map_users(child.id()).map_or(b'-', |it| match it {
            Uids::Many => b'm',
            Uids::One => b'o',
        });
        ours.write_all(&[answer])?;
    }
    let code = child.wait()?.code().and_then(|it| u8::try_from(it).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn map_users(pid: u32) -> io::Result<Uids> {
    let write = |name: &str, text: String| fs::write(format!("/proc/{pid}/{name}"), text);
    let many = || write("uid_map", "0 0 65536".into());
    if geteuid().is_root() && many().is_ok() {
        write("gid_map", "0 0 65536".into())?;
        return Ok(Uids::Many);
    }
    // One who may not set groups may map their own: or a group that denies could be left.
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {} 1", geteuid()))?;
    write("gid_map", format!("0 {} 1", getegid()))?;
    Ok(Uids::One)
}

fn inside() -> io::Result<Uids> {
    let mut outside = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let uids = match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {
            outside.write_all(b".")?;
            let mut answer = [0];
            outside.read_exact(&mut answer)?;
            match answer {
                [b'm'] => Uids::Many,
                [b'o'] => Uids::One,
                _ => return Err(io::Error::other("no user could be mapped")),
            }
        }
        // Root of a machine without user namespaces needs none; it may have but one user.
        Err(_) if geteuid().is_root() => {
            let map = fs::read_to_string("/proc/self/uid_map")?;
            let all = map.split_whitespace().eq(["0", "0", "4294967295"]);
            if all { Uids::Many } else { Uids::One }
        }
        Err(errno) => return Err(io::Error::other(format!("user namespace: {}", errno.desc()))),
    };
    let spaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    unshare(spaces)
        .map_err(|it| io::Error::other(format!("network and mount namespace: {}", it.desc())))?;
    // What is mounted here stays here.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(uids)
}
