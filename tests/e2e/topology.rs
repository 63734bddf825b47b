//! Topology: hosts on one switch, as in `let [client, pod] = Topology::of(["client", "pod"])`.

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{cable, host::Host};

const BRIDGE: &str = "switch";

/// The switch hosts are plugged into: a bridge in a network namespace of its own, which
/// lives as long as any of its hosts.
#[derive(Debug)]
pub(crate) struct Topology {
    namespace: File,
}

impl Topology {
    /// Hosts of these names, each in a network namespace, all in one network of both
    /// families.
    pub(crate) fn of<const N: usize>(names: [&str; N]) -> [Host; N] {
        let namespace = new_namespace();
        let switch = Arc::new(Self { namespace });
        switch.within(|| cable::bridge(BRIDGE));
        let mut number = 10;
        names.map(|name| {
            number += 1;
            let (v4, v6) = addresses(number);
            let namespace = new_namespace();
            switch.within(|| cable::cable(&port(number), BRIDGE, "eth0", &namespace));
            let plug = Plug { switch: Arc::clone(&switch), number };
            let host = Host::new(name, namespace, (v4, v6), plug.clone());
            plug.wait();
            host
        })
    }

    /// Runs `work` on a thread in the network namespace of the switch.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace, work)
    }
}

/// Where a host is plugged in.
#[derive(Clone, Debug)]
pub(crate) struct Plug {
    switch: Arc<Topology>,
    number: u8,
}

impl Plug {
    /// Pulls the cable, or puts it back: what was sent is lost, and nobody is told.
    pub(crate) fn set(&self, plugged: bool) {
        self.switch.within(|| cable::set_up(&port(self.number), plugged));
    }

    /// Waits until the switch forwards what comes from the host.
    pub(crate) fn wait(&self) {
        self.switch.within(|| cable::wait_for_port(&port(self.number)));
    }

    /// The addresses by which the application is known where there is but one user.
    pub(crate) fn application_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        addresses(self.number + 100)
    }
}

fn port(number: u8) -> String {
    format!("port{number}")
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
    (Ipv4Addr::new(10, 77, 0, number), v6)
}

/// Runs `work` on a thread in `namespace`.
pub(crate) fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
            work()
        });
        thread.join().unwrap_or_else(|it| std::panic::resume_unwind(it))
    })
}

/// A network namespace that lives as long as it is open.
fn new_namespace() -> File {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces can be made");
        cable::set_up("lo", true);
        File::open("/proc/thread-self/ns/net").expect("the namespace can be opened")
    });
    thread.join().unwrap_or_else(|it| std::panic::resume_unwind(it))
}
