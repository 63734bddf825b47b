"""nginx: one worker, upstream connections kept. It has no HTTP/2 towards a server, so it
stands in for `http` and `tcp` only; and it is the HTTP/2 backend of everybody."""
from processes import ADDRESS, Failed

_MAIN = """\
{modules}
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
user root;
pid {folder}/{name}.pid;
error_log {folder}/{name}.err warn;
events {{ worker_connections 16000; }}
"""
_HTTP = """\
http {{
  access_log off;
  server_tokens off;
  tcp_nodelay on;
  keepalive_requests 100000000;
  keepalive_timeout 600s;
  http2_max_concurrent_streams 256;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {servers}
}}
"""
_PROXY = """\
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  upstream backend {{
    server {address}:{upstream};
    keepalive 512; keepalive_requests 100000000; keepalive_timeout 600s;
  }}
  server {{ listen {address}:{port} backlog=4096; location / {{ proxy_pass http://backend; }} }}
"""
_STREAM = """\
stream {{ server {{ listen {address}:{port}; proxy_pass {address}:{upstream}; }} }}
"""
_STREAM_MODULE = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"
_BACKEND = 'server {{ listen {address}:{port} http2 backlog=4096; location = /s {{ return 200 "{body}"; }} }}'


def commands(topology, place):
    values = dict(address=ADDRESS, port=place.entry, upstream=place.backend)
    if topology.name == "http":
        return [_program("nginx", place.entry, place.folder, http=_PROXY.format(**values))]
    if topology.name == "tcp":
        return [_program("nginx", place.entry, place.folder, stream=_STREAM.format(**values))]
    raise Failed(f"nginx cannot stand in `{topology.name}`")


def h2_backend(port, folder):
    """The command of a server that answers every request with 128 bytes over HTTP/2."""
    body = _BACKEND.format(address=ADDRESS, port=port, body="s" * 128)
    return _program("backend-h2", port, folder, http=body)[2]


def _program(name, port, folder, http=None, stream=""):
    text = _MAIN.format(folder=folder, name=name, modules=_STREAM_MODULE if stream else "")
    if http:
        text += _HTTP.format(folder=folder, servers=http)
    file = folder / f"{name}.conf"
    file.write_text(text + stream)
    return name, port, ["nginx", "-c", file]
