"""The network of the Vagrantfile, in namespaces: made in a second, gone without a trace.

    client .1 ──────────────┐
    balancer .11 (VIP .10) ─┤ switch, 192.168.33.0/24
    backend1 .20, server .30┤
    backend2 .21, server .31┘

    with Lab() as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
            lab.start_bridge(backend)
        lab.start_balancer()
        print(lab.client.curl(f"http://{VIP}/"))

Each node is a namespace with one interface, eth1. Names carry the process id, so
labs do not meet, and `sweep` can tell the leftovers of dead processes.
"""

import atexit
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.bpf import pins
from common.control import place
from common.settings.shared import STATE_DIRECTORY
from lab import nginx
from lab.impair import Impairment
from lab.node import METRICS_PORT, Node, Process, end_all, namespaces, run, wait_until

__all__ = ["VIP", "Lab", "Node", "Process", "program", "run", "sweep", "wait_until"]

PREFIX = "l3dsr"
SUBNET = "192.168.33"
VIP = f"{SUBNET}.10"
CLIENT, BALANCER = f"{SUBNET}.1", f"{SUBNET}.11"
FAR_CLIENT, FAR_ROUTER, NEAR_ROUTER = "192.168.34.1", "192.168.34.254", f"{SUBNET}.254"
FAR_SUBNET, BACKENDS_ROUTER = "192.168.35", "192.168.35.254"  # of backends behind the router
DSCP = 3
_MORE_CLIENTS_FROM = 100
_JOURNALS = Path("/run/l3dsr")
_READY = r"\bready\b"
_OFFLOADS = ("tx", "tso", "gso", "gro", "txvlan", "rxvlan")
_counter = itertools.count(1)


def bridge_address(number: int, subnet: str = SUBNET) -> str:
    """Where balancers send packets for backend 1, 2 …"""
    return f"{subnet}.{19 + number}"


def server_address(number: int, subnet: str = SUBNET) -> str:
    """Where backend 1, 2 … has its nginx."""
    return f"{subnet}.{29 + number}"


def program(name: str) -> list[str]:
    """The command `balancer` or `packetbridge`, as installed beside this Python, else as module."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.exists() else [sys.executable, "-m", name]


# The balancer's engine, and the bridges' engine and mode.
PAIRS = {
    kind: {"balancer": ("--engine", balancer), "packetbridge": ("--engine", engine, "--mode", mode)}
    for kind, balancer, engine, mode in (
        ("portable", "portable", "portable", "splice"),
        ("adopt", "fast", "fast", "adopt"),
        ("splice", "fast", "fast", "splice"),
        ("fast-portable", "fast", "portable", "splice"),
        ("portable-adopt", "portable", "fast", "adopt"),
        ("portable-splice", "portable", "fast", "splice"),
    )
}


class Backend(Node):
    """A node with a packetbridge at `address` and a server at `server`."""

    number = 0
    subnet = SUBNET

    @property
    def address(self) -> str:
        """The bridge's own address."""
        return bridge_address(self.number, self.subnet)

    @property
    def server(self) -> str:
        """The server's address."""
        return server_address(self.number, self.subnet)


