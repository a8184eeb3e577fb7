"""Splice, fast: programs replay handshakes and translate flows, as long as nothing is unusual.

The map of flows is shared. Of most flows this process never hears; it sweeps out those that have
ended. What the programs leave to it, it finds there, and what it has opened it enters there. The
map is pinned, so flows go on without the process.
"""

import ctypes
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from common.bpf import BpfError, allowance, build, features, lifetime, pins, reasons
from common.bpf.allowance import BRIDGE_BUDGETS
from common.bpf.hooks import Hooks
from common.bpf.links import Direction
from common.bpf.objects import Object, Program, types_of
from common.bpf.pins import Kept, Pins
from common.bpf.reasons import ReasonCounts
from common.cluster.cookie import Secrets
from common.counters import Counters
from common.engine.host import Change, Host
from common.verdict import Event
from common.wire import five_tuple
from common.wire.seq import MASK, before
from packetbridge.config import Config, Service
from packetbridge.flows import (
    CLIENT_FIN,
    CLIENT_FIN_ACKED,
    ENDED,
    SERVER_FIN,
    SERVER_FIN_ACKED,
    BridgeFlow,
)
from packetbridge.offload import fast_maps

_READS_SUMMED = "bpf_cast_to_kern_ctx"
_CLIENT_TELLS = CLIENT_FIN | SERVER_FIN_ACKED
_SERVER_TELLS = SERVER_FIN | CLIENT_FIN_ACKED
WAS_RESET = 16  # in either half of an entry's `ending`
_REPLAY_S = 2  # a server's stack answers at once, or the portable engine has taken over
_SWEEP_S = 1.0  # at least between two sweeps; else half of the shortest timeout
_ROOM_S = 1.0
_FULL = 0.9  # of the map, after flows had to go for new ones
_FOR_EVER_MS = 1000 * (1 << 31) - 1000
_SHARE = 100  # of the time, sweeping takes at most one part in so many


@cache
def states() -> Any:
    """An IntEnum of who looks after a flow: packetbridge/offload/bpf/translate.h:flow_state."""
    return types_of("packetbridge", "splice").enum("flow_state")


class Entry(NamedTuple):
    """A flow as the programs have it; names and units as in BridgeFlow, ports in octets.

    state:  one of states(). seen_s: see Splice.tell_time.
    client_ending, server_ending: `ending`, as either side's segments tell it, and whether they
            have reset the connection.
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
    state: int
    has_timestamps: bool
    client_next: int
    server_next: int
    client_acked: int
    seen_s: int
    client_ending: int
    server_ending: int

    @classmethod
    def of(cls, flow: BridgeFlow, seen_s: int) -> "Entry":
        """What the programs need of a flow: that it is not theirs until its server has answered."""
        service = flow.service
        return cls(
            flow.seq_delta, flow.ts_delta, flow.client_isn, flow.cookie_isn,
            service.vip, service.vip_port, service.config.dscp,
            flow.server_wscale, flow.advertised_wscale, flow.client_wscale,
            states().OPEN if flow.is_open else states().PORTABLE, False,
            flow.client_next, flow.server_next, flow.client_acked, seen_s,
            flow.ending & _CLIENT_TELLS, flow.ending & _SERVER_TELLS,
        )

    @property
    def ending(self) -> int:
        """As BridgeFlow's."""
        return (self.client_ending | self.server_ending) & ENDED

    @property
    def was_reset(self) -> bool:
        """Whether either side has reset the connection."""
        return bool((self.client_ending | self.server_ending) & WAS_RESET)

    def write_to(self, flow: BridgeFlow) -> None:
        """Give a flow all that the entry says."""
        flow.is_open = True
        flow.seq_delta, flow.ts_delta = self.seq_delta, self.ts_delta
        flow.server_wscale, flow.client_wscale = self.server_wscale, self.client_wscale
        flow.advertised_wscale = self.advertised_wscale
        self.tell(flow)

    def tell(self, flow: BridgeFlow) -> None:
        """Let a flow know what the programs have seen of it."""
        flow.ending |= self.ending
        if before(flow.client_next, self.client_next):
            flow.client_next = self.client_next
        if before(flow.server_next, self.server_next):
            flow.server_next = self.server_next
        if before(flow.client_acked, self.client_acked):
            flow.client_acked = self.client_acked


