"""The network of the Vagrantfile, in namespaces: made in a second, gone without a trace.

    client .1 ─┐
    balancer .11 (VIP .10) ─┤ switch, 192.168.33.0/24
    backend1 .20, server .30 ─┤
    backend2 .21, server .31 ─┘

Each node is a namespace with one interface, eth1. Names carry the process id, so
labs do not meet, and `sweep` can tell the leftovers of dead processes.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = "l3dsr"
SUBNET = "192.168.33"
VIP = f"{SUBNET}.10"
CLIENT, BALANCER = f"{SUBNET}.1", f"{SUBNET}.11"
FAR_CLIENT, FAR_ROUTER = "192.168.34.1", "192.168.34.254"
NEAR_ROUTER = f"{SUBNET}.254"
_OFFLOADS = ("tx", "tso", "gso", "gro")


def run(*words: str, check: bool = True) -> str:
    """Run a command and return what it prints. Raises: RuntimeError with what it complains of."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition. Raises: TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


class Process:
    """A program in a node, with its output in a file. Stopped by its own process id."""

    def __init__(self, name: str, command: list[str], output: Path) -> None:
        self.name = name
        self.output = output
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id; `ip netns exec` becomes the program, so it is the program's."""
        return self.popen.pid

    def log(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 20) -> None:
        """Wait until it prints `pattern`. Raises: RuntimeError with its output if it does not."""
        try:
            wait_until(
                lambda: bool(re.search(pattern, self.log())) or self.popen.poll() is not None,
                timeout_s, f"{self.name} prints {pattern!r}",
            )
        except TimeoutError:
            pass
        if not re.search(pattern, self.log()):
            raise RuntimeError(f"{self.name} did not get ready:\n{self.log()}")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and wait. Returns: the exit code (negative for a signal)."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise
        return self.popen.returncode

    def kill(self) -> int:
        """SIGKILL."""
        return self.stop(signal.SIGKILL)


class Node:
    """A host of the lab: a namespace with eth1."""

    def __init__(self, lab: "Lab", name: str) -> None:
        self._lab = lab
        self.name = name
        self.namespace = f"{lab.prefix}-{name}"

    def command(self, *words: str) -> list[str]:
        """A command line that runs in this node."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command here and return what it prints. Raises: RuntimeError."""
        return run(*self.command(*words), check=check)

    def start(self, name: str, *words: str) -> Process:
        """Start a program here; the lab stops it at the end."""
        output = self._lab.directory / f"{self.name}-{name}-{len(self._lab.processes)}.log"
        process = Process(f"{name} on {self.name}", self.command(*words), output)
        self._lab.processes.append(process)
        return process

    def octets(self, direction: str) -> int:
        """Octets that eth1 has sent (`tx`) or received (`rx`)."""
        counters = json.loads(self.run("ip", "-j", "-s", "link", "show", "eth1"))
        return counters[0]["stats64"][direction]["bytes"]


