"""The portable data path behind the programs: it opens and closes what they carry.

A flow is theirs from the server's answer until both sides' FINs are acknowledged, or one has reset
it; till then a reply's last window may be on its way, with its ACKs and what is sent again of it.
What they leave alone comes here. By then they know its numbers better, so these are read first.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from common.cluster.cookie import Secrets
from common.cluster.service import TCP_OCTET, key_of
from common.counters import Counters
from common.engine.host import Change, Host
from common.verdict import Event, Verdict
from common.wire import five_tuple
from common.wire.tcp import RST, Segment
from packetbridge import datapath
from packetbridge.config import Config
from packetbridge.flows import ENDED, OPEN, REPLAY, BridgeFlow
from packetbridge.modes.translate import ServiceState
from packetbridge.offload.splice import Splice

_ROUNDS = 4  # how often in its timeout an idle flow is looked at


class Part(Protocol):
    """A program, or a pair of them, for the services of one mode."""

    is_attached: bool

    def set_secrets(self, secrets: Secrets) -> None: ...
    def keeps(self, change: Change) -> bool: ...
    def attach(self, changes: Host) -> None: ...
    def detach(self) -> None: ...
    def on_tick(self, counters: Counters) -> None: ...


class Datapath(datapath.Datapath):
    """As datapath.Datapath. parts: what stands before it."""

    def __init__(
        self, config: Config, secrets: Secrets, parts: Sequence[Part], *, random: Random,
        foreign_servers: frozenset[bytes] = frozenset(),
    ) -> None:
        self._parts = parts
        self._splice = next((part for part in parts if isinstance(part, Splice)), None)
        self._round_ms = config.timeouts.idle_ms // _ROUNDS
        self._next_round_ms = 0
        super().__init__(config, secrets, random=random, foreign_servers=foreign_servers)

    @property
    def secrets(self) -> Secrets:
        """Which cookies hold, here and in the programs."""
        return self._secrets

    @secrets.setter
    def secrets(self, secrets: Secrets) -> None:
        self._secrets = secrets
        for part in self._parts:
            part.set_secrets(secrets)

    def restore(self, now_ms: int) -> None:
        """Take over the flows that an earlier instance has left to the programs."""
        if self._splice is None:
            return
        for key, entry in list(self._splice.entries()):
            service = self.services.get(key_of(entry.vip, TCP_OCTET, entry.vip_port))
            ends = five_tuple.split(key)
            if service is None or service.server_end != ends.dst + ends.dport:
                self._splice.forget(key)
                continue
            flow = BridgeFlow(key, service, entry.client_isn, entry.cookie_isn, now_ms)
            entry.write_to(flow)
            self.flows.insert(flow)
            self.flows.move(flow, OPEN, now_ms)
            self._splice.insert(flow)

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As datapath.Datapath; what the programs count is added up."""
        for part in self._parts:
            part.on_tick(self.counters)
        if self._splice is not None and now_ms >= self._next_round_ms:
            self._next_round_ms = now_ms + self._round_ms
            self._touch_live(self._splice, now_ms)
        return super().on_tick(now_ms)

    def on_shutdown(self, now_ms: int) -> list[bytes]:
        """As datapath.Datapath, unless the programs stay: then so do the flows that they have.

        A flow whose handshake is being replayed is left to the next instance, too: the client sends
        its request again, and the server its answer.
        """
        splice = self._splice
        if any(part.is_attached for part in self._parts):
            self._splice = None  # what it has is not ours to remove any more
            carried = {key for key, _ in splice.entries()} if splice is not None else set()
            for flow in self.flows:
                if flow.key in carried or flow.state == REPLAY:
                    self.flows.remove(flow)
        elif splice is not None:
            for flow in self.flows:
                splice.refresh(flow)
        return super().on_shutdown(now_ms)

    # --- hooks of datapath.Datapath ---

    def _on_client(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        key = five_tuple.join(
            segment.packet.src, service.server, segment.sport, service.server_port
        )
        return self._around(key, segment, lambda: super(Datapath, self)._on_client(
            segment, service, now_ms))

    def _on_server(self, segment: Segment, now_ms: int) -> Verdict:
        key = five_tuple.reverse(segment.five_tuple)
        return self._around(key, segment, lambda: super(Datapath, self)._on_server(
            segment, now_ms))

    def _forget_flow(self, flow: BridgeFlow) -> None:
        super()._forget_flow(flow)
        if self._splice is not None and flow.service.config in self._splice.services:
            self._splice.remove(flow)

    # --- what passes between here and the programs ---

    def _around(self, key: bytes, segment: Segment, decide: Callable[[], Verdict]) -> Verdict:
        """Let the portable data path decide, with what the programs have seen of the flow."""
        splice = self._splice
        flow = self.flows.get(key)
        if splice is None or (flow is not None and flow.service.config not in splice.services):
            return decide()
        known_ending = 0
        if flow is not None and flow.is_open:
            splice.refresh(flow)
            known_ending = flow.ending
        verdict = decide()
        flow = self.flows.get(key)
        if flow is None or not flow.is_open:
            return verdict
        if segment.flags & RST or flow.ending == ENDED:
            splice.remove(flow)
        elif verdict.reason is Event.OPENED or flow.ending != known_ending:
            splice.insert(flow)
        return verdict

    def _touch_live(self, splice: Splice, now_ms: int) -> None:
        """Keep the flows in the table of which the programs have seen packets in the last round."""
        now = splice.next_round()
        for key, entry in list(splice.entries()):
            flow = self.flows.get(key)
            if flow is None:
                splice.forget(key)
            elif entry.seen_round in now:
                self.flows.touch(flow, now_ms)