class Splice:
    """The programs with their maps.

    count:   how many flows they had when last looked at. evicted: how many had to go for new ones.
    spent:   cookies that have opened a connection.
    """

    def __init__(
        self, config: Config, services: Sequence[Service],
        budgets: Mapping[str, int] | None = BRIDGE_BUDGETS,
    ) -> None:
        """Load them; nothing on the host is changed. budgets: as common/bpf/allowance.py.

        Raises: BpfError, build.BuildError.
        """
        self._config = config
        self.services = frozenset(services)
        self.is_attached = False
        self._pins = Pins(owner(config))
        self.hooks = Hooks(self._pins, self._attach)
        self._object = Object(build.object_of("packetbridge", "splice"))
        self._object.set_variable("server_mark", config.mark)
        allowance.allow(self._object, budgets)
        lifetime.limit(self._object, config.lifetime_ms)
        fast_maps.set_bounds(self._object, config)
        self._object.set_variable("can_read_summed", not features.missing_kfuncs(_READS_SUMMED))
        self._object.set_max_entries("flows", config.max_flows)
        fast_maps.size_spent(self._object, config)
        self._pins.reuse_maps(self._object, [reasons.kept(lambda: self._counts), Kept("flows"),
                                             Kept("spent")])
        self._object.load()
        fast_maps.write_services(self._object, config, services)
        self.spent = fast_maps.SpentMap(self._object)
        self._counts = ReasonCounts(self._object)
        self._secrets = fast_maps.SecretsMap(self._object)
        self._flows = self._object.map("flows")
        self._key = self._flows.key.row("client", "server", "client_port", "server_port")
        self._entry = self._flows.value.row(*Entry._fields)
        self._sweep = self._object.btf.layout("sweep")
        self._told_s = self._object.shared_variable("current_s")
        self.count = self.evicted = self._replayed = 0
        self._began_s: int | None = None
        self._next_sweep_s = self._next_room_s = 0.0
        shortest_ms = min(config.timeouts.idle_ms, config.timeouts.closing_ms)
        self._sweep_s = max(_SWEEP_S, shortest_ms / 2000)
        self.tell_time()

    def attach(self, changes: Host) -> None:
        """As beside.Part."""
        del changes  # the portable engine's own are enough
        self.hooks.attach(socket.if_nametoindex(self._config.interface))
        self.is_attached = True

    def _attach(self, index: int) -> None:
        """As Hooks has it: at first, and whenever one was lost."""
        self._pins.fill_maps(self._object)
        links = []
        # first the way out: what only the way in translates would meet a server's own address
        for name, direction in (("on_egress", Direction.EGRESS), ("on_ingress", Direction.INGRESS)):
            how = self._pins.attach_tc(self._object.program(name), index, direction)
            links.append(f"{how}-{direction.value}-{index}")
        self._pins.keep_links(links)
        self._pins.settle()

    def serve(self, services: Sequence[Service]) -> None:
        """As beside.Part."""
        fast_maps.change_services(self._object, self._config, self.services, services)
        self.services = frozenset(services)

    def configure(self, config: Config) -> None:
        """As beside.Part."""
        self._config = config

    def detach(self) -> None:
        """As beside.Part."""
        self.is_attached = False
        detach(self._config)

    def set_secrets(self, secrets: Secrets) -> None:
        """Which cookies hold."""
        self._secrets.write(secrets)

    def keeps(self, change: Change) -> bool:
        """As beside.Part: what marks the server's answers."""
        return change["kind"] == "sysctl" and change["name"] in (
            "net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect")

    def on_tick(self, counters: Counters) -> None:
        """As beside.Part: clocks, counters, and what time does to flows."""
        self.tell_time()
        self._secrets.keep_time()
        self.add_counts(counters)
        start_s = time.monotonic()
        replayed = counters.get(Event.REPLAYED, 0) + counters.get(Event.CHECK, 0)
        if start_s >= self._next_sweep_s and (self.count or replayed != self._replayed):
            self._replayed = replayed
            self.sweep()
            self._next_sweep_s = start_s + max(
                self._sweep_s, _SHARE * (time.monotonic() - start_s))

    def add_counts(self, counters: Counters) -> None:
        """As datapath.Offload."""
        self._counts.add_to(counters)

    def program(self, name: str) -> Program:
        """`on_ingress` or `on_egress`, for test runs."""
        return self._object.program(name)

    def close(self) -> None:
        """Let go of the programs; those that are attached and pinned stay."""
        for each in (self._flows, self._secrets, self._counts, self.spent):
            each.close()
        self._object.close()

    # --- flows ---

    def insert(self, flow: BridgeFlow) -> bool:
        """Tell the programs of a flow. Returns: whether there was room."""
        entry = Entry.of(flow, self.now_s())
        try:
            self.write(flow.key, entry)
        except BpfError:
            self._make_room()
            try:
                self.write(flow.key, entry)
            except BpfError:
                return False
        return True

    def write(self, key: bytes, entry: Entry) -> None:
        """Set an entry. Raises: BpfError (E2BIG: the map is full)."""
        self._flows.update(self._key_of(key), self._entry.pack(*entry))

    def look_up(self, key: bytes) -> Entry | None:
        """What the programs have of a flow."""
        found = self._flows.lookup(self._key_of(key))
        return None if found is None else _entry(found)

    def remove(self, flow: BridgeFlow) -> None:
        """Take a flow back, unless its client has begun another one since."""
        entry = self.look_up(flow.key)
        if entry is not None and entry.client_isn == flow.client_isn:
            self.forget(flow.key)

    def entries(self) -> Iterator[tuple[bytes, Entry]]:
        """All flows that the programs have, by BridgeFlow's key."""
        for ends, fields in self._flows.items():
            key = five_tuple.join(ends.client, ends.server, ends.client_port, ends.server_port)
            yield key, _entry(fields)

    def forget(self, key: bytes) -> None:
        """Remove an entry."""
        self._flows.delete(self._key_of(key))

    def _key_of(self, key: bytes) -> bytes:
        """The programs' key, from BridgeFlow's."""
        return self._key.pack(*five_tuple.split(key))

    # --- time ---

    @staticmethod
    def now_s() -> int:
        """The programs' clock: seconds, which go on when the host's clock is set."""
        return int(time.clock_gettime(time.CLOCK_BOOTTIME)) & MASK

    def tell_time(self) -> None:
        """What the programs note in a flow with each packet."""
        self._told_s[:] = self.now_s().to_bytes(4, sys.byteorder)

    def begin_anew(self) -> None:
        """Let flows be idle from now on at most: while nobody told the time, none was noted."""
        self._began_s = self.now_s()

    def sweep(self, idle_ms: int | None = None, closing_ms: int | None = None) -> None:
        """Remove flows that have ended or gone silent, and count those that stay.

        idle_ms, closing_ms: for how long they may; as configured, unless given.
        """
        timeouts, now_s = self._config.timeouts, self.now_s()
        if idle_ms is None:
            idle_ms = timeouts.idle_ms
            if self._began_s is not None and now_s - self._began_s <= idle_ms // 1000:
                idle_ms = _FOR_EVER_MS
        closing_ms = timeouts.closing_ms if closing_ms is None else closing_ms
        told = ctypes.create_string_buffer(self._sweep.pack({
            "now_s": now_s, "idle_s": idle_ms // 1000, "closing_s": closing_ms // 1000,
            "replay_s": _REPLAY_S,
        }), self._sweep.size)
        self._object.program("sweep_flows").call(told)
        self.count = self._sweep.unpack(told.raw).left

    def _make_room(self) -> None:
        """Put out the flows that are longest idle, first of all those that have ended."""
        if time.monotonic() < self._next_room_s:
            return  # walking through all flows for each new one would cost more than it yields
        self._next_room_s = time.monotonic() + _ROOM_S
        self.sweep()
        before, idle_ms = self.count, self._config.timeouts.idle_ms
        while self.count > _FULL * self._config.max_flows and idle_ms:
            self.sweep(idle_ms, 0)
            idle_ms //= 2
        self.evicted += max(0, before - self.count)  # new ones come meanwhile


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


def _entry(fields: Any) -> Entry:
    """As the map's layout has it; its padding is left out."""
    return Entry(*(getattr(fields, name) for name in Entry._fields))
