"""A real nginx on a node: it says who it is, serves files, and takes uploads."""

from pathlib import Path

from lab.node import Node, Process, run

TLS_PORT = 443

# `Lab` ends it, so it stays in the foreground; one worker, as on a small host.
_CONFIGURATION = """\
user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 32768; }}
http {{
  access_log {access_log};
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 100000000;
  keepalive_timeout {keepalive_s};
  client_max_body_size 4g;
  large_client_header_buffers 8 64k;
  sendfile on;
  default_type application/octet-stream;
  server {{
    listen {address}:{port} backlog=8192;
    {tls}
    location / {{ return 200 "{name} $request_uri $remote_addr:$remote_port $ssl_server_name\\n"; }}
    location /files/ {{ alias {files}/; }}
    location /upload/ {{
      dav_methods PUT;
      alias {directory}/upload/;
      create_full_put_path on;
    }}
  }}
}}
"""


def start(
    node: Node, directory: Path, address: str, port: int = 80, *, name: str | None = None,
    tls: bool = False, access_log: bool = True, keepalive_s: int = 300,
) -> Process:
    """Start nginx on a node and wait until it listens.

    /         answers `NAME URI CLIENT:PORT SNI`; /files/ serves `directory`/files, shared by all;
    /upload/  takes PUT into `directory`/NAME/upload. name: default the node's. tls: on 443 as well.
    Raises: RuntimeError with its output.
    """
    name = name or node.name
    own = directory / f"nginx-{name}-{port}"
    files = directory / "files"
    for path in (own / "upload", files):
        path.mkdir(parents=True, exist_ok=True)
    configuration = own / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(
        directory=own, address=address, port=port, name=name, files=files, keepalive_s=keepalive_s,
        access_log=f"{own}/access.log" if access_log else "off",
        tls=_tls(directory, address) if tls else "",
    ))
    process = node.start("nginx", ["nginx", "-c", str(configuration)])
    return process.wait_for_listener(address, port)


def _tls(directory: Path, address: str) -> str:
    """Listen for TLS, with a self-signed certificate for *.lab.example that all share."""
    key, certificate = directory / "tls.key", directory / "tls.crt"
    if not certificate.exists():
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "30",
             "-subj", "/CN=lab.example", "-addext", "subjectAltName=DNS:*.lab.example"])
    return (f"listen {address}:{TLS_PORT} ssl backlog=8192;\n"
            f"    ssl_certificate {certificate}; ssl_certificate_key {key};")
