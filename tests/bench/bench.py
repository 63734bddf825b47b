"""bench.py: the driver behind `run`, which prepares what it needs. See README.md."""
import argparse
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import statistics
import sys
import time

import peers
from load import Load, idle_memory
from processes import Failed, Group, is_open

WORK = pathlib.Path(os.environ["BENCH_WORK"])
TOOLS = WORK / "bin"
IDLE_CONNECTIONS = 1000


class Scenario:
    """What is measured, where the peers stand, and the unit of the result."""

    def __init__(self, title, topology, measure, unit, splice=False):
        self.title, self.measure, self.unit, self.splice = title, measure, unit, splice
        self.topology = peers.Topology(topology)


def _cpu(drive):
    """CPU of the peer's threads per unit of work that `drive(load, port, options)` did."""
    def measure(bench, peer):
        before, begin = peer.cpu_us(), time.monotonic()
        work = drive(bench.load, peer.port, bench.options)
        took = time.monotonic() - begin
        cpu = peer.cpu_us() - before
        return {"value": cpu / work, "work": work, "rate": work / took,
                "busy": cpu / took / 1e6, "rss_mib": peer.rss_kib() / 1024}
    return measure


def _added_latency(bench, peer):
    direct = bench.load.latency_us(peers.BACKEND_HTTP, bench.options.secs)
    through = bench.load.latency_us(peer.port, bench.options.secs)
    return {"value": through - direct, "direct_us": direct, "through_us": through}


def _memory(bench, peer):
    before, during = idle_memory(peer.port, peer.processes, IDLE_CONNECTIONS)
    return {"value": before / 1024, "kib_per_connection": (during - before) / IDLE_CONNECTIONS}


http1 = _cpu(lambda load, port, options: load.http1(port, options.secs))
http2 = _cpu(lambda load, port, options: load.http2(port, options.secs))
bulk = _cpu(lambda load, port, options: load.bulk(port, options.mib))
connects = _cpu(lambda load, port, options: load.connects(port, options.secs))

SCENARIOS = {
    "S1": Scenario("one hop, HTTP/1.1, CPU per request", "http", http1, "us"),
    "S3h2": Scenario("one hop, h2c to h2c, CPU per request", "h2", http2, "us"),
    "S4h2": Scenario("mTLS pair, HTTP/2 between, CPU per request", "mesh", http1, "us"),
    "S5": Scenario("one hop, opaque TCP, CPU per MiB", "tcp", bulk, "us"),
    "S6m": Scenario("mTLS pair, CPU per new opaque connection", "tcp-mesh", connects, "us"),
    "S7": Scenario("memory, idle and per idle connection", "http", _memory, "MiB"),
    "S8": Scenario("added median latency at 1,000 req/s", "http", _added_latency, "us"),
    # Run by name only.
    "S5splice": Scenario("S5 with HAProxy told to splice", "tcp", bulk, "us", splice=True),
    "S5m": Scenario("mTLS pair, opaque TCP, CPU per MiB", "tcp-mesh", bulk, "us"),
}
DEFAULT = [name for name in SCENARIOS if name not in ("S5splice", "S5m")]


class Bench:
    """One invocation: its options, its load tools, its certificates."""

    def __init__(self, options):
        self.options = options
        self.load = Load(options.load_core, TOOLS)

    def run(self, name):
        """Every round of one scenario: {peer: [measurement, ...]}."""
        scenario = SCENARIOS[name]
        # Memory is that of a fresh process; CPU that of one that has warmed up.
        fresh = scenario.measure is _memory
        rounds = {peer: [] for peer in self.options.peers}
        for turn in range(self.options.rounds if fresh else 1):
            with Group(_empty(WORK / name)) as group:
                started = self._start(scenario, group)
                if not fresh:
                    self._warm_up(scenario, started)
                for _ in range(1 if fresh else self.options.rounds):
                    for peer in started:
                        rounds[peer.name].append(self._measure(scenario, peer))
        return rounds

    def _start(self, scenario, group):
        ports = [peers.BACKEND_HTTP, peers.BACKEND_H2, peers.BACKEND_STREAM]
        taken = [it for it in ports + [peers.PEERS[p][0] for p in self.options.peers] if is_open(it)]
        if taken:
            raise Failed(f"port {taken[0]} is taken; hint: is another run still going?")
        peers.start_backends(group, self.options.load_core, TOOLS)
        started = []
        for name in self.options.peers:
            with _told_by(name):
                peer = peers.Peer(name, scenario.topology, group, self.options.proxy_core,
                                  WORK / "certificates", scenario.splice)
                self.load.probe(peer.port, scenario.topology.mode)
                started.append(peer)
        time.sleep(1)
        return started

    def _warm_up(self, scenario, started):
        secs, self.options.secs = self.options.secs, 1
        for peer in started:
            self._measure(scenario, peer)
        self.options.secs = secs

    def _measure(self, scenario, peer):
        with _told_by(peer.name):
            peer.check_alive()
            measured = scenario.measure(self, peer)
            peer.check_alive()
            return measured


