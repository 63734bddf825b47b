"""Remora: one worker, all features on, the policy that names the backend and no more.

Everything the benchmark knows of Remora's command line and documents is in this file.
"""
import os
import subprocess

from processes import ADDRESS, Failed

SERVICE, NAMESPACE, TRUST_DOMAIN = "backend", "bench", "cluster.local"
_POLICY = """\
apiVersion: remora.dev/v1alpha1
kind: ServicePolicy
metadata: {{name: {service}, namespace: {namespace}}}
spec:
  targetRefs: [{{kind: Service, name: {service}}}]
  tls: {{mode: {tls}}}
  discovery: {{endpoints: [{{address: "{address}:{port}"}}]}}
"""


def commands(topology, place):
    if topology.is_pair:
        keys = _identities(place.folder)
        inbound = _sidecar(place, [
            "--outbound", "off", "--inbound", f"{ADDRESS}:{place.inbound}",
            "--app", f"{ADDRESS}:{place.backend}", "--identity", keys["server"]],
            place.admin_inbound)
        outbound = _outbound(topology, place, place.inbound, keys["client"], "strict")
        return [("remora-inbound", place.inbound, inbound),
                ("remora-outbound", place.entry, outbound)]
    return [("remora", place.entry, _outbound(topology, place, place.backend, "none", "off"))]


def earlier(topology, place):
    """The same of another build: what a change costs is seen in one run only."""
    place.binary = "BENCH_EARLIER"
    if place.binary not in os.environ:
        raise Failed(f"which build is unknown; set {place.binary}=/path/to/remora")
    return commands(topology, place)


def _outbound(topology, place, upstream, identity, tls):
    policy = place.folder / f"policy-{topology.name}"
    policy.mkdir(exist_ok=True)
    (policy / "backend.yaml").write_text(_POLICY.format(
        service=SERVICE, namespace=NAMESPACE, tls=tls, address=ADDRESS, port=upstream))
    entry = f"{ADDRESS}:{place.entry}"
    entrance = (["--outbound", "off", "--tcp", f"{entry}={SERVICE}.{NAMESPACE}:80"]
                if topology.mode == "tcp" else ["--outbound", entry])
    return _sidecar(place, [
        "--inbound", "off", *entrance, "--identity", identity, "--policy", policy],
        place.admin_entry)


def _sidecar(place, options, admin):
    return [os.environ[place.binary], "--mode", "explicit", "--threads", place.threads,
            "--admin", f"{ADDRESS}:{admin}", *options]


def _identities(folder):
    """A fresh authority and one leaf for each half, made by the project's own tool."""
    authority = folder / "ca"
    leaves = {name: folder / name for name in ("client", "server")}
    if not authority.exists():
        _control("init", "--dir", authority)
        for name, out in leaves.items():
            identity = f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{name}"
            _control("issue", "--dir", authority, "--id", identity, "--out", out)
    return leaves


def _control(*arguments):
    done = subprocess.run([os.environ["BENCH_REMORA_CONTROL"], *map(str, arguments)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"remora-control {arguments[0]}: {done.stderr.strip()[-400:]}")