class Lab:
    """The network, as a context manager. `directory` holds what its programs write.

    far_mtu: put the client behind a router whose link to it has this MTU.
    extra:   more nodes, name to last octet of their address.
    offloads: let interfaces segment and coalesce. Off, every packet in the lab is one on a wire.
    """

    def __init__(
        self, directory: Path, *, prefix: str | None = None, backends: int = 2,
        far_mtu: int | None = None, extra: dict[str, int] | None = None, offloads: bool = False,
    ) -> None:
        self.directory = directory
        self.prefix = prefix or f"{PREFIX}-{os.getpid()}"
        self.processes: list[Process] = []
        self._nodes: dict[str, Node] = {}
        self._backends = backends
        self._far_mtu = far_mtu
        self._extra = extra or {}
        self._offloads = offloads

    def __enter__(self) -> "Lab":
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def node(self, name: str) -> Node:
        """A node by its name."""
        return self._nodes[name]

    @property
    def client(self) -> Node:
        """The client."""
        return self._nodes["client"]

    @property
    def balancer(self) -> Node:
        """The balancer's host."""
        return self._nodes["balancer"]

    def backend(self, number: int) -> Node:
        """Backend 1, 2 …"""
        return self._nodes[f"backend{number}"]

    # --- the network ---

    def up(self) -> None:
        """Make it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._add_namespace("switch")
        run("ip", "-n", f"{self.prefix}-switch", "link", "add", "br0", "type", "bridge")
        run("ip", "-n", f"{self.prefix}-switch", "link", "set", "br0", "up")
        if self._far_mtu is None:
            self._add_node("client", CLIENT)
        else:
            self._add_far_client(self._far_mtu)
        self._add_node("balancer", BALANCER)
        for number in range(1, self._backends + 1):
            self._add_node(f"backend{number}", f"{SUBNET}.{19 + number}", f"{SUBNET}.{29 + number}")
        for name, octet in self._extra.items():
            self._add_node(name, f"{SUBNET}.{octet}")

    def down(self) -> None:
        """Stop what was started, and remove the network."""
        for process in reversed(self.processes):
            with contextlib.suppress(Exception):
                process.stop(timeout_s=5)
        self.processes.clear()
        for namespace in namespaces(self.prefix):
            run("ip", "netns", "delete", namespace, check=False)
        self._nodes.clear()

    def _add_namespace(self, name: str) -> Node:
        node = self._nodes[name] = Node(self, name)
        run("ip", "netns", "add", node.namespace)
        run("ip", "-n", node.namespace, "link", "set", "lo", "up")
        return node

    def _add_node(self, name: str, *addresses: str) -> Node:
        node = self._add_namespace(name)
        self._connect(node, "eth1", f"{self.prefix}-switch", f"p-{name}")
        run("ip", "-n", f"{self.prefix}-switch", "link", "set", f"p-{name}", "master", "br0")
        for address in addresses:
            run("ip", "-n", node.namespace, "addr", "add", f"{address}/24", "dev", "eth1")
        return node

    def _connect(self, node: Node, interface: str, peer: str, peer_interface: str) -> None:
        run("ip", "-n", node.namespace, "link", "add", interface, "type", "veth",
            "peer", "name", peer_interface, "netns", peer)
        for namespace, name in ((node.namespace, interface), (peer, peer_interface)):
            run("ip", "-n", namespace, "link", "set", name, "up")
            if not self._offloads:
                flags = [word for offload in _OFFLOADS for word in (offload, "off")]
                run("ip", "netns", "exec", namespace, "ethtool", "-K", name, *flags, check=False)

    def _add_far_client(self, mtu: int) -> None:
        """client .34.1 ── (mtu) ── router ── switch; the client's own MTU stays at 1500."""
        router = self._add_node("router", NEAR_ROUTER)
        client = self._add_namespace("client")
        self._connect(client, "eth1", router.namespace, "eth2")
        run("ip", "-n", client.namespace, "addr", "add", f"{FAR_CLIENT}/24", "dev", "eth1")
        run("ip", "-n", router.namespace, "addr", "add", f"{FAR_ROUTER}/24", "dev", "eth2")
        run("ip", "-n", client.namespace, "route", "add", "default", "via", FAR_ROUTER)
        run("ip", "-n", router.namespace, "link", "set", "eth2", "mtu", str(mtu))
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def route_far_client(self) -> None:
        """Tell the hosts on the switch where the far client is."""
        for name, node in self._nodes.items():
            if name not in ("switch", "router", "client"):
                run("ip", "-n", node.namespace, "route", "add", "192.168.34.0/24", "via",
                    NEAR_ROUTER)


def namespaces(prefix: str) -> list[str]:
    """The namespaces whose names begin with `prefix`-."""
    listed = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line]
    return [name for name in listed if name.startswith(f"{prefix}-")]


def sweep() -> None:
    """Remove what labs of dead processes left behind."""
    for namespace in namespaces(PREFIX):
        owner = namespace.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            for pid in run("ip", "netns", "pids", namespace, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", namespace, check=False)
