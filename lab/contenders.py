"""What the benchmark compares: no balancer, proxies, and the pair with each engine and mode.

All serve the same two backends of one lab. The pair's kinds share the VIP, so each runs only while
it is measured. `routed` is no balancer either, but the balancer's kernel forwards what the client
sends: what it costs that the way leads there, since in a lab wires cost CPU time, too.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from lab.node import Node, Process
from lab.topology import BALANCER, DSCP, PAIRS, VIP, Lab, server_address

PROXY_PORT = {"haproxy": 8081, "nginx": 8082}
TLS_PORT, TLS_PROXY_PORT = 443, 8443
# How the tables call a pair, and how lab.topology does.
OURS = {"portable": "portable", "fast, splice": "splice", "fast, adopt": "adopt"}
NAMES = ("direct", "routed", *PROXY_PORT, *OURS)
TLS_NAMES = tuple(name for name in NAMES if name != "nginx")  # whose reader of names is a module
_HAPROXY = """\
global
  maxconn 4000
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind 0.0.0.0:{port}
  default_backend caches
backend caches
  balance uri
  hash-type consistent
  http-reuse safe
  server one {one}:80
  server two {two}:80
frontend names
  mode tcp
  bind 0.0.0.0:{tls_port}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  default_backend by-name
backend by-name
  mode tcp
  balance hash req.ssl_sni
  hash-type consistent
  server one {one}:443
  server two {two}:443
"""
_NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/bench-nginx.pid;
error_log {directory}/bench-nginx.error;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  proxy_temp_path {directory}/bench-proxy;
  client_body_temp_path {directory}/bench-body;
  fastcgi_temp_path {directory}/bench-fastcgi;
  uwsgi_temp_path {directory}/bench-uwsgi;
  scgi_temp_path {directory}/bench-scgi;
  proxy_buffering off;
  upstream caches {{ hash $uri consistent; server {one}:80; server {two}:80; keepalive 64; }}
  server {{
    listen {port} backlog=8192;
    location / {{
      proxy_pass http://caches;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""
_COMMANDS = {"haproxy": (_HAPROXY, ["haproxy", "-db", "-f"]), "nginx": (_NGINX, ["nginx", "-c"])}


class Contender(NamedTuple):
    """One that runs. address: where it serves. balancing: the process on the balancer, if any."""

    url: str
    address: str
    port: int
    balancing: Process | None
    is_ours: bool = False


def prepare(lab: Lab) -> None:
    """What all of them need: the servers, and a client that does not run out of ports.

    Those that one contender's connections leave in TIME_WAIT would make the next one's wait.
    """
    for backend in lab.backends:
        lab.start_nginx(backend)
    lab.client.run(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"])


@contextmanager
def running(lab: Lab, name: str, tls: bool = False) -> Iterator[Contender]:
    """One of NAMES, at work in a lab that is prepared. Raises: RuntimeError.

    tls: for servers on port 443 that are chosen by a ClientHello's name; one of TLS_NAMES.
    """
    started: list[Process] = []
    server_port = TLS_PORT if tls else 80
    if name in ("direct", "routed"):
        made = _contender(server_address(1), server_port, None)
    elif name in PROXY_PORT:
        started.append(_start_proxy(lab, name))
        made = _contender(BALANCER, TLS_PROXY_PORT if tls else PROXY_PORT[name], started[0])
    else:
        flags, port = PAIRS[OURS[name]], str(server_port)
        key = ("--key", "tls.sni") if tls else ()
        started.append(lab.start_balancer(*flags["balancer"], "--port", port, *key))
        started += [
            lab.start_bridge(backend, *flags["packetbridge"], "--vip", f"{DSCP}={VIP}:{port}",
                             "--server", f"{backend.server}:{port}", defaults=False)
            for backend in lab.backends
        ]
        made = _contender(VIP, server_port, started[0], is_ours=True)
    try:
        with _routed_by(lab.balancer, lab) if name == "routed" else nullcontext():
            yield made
    finally:
        for process in started:
            process.stop()


def _contender(
    address: str, port: int, balancing: Process | None, is_ours: bool = False
) -> Contender:
    return Contender(f"http://{address}:{port}", address, port, balancing, is_ours)


@contextmanager
def _routed_by(node: Node, lab: Lab) -> Iterator[None]:
    """What the client sends to the server goes by way of this node; answers go straight back."""
    route = [f"{server_address(1)}/32", "via", BALANCER]
    forwarding = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.send_redirects": "0",
                  "net.ipv4.conf.eth1.send_redirects": "0"}
    before = {key: node.run(["sysctl", "-n", key]).strip() for key in forwarding}
    lab.client.run(["ip", "route", "add", *route])
    try:
        node.run(["sysctl", "-qw", *(f"{key}={value}" for key, value in forwarding.items())])
        yield
    finally:
        node.run(["sysctl", "-qw", *(f"{key}={value}" for key, value in before.items())])
        lab.client.run(["ip", "route", "del", *route])


def _start_proxy(lab: Lab, name: str) -> Process:
    template, command = _COMMANDS[name]
    path = lab.directory / f"bench-{name}.conf"
    path.write_text(template.format(
        port=PROXY_PORT[name], tls_port=TLS_PROXY_PORT, one=server_address(1),
        two=server_address(2), directory=lab.directory))
    process = lab.balancer.start(name, [*command, str(path)])
    return process.wait_for_listener("0.0.0.0", PROXY_PORT[name])


# --- the time that they take ---

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@contextmanager
def programs_timed() -> Iterator[None]:
    """The kernel notes how long eBPF programs run, which costs each run some 40 ns."""
    if not _STATS.exists():
        yield
        return
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def cpu_s(process: Process, ticks_per_s: int) -> float:
    """CPU seconds so far: of the process, its children (nginx's workers), and its programs.

    What the kernel does with packets besides is nobody's, whoever balances.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ticks = 0
    for pid in (process.pid, *children):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / ticks_per_s + _programs_ns(process.pid) / 1e9


def _programs_ns(pid: int) -> int:
    """How long the eBPF programs have run that a process has loaded; each counts once."""
    found = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:  # closed since
            continue
        fields = dict(re.findall(r"^(\w+):\s*(\S+)", text, re.MULTILINE))
        if "prog_id" in fields and "run_time_ns" in fields and "link_id" not in fields:
            found[fields["prog_id"]] = int(fields["run_time_ns"])
    return sum(found.values())
