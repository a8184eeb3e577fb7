"""A pair at work in a lab, and what may be wrong with it: each fault is made and undone."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from netns import inside

from lab.node import Node, Process
from lab.topology import DSCP, VIP, Backend, Lab, program, run

SERVER_PORT, PROBE_PORT = 8080, 7733
PATIENCE_S = 5.0
CHECK = "interval = 0.2\ntimeout = 0.1\nrise = 1\nfall = 2\n"
AHEAD = """
import importlib, sys, time
real_ns = time.time_ns
time.time_ns = lambda: real_ns() + int(sys.argv[1]) * 10**9
time.time = lambda: time.time_ns() / 10**9
sys.exit(importlib.import_module("packetbridge.cli").main(sys.argv[2:]))
"""
LISTEN = """
import socket, sys
protocol, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((address, port))
server.listen()
while True:
    client = server.accept()[0]
    client.recv(1000)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    client.close()
"""
HANG = """
import socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1)
clients = [socket.socket() for _ in range(4)]
for client in clients:
    client.setblocking(False)
    client.connect_ex(server.getsockname())
time.sleep(3600)
"""
MPTCP = 262  # linux/in.h


class Site:
    """The pair at work in a lab, with the parts of backend 2, which the faults are at."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.near, self.far = lab.backends
        for backend in lab.backends:
            lab.start_nginx(backend, port=SERVER_PORT)
        self.server = self.far.processes[-1]
        self.start_bridge(self.near)
        self.bridge = self.start_bridge(self.far)
        self.file = lab.directory / "balancer.toml"
        self.file.write_text(
            f'interface = "eth1"\nsecret_file = "{lab.secret_file}"\n'
            f'[[service]]\nname = "web"\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n'
            f"[service.check]\n{CHECK}" + "".join(
                f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
                for backend in lab.backends))
        self.balancer = lab.start_balancer("--config", str(self.file), defaults=False)

    def start_bridge(self, backend: Backend, *flags: str, **settings: object) -> Process:
        """A bridge by a file. settings: that are not the usual ones."""
        values = {"dscp": DSCP, "vip": f"{VIP}:80", "wscale": 7,
                  "server": f"{backend.server}:{SERVER_PORT}"} | settings
        path = self.lab.directory / f"bridge{backend.number}.toml"
        path.write_text(
            f'[[service]]\ndscp = {values["dscp"]}\n'
            f'vip = "{values["vip"]}"\nwscale = {values["wscale"]}\nserver = "{values["server"]}"\n'
        )
        return self.lab.start_bridge(backend, "--config", str(path), *flags, defaults=False)

    def examine(self, *flags: str) -> dict[str, Any]:
        """What the balancer's doctor says."""
        return doctor(self.lab.balancer, "balancer", "--config", str(self.file), *flags)

    def examine_far(self) -> dict[str, Any]:
        """What the doctor of backend 2's bridge says."""
        return doctor(self.far, "packetbridge", "--interface", "eth1", "--config",
                      str(self.lab.directory / "bridge2.toml"), "--secret-file",
                      str(self.lab.secret_file))

    def is_well(self) -> bool:
        """Whether both backends pass their checks, and the balancer knows of nothing wrong."""
        up = [value for name, value in self.balancer.metrics().items()
              if name.startswith("l3dsr_balancer_backend_up{")]
        return up == [1, 1] and not standing(self.balancer.log())


def causes(log: str) -> list[tuple[str, str]]:
    """What a balancer's log says to be wrong: sentences, each with its remedy."""
    return re.findall(r"WARNING doctor: (.*); remedy: (.*)", log)


def standing(log: str) -> set[str]:
    """Those causes that are not said to be over."""
    found: set[str] = set()
    for begun, ended in re.findall(
            r"WARNING doctor: (.*); remedy: |doctor: no longer so: (.*)", log):
        found = (found | {begun}) - {"", ended}
    return found


def doctor(node: Node, name: str, *flags: str) -> dict[str, Any]:
    """A doctor's report. Its exit code is as it says."""
    done = node.popen([*program(name), "doctor", "--json", *flags], stdout=-1, stderr=-1)
    out, err = done.communicate(timeout=30)
    assert err == b""
    report = json.loads(out)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


# --- on the way ---



@contextmanager
def rule(node: Node, *words: str) -> Iterator[None]:
    """A rule of iptables; `-A` is added to the first word, a chain."""
    table = list(words[:2]) if words[0] == "-t" else []
    chain, *rest = words[len(table):]
    node.run(["iptables", *table, "-I", chain, *rest])
    try:
        yield
    finally:
        node.run(["iptables", *table, "-D", chain, *rest])


@contextmanager
def bleached(site: Site, *protocol: str) -> Iterator[None]:
    with rule(site.lab.router, "-t", "mangle", "POSTROUTING", "-d", site.far.address, *protocol,
              "-m", "dscp", "--dscp", str(DSCP), "-j", "DSCP", "--set-dscp", "0"):
        yield


def tcp_bleached(site: Site) -> AbstractContextManager[None]:
    return bleached(site, "-p", "tcp")


@contextmanager
def policed(site: Site) -> Iterator[None]:
    with rule(site.lab.router, "FORWARD", "-d", site.far.address, "-m", "dscp", "--dscp", str(DSCP),
              "-j", "DROP"):
        yield


@contextmanager
def bridge(site: Site, *flags: str, **settings: object) -> Iterator[None]:
    """Backend 2's bridge is another one."""
    site.bridge.stop()
    try:
        other = site.start_bridge(site.far, *flags, **settings)
        yield
        other.stop()
    finally:
        site.bridge = site.start_bridge(site.far)


def other_dscp(site: Site) -> AbstractContextManager[None]:
    return bridge(site, dscp=7)


