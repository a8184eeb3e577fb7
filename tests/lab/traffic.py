"""The pair at work, and what tests send through it: sockets on the lab's hosts, curl, wrk."""

import fcntl
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from netns import inside

from common.bpf import BpfError, build
from common.bpf.objects import Object
from lab.node import Node, Process, wait_until
from lab.topology import PAIRS, VIP, Backend, Lab

URL = f"http://{VIP}"
ALONE = ("-H", "Connection: close")  # a kept connection would keep its backend
PATIENCE_S = 30
LARGE_LEN = 20_000_000
_SIOCOUTQNSD = 0x894B  # linux/sockios.h
_DATA_SEGS_OUT, _SND_WND = slice(156, 160), slice(228, 232)  # of struct tcp_info, linux/tcp.h

# What the pair under test is made of; lab.topology.PAIRS.
_FLAGS = PAIRS[os.environ.get("L3DSR_PAIR", "portable")]
IS_FAST = "fast" in _FLAGS["balancer"]  # the balancer's program and table outlive its daemon
OUTLIVES = "fast" in _FLAGS["packetbridge"]  # so do the bridge's
ADOPTS = "adopt" in _FLAGS["packetbridge"]  # connections are the host's own, to the VIP

# Flows leave soon after their end. Where a server ends them, the balancer does not see it.
QUICK = {
    "balancer": "[timeouts]\nidle = 6\nhalf_closed = 2\nreset = 1\n",
    "packetbridge": "[timeouts]\nclosing = 1\nreset = 1\n",
}


class Pair:
    """A lab with server and bridge on every backend, and the balancer."""

    def __init__(self, lab: Lab, balancer: Process, bridges: list[Process]) -> None:
        self.lab, self.balancer, self.bridges = lab, balancer, bridges

    def flows(self) -> list[float]:
        """How many flows the balancer has, and each bridge."""
        return [
            self.balancer.metrics()["l3dsr_balancer_flows"],
            *(bridge.metrics()["l3dsr_packetbridge_flows"] for bridge in self.bridges),
        ]

    def wait_until_empty(self) -> None:
        """Wait until no table has a flow."""
        wait_until(lambda: not any(self.flows()), PATIENCE_S, "the tables are empty")


def need_programs() -> None:
    """Skip what is tested where the balancer's program cannot be loaded."""
    try:
        with Object(build.object_of("balancer", "balancer")) as loaded:
            loaded.set_max_entries("flows", 10)
            loaded.load()
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")


def quick(lab: Lab, program: str, more: str = "") -> tuple[str, str]:
    """Flags that let a program's ended flows leave soon. more: lines for its timeouts."""
    path = lab.directory / f"quick-{program}.toml"
    path.write_text(QUICK[program] + more)
    return "--config", str(path)


def start_quick(lab: Lab, *, nginx: bool = True, bridge: str = "") -> Pair:
    """The pair with short timeouts. bridge: more lines for the bridges'."""
    if nginx:
        for backend in lab.backends:
            lab.start_nginx(backend)
    bridges = lab.start_bridges(*quick(lab, "packetbridge", bridge))
    return Pair(lab, lab.start_balancer(*quick(lab, "balancer")), bridges)


# --- files ---


