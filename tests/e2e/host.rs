//! Host: a network namespace with addresses, in which code and programs run.

use std::{
    cell::Cell,
    fs::{self, File},
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic,
    process::Command,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Uid, setfsuid},
};
use remora::{
    clock,
    intercept::{self, nftables, rules::Ruleset},
};
use tempfile::NamedTempFile;
use tokio::{runtime, sync::oneshot, time};

use crate::{
    cable,
    process::Process,
    stand_in,
    topology::{Plug, within},
    world::{self, Uids},
};

/// How long anything may take. Much more than it does, or a slow machine fails the tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at something there is no event for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

thread_local! {
    /// The addresses sockets of this thread are bound to.
    static SOURCE: Cell<Option<(Ipv4Addr, Ipv6Addr)>> = const { Cell::new(None) };
}

/// A host of a [`crate::topology::Topology`]. Clones are the same host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    shared: Arc<Shared>,
    who: Who,
}

#[derive(Debug)]
struct Shared {
    name: String,
    namespace: File,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    plug: Plug,
    /// What programs started here find in `/etc/resolv.conf`, if not what everybody does.
    resolv_conf: Mutex<Option<NamedTempFile>>,
}

/// Whose code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Application,
    Proxy,
}

impl Host {
    /// Puts up the cable of a host.
    pub(crate) fn new(
        name: &str,
        namespace: File,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        plug: Plug,
    ) -> Self {
        within(&namespace, || {
            cable::set_up("eth0", true);
            // Whoever does not choose an address gets the first of IPv4 and the last of IPv6.
            cable::address("eth0", v4.into(), 16);
            if world::uids() == Uids::One {
                let (v4, v6) = plug.application_addresses();
                cable::address("eth0", v4.into(), 16);
                cable::address("eth0", v6.into(), 64);
            }
            cable::address("eth0", v6.into(), 64);
            cable::wait_for("eth0");
        });
        let (name, resolv_conf) = (name.to_owned(), Mutex::default());
        let shared = Shared { name, namespace, v4, v6, plug, resolv_conf };
        Self { shared: Arc::new(shared), who: Who::Application }
    }

    /// The same host, as the user the sidecar runs as: rules do not intercept it.
    pub(crate) fn as_proxy(&self) -> Self {
        Self { who: Who::Proxy, ..self.clone() }
    }

    /// What the host is called in a scenario.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its IPv4 address.
    pub(crate) fn v4(&self) -> IpAddr {
        self.shared.v4.into()
    }

    /// Its IPv6 address.
    pub(crate) fn v6(&self) -> IpAddr {
        self.shared.v6.into()
    }

    /// Both addresses, for what must hold for both families.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }

    /// The addresses its connections come from: of more than one address where the
    /// application has its own.
    pub(crate) fn sources(&self) -> Vec<IpAddr> {
        let mut sources = Vec::from(self.addresses());
        if world::uids() == Uids::One {
            let (v4, v6) = self.shared.plug.application_addresses();
            sources.extend([IpAddr::from(v4), v6.into()]);
        }
        sources
    }

    /// Pulls its cable.
    pub(crate) fn unplug(&self) {
        self.shared.plug.set(false);
    }

    /// Puts its cable back.
    pub(crate) fn plug(&self) {
        self.shared.plug.set(true);
        self.shared.plug.wait();
        self.within(|| cable::wait_for("eth0"));
    }

