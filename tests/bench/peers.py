"""Peers: how each proxy is started for each topology.

A topology is where the proxy stands. `http`, `h2` and `tcp` are one hop in front of the
backend. `mesh` and `tcp-mesh` are a pair with mutual TLS 1.3 between, plaintext at both
ends; in `mesh` the pair speaks HTTP/2 between, whatever the client speaks.

Each peer takes base ports apart from the others': +0 is where clients enter, +1 the
inbound half of a pair, +8 and +9 the halves' admin ports where a peer has them.
"""
import envoy
import haproxy
import nginx
import remora

BACKEND_HTTP, BACKEND_H2, BACKEND_STREAM = 21000, 21001, 21002
TOPOLOGIES = {
    # name: (backend port, how it is probed, whether a pair)
    "http": (BACKEND_HTTP, "http", False),
    "h2": (BACKEND_H2, "h2", False),
    "tcp": (BACKEND_STREAM, "tcp", False),
    "mesh": (BACKEND_HTTP, "http", True),
    "tcp-mesh": (BACKEND_STREAM, "tcp", True),
}


class Topology:
    """One of TOPOLOGIES."""

    def __init__(self, name):
        self.name = name
        self.backend, self.mode, self.is_pair = TOPOLOGIES[name]


class Place:
    """Where a peer runs: its ports, certificates, configuration folder and options."""

    def __init__(self, entry, topology, certificates, folder, splice=False, threads=1):
        self.entry, self.inbound = entry, entry + 1
        self.admin_entry, self.admin_inbound = entry + 8, entry + 9
        self.backend = topology.backend
        self.certificates, self.folder = certificates, folder
        self.splice, self.threads = splice, threads
        self.binary = "BENCH_REMORA"


# A peer is a function (topology, place) -> [(name, port that opens, command)], the half
# that clients enter last, so that it finds the other half up.
PEERS = {
    "remora": (22000, remora.commands),
    "haproxy": (23000, haproxy.commands),
    "envoy": (24000, envoy.commands),
    "nginx": (25000, nginx.commands),
    "earlier": (26000, remora.earlier),
}


class Peer:
    """A proxy that has been started and proved to answer."""

    def __init__(self, name, topology, group, core, certificates, splice):
        entry, commands = PEERS[name]
        folder = group.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        place = Place(entry, topology, certificates, folder, splice)
        self.name, self.port, self.processes = name, entry, []
        for half, port, command in commands(topology, place):
            process = group.start(half, command, core)
            group.await_port(process, port)
            self.processes.append(process)

    def cpu_us(self):
        return sum(it.cpu_us() for it in self.processes)

    def rss_kib(self):
        return sum(it.rss_kib() for it in self.processes)

    def check_alive(self):
        for it in self.processes:
            it.check_alive()


def start_backends(group, core, tools):
    """The HTTP/1.1 and stream backend, and nginx as the HTTP/2 one."""
    address = nginx.ADDRESS
    backend = group.start(
        "backend", [tools / "backend", address, BACKEND_HTTP, BACKEND_STREAM], core)
    group.await_port(backend, BACKEND_STREAM)
    h2 = group.start("backend-h2", nginx.h2_backend(BACKEND_H2, group.directory), core)
    group.await_port(h2, BACKEND_H2)
