"""The real programs in a lab: nginx on the backends, ours in front."""

import sys
from pathlib import Path

from common.cookie import Secrets, new_key
from lab.topology import SUBNET, VIP, Lab, Node, Process, run

REPOSITORY = Path(__file__).resolve().parent.parent

_NGINX = """\
user root;
daemon off;
master_process off;
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
  client_max_body_size 4g;
  sendfile on;
  default_type application/octet-stream;
  server {{
    listen {address}:{port} backlog=8192;
    {tls}
    location / {{ return 200 "{name} $request_uri $remote_addr:$remote_port\\n"; }}
    location /files/ {{ alias {files}/; }}
    location /upload {{
      dav_methods PUT;
      alias {directory}/uploads;
      create_full_put_path on;
    }}
  }}
}}
"""


def secret_file(lab: Lab) -> Path:
    """The lab's secret, made when first asked for."""
    path = lab.directory / "secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(Secrets(new_key()).emit())
    return path


def files_directory(lab: Lab) -> Path:
    """What every nginx serves under /files/."""
    path = lab.directory / "files"
    path.mkdir(exist_ok=True)
    return path


def start_nginx(
    lab: Lab, node: Node, address: str, port: int = 80, *, tls: bool = False,
    access_log: bool = True,
) -> Process:
    """nginx on `node`, answering with the node's name, the URI, and the client's address."""
    directory = lab.directory / f"nginx-{node.name}-{port}"
    (directory / "uploads").mkdir(parents=True, exist_ok=True)
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(
        directory=directory, address=address, port=port, name=node.name,
        files=files_directory(lab), tls=_tls_lines(lab, address, port) if tls else "",
        access_log=f"{directory}/access.log" if access_log else "off",
    ))
    process = node.start("nginx", "nginx", "-c", str(configuration))
    wait_for_listener(node, address, port, process)
    return process


def _tls_lines(lab: Lab, address: str, port: int) -> str:
    key, certificate = lab.directory / "tls.key", lab.directory / "tls.crt"
    if not certificate.exists():
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "30",
            "-subj", "/CN=lab.example")
    return (f"listen {address}:{port + 363} ssl;\n"
            f"ssl_certificate {certificate}; ssl_certificate_key {key};")


def wait_for_listener(node: Node, address: str, port: int, process: Process) -> None:
    """Wait until something listens there. Raises: RuntimeError with the process's output."""
    from lab.topology import wait_until

    def listens() -> bool:
        if process.popen.poll() is not None:
            raise RuntimeError(f"{process.name} ended:\n{process.log()}")
        return bool(node.run("ss", "-Hltn", f"src {address} and sport = :{port}").strip())

    wait_until(listens, 20, f"{process.name} listens on {address}:{port}")


def start_balancer(lab: Lab, *flags: str, node: Node | None = None) -> Process:
    """The balancer, ready. flags: besides interface and secret."""
    node = node or lab.balancer
    process = node.start(
        "balancer", sys.executable, "-m", "balancer", "--interface", "eth1",
        "--secret-file", str(secret_file(lab)), *flags,
    )
    process.wait_for("ready")
    return process


def start_bridge(lab: Lab, number: int, *flags: str, services: bool = True) -> Process:
    """The packetbridge on backend `number`, ready. services: with the lab's VIP and server."""
    described = ("--vip", f"3={VIP}:80", "--server", f"{SUBNET}.{29 + number}:80")
    process = lab.backend(number).start(
        "packetbridge", sys.executable, "-m", "packetbridge", "--interface", "eth1",
        "--secret-file", str(secret_file(lab)), *(described if services else ()), *flags,
    )
    process.wait_for("ready")
    return process


def start_all(lab: Lab, *balancer_flags: str) -> tuple[Process, list[Process]]:
    """nginx and bridge on both backends, and the balancer."""
    bridges = []
    for number in (1, 2):
        start_nginx(lab, lab.backend(number), f"{SUBNET}.{29 + number}")
        bridges.append(start_bridge(lab, number))
    return start_balancer(lab, *balancer_flags), bridges


def metrics(node: Node, port: int = 9101) -> dict[str, float]:
    """What a program in `node` tells Prometheus, name with labels to value."""
    text = node.run("curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{port}/metrics")
    lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, _, value in lines}