def other_vip(site: Site) -> AbstractContextManager[None]:
    return bridge(site, vip=f"{VIP}:81")


def other_wscale(site: Site) -> AbstractContextManager[None]:
    return bridge(site, wscale=5)


def other_secret(site: Site) -> AbstractContextManager[None]:
    path = site.lab.directory / "other"
    if not path.exists():
        run([*program("balancer"), "keygen", str(path)])
    return bridge(site, "--secret-file", str(path))


def clock_ahead(site: Site) -> AbstractContextManager[None]:
    return _ahead(site, 200)


def clock_drifts(site: Site) -> AbstractContextManager[None]:
    return _ahead(site, 20)


@contextmanager
def _ahead(site: Site, by_s: int) -> Iterator[None]:
    site.bridge.stop()
    other = site.far.start("ahead", [
        sys.executable, "-c", AHEAD, str(by_s), "--interface", "eth1", "--secret-file",
        str(site.lab.secret_file), "--config", str(site.lab.directory / "bridge2.toml"),
    ]).wait_for("ready")
    try:
        yield
    finally:
        other.stop()
        site.bridge = site.start_bridge(site.far)


@contextmanager
def no_bridge(site: Site) -> Iterator[None]:
    site.bridge.stop()
    try:
        yield
    finally:
        site.bridge = site.start_bridge(site.far)


@contextmanager
def host_down(site: Site) -> Iterator[None]:
    port = f"p-{site.far.name}"
    site.lab.switch.run(["ip", "link", "set", port, "down"])
    try:
        yield
    finally:
        site.lab.switch.run(["ip", "link", "set", port, "up"])


@contextmanager
def server_down(site: Site) -> Iterator[None]:
    site.server.stop()
    try:
        yield
    finally:
        site.server = site.lab.start_nginx(site.far, port=SERVER_PORT)


@contextmanager
def listens_elsewhere(site: Site) -> Iterator[None]:
    with server_down(site):
        other = listen(site.far, 0, "127.0.0.1")
        try:
            yield
        finally:
            other.stop()


@contextmanager
def server_hangs(site: Site) -> Iterator[None]:
    """It listens, and never accepts what waits for it."""
    with server_down(site):
        other = site.far.start("hang", [
            sys.executable, "-c", HANG, site.far.server, str(SERVER_PORT)])
        other.wait_for_listener(site.far.server, SERVER_PORT)
        try:
            yield
        finally:
            other.stop()


def listen(backend: Backend, protocol: int, address: str) -> Process:
    words = [sys.executable, "-c", LISTEN, str(protocol), address, str(SERVER_PORT)]
    return backend.start("listen", words).wait_for_listener(address, SERVER_PORT)


@contextmanager
def firewall(site: Site, *accepted: list[str]) -> Iterator[None]:
    """A host's own firewall, which lets nothing in but answers, probes and what it says."""
    lines = [["-p", "udp", "--dport", str(PROBE_PORT), "-j", "ACCEPT"],
             ["-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"],
             *accepted, ["-p", "tcp", "-j", "DROP"]]
    for line in lines:
        site.far.run(["iptables", "-A", "INPUT", *line])
    try:
        yield
    finally:
        for line in lines:
            site.far.run(["iptables", "-D", "INPUT", *line])


def servers_port_only(site: Site) -> AbstractContextManager[None]:
    return firewall(site, ["-p", "tcp", "--dport", str(SERVER_PORT), "-j", "ACCEPT"])


def syn_only(site: Site) -> AbstractContextManager[None]:
    return firewall(site, ["-p", "tcp", "--syn", "-j", "ACCEPT"])


def tracked(site: Site) -> AbstractContextManager[None]:
    return firewall(site, ["-p", "tcp", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"])


@contextmanager
def strict_sources(site: Site) -> Iterator[None]:
    site.lab.router.run(["sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=1"])
    try:
        with clients(site):
            yield
    finally:
        site.lab.router.run(["sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=0"])


@contextmanager
def clients(site: Site) -> Iterator[None]:
    """Some that ask again and again, each for another URL."""
    running = site.lab.client.start("clients", [
        "sh", "-c", "number=0; while true; do number=$((number + 1)); "
        f"curl -s -m 2 -o /dev/null http://{VIP}/$number & sleep 0.1; done"])
    try:
        yield
    finally:
        running.stop()


@contextmanager
def stateful_router(site: Site) -> Iterator[None]:
    with rule(site.lab.router, "FORWARD", "-d", site.far.address, "-p", "tcp", "!", "--syn",
              "-m", "conntrack", "--ctstate", "NEW,INVALID,UNTRACKED", "-j", "DROP"):
        yield


@contextmanager
def vip_dropped_on_the_way_back(site: Site) -> Iterator[None]:
    with rule(site.lab.router, "FORWARD", "-i", "eth3", "-s", VIP, "-j", "DROP"):
        yield


@contextmanager
def vip_elsewhere(site: Site) -> Iterator[None]:
    site.lab.balancer2.run(["ip", "addr", "add", f"{VIP}/32", "dev", "eth1"])
    try:
        yield
    finally:
        site.lab.balancer2.run(["ip", "addr", "del", f"{VIP}/32", "dev", "eth1"])


@contextmanager
def no_route(site: Site) -> Iterator[None]:
    site.lab.balancer.run(["ip", "route", "add", "unreachable", site.far.address])
    try:
        yield
    finally:
        site.lab.balancer.run(["ip", "route", "del", "unreachable", site.far.address])


@contextmanager
def packet_socket(site: Site) -> Iterator[None]:
    """Another program hears IPv4 alone."""
    with inside(site.far), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)):
        yield


@contextmanager
def nothing(site: Site) -> Iterator[None]:
    yield