class Lab:
    """The network, as a context manager. Nodes are attributes: `client`, `backend2` …

    directory: holds what its programs write; without one, a temporary directory.
    prefix:    of its namespaces; by default unique. mtu: of every interface, in octets.
    balancers, clients: more of them are balancer2 (.12) … and client2 (.102) …
    path_mtu:  put the client behind a router whose link to it has this MTU.
    hub:       put the client and the backends behind the one router, in networks of their own.
    backend_mtu: with `hub`, of the backends' network.
    offloads:  let interfaces segment, coalesce and leave checksums to others. Off, every packet
               in the lab is one as on a wire.
    impair:    node to what its wire does, e.g. {"client": {"loss": 0.05, "seed": 7}}.
    keep:      leave everything running when this process ends; `remove` takes it down.
    pair:      how programs serve whose flags say nothing of it: one of PAIRS, or `auto`, which
               leaves it to them; default $L3DSR_PAIR, else auto.
    """

    def __init__(
        self, directory: Path | None = None, *, prefix: str | None = None, backends: int = 2,
        balancers: int = 1, clients: int = 1, mtu: int = 1500, path_mtu: int | None = None,
        offloads: bool = False, impair: Mapping[str, Mapping[str, float | str]] | None = None,
        keep: bool = False, pair: str | None = None, hub: bool = False,
        backend_mtu: int | None = None,
    ) -> None:
        self.prefix = prefix or f"{PREFIX}-{os.getpid()}.{next(_counter)}"
        self._owns_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._counts = {"balancer": balancers, "client": clients, "backend": backends}
        self._mtu, self._path_mtu = mtu, path_mtu
        self._hub, self._backend_mtu = hub, backend_mtu or mtu
        self._offloads = offloads
        self._impair = {name: Impairment(**wire) for name, wire in (impair or {}).items()}
        self._keep = keep
        self.pair = pair or os.environ.get("L3DSR_PAIR", "auto")
        self._nodes: dict[str, Node] = {}
        if offloads and self._impair:
            raise ValueError("a bad wire carries packets as on a wire: no offloads with it")

    def __enter__(self) -> "Lab":
        atexit.register(self.down)
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            self.down()
        atexit.unregister(self.down)

    def __getattr__(self, name: str) -> Node:
        """A node by its name."""
        node = self.__dict__.get("_nodes", {}).get(name)
        if node is None:
            raise AttributeError(f"the lab has no {name}")
        return node

    def node(self, name: str) -> Node:
        """A node by its name."""
        return self._nodes[name]

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return list(self._nodes.values())

    @property
    def backends(self) -> list[Backend]:
        """All backends, the first one first."""
        return [node for node in self._nodes.values() if isinstance(node, Backend)]

    def backend(self, number: int) -> Backend:
        """Backend 1, 2 …"""
        return self.backends[number - 1]

    # --- programs ---

    @property
    def secret_file(self) -> Path:
        """The lab's secret, made when first asked for."""
        path = self.directory / "secret"
        if not path.exists():
            run([*program("balancer"), "keygen", str(path)])
            # without a seed: who says which backend a URL gets need not ask for it
            path.write_text(path.read_text().splitlines()[0] + "\n")
        return path

    @property
    def files(self) -> Path:
        """What every nginx serves under /files/."""
        path = self.directory / "files"
        path.mkdir(exist_ok=True)
        return path

    def start_nginx(self, backend: Backend, **options: object) -> Process:
        """nginx on a backend, listening. options: of nginx.start."""
        return nginx.start(  # type: ignore[arg-type]
            backend, self.directory, **{"address": backend.server} | options
        )

    def start_balancer(
        self, *flags: str, node: Node | None = None, defaults: bool = True, ready: bool = True
    ) -> Process:
        """The balancer, ready.

        defaults: the lab's backends as flags; without, `flags` or a file of theirs say it all.
        ready:    wait until it is. Raises: RuntimeError with its output.
        """
        described = [
            word for backend in self.backends
            for word in ("--backend", f"{backend.address},id={backend.number}")
        ]
        return self._start(node or self._nodes["balancer"], "balancer",
                           described if defaults else [], flags, ready)

    def start_bridge(
        self, backend: Backend, *flags: str, defaults: bool = True, ready: bool = True
    ) -> Process:
        """The packetbridge on a backend, ready; else as `start_balancer`."""
        described = ["--vip", f"{DSCP}={VIP}:80", "--server", f"{backend.server}:80"]
        return self._start(backend, "packetbridge", described if defaults else [], flags, ready)

    def start_bridges(self, *flags: str) -> list[Process]:
        """A bridge on every backend, started at the same time; all are ready."""
        bridges = [self.start_bridge(backend, *flags, ready=False) for backend in self.backends]
        return [bridge.wait_for(_READY) for bridge in bridges]

    def start_all(self, *balancer_flags: str) -> tuple[Process, list[Process]]:
        """nginx and bridge on every backend, and the balancer. Returns: balancer and bridges."""
        for backend in self.backends:
            self.start_nginx(backend)
        bridges = self.start_bridges()
        return self.start_balancer(*balancer_flags), bridges

    def _start(
        self, node: Node, name: str, described: list[str], flags: tuple[str, ...], ready: bool
    ) -> Process:
        engine = () if "--engine" in flags else PAIRS.get(self.pair, {}).get(name, ())
        process = node.start(name, [
            *program(name), "--interface", "eth1", "--secret-file", str(self.secret_file),
            "--metrics", f"127.0.0.1:{METRICS_PORT}", *described, *engine, *flags,
        ])
        return process.wait_for(_READY) if ready else process

    # --- the network ---

    def up(self) -> None:
        """Make it."""
        pins.mount_own()  # what is mounted within `ip netns exec` would go with each program
        self.directory.mkdir(parents=True, exist_ok=True)
        self._add_switch()
        if self._path_mtu is None and not self._hub:
            self._add_node("client", CLIENT)
        else:
            self._add_far_client(self._path_mtu or self._mtu)
        if self._hub:
            self._add_backends_network()
        for number in range(2, self._counts["client"] + 1):
            self._add_node(f"client{number}", f"{SUBNET}.{_MORE_CLIENTS_FROM + number}")
        for number in range(1, self._counts["balancer"] + 1):
            name = f"balancer{number}" if number > 1 else "balancer"
            self._add_node(name, f"{SUBNET}.{10 + number}")
        for number in range(1, self._counts["backend"] + 1):
            self._add_backend(number)
        if "router" in self._nodes:
            self._route_through_router()

    def down(self) -> None:
        """Stop what was started, and remove the network."""
        for node in self.nodes:
            for process in reversed(node.processes):
                try:
                    process.stop(timeout_s=5)
                except Exception as error:  # the rest has to be taken down all the same
                    print(f"lab: {process.name}: {error}", file=sys.stderr)
        self._nodes.clear()
        remove(self.prefix)
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _add_switch(self) -> None:
        switch = self._add_namespace("switch")
        self._add_network("br0", self._mtu)
        for rules in ("iptables", "ip6tables", "arptables"):  # where br_netfilter is loaded
            switch.run(["sysctl", "-eqw", f"net.bridge.bridge-nf-call-{rules}=0"], check=False)

    def _add_network(self, name: str, mtu: int) -> None:
        """A plain piece of wire with several ends: no snooping, no learning delay, no firewall."""
        switch = self._nodes["switch"]
        _ip(switch, "link", "add", name, "mtu", str(mtu), "type", "bridge",
            "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        _ip(switch, "link", "set", name, "up")

    def _add_namespace(self, name: str, kind: type[Node] = Node) -> Node:
        node = self._nodes[name] = kind(name, f"{self.prefix}-{name}", self.directory)
        run(["ip", "netns", "add", node.namespace])
        _ip(node, "link", "set", "lo", "up")
        # Neighbour discovery would only blur the byte counters.
        node.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                  "net.ipv6.conf.default.disable_ipv6=1"], check=False)
        return node

    def _add_node(
        self, name: str, *addresses: str, kind: type[Node] = Node, network: str = "br0",
        mtu: int | None = None,
    ) -> Node:
        node, switch, port = self._add_namespace(name, kind), self._nodes["switch"], f"p-{name}"
        self._connect(node, "eth1", switch, port, mtu)
        for address in addresses:
            _ip(node, "addr", "add", f"{address}/24", "dev", "eth1")
        if name in self._impair:
            port = self._add_bad_wire(name, port)
        _ip(switch, "link", "set", port, "master", network)
        if name.startswith("client"):
            node.run(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])
        return node

    def _connect(
        self, node: Node, interface: str, peer: Node, peer_interface: str, mtu: int | None = None
    ) -> None:
        of_mtu = ["mtu", str(mtu or self._mtu)]
        _ip(node, "link", "add", interface, *of_mtu, "type", "veth",
            "peer", "name", peer_interface, *of_mtu, "netns", peer.namespace)
        for end, name in ((node, interface), (peer, peer_interface)):
            _ip(end, "link", "set", name, "up")
            if not self._offloads:
                flags = [word for offload in _OFFLOADS for word in (offload, "off")]
                end.run(["ethtool", "-K", name, *flags], check=False)

    def _add_bad_wire(self, name: str, port: str) -> str:
        """Lay a bad wire from a node's port to the switch. Returns: where it comes out."""
        switch = self._nodes["switch"]
        self._connect(switch, f"w-{name}", switch, f"x-{name}")
        switch.start(f"impair-{name}", [
            sys.executable, "-m", "lab.impair", port, f"w-{name}", *self._impair[name].flags()
        ]).wait_for("ready")
        return f"x-{name}"

    def _add_far_client(self, path_mtu: int) -> None:
        """client .34.1 ── (path_mtu) ── router ── switch; the client's own MTU stays."""
        router = self._add_node("router", NEAR_ROUTER)
        client = self._add_namespace("client")
        self._connect(client, "eth1", router, "eth2")
        _ip(client, "addr", "add", f"{FAR_CLIENT}/24", "dev", "eth1")
        _ip(router, "addr", "add", f"{FAR_ROUTER}/24", "dev", "eth2")
        _ip(router, "link", "set", "eth2", "mtu", str(path_mtu))
        _ip(client, "route", "add", "default", "via", FAR_ROUTER)
        router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])

    def _add_backend(self, number: int) -> None:
        subnet, network, mtu = (FAR_SUBNET, "br1", self._backend_mtu) if self._hub else (
            SUBNET, "br0", self._mtu)
        addresses = bridge_address(number, subnet), server_address(number, subnet)
        backend = self._add_node(f"backend{number}", *addresses, kind=Backend, network=network,
                                 mtu=mtu)
        backend.number, backend.subnet = number, subnet

    def _add_backends_network(self) -> None:
        """Behind the client's router: for it, all that the pair sends goes in and out here."""
        router = self._nodes["router"]
        self._add_network("br1", self._backend_mtu)
        self._connect(router, "eth3", self._nodes["switch"], "p-router3", self._backend_mtu)
        _ip(self._nodes["switch"], "link", "set", "p-router3", "master", "br1")
        _ip(router, "addr", "add", f"{BACKENDS_ROUTER}/24", "dev", "eth3")
        router.run(["sysctl", "-qw", *(f"net.ipv4.conf.{each}.rp_filter=0"  # it sees one side
                                       for each in ("all", "eth1", "eth2", "eth3"))])

    def _route_through_router(self) -> None:
        for node in self._nodes.values():
            if node.name in ("switch", "router", "client"):
                continue
            is_behind = isinstance(node, Backend) and self._hub
            router = BACKENDS_ROUTER if is_behind else NEAR_ROUTER
            _ip(node, "route", "add", "default" if self._hub else f"{FAR_CLIENT}/32",
                "via", router)