class _told_by:
    """Names the peer in whatever goes wrong inside."""

    def __init__(self, name):
        self._name = name

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if isinstance(error, (Failed, OSError)):
            raise Failed(f"{self._name}: {error}") from error


def summary(rounds, field="value"):
    return {peer: statistics.median(it[field] for it in measured)
            for peer, measured in rounds.items()}


def line(name, rounds):
    """`S1 remora 20.1us haproxy 17.9us envoy 42.0us remora/haproxy 1.12 remora/envoy 0.48`"""
    unit, values = SCENARIOS[name].unit, summary(rounds)
    extra = {peer: "" for peer in values}
    if name == "S7":
        per_connection = summary(rounds, "kib_per_connection")
        extra = {peer: f" {it:.1f}KiB/conn" for peer, it in per_connection.items()}
    parts = [f"{peer} {value:.1f}{unit}{extra[peer]}" for peer, value in values.items()]
    parts += [f"remora/{peer} {values['remora'] / value:.2f}" for peer, value in values.items()
              if peer != "remora" and "remora" in values and 0 < value]
    return " ".join([name, *parts])


def _empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _options():
    listing = "\n".join(f"  {name:9}{it.title}" for name, it in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares Remora with its peers on this machine, in one run.",
        epilog=f"scenarios (default: {' '.join(DEFAULT)}):\n{listing}")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument("--peers", default="remora,haproxy,envoy",
                        help=f"of {','.join(peers.PEERS)}; nginx stands in http and tcp only; "
                             "earlier is the build BENCH_EARLIER names")
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 (default 3)")
    parser.add_argument("--secs", type=int, default=4, help="a peer's turn (default 4)")
    parser.add_argument("--quick", action="store_true", help="turns of 1 s: to see it work")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="every measurement")
    parser.add_argument("--proxy-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--no-build", action="store_true", help="use the binaries there are")
    options = parser.parse_args()
    options.scenarios = options.scenarios or DEFAULT
    options.peers = options.peers.split(",")
    options.mib = 512 if options.quick else 2048
    if options.quick:
        options.secs = 1
    unknown = [it for it in options.scenarios if it not in SCENARIOS]
    unknown += [it for it in options.peers if it not in peers.PEERS]
    if unknown:
        parser.error(f"unknown scenario or peer `{unknown[0]}`")
    if options.rounds < 3:
        parser.error("a median of fewer than 3 rounds says nothing")
    cores = os.sched_getaffinity(0)
    if not {options.proxy_core, options.load_core} <= cores:
        parser.error(f"cores must be among {sorted(cores)}; see --proxy-core and --load-core")
    return options


def main():
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
    bench, results, failed = Bench(options), {}, False
    for name in options.scenarios:
        try:
            rounds = bench.run(name)
            results[name] = {"title": SCENARIOS[name].title, "unit": SCENARIOS[name].unit,
                             "medians": summary(rounds), "rounds": rounds}
            print(line(name, rounds), flush=True)
        except Failed as error:
            failed = True
            results[name] = {"failed": str(error)}
            print(f"{name} FAILED {' '.join(str(error).split())}", flush=True)
    if options.json:
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(),
                   "load_before_after": os.getloadavg(), "when": time.time()}
        options.json.write_text(json.dumps({"machine": machine, "scenarios": results}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
