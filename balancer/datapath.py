"""What the balancer does with a packet: the whole decision, pure.

Theory of operation
-------------------
A SYN is answered with a cookie and forgotten. The ACK that completes the
handshake is consumed. The first payload segment proves by its numbers that it
follows a cookie of ours; a key is taken from it (segments are held until the
key is whole), the scheduler chooses a backend, a flow is entered, and the
segment itself, unchanged but for destination, DSCP, TTL and TSecr, is the
handoff to the bridge. Later packets follow the flow.

For a packet that is no SYN the tests come in this order:

1. Its TSecr names a backend: the flow is established there. Where the table
   disagrees, the table is right only if the flow is old enough for the
   server's timestamps to have wrapped; otherwise the entry is stale.
2. It repeats the flow's first segment: same backend.
3. It follows a cookie: with payload it opens a flow (over whatever was there),
   without it is consumed, and with FIN alone it is answered.
4. It belongs to held segments, and may have to be acknowledged (balancer/modes/split/hold.py).
5. It has a table entry.
6. Nobody knows it: dropped, and a second later reset.

Rules: octets, state, clock and secret in, a verdict out; nothing here blocks,
reads a clock or touches a socket. No octets raise.

What still dissatisfies: one choice holds for a connection, so a second request
on it goes to the same backend whatever its URL; and a flow without timestamps
is lost with the table that knows it.
"""

import struct
from random import Random

from balancer.config import Config, Service
from balancer.flows import HALF_CLOSED, OPEN, RESET, Backend, BackendFlow
from balancer.keys.http import Missing
from balancer.keys.request import choose_key
from balancer.modes.split import handshake, hold, takeover
from balancer.modes.split.delivery import Deliveries, Delivery
from balancer.modes.split.flood import Flood
from balancer.paths import LEAST_MTU, Paths
from balancer.pool.schedule import make_scheduler
from common.cluster.cookie import Secrets
from common.cluster.service import TCP_OCTET, key_of
from common.counters import Sample, new_counters
from common.encap import dscp
from common.flow.table import RELINK_MS, FlowTable
from common.flow.unknown import UnknownFlows
from common.verdict import DROP, HELD, PASS, DropReason, Event, Verdict, send
from common.wire import Malformed, five_tuple, icmp, tcp
from common.wire.checksum import change_at
from common.wire.family import look
from common.wire.packet import ECN_MASK, TCP, Packet
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, RST, SYN, Segment

_U32 = struct.Struct("!I")
_OCTETS_PER_MS = 1_250_000  # no client sends faster than 10 Gbit/s


class ServiceState:
    """A service with its backends and scheduler, as the packet path needs it."""

    def __init__(self, config: Service, id_shift: int, random: Random) -> None:
        self.config = config
        self.mss = config.mss
        vip = config.vip.packed
        self.backends = {
            backend.id: Backend(
                self, backend, dscp.Way(vip, backend.address.packed, config.dscp), id_shift,
            )
            for backend in config.backends
        }
        self.scheduler = make_scheduler(
            config.scheduler, config.backends, hash_balance_factor=config.hash_balance_factor,
            load=lambda backend_id: self.backends[backend_id].flows, random=random,
        )


