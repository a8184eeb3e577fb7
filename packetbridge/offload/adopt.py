"""Adopt: the server's own stack takes connections over with the cookie's ISN (docs/wire.md).

What the host needs for it: the VIP as an address of its own that neighbours do not hear of, SYN
cookies allowed, and the TCP options that balancers promise switched on.
"""

import logging
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyroute2 import DiagSocket

from common.bpf import BpfError, allowance, build, features, lifetime, pins, reasons
from common.bpf.allowance import BRIDGE_BUDGETS
from common.bpf.hooks import Hooks
from common.bpf.links import Direction
from common.bpf.objects import Object, Program
from common.bpf.pins import Kept, Pins
from common.bpf.reasons import ReasonCounts
from common.cluster.cookie import Secrets
from common.counters import Counters
from common.engine.host import Change, Host
from packetbridge.config import Config, Service
from packetbridge.offload import fast_maps

KFUNC = "bpf_sk_assign_tcp_reqsk"
_IPV4 = Path("/proc/sys/net/ipv4")
_LOOPBACK = "lo"
_LISTEN = 1 << 10  # of the TCP states, as a set
_MPTCP = b"mptcp".hex(":")
log = logging.getLogger(__name__)


class Sysctl(NamedTuple):
    """A setting under net/ipv4. name: as a path; value: what it shall be, if it does not do."""

    name: str
    value: str
    does: bool


def refusal_of_kernel() -> str:
    """Why no connection can be adopted on this host; empty if they can be."""
    try:
        if features.missing_kfuncs(KFUNC):
            return f"the kernel lacks {KFUNC}, which Linux 6.9 and later have"
        build.object_of("packetbridge", "adopt")
    except (BpfError, build.BuildError) as error:
        return str(error).splitlines()[0]
    return ""


def refusal_of_service(service: Service) -> str:
    """Why a service's connections cannot be adopted; empty if nothing is seen to be against it."""
    if service.server_port in set(_mptcp_ports()):
        return "the server's socket is an MPTCP listener"
    return ""


class Adopt:
    """The program with its maps. spent: cookies that have opened a connection."""

    def __init__(
        self, config: Config, services: Sequence[Service],
        budgets: Mapping[str, int] | None = BRIDGE_BUDGETS,
    ) -> None:
        """Load it; nothing on the host is changed. budgets: as common/bpf/allowance.py.

        Raises: BpfError.
        """
        self._config = config
        self._services = services
        self.is_attached = False
        self._pins = Pins(owner(config))
        self.hooks = Hooks(self._pins, self._attach)
        self._object = Object(build.object_of("packetbridge", "adopt"))
        allowance.allow(self._object, budgets)
        lifetime.limit(self._object, config.lifetime_ms)
        fast_maps.set_bounds(self._object, config)
        self._object.set_variable("can_read_summed", 1)  # every kernel with the other one has it
        fast_maps.size_spent(self._object, config)
        self._pins.reuse_maps(self._object, [reasons.kept(lambda: self._counts), Kept("refused"),
                                             Kept("spent")])
        self._object.load()
        fast_maps.write_services(self._object, config, services)
        self.spent = fast_maps.SpentMap(self._object)
        self._secrets = fast_maps.SecretsMap(self._object)
        self._counts = ReasonCounts(self._object)

    def program(self, name: str) -> Program:
        """`on_ingress`, for test runs."""
        return self._object.program(name)

    def set_secrets(self, secrets: Secrets) -> None:
        """Which cookies hold."""
        self._secrets.write(secrets)

    def keeps(self, change: Change) -> bool:
        """As daemon.Lasting."""
        if change["kind"] == "address":
            vips = {str(service.vip) for service in self._services}
            return change["interface"] == _LOOPBACK and change["address"] in vips
        names = {f"net/ipv4/{sysctl.name}" for sysctl in _sysctls(self._config.interface)}
        return change["kind"] == "sysctl" and change["name"] in names

    def attach(self, changes: Host) -> None:
        """Prepare the host, then let the program have the packets. Raises: OSError."""
        for sysctl in _sysctls(self._config.interface):
            if not sysctl.does:
                changes.set_sysctl(f"net/ipv4/{sysctl.name}", sysctl.value)
        for vip in dict.fromkeys(service.vip for service in self._services):
            changes.add_address(_LOOPBACK, str(vip))
        self.hooks.attach(socket.if_nametoindex(self._config.interface))
        self.is_attached = True

    def _attach(self, index: int) -> None:
        """As Hooks has it: at first, and whenever the program was lost."""
        self._pins.fill_maps(self._object)
        how = self._pins.attach_tc(self._object.program("on_ingress"), index, Direction.INGRESS)
        self._pins.keep_links([f"{how}-{Direction.INGRESS.value}-{index}"])
        self._pins.settle()

    def serve(self, services: Sequence[Service]) -> None:
        """As beside.Part."""
        fast_maps.change_services(self._object, self._config, self._services, services)
        self._services = services

    def configure(self, config: Config) -> None:
        """As beside.Part."""
        self._config = config

    def detach(self) -> None:
        """As beside.Part."""
        self.is_attached = False
        if pins.detach(owner(self._config)):
            reset_clients(self._services)

    def on_tick(self, counters: Counters) -> None:
        """Keep the clock right, and add what has been counted since the last call."""
        self._secrets.keep_time()
        self.add_counts(counters)

    def add_counts(self, counters: Counters) -> None:
        """As datapath.Offload."""
        self._counts.add_to(counters)


def detach(config: Config) -> None:
    """Take the program off, and reset the connections that nothing leads to the host any more.

    Raises: BpfError.
    """
    if pins.detach(owner(config)):
        reset_clients(config.services)


def reset_clients(services: Iterable[Service]) -> None:
    """Reset the connections that the host's own stack has from these services' clients."""
    for service in services:
        words = ["ss", "-K", "-H", "-t", "src", str(service.vip), "sport", "=", f":{service.port}"]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            log.warning("cannot reset the clients of %s, which will time out: %s", service.name,
                        error)


def owner(config: Config) -> str:
    """Whose pins these are."""
    return f"packetbridge-adopt-{config.queue}"


def _mptcp_ports() -> Iterator[int]:
    """The ports that MPTCP listeners of this host have."""
    with DiagSocket() as diag:
        diag.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            for listener in diag.get_sock_stats(family=family, states=_LISTEN, extensions=0xFF):
                if any(_MPTCP in str(value) for _, value in listener["attrs"]):
                    yield listener["idiag_sport"]


def _sysctls(interface: str) -> Iterator[Sysctl]:
    """What the host must have, and whether it does."""
    def value(name: str) -> int:
        return int((_IPV4 / name).read_text())

    conf = f"conf/{interface}"
    # Neighbours must not learn that the VIP is here too: the balancer has it.
    yield Sysctl(f"{conf}/arp_ignore", "1", value(f"{conf}/arp_ignore") > 0)
    yield Sysctl(f"{conf}/arp_announce", "2", value(f"{conf}/arp_announce") == 2)
    # Requests come from balancers, replies may take another interface.
    strict = max(value(f"{conf}/rp_filter"), value("conf/all/rp_filter")) == 1
    yield Sysctl(f"{conf}/rp_filter", "2", not strict)
    # Off, each makes the kernel refuse what a balancer has agreed with the client.
    for name in ("tcp_syncookies", "tcp_timestamps", "tcp_sack", "tcp_window_scaling"):
        yield Sysctl(name, "1", value(name) != 0)
