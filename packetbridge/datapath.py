"""What the bridge does with a packet: unwraps it, finds its service, and hands it to the mode.

Packets are told apart by address. With a service's label, to the bridge's own
address: from a client, by way of the balancer. From a service's server: from
the server. Anything else is none of ours.

Rules: octets, state, clock and secret in, a verdict out; no octets raise. The
clock is one that nobody sets; `clock_offset_ms` makes unix time of it, for
cookies alone. A data path has a flow store and, where there are programs, an
offload beside it, which tells it what they know of a flow before a packet is
decided about, and them what has become of it after. Neither changes what is
decided.

What still dissatisfies: without programs, state lives in this process, so when
it is killed its flows end with a reset.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from common.cluster.cookie import Secrets
from common.counters import Counters, Sample, new_counters
from common.encap import dscp
from common.flow.memory import MemoryStore
from common.flow.store import FlowStore
from common.metrics import FLOWS, FLOWS_EVICTED, FLOWS_LIMIT
from common.verdict import DROP, PASS, DropReason, Event, Verdict
from common.wire import Malformed, five_tuple, icmp
from common.wire.family import look
from common.wire.packet import TCP, Packet
from common.wire.tcp import Segment, dport_of, sport_of
from packetbridge.config import Config, Service, Timeouts
from packetbridge.flows import BridgeFlow
from packetbridge.modes.spent import MemoryBuckets, SpentCookies
from packetbridge.modes.splice import Splice
from packetbridge.modes.translate import ServiceState


class Offload(Protocol):
    """Programs that decide, beside the data path, what they can decide alone."""

    def before(self, key: bytes, now_ms: int) -> None:
        """A packet of the flow `key` came up: let the flow store have what the programs know."""

    def after(self, key: bytes) -> None:
        """It was decided about: let the programs have what has changed."""

    def forget(self, flow: BridgeFlow) -> None:
        """A flow has left the store."""

    def apply(self, secrets: Secrets) -> None:
        """Which cookies hold from now on."""

    def add_counts(self, counters: Counters) -> None:
        """Add what the programs have counted since the last time."""

    def on_tick(self, counters: Counters, now_ms: int) -> None:
        """Add what the programs have counted; keep the flows of which they have seen packets."""

    def totals(self) -> tuple[int, int]:
        """Flows, and flows that had to make room: those of the store and the programs' together."""

    def learn_all(self, now_ms: int) -> None:
        """Let the flow store have all flows of the programs."""

    def on_shutdown(self, now_ms: int) -> None:
        """Before the data path ends its flows: take those out that the programs carry on."""