class Datapath:
    """Verdicts for packets; see the module. Flow state lives in `flows` and `holds`."""

    def __init__(self, config: Config, secrets: Secrets, *, random: Random) -> None:
        self.secrets = secrets
        self._id_shift = takeover.id_shift(config.id_bits)
        self.services = {
            service.endpoint.packed: ServiceState(service, self._id_shift, random)
            for service in config.services
        }
        self.paths = Paths(
            backend.address.packed for service in config.services for backend in service.backends)
        self._fitted = self.paths.version
        self._at_bridges: dict[bytes, list[Backend]] = {}
        for state in self.services.values():
            for backend in state.backends.values():
                end = key_of(backend.address, TCP_OCTET, state.config.endpoint.port_octets)
                self._at_bridges.setdefault(end, []).append(backend)
        self._vips = {service.vip.packed for service in config.services}
        timeouts = config.timeouts
        self.flows: FlowTable[BackendFlow] = FlowTable(
            config.max_flows, (timeouts.idle_ms, timeouts.half_closed_ms, timeouts.reset_ms),
            self._forget_flow,
        )
        self.holds = hold.HoldTable(config.hold_octets_total)
        self.deliveries = Deliveries(config.hold_octets_total)
        self.unknown = UnknownFlows()
        self._takeover_limit = takeover.RateLimit(config.takeover_rate)
        self._flood = Flood(config.new_flow_rate)
        self.counters = new_counters()

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """Decide about one IP packet.

        octets: from the IP header on; those past its total length are ignored.
        now_ms: unix time in ms.
        """
        packet = look(octets)
        try:
            if packet.dst not in self._vips:
                verdict = self._on_narrow_path(packet, now_ms)
            elif packet.protocol == TCP:
                verdict = self._on_tcp(packet, now_ms)
            elif packet.protocol == packet.family.icmp:
                verdict = self._on_icmp(packet)
            else:
                verdict = PASS
        except Malformed as malformed:
            verdict = DROP[malformed.reason]
        self.counters[verdict.reason] += 1
        return verdict

    def on_tick(self, now_ms: int) -> list[bytes]:
        """Let flows expire, repeat what is ours to deliver, decide about held flows in time.

        Returns: packets to send.
        """
        new_flows = self.counters[Event.HANDOFF] + self.counters[DropReason.TABLE_FULL]
        self._flood.watch(new_flows, now_ms)
        self.flows.expire(now_ms)
        self.paths.expire(now_ms)
        self.fit_mss()
        packets = self.deliveries.due(now_ms, self.flows.get)
        for held in self.holds.expired(now_ms):
            verdict = self._on_hold_bound(held, now_ms)
            self.counters[verdict.reason] += 1
            packets += verdict.packets
        return packets

    def on_too_big(self, octets: bytes, mtu: int, now_ms: int) -> list[bytes]:
        """Answer a packet that, forwarded, exceeds the next link's MTU (RFC 1191 §4).

        octets: the packet as it arrived from the client.
        """
        return [icmp.emit_fragmentation_needed(octets, mtu, look(octets).dst)]

    def learn_path_mtu(self, backend: Backend, mtu: int, now_ms: int) -> None:
        """The path to a backend takes packets of `mtu` octets at most, as somebody has found out.

        New connections will have an MSS that fits it, for ten minutes.
        """
        self.paths.learn(backend.address, mtu, now_ms)
        self.fit_mss()

    def fit_mss(self) -> None:
        """Let each service's MSS fit the smallest path to any of its backends."""
        if self._fitted == self.paths.version:
            return
        self._fitted = self.paths.version
        for service in self.services.values():
            addresses = (backend.address for backend in service.backends.values())
            service.mss = self.paths.mss(service.config.mss, addresses)

    def samples(self) -> list[Sample]:
        """What there is to be seen besides `counters`."""
        samples = [
            Sample("flows", "gauge", "Flows in the table", {}, len(self.flows)),
            Sample("held_flows", "gauge", "Flows whose key is not complete", {}, len(self.holds)),
            Sample("evicted_flows", "counter", "Flows put out by newer ones", {},
                   self.flows.evicted),
        ]
        for service in self.services.values():
            samples.append(Sample("mss", "gauge", "MSS that SYN-ACKs offer",
                                  {"service": service.config.name}, service.mss))
            for backend in service.backends.values():
                labels = {"service": service.config.name, "backend": str(backend.id)}
                samples += [
                    Sample("backend_flows", "gauge", "Flows of a backend", labels, backend.flows),
                    Sample("backend_handoffs", "counter", "Flows given to a backend", labels,
                           backend.handoffs),
                    Sample("backend_packets", "counter", "Packets to a backend", labels,
                           backend.packets),
                    Sample("backend_octets", "counter", "Octets to a backend", labels,
                           backend.octets),
                ]
        return samples

    # --- TCP ---

    def _on_tcp(self, packet: Packet, now_ms: int) -> Verdict:
        segment = Segment(packet)
        service = self.services.get(packet.dst + TCP_OCTET + segment.dport)
        if service is None:
            return PASS
        flags = segment.flags
        if flags & SYN:
            return self._on_syn(segment, service, now_ms)
        if packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        key = segment.five_tuple
        flow = self.flows.get(key)
        if segment.ts_off and flags & ACK:
            tsecr = _U32.unpack_from(segment.octets, segment.ts_off + 4)[0]
            named = service.backends.get(takeover.backend_id(tsecr, self._id_shift))
            if named is not None:
                return self._on_named(segment, flow, named, tsecr, now_ms)
        return self._on_unnamed(segment, service, flow, key, now_ms)

    def _on_syn(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        if segment.flags & (ACK | FIN | RST):
            return DROP[DropReason.BAD_FLAGS]
        if not _may_be_answered(segment):
            return DROP[DropReason.BAD_SOURCE]
        return send(
            Event.SYN_ANSWERED,
            handshake.answer_syn(segment, service.config, service.mss, self.secrets, now_ms),
        )

    def _on_named(
        self, segment: Segment, flow: BackendFlow | None, named: Backend, tsecr: int, now_ms: int
    ) -> Verdict:
        """A packet whose TSecr names a backend."""
        if flow is not None:
            backend = flow.backend
            if backend is named or takeover.may_have_wrapped(
                backend.ts_start, tsecr, now_ms - flow.created_ms
            ):
                flow.ts_shift = 0  # the client has seen the server: no more echoes of T0
                return self._forward(segment, flow, now_ms)
            self.flows.remove(flow)
        if not self._takeover_limit.allows(now_ms):
            return DROP[DropReason.TAKEOVER_LIMITED]
        return _forward_to(segment, named, 0, Event.TAKEOVER)

    def _on_unnamed(
        self, segment: Segment, service: ServiceState, flow: BackendFlow | None, key: bytes,
        now_ms: int,
    ) -> Verdict:
        """A packet whose TSecr, if it has one, names no backend."""
        payload_len = segment.payload_len
        if flow is not None and payload_len and delta(segment.seq, 1) == flow.client_isn:
            return self._forward(segment, flow, now_ms)
        if handshake.follows_cookie(segment, self.secrets, now_ms):
            return self._on_first(segment, service, now_ms)
        held = self.holds.get(key)
        if held is not None and held.is_continued_by(segment):
            return self._on_held(segment, held, now_ms)
        if flow is not None:
            return self._forward(segment, flow, now_ms)
        if segment.flags & RST:
            return DROP[DropReason.RESET_UNANSWERED]
        if not _may_be_answered(segment):
            return DROP[DropReason.BAD_SOURCE]
        if self.unknown.is_lost(key, now_ms):
            return send(Event.RESET, tcp.reset_for(segment))
        return DROP[DropReason.UNKNOWN_FLOW]

    # --- the first payload ---

    def _on_first(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        """The first segment after a handshake of ours."""
        key = segment.five_tuple
        held = self.holds.get(key)
        if held is not None and (
            held.client_isn != delta(segment.seq, 1) or held.cookie_isn != delta(segment.ack, 1)
        ):
            self.holds.remove(held)  # of an older connection on the same ports
            held = None
        if segment.flags & RST:
            if held is not None:
                self.holds.remove(held)
            return DROP[DropReason.RESET_UNANSWERED]
        if held is not None:
            return self._on_held(segment, held, now_ms)
        if not segment.payload_len:
            if segment.flags & FIN:
                return send(Event.FIN_ANSWERED, handshake.answer_fin(segment))
            return DROP[DropReason.HANDSHAKE_ACK]
        chosen = _choose(service.config, segment, segment.payload, bool(segment.flags & FIN))
        if chosen is not None:
            return self._open(service, [segment], chosen, now_ms)
        held = hold.Held(service, service.config.hold, segment, now_ms)
        return self._on_held(segment, held, now_ms)

    def _on_held(self, segment: Segment, held: hold.Held, now_ms: int) -> Verdict:
        """A segment of a flow whose key is not complete yet."""
        if segment.flags & RST:
            self.holds.remove(held)
            return DROP[DropReason.RESET_UNANSWERED]
        if not segment.seq_len:
            return DROP[DropReason.HANDSHAKE_ACK]
        if not segment.checksum_holds():
            return DROP[DropReason.BAD_CHECKSUM]  # it may get acknowledged, and a new checksum
        self.holds.add(held, segment)
        payload, ended = held.prefix()
        chosen = _choose(held.service.config, segment, payload, ended)
        if chosen is not None:
            return self._open_held(held, chosen, now_ms)
        if held.is_awaited:
            self.holds.take(held)  # joined, they may be within the bounds again
        if self.holds.is_at_bound(held):
            return self._on_hold_bound(held, now_ms)
        if held.is_awaited:
            wscale = held.service.config.wscale
            return send(Event.ACKNOWLEDGED, handshake.acknowledge(segment, held, wscale))
        return HELD

    def _on_hold_bound(self, held: hold.Held, now_ms: int) -> Verdict:
        """A bound was reached before the key was complete: hash what is there, or reset."""
        service = held.service.config
        if service.hold.policy == "reset":
            self.holds.remove(held)
            return send(Event.RESET, tcp.reset_for(held.first))
        payload, _ = held.prefix()
        chosen = _choose(service, held.first, payload, complete=True)
        return self._open_held(held, chosen or b"", now_ms)

    def _open_held(self, held: hold.Held, chosen: bytes, now_ms: int) -> Verdict:
        """Let held segments go to the backend that their key chooses."""
        self.holds.remove(held)
        segments = held.segments(held.service.mss - held.first.options_len)
        verdict = self._open(held.service, segments, chosen, now_ms, held.arrived_ms)
        flow = self.flows.get(held.key)
        if held.taken and flow is not None:
            server_first = add(held.cookie_isn, 1)
            self.deliveries.add(flow, Delivery(verdict.packets, server_first, now_ms))
        return verdict

    def _open(
        self, service: ServiceState, segments: list[Segment], chosen: bytes, now_ms: int,
        arrived_ms: int | None = None,
    ) -> Verdict:
        """Choose a backend, enter the flow and hand its first segments over.

        arrived_ms: when the first of them came, if it had to wait: that is no part of the round
                    trip.
        """
        first = segments[0]
        key = first.five_tuple
        old = self.flows.get(key)
        if old is not None:
            self.flows.remove(old)  # before choosing: it no longer loads its backend
        backend_id = service.scheduler.pick(chosen)
        if backend_id is None:
            return send(DropReason.NO_BACKEND, tcp.reset_for(first))
        backend = service.backends[backend_id]
        timestamps = first.timestamps
        shift = 0
        if timestamps:
            shift = takeover.ts_shift(backend.ts_start, timestamps[1], arrived_ms or now_ms)
        flow = BackendFlow(key, backend, delta(first.seq, 1), shift, now_ms)
        if not self.flows.insert(flow, spares_open=self._flood.is_on):
            return send(DropReason.TABLE_FULL, tcp.reset_for(first))
        self.unknown.forget(key)
        backend.flows += 1
        backend.handoffs += 1
        packets = [
            packet
            for segment in segments
            for packet in self._forward(segment, flow, now_ms).packets
        ]
        return send(Event.HANDOFF, *packets)

    # --- forwarding ---

    def _forward(self, segment: Segment, flow: BackendFlow, now_ms: int) -> Verdict:
        """Send a packet to its flow's backend, and note what it does to the flow."""
        flags = segment.flags
        if flow.delivery is not None and flow.delivery.is_settled_by(segment):
            self.deliveries.settle(flow)
        if flags & RST:
            self.flows.move(flow, RESET, now_ms)
        elif flags & FIN and flow.state == OPEN:
            self.flows.move(flow, HALF_CLOSED, now_ms)
        elif now_ms - flow.seen_ms >= RELINK_MS:
            self.flows.touch(flow, now_ms)
        return _forward_to(segment, flow.backend, flow.ts_shift, Event.FORWARDED)

    def _forget_flow(self, flow: BackendFlow) -> None:
        self.deliveries.settle(flow)
        flow.backend.flows -= 1

    # --- ICMP ---

    def _on_icmp(self, packet: Packet) -> Verdict:
        """An ICMP error for the VIP reaches the backend whose segment it quotes."""
        packet.check()
        if not icmp.is_about_tcp(packet):
            return PASS
        quote = icmp.Quote(packet)
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the VIP to the client
        service = self.services.get(key_of(quoted.src, TCP_OCTET, quoted.sport))
        if service is None or packet.dst != quoted.src:
            return PASS
        flow = self.flows.get(five_tuple.reverse(quote.five_tuple))
        if flow is not None:
            backend: Backend | None = flow.backend
        else:
            backend = service.backends.get(takeover.backend_id(quote.tsval, self._id_shift))
        if backend is None:
            return DROP[DropReason.UNKNOWN_FLOW]
        if packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        forwarded = bytearray(quote.octets)
        own_address = self.paths[backend.address].own_address
        if own_address:
            # the router that sent it may be on the way to the backend, too: its own address, coming
            # in, would be a martian there (RFC 1812 §5.3.7)
            packet.family.rewrite_src(packet.src, own_address).apply(forwarded)
        return send(Event.ICMP_FORWARDED, backend.way.wrap(forwarded))

    def _on_narrow_path(self, packet: Packet, now_ms: int) -> Verdict:
        """A router could not pass on what we had sent on: its client must hear of it, and we learn.

        The error is for the client, about the bridge. Any other one is none of our business.
        """
        if packet.fault is not None or not icmp.is_fragmentation_needed(packet):
            return PASS
        try:
            quote = icmp.Quote(packet)
        except Malformed:
            return PASS
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the client to the bridge
        if packet.dst != quoted.src:
            return PASS
        for backend in self._at_bridges.get(key_of(quoted.dst, TCP_OCTET, quoted.dport), ()):
            vip = backend.service.config.vip.packed
            flow = self.flows.get(five_tuple.join(quoted.src, vip, quoted.sport, quoted.dport))
            if flow is not None and flow.backend is backend and _is_plausible(quote, flow, now_ms):
                if quote.next_hop_mtu:
                    self.learn_path_mtu(backend, quote.next_hop_mtu, now_ms)
                back = packet.family.rewrite_dst(backend.address, vip, tos_mask=ECN_MASK)
                return send(Event.ICMP_FORWARDED, icmp.emit_retold(quote, vip, back))
        return PASS


def _is_plausible(quote: icmp.Quote, flow: BackendFlow, now_ms: int) -> bool:
    """Whether an error can be about a packet of this flow: too long, and within what was sent.

    Where in its stream a client is is known only by the flow's age: off-path attackers have to
    guess a flow in its first seconds (RFC 5927 §4 asks for the same of hosts, who know better).
    """
    sent_most = (max(now_ms - flow.created_ms, 0) + 1) * _OCTETS_PER_MS
    return (quote.quoted_len > max(quote.next_hop_mtu, LEAST_MTU)
            and delta(quote.quoted_seq, flow.client_isn) <= sent_most)


def _may_be_answered(segment: Segment) -> bool:
    """Whether the source is one that a host on the network can have, and not the VIP."""
    packet = segment.packet
    return packet.family.source_is_possible(packet.src) and packet.src != packet.dst


def _choose(
    service: Service, segment: Segment, payload: bytes, complete: bool
) -> bytes | None:
    """The key in `payload`; None while more octets may tell, which they may not if `complete`."""
    sport = int.from_bytes(segment.sport, "big")
    key = choose_key(service.key, service.fallback, payload, segment.packet.src, sport, complete)
    return None if isinstance(key, Missing) else key


def _forward_to(segment: Segment, backend: Backend, ts_shift: int, event: Event) -> Verdict:
    """`segment` with its backend's address, DSCP, TTL, and a TSecr that names the backend."""
    octets = bytearray(segment.octets)
    changes = backend.way.changes
    if ts_shift and segment.ts_off:
        off = segment.ts_off + 4
        tsecr = _U32.unpack_from(octets, off)[0]
        if 0 < tsecr <= handshake.CLOCK_MASK:  # an echo of T0
            shifted = add(tsecr, ts_shift)
            _U32.pack_into(octets, off, shifted)
            changes += change_at(off, tsecr, shifted)
    tcp.patch_checksum(octets, segment.off, changes)
    backend.packets += 1
    backend.octets += len(octets)
    return send(event, backend.way.wrap(octets))
