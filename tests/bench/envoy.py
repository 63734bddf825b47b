"""Envoy: one worker, static configuration, no access log, no filter but the router."""
import json
import os

from processes import ADDRESS

_TYPE = "type.googleapis.com/envoy."
_HCM = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP_OPTIONS = "extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS = "extensions.transport_sockets.tls.v3."
_CONNECTIONS = "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"


def commands(topology, place):
    keys = place.certificates

    def half(name, port, cluster, listener):
        file = place.folder / f"{name}.json"
        file.write_text(json.dumps(_bootstrap(listener, cluster), indent=1))
        return name, port, [
            os.environ["ENVOY"], "-c", file, "--concurrency", place.threads,
            "--disable-hot-restart", "--log-level", "error"]

    entry, inbound, backend = place.entry, place.inbound, place.backend
    return {
        "http": lambda: [half("envoy", entry, _cluster(backend), _http(entry))],
        "h2": lambda: [half("envoy", entry, _cluster(backend, "http2"), _http(entry))],
        "tcp": lambda: [half("envoy", entry, _cluster(backend, None), _tcp(entry))],
        "mesh": lambda: [
            half("envoy-inbound", inbound, _cluster(backend), _http(inbound, _server(keys, ["h2"]))),
            half("envoy-outbound", entry, _cluster(inbound, "http2", _client(keys, ["h2"])),
                 _http(entry))],
        "tcp-mesh": lambda: [
            half("envoy-inbound", inbound, _cluster(backend, None), _tcp(inbound, _server(keys, []))),
            half("envoy-outbound", entry, _cluster(inbound, None, _client(keys, [])),
                 _tcp(entry))],
    }[topology.name]()


def _bootstrap(listener, cluster):
    limit = {"max_active_downstream_connections": 20000}
    monitor = _typed("envoy.resource_monitors.global_downstream_max_connections",
                     _CONNECTIONS, limit)
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]},
            "overload_manager": {"resource_monitors": [monitor]}}


def _cluster(port, protocol="http1", tls=None):
    cluster = {
        "name": "upstream", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]}}
    if protocol:
        options = {"http1": "http_protocol_options", "http2": "http2_protocol_options"}
        cluster["typed_extension_protocol_options"] = {
            "envoy." + _HTTP_OPTIONS: {"@type": _TYPE + _HTTP_OPTIONS,
                   "explicit_http_config": {options[protocol]: {}}}}
    return cluster | ({"transport_socket": tls} if tls else {})


def _http(port, tls=None):
    router = _typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router", {})
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}
    return _listener(port, tls, _typed("http", _HCM, {
        "stat_prefix": "http", "codec_type": "AUTO", "http_filters": [router],
        "route_config": {"name": "routes", "virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [route]}]}}))


def _tcp(port, tls=None):
    return _listener(port, tls, _typed(
        "tcp", "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        {"stat_prefix": "tcp", "cluster": "upstream"}))


def _listener(port, tls, network_filter):
    chain = {"filters": [network_filter]} | ({"transport_socket": tls} if tls else {})
    return {"name": "entry", "address": _address(port), "filter_chains": [chain]}


def _client(keys, alpn):
    return _typed("tls", _TLS + "UpstreamTlsContext", {
        "sni": "inbound.bench", "max_session_keys": 0,
        "common_tls_context": _common(keys, "outbound", "inbound", alpn)})


def _server(keys, alpn):
    return _typed("tls", _TLS + "DownstreamTlsContext", {
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
        "common_tls_context": _common(keys, "inbound", "outbound", alpn)})


def _common(keys, own, peer, alpn):
    identity = {"san_type": "URI", "matcher": {"exact": f"spiffe://bench/ns/bench/sa/{peer}"}}
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                       "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": alpn,
        "tls_certificates": [{"certificate_chain": {"filename": f"{keys}/{own}.crt"},
                              "private_key": {"filename": f"{keys}/{own}.key"}}],
        "validation_context": {"trusted_ca": {"filename": f"{keys}/ca.crt"},
                               "match_typed_subject_alt_names": [identity]}}


def _address(port):
    return {"socket_address": {"address": ADDRESS, "port_value": port}}


def _typed(name, kind, fields):
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}
