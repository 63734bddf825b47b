"""HAProxy: one thread, connections to the server shared, no logs."""
from processes import ADDRESS

_HEAD = """\
global
  nbthread {threads}
  maxconn 7000
  tune.ssl.cachesize 0
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode {mode}
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  {options}
listen {name}
  bind {address}:{port} {bind}
  server upstream {address}:{upstream} {server}
"""
_HTTP = "http-reuse always\n  option tcp-smart-accept"


def commands(topology, place):
    keys = place.certificates
    tls_out = (f"ssl verify required ca-file {keys}/ca.crt crt {keys}/outbound.pem "
               f"sni str(inbound.bench) verifyhost inbound.bench ssl-min-ver TLSv1.3")
    tls_in = (f"ssl crt {keys}/inbound.pem ca-file {keys}/ca.crt verify required "
              f"ssl-min-ver TLSv1.3 no-tls-tickets")
    splice = "option splice-request\n  option splice-response" if place.splice else ""
    h2 = "proto h2"

    def half(name, port, upstream, mode, bind="", server=""):
        text = _HEAD.format(
            threads=place.threads, mode=mode, options=_HTTP if mode == "http" else splice,
            name=name, address=ADDRESS, port=port, bind=bind, upstream=upstream, server=server)
        file = place.folder / f"{name}.cfg"
        file.write_text(text)
        return name, port, ["haproxy", "-db", "-f", file]

    entry, inbound, backend = place.entry, place.inbound, place.backend
    return {
        "http": lambda: [half("haproxy", entry, backend, "http")],
        "h2": lambda: [half("haproxy", entry, backend, "http", h2, h2)],
        "tcp": lambda: [half("haproxy", entry, backend, "tcp")],
        "mesh": lambda: [
            half("haproxy-inbound", inbound, backend, "http", f"{tls_in} alpn h2"),
            half("haproxy-outbound", entry, inbound, "http", "", f"{tls_out} alpn h2")],
        "tcp-mesh": lambda: [
            half("haproxy-inbound", inbound, backend, "tcp", tls_in),
            half("haproxy-outbound", entry, inbound, "tcp", "", f"{tls_out} no-ssl-reuse")],
    }[topology.name]()