    /// Runs `work` here, and waits for it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.shared.namespace, || {
            self.become_one_of_us();
            work()
        })
    }

    /// Runs a future here, on a thread and runtime of its own, and waits for it.
    pub(crate) fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.start(work).join()
    }

    /// Starts a future here, on a thread and a runtime of its own.
    pub(crate) fn start<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.start_for(PATIENCE, work)
    }

    /// The same, of what may take as long as `patience`: it is told when to end.
    pub(crate) fn start_for<T, F>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let here = self.name().to_owned();
        let work = move || async move {
            let ended = time::timeout(patience, work()).await;
            ended.unwrap_or_else(|_| panic!("`{here}` did not finish within {patience:?}"))
        };
        Running { thread: self.thread(work) }
    }

    /// Runs a server here until the [`Service`] is dropped; returns when it is ready, with
    /// what it told.
    pub(crate) fn serve<T, F>(
        &self,
        work: impl FnOnce(Ready<T>) -> F + Send + 'static,
    ) -> (Service, T)
    where
        T: Send + 'static,
        F: Future<Output = ()>,
    {
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = self.thread(move || async move {
            tokio::select! {
                () = work(Ready(ready)) => (),
                // Stopped, or the case has ended.
                _ = stopped => (),
            }
        });
        let service = Service { stop: Some(stop), thread: Some(thread) };
        let told = is_ready.recv_timeout(PATIENCE);
        let told = told.unwrap_or_else(|_| panic!("a server of `{}` did not start", self.name()));
        (service, told)
    }

    /// Starts a program here.
    pub(crate) fn spawn(&self, mut command: Command) -> Process {
        if self.who == Who::Proxy && world::uids() == Uids::Many {
            command.uid(world::proxy_uid()).gid(world::proxy_uid());
        }
        within(&self.shared.namespace, || {
            let resolv_conf = self.shared.resolv_conf.lock().expect("nobody panics with it");
            if let Some(file) = &*resolv_conf {
                // Of this thread, and what it starts.
                unshare(CloneFlags::CLONE_NEWNS).expect("mount namespaces can be made");
                let (nothing, to) = (None::<&str>, "/etc/resolv.conf");
                mount(Some(file.path()), to, nothing, MsFlags::MS_BIND, nothing)
                    .expect("a file can be put in place of `/etc/resolv.conf`");
            }
            Process::start(self.name(), command)
        })
    }

    /// Makes `server` the name server of the programs that are started here from now on.
    pub(crate) fn resolve_by(&self, server: IpAddr) {
        let file = NamedTempFile::new().expect("a temporary file");
        let text = format!("nameserver {server}\noptions timeout:1 attempts:2\n");
        fs::write(file.path(), text).expect("it can be written");
        // Programs of other users read it.
        let permissions = fs::Permissions::from_mode(0o644);
        fs::set_permissions(file.path(), permissions).expect("it is ours");
        *self.shared.resolv_conf.lock().expect("nobody panics with it") = Some(file);
    }

    /// Waits until something listens on TCP `port`, on any address of either family.
    pub(crate) fn listening(&self, port: u16) {
        self.within(|| wait_until(&format!("port {port} listens"), || is_listening(port)));
    }

    /// Runs `remora intercept` here, as its library function, and returns what it wrote.
    pub(crate) fn intercept(
        &self,
        command: intercept::Command,
        config: &intercept::Config,
    ) -> Result<String, intercept::Error> {
        self.within(|| {
            let mut out = Vec::new();
            intercept::run(command, config, &mut out)?;
            match (world::uids(), command) {
                (Uids::One, intercept::Command::Apply) => {
                    let rules = Ruleset::new(config)?;
                    nftables::install(&stand_in::rules(
                        &rules,
                        self.shared.plug.application_addresses(),
                    ))?;
                }
                (Uids::One, intercept::Command::Remove) => nftables::remove(stand_in::TABLE)?,
                _ => (),
            }
            Ok(String::from_utf8(out).expect("the output is text"))
        })
    }

    fn thread<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let (host, parent) = (self.clone(), thread::current());
        let name = format!("{} on {}", parent.name().unwrap_or("a case"), self.name());
        let work = move || {
            let entered = setns(&host.shared.namespace, CloneFlags::CLONE_NEWNET);
            entered.expect("the namespace can be entered");
            host.become_one_of_us();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work())
        };
        thread::Builder::new().name(name).spawn(work).expect("a thread")
    }

    /// Makes the sockets of this thread those of the application or of the sidecar.
    fn become_one_of_us(&self) {
        match (self.who, world::uids()) {
            // Of this thread only, unlike `setuid`; it is what the kernel compares.
            (Who::Proxy, Uids::Many) => {
                let uid = Uid::from_raw(world::proxy_uid());
                // It cannot fail, only change nothing; it returns the one before.
                let (_before, now) = (setfsuid(uid), setfsuid(uid));
                assert_eq!(now, uid, "the user of the sidecar must exist");
            }
            (Who::Application, Uids::One) => {
                SOURCE.set(Some(self.shared.plug.application_addresses()));
            }
            (Who::Proxy, Uids::One) | (Who::Application, Uids::Many) => (),
        }
    }
}

/// Waits for something there is no event for.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !is_so() {
        assert!(clock::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::park_timeout(LOOK_AGAIN);
    }
}

/// The configuration of interception under test.
pub(crate) fn config() -> intercept::Config {
    intercept::Config { proxy_uid: world::proxy_uid(), ..intercept::Config::default() }
}

/// The address a socket of this thread that shall reach `destination` must be bound to.
pub(crate) fn source(destination: SocketAddr) -> Option<SocketAddr> {
    let (v4, v6) = SOURCE.get()?;
    match destination.ip() {
        it if it.is_loopback() => None,
        IpAddr::V4(_) => Some((v4, 0).into()),
        IpAddr::V6(_) => Some((v6, 0).into()),
    }
}

/// Work that was started.
#[derive(Debug)]
pub(crate) struct Running<T> {
    thread: JoinHandle<T>,
}

impl<T> Running<T> {
    /// Waits for its result; its panic is ours.
    pub(crate) fn join(self) -> T {
        self.thread.join().unwrap_or_else(|it| panic::resume_unwind(it))
    }
}

/// Tells that a server is ready.
#[derive(Debug)]
pub(crate) struct Ready<T>(mpsc::SyncSender<T>);

impl<T> Ready<T> {
    /// Tells it, with what clients have to know.
    pub(crate) fn tell(self, what: T) {
        self.0.send(what).expect("somebody waits for the server");
    }
}

/// A server that runs as long as this.
#[derive(Debug)]
pub(crate) struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of a server fails the case, unless that is what is going on already.
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(it)) = ended
            && !thread::panicking()
        {
            panic::resume_unwind(it);
        }
    }
}

/// Whether the network namespace of this thread has a listener on `port`.
fn is_listening(port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|file| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        table.unwrap_or_default().lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Local address and state; 0A is LISTEN.
            matches!(fields[..], [_, local, _, "0A", ..] if local.ends_with(&wanted))
        })
    })
}
