"""The programs as the data path sees them: what decides beside it, on the same flows.

They open, carry and close flows by themselves, of which nothing is known here. When a packet of one
comes up all the same, the flow is learnt from their map; by then they know its numbers better, so
these are read first. A flow that is opened here, since its server has not answered at once, is
entered there: as the portable engine's own until its server has answered, as theirs from then on.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from common.bpf.hooks import Hooks
from common.cluster.cookie import Secrets
from common.cluster.service import TCP_OCTET, key_of
from common.counters import Counters
from common.engine.host import Change, Host
from common.wire import five_tuple
from packetbridge.config import Config, Service
from packetbridge.datapath import Datapath
from packetbridge.flows import CLOSING, ENDED, OPEN, REPLAY, RESET, STATES, BridgeFlow
from packetbridge.modes.spent import SpentCookies
from packetbridge.modes.translate import ServiceState
from packetbridge.offload.fast_maps import SpentMap
from packetbridge.offload.splice import Entry, Splice, states

REFRESH_MS = 1000  # between two looks at what the programs have counted; the server waits for each
_ROUNDS = 4  # how often in its timeout an idle flow is looked at


class Part(Protocol):
    """A program, or a pair of them, for the services of one mode."""

    is_attached: bool
    spent: SpentMap
    hooks: Hooks

    def set_secrets(self, secrets: Secrets) -> None: ...
    def keeps(self, change: Change) -> bool: ...
    def attach(self, changes: Host) -> None: ...
    def detach(self) -> None: ...
    def serve(self, services: Sequence[Service]) -> None: ...
    def configure(self, config: Config) -> None: ...
    def on_tick(self, counters: Counters) -> None: ...
    def add_counts(self, counters: Counters) -> None: ...


class Seen(NamedTuple):
    """A flow as one sees it from outside. state: a word. engine: who has it."""

    key: bytes
    service: ServiceState
    state: str
    engine: str


class Beside:
    """As datapath.Offload. parts: what stands beside the data path."""

    def __init__(self, config: Config, datapath: Datapath, parts: Sequence[Part]) -> None:
        self._services = datapath.services
        self._flows = datapath.flows
        self._parts = parts
        self._splice = next((part for part in parts if isinstance(part, Splice)), None)
        self._known: tuple[object, ...] | None = None  # of the flow that is decided about
        self._round_ms = config.timeouts.idle_ms // _ROUNDS
        self._next_round_ms = self._next_refresh_ms = 0
        if parts:
            datapath.splice.spent = SpentCookies(*(part.spent for part in parts))
        self.apply(datapath.secrets)

    def restore(self) -> None:
        """Take over the flows that an earlier instance has left to the programs.

        A handshake that these were replaying when the flow was read is over by now.
        """
        if self._splice is None:
            return
        for key, entry in list(self._splice.entries()):
            service = self._service_of(key, entry)
            if entry.state == states().PORTABLE or service is None:
                self._splice.forget(key)
            elif entry.state == states().OPEN and entry.dscp != service.config.dscp:
                self._splice.write(key, entry._replace(dscp=service.config.dscp))
        self._splice.begin_anew()
        self._splice.sweep()

    def before(self, key: bytes, now_ms: int) -> None:
        """As datapath.Offload."""
        flow = self._flows.get(key)
        if self._splice is None or (flow is not None and not self._has(flow)):
            self._known = None
            return
        entry = self._splice.look_up(key)
        flow = self._learn(key, entry, now_ms)
        self._known = _known(flow)
        if flow and entry and (entry.state, entry.client_isn) == (states().REPLAYING,
                                                                  flow.client_isn):
            self._known = ()  # they wait for what is here already

    def after(self, key: bytes) -> None:
        """As datapath.Offload."""
        flow = self._flows.get(key)
        if self._splice is None or self._known is None or flow is None:
            return
        if self._has(flow) and _known(flow) != self._known:
            self._splice.insert(flow)

    def forget(self, flow: BridgeFlow) -> None:
        """As datapath.Offload."""
        if self._splice is not None and self._has(flow):
            self._splice.remove(flow)

    def apply(self, secrets: Secrets) -> None:
        """As datapath.Offload."""
        for part in self._parts:
            part.set_secrets(secrets)

    def add_counts(self, counters: Counters) -> None:
        """As datapath.Offload."""
        for part in self._parts:
            part.add_counts(counters)

    def on_tick(self, counters: Counters, now_ms: int) -> None:
        """As datapath.Offload."""
        if not 0 <= self._next_refresh_ms - now_ms <= REFRESH_MS:
            self._next_refresh_ms = now_ms + REFRESH_MS
            for part in self._parts:
                part.on_tick(counters)
        if self._splice is not None and now_ms >= self._next_round_ms:
            self._next_round_ms = now_ms + self._round_ms
            self.touch_live(self._splice, now_ms)

    def totals(self) -> tuple[int, int]:
        """As datapath.Offload."""
        flows, evicted, splice = len(self._flows), self._flows.evicted, self._splice
        if splice is None:
            return flows, evicted
        others = sum(not self._has(flow) for flow in self._flows)
        return splice.count + others, evicted + splice.evicted

    def glance(self) -> Iterator[Seen]:
        """All flows about as they are now, in any thread: the programs', and those of the store."""
        splice = self._splice
        for key, entry in splice.entries() if splice else ():
            service = self._service_of(key, entry)
            if service and entry.state != states().PORTABLE:
                state = (RESET if entry.was_reset else CLOSING if entry.ending == ENDED
                         else OPEN if entry.state == states().OPEN else REPLAY)
                yield Seen(key, service, STATES[state], "fast")
        for flow in self._flows.glance():
            if not self._has(flow) or not flow.is_open:
                yield Seen(flow.key, flow.service, STATES[flow.state], "portable")

    def on_shutdown(self, now_ms: int) -> None:
        """As datapath.Offload.

        A flow whose handshake is being replayed is left to the next instance, too: the client sends
        its request again, and the server its answer.
        """
        splice = self._splice
        if any(part.is_attached for part in self._parts):
            leaving = [flow for flow in self._flows if self._has(flow)]
            self._splice = None  # what it has is not ours to remove any more
            for flow in leaving:
                self._flows.remove(flow)
        elif splice is not None:
            self.learn_all(now_ms)

    def learn_all(self, now_ms: int) -> None:
        """As datapath.Offload."""
        if self._splice is not None:
            for key, _ in list(self._splice.entries()):
                self.learn(key, now_ms)

    def learn(self, key: bytes, now_ms: int) -> BridgeFlow | None:
        """A flow of the store, with what the programs know of it, or as only they know it."""
        return self._learn(key, self._splice.look_up(key) if self._splice else None, now_ms)

    def _learn(self, key: bytes, entry: Entry | None, now_ms: int) -> BridgeFlow | None:
        flow = self._flows.get(key)
        if entry is None or entry.state != states().OPEN:
            return flow
        if flow is not None and flow.is_open and flow.client_isn == entry.client_isn:
            entry.tell(flow)
            return flow
        service = self._service_of(key, entry)
        if service is None:
            return flow
        flow = BridgeFlow(key, service, entry.client_isn, entry.cookie_isn, now_ms)
        entry.write_to(flow)
        self._flows.insert(flow)
        state = RESET if entry.was_reset else CLOSING if flow.ending == ENDED else OPEN
        self._flows.move(flow, state, now_ms)
        return flow

    def touch_live(self, splice: Splice, now_ms: int) -> None:
        """Keep the flows in the store of which the programs have seen packets in the last round."""
        for flow in self._flows:
            entry = splice.look_up(flow.key)
            if entry is not None and (splice.now_s() - entry.seen_s) * 1000 <= self._round_ms:
                self._flows.touch(flow, now_ms)

    def _has(self, flow: BridgeFlow) -> bool:
        """Whether a flow is of a service whose connections programs splice."""
        return self._splice is not None and flow.service.config in self._splice.services

    def _service_of(self, key: bytes, entry: Entry) -> ServiceState | None:
        """The service of a flow of the programs, if there still is one."""
        service = self._services.get(key_of(entry.vip, TCP_OCTET, entry.vip_port))
        ends = five_tuple.split(key)
        if service is None or service.server_end != ends.dst + ends.dport:
            return None
        return service


def _known(flow: BridgeFlow | None) -> tuple[object, ...]:
    """What the programs have to be told when it has become another."""
    return (flow.client_isn, flow.is_open, flow.ending) if flow is not None else ()
