"""Splice, fast: established flows are translated by programs, once their handshake is replayed.

The map of flows is shared: this process writes what stays of a flow, the programs what they see of
it. It is pinned, so flows go on without the process, and the next one finds them there.
"""

import socket
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from common.bpf import BpfError, build, features, pins, reasons
from common.bpf.links import Direction
from common.bpf.objects import Object, Program
from common.bpf.pins import Kept, Pins
from common.bpf.reasons import ReasonCounts
from common.cluster.cookie import Secrets
from common.counters import Counters
from common.engine.host import Change, Host
from common.wire import five_tuple
from common.wire.seq import MASK, before
from packetbridge.config import Config, Service
from packetbridge.flows import BridgeFlow
from packetbridge.offload import fast_maps

_READS_SUMMED = "bpf_cast_to_kern_ctx"


class Entry(NamedTuple):
    """A flow as the programs have it; names and units as in BridgeFlow, ports in octets.

    seen_round: see Splice.next_round.
    Twin: packetbridge/offload/bpf/translate.h:flow
    """

    seq_delta: int
    ts_delta: int
    client_isn: int
    cookie_isn: int
    vip: bytes
    vip_port: bytes
    dscp: int
    server_wscale: int
    advertised_wscale: int
    client_wscale: int
    ending: int
    client_next: int
    server_next: int
    server_acked: int
    seen_round: int

    @classmethod
    def of(cls, flow: BridgeFlow, seen_round: int) -> "Entry":
        """What the programs need of a flow whose server has answered."""
        assert flow.is_open
        service = flow.service
        return cls(
            flow.seq_delta, flow.ts_delta, flow.client_isn, flow.cookie_isn,
            service.vip, service.vip_port, service.config.dscp,
            flow.server_wscale, flow.advertised_wscale, flow.client_wscale, flow.ending,
            flow.client_next, flow.server_next, flow.server_acked, seen_round,
        )

    def write_to(self, flow: BridgeFlow) -> None:
        """Give a flow all that the entry says, as after a restart."""
        flow.is_open = True
        flow.seq_delta, flow.ts_delta = self.seq_delta, self.ts_delta
        flow.server_wscale, flow.client_wscale = self.server_wscale, self.client_wscale
        flow.advertised_wscale, flow.ending = self.advertised_wscale, self.ending
        flow.client_next, flow.server_next = self.client_next, self.server_next
        flow.server_acked = self.server_acked


class Splice:
    """The two programs with their maps."""

    def __init__(self, config: Config, services: Sequence[Service]) -> None:
        """Load them; nothing on the host is changed. Raises: BpfError, build.BuildError."""
        self._config = config
        self.services = frozenset(services)
        self.is_attached = False
        self._pins = Pins(owner(config))
        self._object = Object(build.object_of("packetbridge", "splice"))
        self._object.set_variable("server_mark", config.mark)
        self._object.set_variable("can_read_summed", not features.missing_kfuncs(_READS_SUMMED))
        self._object.set_max_entries("flows", config.max_flows)
        self._pins.reuse_maps(self._object, [reasons.kept(lambda: self._counts), Kept("flows")])
        self._object.load()
        fast_maps.write_services(self._object, config, services)
        self._counts = ReasonCounts(self._object)
        self._flows = self._object.map("flows")
        self._key = self._flows.key.row("client", "server", "client_port", "server_port")
        self._entry = self._flows.value.row(*Entry._fields)
        self._told_round = self._object.shared_variable("current_round")
        self._round = 0

    def attach(self, changes: Host) -> None:
        """As fast_datapath.Part."""
        del changes  # the portable engine's own are enough
        self._pins.fill_maps(self._object)
        index = socket.if_nametoindex(self._config.interface)
        links = []
        # first the way out: what only the way in translates would meet a server's own address
        for name, direction in (("on_egress", Direction.EGRESS), ("on_ingress", Direction.INGRESS)):
            how = self._pins.attach_tc(self._object.program(name), index, direction)
            links.append(f"{how}-{direction.value}-{index}")
        self._pins.keep_links(links)
        self._pins.settle()
        self.is_attached = True

    def detach(self) -> None:
        """As fast_datapath.Part."""
        self.is_attached = False
        detach(self._config)

    def set_secrets(self, secrets: Secrets) -> None:
        """As fast_datapath.Part; cookies are the portable engine's matter."""

    def keeps(self, change: Change) -> bool:
        """As fast_datapath.Part: what marks the server's answers."""
        return change["kind"] == "sysctl" and change["name"] in (
            "net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect")

    def on_tick(self, counters: Counters) -> None:
        """As fast_datapath.Part."""
        self._counts.add_to(counters)

    def program(self, name: str) -> Program:
        """`on_ingress` or `on_egress`, for test runs."""
        return self._object.program(name)

    def close(self) -> None:
        """Let go of the programs; those that are attached and pinned stay."""
        self._flows.close()
        self._object.close()

    # --- flows ---

    def insert(self, flow: BridgeFlow) -> bool:
        """Let the programs have a flow. Returns: whether there was room."""
        try:
            self.write(flow.key, Entry.of(flow, self._round))
        except BpfError:
            return False
        return True

    def write(self, key: bytes, entry: Entry) -> None:
        """Set an entry. Raises: BpfError (E2BIG: the map is full)."""
        self._flows.update(self._key_of(key), self._entry.pack(*entry))

    def remove(self, flow: BridgeFlow) -> None:
        """Take a flow back."""
        self._flows.delete(self._key_of(flow.key))

    def refresh(self, flow: BridgeFlow) -> None:
        """Learn what the programs have seen of a flow."""
        found = self._flows.lookup(self._key_of(flow.key))
        if found is None:
            return
        if before(flow.client_next, found.client_next):
            flow.client_next = found.client_next
        if before(flow.server_next, found.server_next):
            flow.server_next = found.server_next
        if before(flow.server_acked, found.server_acked):
            flow.server_acked = found.server_acked

    def next_round(self) -> tuple[int, int]:
        """Count the round up, which the programs note in a flow with each packet.

        Returns: the rounds that count as now: the one that ends, and the one that begins.
        """
        ended = self._round
        self._round = ended + 1 & MASK
        self._told_round[:] = self._round.to_bytes(4, sys.byteorder)
        return ended, self._round

    def entries(self) -> Iterator[tuple[bytes, Entry]]:
        """All flows that the programs have, by BridgeFlow's key."""
        for ends, fields in self._flows.items():
            key = five_tuple.join(ends.client, ends.server, ends.client_port, ends.server_port)
            yield key, Entry(**fields._asdict())

    def forget(self, key: bytes) -> None:
        """Remove an entry of no flow."""
        self._flows.delete(self._key_of(key))

    def _key_of(self, key: bytes) -> bytes:
        """The programs' key, from BridgeFlow's."""
        return self._key.pack(*five_tuple.split(key))


def detach(config: Config) -> None:
    """Take the programs off, and forget their flows. Raises: BpfError."""
    pins.detach(owner(config))


def owner(config: Config) -> str:
    """Whose pins these are."""
    return f"packetbridge-splice-{config.queue}"


def refusal_of_kernel() -> str:
    """Why flows cannot be translated by programs on this host; empty if they can be."""
    try:
        build.object_of("packetbridge", "splice")
    except build.BuildError as error:
        return str(error).splitlines()[0]
    return ""
