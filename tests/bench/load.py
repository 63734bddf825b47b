"""Load: drives one peer for a while and says how much work was done.

Every driver raises `Failed` when one request, answer or connection went wrong: an error
is cheaper than an answer, and a mean that contains errors flatters the one who made them.
"""
import re
import socket
import subprocess
import time

from processes import ADDRESS, Failed

HOST = "backend.bench:80"
BODY = b"s" * 128
_SLACK_SECS = 30


class Load:
    """The load tools, pinned to their core."""

    def __init__(self, core, tools):
        self._core, self._tools = str(core), tools

    def _run(self, command, secs):
        command = ["taskset", "-c", self._core, *map(str, command)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=secs + _SLACK_SECS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[3]} did not end in {secs + _SLACK_SECS} s") from None
        if done.returncode != 0:
            raise Failed(f"{command[3]}: {(done.stderr or done.stdout).strip()[-400:]}")
        return done.stdout

    def http1(self, port, secs, connections=64):
        """Closed-loop HTTP/1.1 with keep-alive; returns requests answered."""
        out = self._run(["wrk", "-t1", f"-c{connections}", f"-d{secs}s", "--timeout", "5s",
                         "-H", f"Host: {HOST}", f"http://{ADDRESS}:{port}/s"], secs)
        requests = int(_find(r"(\d+) requests in", out))
        errors = re.search(r"Socket errors:.*", out)
        wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
        if errors or wrong:
            found = " ".join(it[0] for it in (errors, wrong) if it)
            raise Failed(f"of {requests} requests, {found}")
        return _some(requests)

    def http2(self, port, secs, connections=8, streams=32):
        """Closed-loop HTTP/2 with prior knowledge; returns requests answered."""
        return self._h2load(port, ["-c", connections, "-m", streams, "-D", secs], secs)

    def _h2load(self, port, options, secs):
        out = self._run(["h2load", "-t1", *options, f"--connect-to={ADDRESS}:{port}",
                         f"http://{HOST}/s"], secs)
        counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, "
                           r"(\d+) timeout", out)
        if not counts:
            raise Failed(f"h2load said {out.strip()[-400:]!r}")
        done, *_, failed, errored, timeout = map(int, counts.groups())
        good = int(_find(r"status codes: (\d+) 2xx", out))
        # A stream whose head came in time and whose end did not counts as 2xx, not as done.
        if failed or errored or timeout or good < done:
            raise Failed(f"of {done} requests, {good} were answered 2xx, {failed} failed, "
                         f"{errored} errored, {timeout} timed out")
        return _some(done)

    def bulk(self, port, mib):
        """One opaque connection that downloads; returns mebibytes."""
        return self._stream(port, ["bulk", mib], 60)

    def connects(self, port, secs, at_a_time=64):
        """New opaque connections of 128 bytes each; returns how many were served."""
        return self._stream(port, ["connect", at_a_time, secs], secs)

    def _stream(self, port, arguments, secs):
        out = self._run([self._tools / "stream", ADDRESS, port, *arguments], secs)
        done, failed, _ = out.split()
        if int(failed):
            raise Failed(f"{failed} connections failed, {done} done")
        return _some(int(done))

    def latency_us(self, port, secs, rate=1000, connections=16):
        """Open loop at `rate` per second; returns the median latency."""
        out = self._run([self._tools / "latency", ADDRESS, port, HOST, rate, connections, secs],
                        secs)
        sent, _, failed, median, _ = out.split()
        if int(failed):
            raise Failed(f"{failed} of {sent} requests failed at {rate}/s")
        return float(median)

    def probe(self, port, mode):
        """Proves once that the right backend answers through this port."""
        if mode == "h2":
            self._h2load(port, ["-c", 1, "-n", 1], 5)
        elif mode == "http":
            with Client(port) as client:
                client.ask()
        else:
            self._stream(port, ["bulk", 1], 10)


class Client:
    """One keep-alive HTTP/1.1 connection that checks what it gets."""

    def __init__(self, port):
        self._socket = socket.create_connection((ADDRESS, port), 5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def ask(self):
        self._socket.sendall(f"GET /s HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(BODY):
            got = self._socket.recv(4096)
            if not got:
                raise Failed(f"an idle client got {answer[:80]!r} and the end")
            answer += got
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise Failed(f"a client got {answer[:80]!r}")


def idle_memory(port, processes, count):
    """Resident KiB before any connection, and with `count` idle ones after a request each."""
    def resident():
        time.sleep(3)  # what is idle is given up, and allocators give memory back
        return sum(it.rss_kib() for it in processes)

    before, clients = resident(), []
    try:
        for _ in range(count):
            clients.append(Client(port))
            clients[-1].ask()
        during = resident()
        for client in clients:  # each must still be there: a closed one costs nothing
            client.ask()
    finally:
        for client in clients:
            client.__exit__()
    return before, during


def _find(pattern, text):
    found = re.search(pattern, text)
    if not found:
        raise Failed(f"the load tool said {text.strip()[-400:]!r}")
    return found[1]


def _some(count):
    if count == 0:
        raise Failed("nothing was answered")
    return count