class Datapath:
    """Verdicts for packets; see the module.

    flows:   where flow state lives. offload: None where there are no programs.
    foreign_servers: servers (addresses as on the wire) that are not on this host. Their packets of
             no flow pass, because direct connections come the same way.
    """

    def __init__(
        self, config: Config, secrets: Secrets, *, random: Random,
        foreign_servers: frozenset[bytes] = frozenset(),
    ) -> None:
        del random  # nothing here is left to chance; the balancer's data path has the same form
        if config.address is None:
            raise ValueError("the bridge's address is not known")
        self._bridge = config.address.packed
        self._label = dscp.Label(
            self._bridge, {service.dscp: service.endpoint.packed for service in config.services}
        )
        states = [ServiceState(service, self._label) for service in config.services]
        self.services = {state.config.endpoint.packed: state for state in states}
        self._server_ends = {state.server_end for state in states}
        timeouts = config.timeouts
        self.flows: FlowStore[BridgeFlow] = MemoryStore(
            config.max_flows,
            timeouts_ms(timeouts),
            self._forget_flow,
        )
        self.max_flows = config.max_flows
        self._secrets = secrets
        self._clock_offset_ms = 0
        self.splice = Splice(states, self.flows, secrets, timeouts.replay_ms, foreign_servers,
                             config.accept_version_1, SpentCookies(MemoryBuckets(config.max_flows)))
        self.offload: Offload | None = None
        self.observers: list[Callable[[], list[Sample]]] = []  # further ones, for `samples`
        self.counters = new_counters()

    @property
    def clock_offset_ms(self) -> int:
        """Unix time − the clock's by which packets are decided about."""
        return self._clock_offset_ms

    @clock_offset_ms.setter
    def clock_offset_ms(self, offset_ms: int) -> None:
        self._clock_offset_ms = self.splice.clock_offset_ms = offset_ms

    @property
    def secrets(self) -> Secrets:
        """Which cookies hold, here and in the programs."""
        return self._secrets

    @secrets.setter
    def secrets(self, secrets: Secrets) -> None:
        self._secrets = self.splice.secrets = secrets
        if self.offload is not None:
            self.offload.apply(secrets)

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """Decide about one IP packet.

        octets: from the IP header on; those past its total length are ignored.
        now_ms: of a clock that nobody sets.
        """
        try:
            verdict = self._decide(look(octets), now_ms)
        except Malformed as malformed:
            verdict = DROP[malformed.reason]
        self.counters[verdict.reason] += 1
        return verdict

    def on_tick(self, now_ms: int) -> list[bytes]:
        """What time alone brings about. Returns: packets to send."""
        if self.offload is not None:
            self.offload.on_tick(self.counters, now_ms)
        self.flows.expire(now_ms)
        self.splice.diagnosis.on_tick(
            self.counters[Event.OPENED] + self.counters[Event.CHECK],
            self.counters[DropReason.BAD_ECHO], now_ms)
        return self.splice.on_tick(now_ms)

    def on_too_big(self, octets: bytes, mtu: int, now_ms: int) -> list[bytes]:
        """Answer a packet that, translated, exceeds the next link's MTU (RFC 1191 §4).

        octets: the packet as it arrived, from either side.
        """
        unwrapped = self._label.unwrap(look(octets))
        if unwrapped is not None:
            packet, name = unwrapped
            service = self.services[name]
            quoted = bytearray(packet.octets)  # the client sent it to the VIP
            service.to_vip.apply(quoted)
            return [icmp.emit_fragmentation_needed(bytes(quoted), mtu, service.vip)]
        return [icmp.emit_fragmentation_needed(octets, mtu, self._bridge)]

    def on_shutdown(self, now_ms: int) -> list[bytes]:
        """The last packets, for flows that nobody will look after any more."""
        if self.offload is not None:
            self.offload.on_shutdown(now_ms)
        return self.splice.end_flows(self.services.values())

    # --- another configuration, while packets flow ---

    def serve(
        self, services: Iterable[Service], foreign_servers: frozenset[bytes], now_ms: int
    ) -> list[bytes]:
        """Have these services from now on.

        Returns: packets to send, which end the flows of those that are gone, or have another
                 server or DSCP.
        """
        services = list(services)
        label = dscp.Label(
            self._bridge, {service.dscp: service.endpoint.packed for service in services})
        states = {}
        for service in services:
            state = self.services.get(service.endpoint.packed)
            if state is None or not state.is_like(service):
                state = ServiceState(service, label)
            states[service.endpoint.packed] = state
        gone = [state for state in self.services.values() if state not in states.values()]
        packets = []
        if gone:
            if self.offload is not None:
                self.offload.learn_all(now_ms)
            packets = self.splice.end_flows(gone)
        for service in services:
            states[service.endpoint.packed].config = service
        self.services.clear()
        self.services.update(states)
        self._label = label
        self._server_ends = {state.server_end for state in states.values()}
        self.splice.serve(list(states.values()), foreign_servers)
        return packets

    def configure(self, config: Config) -> None:
        """Go by these settings from now on, as far as they are not fixed at the start."""
        self.max_flows = config.max_flows
        timeouts = config.timeouts
        self.flows.set_bounds(config.max_flows, timeouts_ms(timeouts))
        self.splice.set_patience(timeouts.replay_ms)

    def collect(self) -> None:
        """Let `counters` have all that is counted up to now."""
        if self.offload is not None:
            self.offload.add_counts(self.counters)

    def samples(self) -> list[Sample]:
        """What there is to be seen besides `counters`."""
        flows, evicted = len(self.flows), self.flows.evicted
        if self.offload is not None:
            flows, evicted = self.offload.totals()
        return [
            FLOWS.at(flows),
            FLOWS_LIMIT.at(self.max_flows),
            FLOWS_EVICTED.at(evicted),
            *self.splice.samples(),
            *(sample for observer in self.observers for sample in observer()),
        ]

    def _decide(self, packet: Packet, now_ms: int) -> Verdict:
        if not packet.src:
            packet.check()
        unwrapped = self._label.unwrap(packet)
        if unwrapped is not None:
            packet, name = unwrapped
            service = self.services[name]
            if packet.protocol == TCP:
                if dport_of(packet) == service.vip_port:
                    return self._on_client(Segment(packet), service, now_ms)
                packet.check()  # with options, or a fragment, its ports are elsewhere
            elif packet.protocol == packet.family.icmp:
                return self._on_icmp(packet, service, now_ms)
        if packet.protocol == TCP and packet.src + sport_of(packet) in self._server_ends:
            return self._on_server(Segment(packet), now_ms)
        return PASS

    def _on_client(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        """A client's packet, by way of the balancer."""
        offload = self.offload
        if offload is None:
            return self.splice.on_packet(segment, service, now_ms)
        key = service.key_of(segment.packet.src, segment.sport)
        offload.before(key, now_ms)
        verdict = self.splice.on_packet(segment, service, now_ms)
        offload.after(key)
        return verdict

    def _on_server(self, segment: Segment, now_ms: int) -> Verdict:
        """A server's packet."""
        offload = self.offload
        if offload is None:
            return self.splice.on_server_packet(segment, now_ms)
        key = five_tuple.reverse(segment.five_tuple)
        offload.before(key, now_ms)
        verdict = self.splice.on_server_packet(segment, now_ms)
        offload.after(key)
        return verdict

    def _on_icmp(self, packet: Packet, service: ServiceState, now_ms: int) -> Verdict:
        """An error about a packet to a client."""
        packet.check()
        if not icmp.is_about_tcp(packet):
            return PASS
        quote = icmp.Quote(packet)
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the VIP to the client
        if (quoted.src, quoted.sport) != (service.vip, service.vip_port):
            return PASS
        if self.offload is not None:
            self.offload.before(service.key_of(quoted.dst, quoted.dport), now_ms)
        return self.splice.on_icmp(quote, service)

    def _forget_flow(self, flow: BridgeFlow) -> None:
        self.splice.forget(flow)
        if self.offload is not None:
            self.offload.forget(flow)


def timeouts_ms(timeouts: Timeouts) -> tuple[int, ...]:
    """After how long without a packet a flow leaves, by its state."""
    return timeouts.idle_ms, 2 * timeouts.replay_ms, timeouts.closing_ms, timeouts.reset_ms
