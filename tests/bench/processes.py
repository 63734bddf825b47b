"""Processes: each one started here is pinned, accounted for, and ended with its children.

Nothing else is ever ended: a process is the leader of its own group, and its exit is
observed without reaping, so its number cannot pass to a stranger before the group is gone.
"""
import os
import signal
import socket
import subprocess
import time

# A loopback address of its own, so that nothing else has these ports.
ADDRESS = os.environ.get("BENCH_ADDRESS", "127.0.7.1")
_READY_SECS = 20
_STOP_SECS = 5


class Failed(Exception):
    """A scenario cannot give an honest number, and why."""


class Process:
    """One program on one core, its output in a file."""

    def __init__(self, name, command, core, log):
        self.name, self.log = name, log
        # Settings of the shell's own are no part of what is compared.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REMORA_")}
        with open(log, "wb") as output:
            self._child = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment, start_new_session=True)

    def check_alive(self):
        """Raises with the end of the log when the program has ended."""
        if self._exited():
            with open(self.log, errors="replace") as log:
                last = log.read()[-600:].strip()
            raise Failed(f"{self.name} ended by itself: {last or 'without a word'}")

    def pids(self):
        """The process and all its descendants."""
        found, todo = [], [self._child.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for task in _tasks(pid):
                todo += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
        return found

    def cpu_us(self):
        """CPU time of every thread of every descendant, as the scheduler counts it."""
        return sum(int((_read(f"/proc/{pid}/task/{task}/schedstat") or "0").split()[0])
                   for pid in self.pids() for task in _tasks(pid)) / 1e3

    def rss_kib(self):
        """Resident memory, pages shared with other processes counted in full."""
        return sum(int(line.split()[1]) for pid in self.pids()
                   for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()
                   if line.startswith("Rss:"))

    def stop(self):
        """SIGTERM to the group, then SIGKILL to what is left of it."""
        for number, patience in ((signal.SIGTERM, _STOP_SECS), (signal.SIGKILL, 1)):
            try:
                os.killpg(self._child.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + patience
            while not self._exited() and time.monotonic() < deadline:
                time.sleep(0.02)
        self._child.wait()

    def _exited(self):
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._child.pid, flags) is not None


class Group:
    """The processes of one scenario; leaving the `with` block ends them all."""

    def __init__(self, directory):
        self.directory, self._processes = directory, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self._processes):
            process.stop()

    def start(self, name, command, core):
        process = Process(name, command, core, self.directory / f"{name}.log")
        self._processes.append(process)
        return process

    def await_port(self, process, port):
        """Returns when the port accepts; raises when the process ends or time is up."""
        deadline = time.monotonic() + _READY_SECS
        while not is_open(port):
            process.check_alive()
            if deadline < time.monotonic():
                raise Failed(f"{process.name} did not listen on {port} in {_READY_SECS} s")
            time.sleep(0.02)
        process.check_alive()


def is_open(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ADDRESS, port)) == 0


def _tasks(pid):
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _read(path):
    """The file's text, or none when its process or thread has ended meanwhile."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
