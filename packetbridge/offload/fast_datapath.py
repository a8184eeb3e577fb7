"""The portable data path behind the programs: it has what they leave alone.

They open, carry and close flows by themselves, of which nothing is known here. When a packet of one
comes up all the same, the flow is learnt from their map; by then they know its numbers better, so
these are read first. A flow that is opened here, since its server has not answered at once, is
entered there: as the portable engine's own until its server has answered, as theirs from then on.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from common.cluster.cookie import Secrets
from common.cluster.service import TCP_OCTET, key_of
from common.counters import Counters, Sample
from common.engine.host import Change, Host
from common.verdict import Verdict
from common.wire import five_tuple, icmp
from common.wire.packet import Packet
from common.wire.tcp import Segment
from packetbridge import datapath
from packetbridge.config import Config
from packetbridge.flows import CLOSING, ENDED, OPEN, RESET, BridgeFlow
from packetbridge.modes.translate import ServiceState
from packetbridge.offload.splice import Entry, Splice, states

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
        self._next_round_ms = self._now_ms = 0
        super().__init__(config, secrets, random=random, foreign_servers=foreign_servers)
        for part in parts:
            part.set_secrets(secrets)

    @property
    def secrets(self) -> Secrets:
        """Which cookies hold, here and in the programs."""
        return self._secrets

    @secrets.setter
    def secrets(self, secrets: Secrets) -> None:
        self._secrets = self.splice.secrets = secrets
        for part in self._parts:
            part.set_secrets(secrets)

    def restore(self, now_ms: int) -> None:
        """Take over the flows that an earlier instance has left to the programs.

        now_ms: as in on_packet.
        """
        del now_ms
        if self._splice is None:
            return
        for key, entry in list(self._splice.entries()):
            service = self._service_of(key, entry)
            if entry.state != states().OPEN or service is None:
                self._splice.forget(key)
            elif entry.dscp != service.config.dscp:
                self._splice.write(key, entry._replace(dscp=service.config.dscp))
        self._splice.sweep()

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """As datapath.Datapath."""
        self._now_ms = now_ms
        return super().on_packet(octets, now_ms)

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As datapath.Datapath; what the programs count is added up."""
        for part in self._parts:
            part.on_tick(self.counters)
        if self._splice is not None and now_ms >= self._next_round_ms:
            self._next_round_ms = now_ms + self._round_ms
            self._touch_live(self._splice, now_ms)
        return super().on_tick(now_ms)

    def samples(self) -> list[Sample]:
        """As datapath.Datapath, with the flows that only the programs know."""
        found = super().samples()
        splice = self._splice
        if splice is None:
            return found
        others = sum(flow.service.config not in splice.services for flow in self.flows)
        more = {"flows": splice.count + others,
                "evicted_flows": self.flows.evicted + splice.evicted}
        return [sample._replace(value=more.get(sample.name, sample.value)) for sample in found]

    def on_shutdown(self, now_ms: int) -> list[bytes]:
        """As datapath.Datapath, unless the programs stay: then so do the flows that they have.

        A flow whose handshake is being replayed is left to the next instance, too: the client sends
        its request again, and the server its answer.
        """
        splice = self._splice
        if any(part.is_attached for part in self._parts):
            self._splice = None  # what it has is not ours to remove any more
            for flow in self.flows:
                if splice is not None and flow.service.config in splice.services:
                    self.flows.remove(flow)
        elif splice is not None:
            for key, _ in list(splice.entries()):
                self._learn(splice, key, now_ms)
        return super().on_shutdown(now_ms)

    # --- hooks of datapath.Datapath ---

    def _on_client(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        key = five_tuple.join(
            segment.packet.src, service.server, segment.sport, service.server_port
        )
        return self._around(key, now_ms, lambda: super(Datapath, self)._on_client(
            segment, service, now_ms))

    def _on_server(self, segment: Segment, now_ms: int) -> Verdict:
        key = five_tuple.reverse(segment.five_tuple)
        return self._around(key, now_ms, lambda: super(Datapath, self)._on_server(
            segment, now_ms))

    def _on_icmp(self, packet: Packet, service: ServiceState) -> Verdict:
        packet.check()
        if self._splice is not None and icmp.is_about_tcp(packet):
            quoted = five_tuple.split(icmp.Quote(packet).five_tuple)
            key = five_tuple.join(quoted.dst, service.server, quoted.dport, service.server_port)
            self._learn(self._splice, key, self._now_ms)
        return super()._on_icmp(packet, service)

    def _forget_flow(self, flow: BridgeFlow) -> None:
        super()._forget_flow(flow)
        if self._splice is not None and flow.service.config in self._splice.services:
            self._splice.remove(flow)

    # --- what passes between here and the programs ---

    def _around(
        self, key: bytes, now_ms: int, decide: Callable[[], Verdict]
    ) -> Verdict:
        """Let the portable data path decide, with what the programs have seen of the flow."""
        splice = self._splice
        flow = self.flows.get(key)
        if splice is None or (flow is not None and flow.service.config not in splice.services):
            return decide()
        known = _known(self._learn(splice, key, now_ms))
        verdict = decide()
        flow = self.flows.get(key)
        if flow is not None and flow.service.config in splice.services and _known(flow) != known:
            splice.insert(flow)
        return verdict

    def _learn(self, splice: Splice, key: bytes, now_ms: int) -> BridgeFlow | None:
        """A flow of the table, with what the programs know of it, or as only they know it."""
        flow = self.flows.get(key)
        entry = splice.look_up(key)
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
        self.flows.insert(flow)
        state = RESET if entry.was_reset else CLOSING if flow.ending == ENDED else OPEN
        self.flows.move(flow, state, now_ms)
        return flow

    def _service_of(self, key: bytes, entry: Entry) -> ServiceState | None:
        """The service of a flow of the programs, if there still is one."""
        service = self.services.get(key_of(entry.vip, TCP_OCTET, entry.vip_port))
        ends = five_tuple.split(key)
        if service is None or service.server_end != ends.dst + ends.dport:
            return None
        return service

    def _touch_live(self, splice: Splice, now_ms: int) -> None:
        """Keep the flows in the table of which the programs have seen packets in the last round."""
        for flow in self.flows:
            entry = splice.look_up(flow.key)
            if entry is not None and (splice.now_s() - entry.seen_s) * 1000 <= self._round_ms:
                self.flows.touch(flow, now_ms)


def _known(flow: BridgeFlow | None) -> tuple[object, ...]:
    """What the programs have to be told when it has become another."""
    return (flow.client_isn, flow.is_open, flow.ending) if flow is not None else ()