def large_file(lab: Lab, length: int = LARGE_LEN, name: str = "large") -> str:
    """Put a random file where every nginx serves it, and return its digest."""
    content = os.urandom(length)
    (lab.files / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def download(lab: Lab, *flags: str, name: str = "large", timeout_s: float = 120) -> str:
    """The digest of a file as the client gets it. Raises: RuntimeError with curl's complaint."""
    command = lab.client.command([
        "curl", "-sS", "--fail", "--max-time", str(timeout_s), *flags, f"{URL}/files/{name}"
    ])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
        assert curl.stdout
        assert curl.stderr
        digest = hashlib.file_digest(curl.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
        complaint = curl.stderr.read().decode()
    if curl.returncode:
        raise RuntimeError(f"curl: exit code {curl.returncode}: {complaint}")
    return digest


def upload(lab: Lab, name: str, content: bytes, *flags: str) -> list[bytes]:
    """Send a file to the VIP. Returns: what the servers then have under its name."""
    source = lab.directory / f"source-{name}"
    source.write_bytes(content)
    lab.client.curl(f"{URL}/upload/{name}", "--fail", "-T", str(source), *flags, timeout_s=120)
    return [path.read_bytes() for path in lab.directory.glob(f"nginx-*/upload/{name}")]


# --- requests ---


def backends_of(lab: Lab, paths: Iterable[str], parallel: int = 1) -> dict[str, str]:
    """Path to the backend that answers for it, each path asked for on a connection of its own.

    parallel: how many curls. Raises: RuntimeError where one request fails.
    """
    urls = [URL + path for path in paths]
    shares = [urls[start::parallel] for start in range(parallel)]

    def ask(share: list[str]) -> list[str]:
        flags = [*ALONE, "--fail", "--fail-early"]
        return lab.client.run(["curl", "-sS", "--max-time", str(PATIENCE_S), *flags, *share],
                              timeout_s=10 * PATIENCE_S).splitlines()

    with ThreadPoolExecutor(parallel) as pool:
        answers = [line.split() for lines in pool.map(ask, shares) for line in lines]
    assert len(answers) == len(urls)
    return {path: backend for backend, path, *_ in answers}


@contextmanager
def requests(lab: Lab, port: int = 80, vip: str = VIP) -> Iterator[Callable[[], int]]:
    """Requests, each on a connection of its own, one after the other; every one has to be served.

    Yields: how many were.
    """
    done = threading.Event()
    words = ["curl", "-sS", "--fail", "--fail-early", "--max-time", str(PATIENCE_S), *ALONE,
             *(f"http://{vip}:{port}/{number}" for number in range(20))]
    served = [0]

    def ask() -> None:
        while not done.is_set():
            lab.client.run(words, timeout_s=10 * PATIENCE_S)
            served[0] += 20

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            yield lambda: served[0]
        finally:
            done.set()
        for each in asking:
            each.result()


def wrk(node: Node, *flags: str, path: str = "/wrk") -> int:
    """Run wrk. Returns: how many requests were served; every one of them was."""
    return _served(node.run(["wrk", "-t1", "--timeout", "30s", *flags, URL + path], timeout_s=120))


@contextmanager
def wrk_meanwhile(node: Node, *flags: str, path: str = "/wrk") -> Iterator[Callable[[], int]]:
    """Run wrk until the end, with the same connections. Yields: ends it, and answers as `wrk`."""
    process = node.start("wrk", ["wrk", "-t1", "--timeout", "30s", "-d300s", *flags, URL + path])

    def end() -> int:
        process.stop(signal.SIGINT)
        return _served(process.log())

    try:
        yield end
    finally:
        process.stop()


def _served(report: str) -> int:
    """How many requests wrk says were served. Raises: AssertionError if one was not."""
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    served = re.search(r"(\d+) requests in", report)
    assert served, report
    return int(served[1])


# --- sockets ---


def connect(node: Node, port: int = 0, *, address: str = VIP) -> socket.socket:
    """A connection from a node to the VIP, or another address. port: its own one."""
    with inside(node):
        made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(PATIENCE_S)
    try:
        if port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", port))
        made.connect((address, 80))
    except BaseException:
        made.close()
        raise
    return made


def listen(backend: Backend, backlog: int = 128) -> socket.socket:
    """A server in place of nginx."""
    with inside(backend):
        made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(PATIENCE_S)
    made.bind((backend.server, 80))
    made.listen(backlog)
    return made


def accept(server: socket.socket) -> socket.socket:
    """The next connection of a server."""
    made, _ = server.accept()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(PATIENCE_S)
    return made


def request(path: str, *headers: str) -> bytes:
    """A GET request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: lab", *headers, "", ""]).encode()


def send_alone(connection: socket.socket, octets: bytes) -> None:
    """Send these, and wait until they have left: what is sent next comes in another segment."""
    connection.sendall(octets)
    wait_until(lambda: not _unsent_octets(connection), PATIENCE_S, "the window lets them go")


def _unsent_octets(connection: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(connection, _SIOCOUTQNSD, bytes(4)), sys.byteorder)


def segments_sent(connection: socket.socket) -> int:
    """How many segments with payload a connection has sent."""
    return _tcp_info(connection, _DATA_SEGS_OUT)


def window_seen(connection: socket.socket) -> int:
    """How many octets the other side's latest window allows."""
    return _tcp_info(connection, _SND_WND)


def _tcp_info(connection: socket.socket, field: slice) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, field.stop)
    return int.from_bytes(info[field], sys.byteorder)


def until_end(connection: socket.socket) -> bytes:
    """All that is still to come."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def one_answer(connection: socket.socket) -> bytes:
    """One answer with a Content-Length: its body."""
    octets = b""
    while b"\r\n\r\n" not in octets:
        octets += _some(connection)
    head, _, body = octets.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert length, head
    while len(body) < int(length[1]):
        body += _some(connection)
    return body


def exactly(connection: socket.socket, length: int) -> bytes:
    """So many octets."""
    octets = bytearray()
    while len(octets) < length:
        octets += _some(connection, length - len(octets))
    return bytes(octets)


def _some(connection: socket.socket, most: int = 1 << 16) -> bytes:
    octets = connection.recv(most)
    if not octets:
        raise ConnectionError("it ended early")
    return octets


def reset(connection: socket.socket) -> None:
    """Close a connection with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def sockets(node: Node) -> list[str]:
    """A node's TCP connections from or to port 80, in the words of ss, with their timers."""
    return node.run(
        ["ss", "-Htno", "state", "connected", "( sport = :80 or dport = :80 )"]
    ).splitlines()


def count(node: Node, name: str) -> int:
    """A counter of a node's TCP stack, as /proc/net/netstat and /proc/net/snmp name them."""
    lines = node.run(["cat", "/proc/net/netstat", "/proc/net/snmp"]).splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if name in names.split():
            return int(values.split()[names.split().index(name)])
    raise KeyError(name)


def resident_octets(process: Process) -> int:
    """How much memory a program has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10