def _ip(node: Node, *words: str) -> None:
    run(["ip", "-n", node.namespace, *words])


def remove(prefix: str) -> None:
    """End what runs in the namespaces of a lab, and delete them."""
    for namespace in namespaces(prefix):
        end_all(namespace)
        try:
            inode = Path(f"/run/netns/{namespace}").stat().st_ino
        except FileNotFoundError:  # somebody else sweeps, too
            continue
        run(["ip", "netns", "delete", namespace], check=False)
        # Numbers of namespaces come again: a journal must not speak of another one.
        for left in (*_JOURNALS.glob(f"*.{inode}.json"), *_JOURNALS.glob(f"*.{inode}.trace")):
            left.unlink(missing_ok=True)
        for directory in (place.RUN, Path(STATE_DIRECTORY)):
            for left in directory.glob(f"*@{namespace}.*"):
                left.unlink(missing_ok=True)
    pins.sweep()


def sweep() -> None:
    """Remove what labs of dead processes left behind."""
    pattern = re.compile(rf"({PREFIX}-(\d+)\.\d+)-")
    found = [pattern.match(name) for name in namespaces(PREFIX)]
    for prefix in {match[1] for match in found if match and not _runs(match[2])}:
        remove(prefix)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        match = pattern.match(path.name)
        if match and not _runs(match[2]):
            shutil.rmtree(path, ignore_errors=True)


def _runs(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()
