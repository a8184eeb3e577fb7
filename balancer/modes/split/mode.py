"""The connection is split: the balancer answers the handshake, a backend the first payload.

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
   server's timestamps to have wrapped; otherwise the packet goes by its echo,
   as far as those may that have no entry (takeover.py). The entry stays as it
   is, since anybody can write an echo; where its flow has no timestamps,
   echoes say nothing. A first payload of a flow that the table does not have is
   never established.
2. It repeats the flow's first segment: same backend.
3. It belongs to held segments, and may have to be acknowledged (hold.py).
4. It follows a cookie, and echoes T0 if it has timestamps: with payload it
   opens a flow (over whatever was there), without it is consumed, and with FIN
   alone it is answered. Where there is a flow without timestamps, that is asked
   only if a new one is possible.
5. It has a table entry.
6. Nobody knows it: dropped, and a second later reset.

Where the cookie is all that a segment has to show, guesses that fail are
counted (common/flow/guesses.py).

What still dissatisfies: one choice holds for a connection, so a second request
on it goes to the same backend whatever its URL; and a flow without timestamps
is lost with the table that knows it.

Twin: balancer/offload/bpf/balancer.bpf.c
"""

import struct

from balancer import metrics
from balancer.config import Config, Service
from balancer.flows import DOUBTED, HALF_CLOSED, NEW, OPEN, TAKEN_OVER, BackendFlow, after, end_of
from balancer.keys.http import Missing
from balancer.keys.request import choose_key
from balancer.modes.split import handshake, hold, takeover
from balancer.modes.split.delivery import Deliveries, Delivery
from balancer.modes.split.flood import Flood
from balancer.pool.pool import Backend
from balancer.services import ServiceState
from common.cluster import stamps
from common.cluster.cookie import Secrets
from common.counters import Counters, Sample
from common.flow.store import SEEN_MS, FlowStore
from common.flow.unknown import UnknownFlows
from common.verdict import DROP, HELD, DropReason, Event, Verdict, send
from common.wire import five_tuple, icmp, tcp
from common.wire.checksum import change_at
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, RST, SYN, Segment

_U32 = struct.Struct("!I")


class Split:
    """As modes.Mode; see the module. Its state is in `flows`, `holds`, `deliveries`, `unknown`."""

    def __init__(
        self, config: Config, secrets: Secrets, flows: FlowStore[BackendFlow], counters: Counters,
        marks: hold.Marks,
    ) -> None:
        """counters: of the whole data path. marks: told of the flows that are held."""
        self.secrets = secrets
        self.clock_offset_ms = 0
        self.flows = flows
        self.holds = hold.HoldTable(config.hold_octets_total, marks)
        self.deliveries = Deliveries(config.hold_octets_total)
        self.unknown = UnknownFlows()
        self._id_shift = takeover.id_shift(config.id_bits)
        self._accepts_version_1 = config.accept_version_1
        self._takeovers = takeover.Takeovers(config.takeover_rate)
        self._flood = Flood(config.new_flow_rate)
        self._counters = counters

    def configure(self, config: Config) -> None:
        """As modes.Mode."""
        self.holds.set_room(config.hold_octets_total)
        self.deliveries.set_room(config.hold_octets_total)
        self._takeovers.set_rate(config.takeover_rate)
        self._flood.set_rate(config.new_flow_rate)

    def on_packet(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        """Decide about a segment of a service."""
        flags = segment.flags
        if flags & SYN:
            return self._on_syn(segment, service, now_ms)
        key = segment.five_tuple
        flow = self.flows.get(key)
        if flow is None and not _may_be_answered(segment):
            return DROP[DropReason.BAD_SOURCE]  # nor may it be sent on by its echo alone
        if segment.packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        if segment.ts_off and flags & ACK:
            tsecr = _U32.unpack_from(segment.octets, segment.ts_off + 4)[0]
            named = service.pool.get(takeover.backend_id(tsecr, self._id_shift))
            if named is not None and (
                not self._is_first(segment, now_ms) if flow is None
                else flow.has_timestamps or flow.backend is named
            ):
                return self._on_named(segment, flow, named, tsecr, now_ms)
        return self._on_unnamed(segment, service, flow, key, now_ms)

    def on_tick(self, now_ms: int) -> list[bytes]:
        """Let flows expire, repeat what is ours to deliver, decide about held flows in time."""
        new_flows = self._counters[Event.HANDOFF] + self._counters[DropReason.TABLE_FULL]
        self._flood.watch(new_flows, now_ms)
        for flow in self.flows.expire(now_ms):
            self.deliveries.settle(flow.key)
        packets = self._repeat(now_ms)
        for held in self.holds.expired(now_ms):
            verdict = self._on_hold_bound(held, self.flows.get(held.key), now_ms)
            self._counters[verdict.reason] += 1
            packets += verdict.packets
        return packets

    def backend_of(self, quote: icmp.Quote, service: ServiceState) -> Backend | None:
        """Whose a packet is that an ICMP error quotes."""
        flow = self.flows.get(five_tuple.reverse(quote.five_tuple))
        if flow is not None:
            return flow.backend
        return service.pool.get(takeover.backend_id(quote.tsval, self._id_shift))

    def samples(self) -> list[Sample]:
        """What there is to be seen besides what is counted."""
        return [metrics.HELD_FLOWS.at(len(self.holds))]

    def _unix_ms(self, now_ms: int) -> int:
        """What hosts agree on, of a time here: handshakes go by it, and nothing else."""
        return now_ms + self.clock_offset_ms

    # --- what a segment is ---

    def _on_syn(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        if segment.flags & (ACK | FIN | RST):
            return DROP[DropReason.BAD_FLAGS]
        if not _may_be_answered(segment):
            return DROP[DropReason.BAD_SOURCE]
        offered = segment.options()
        if not (service.config.timestamps and offered.timestamps):
            flow = self.flows.get(segment.five_tuple)
            if flow is not None:
                flow.note_syn(segment.seq)
                self.flows.update(flow)
        return send(
            Event.SYN_ANSWERED,
            handshake.answer_syn(segment, offered, service.config, service.mss, self.secrets,
                                 self._unix_ms(now_ms)),
        )

    def _on_named(
        self, segment: Segment, flow: BackendFlow | None, named: Backend, tsecr: int, now_ms: int
    ) -> Verdict:
        """A packet whose TSecr names a backend."""
        if flow is not None and (flow.backend is named or takeover.may_have_wrapped(
            flow.backend.ts_start, tsecr, now_ms - flow.created_ms
        )):
            return self._forward(segment, flow, now_ms)
        standing = self._takeovers.judge(
            segment.five_tuple, named.id, segment.seq, segment.ack, tsecr, now_ms)
        if standing is takeover.Standing.LIMITED:
            return DROP[DropReason.TAKEOVER_LIMITED]
        if named.is_cut:
            return _reset(segment)
        if standing is takeover.Standing.VOUCHED and flow is None:
            self._take_over(segment, named, tsecr, now_ms)
        return send(Event.TAKEOVER, _to_backend(segment, named, 0, 0))

    def _is_first(self, segment: Segment, now_ms: int) -> bool:
        """Whether it is a first payload, whatever it echoes."""
        return bool(segment.payload_len) and (
            handshake.check_cookie(segment, self.secrets, self._unix_ms(now_ms)) is not None)

    def _take_over(self, segment: Segment, named: Backend, tsecr: int, now_ms: int) -> None:
        """Enter a flow that another balancer began, if there is room. It is as old as its clock."""
        flow = BackendFlow(segment.five_tuple, named, delta(segment.seq, 1), 0, now_ms)
        flow.created_ms = now_ms - delta(tsecr, named.ts_start)
        flow.state = TAKEN_OVER
        self.flows.insert(flow, least=TAKEN_OVER)

    def _on_unnamed(
        self, segment: Segment, service: ServiceState, flow: BackendFlow | None, key: bytes,
        now_ms: int,
    ) -> Verdict:
        """A packet whose TSecr, if it has one, names no backend."""
        payload_len = segment.payload_len
        if flow is not None and flow.has_begun_with(segment):
            return self._forward(segment, flow, now_ms)
        held = self.holds.get(key)
        if held is not None and held.is_continued_by(segment):
            return self._on_held(segment, held, flow, now_ms)
        is_asked = flow is None or flow.may_give_way(segment, now_ms)
        is_guess = bool(is_asked and payload_len and not segment.ts_off)
        if is_guess and service.guesses.is_over(now_ms):
            if flow is not None and not flow.syn_seen:
                return self._forward(segment, flow, now_ms)
            return DROP[DropReason.GUESSES_LIMITED]
        proven = None
        if is_asked:
            proven = handshake.check_cookie(segment, self.secrets, self._unix_ms(now_ms))
        if proven is not None and handshake.echoes_t0(segment, proven, self._accepts_version_1):
            if held is not None:
                self.holds.remove(held)  # of an older connection on the same ports
            return self._on_first(segment, service, proven, flow, now_ms)
        if is_guess and proven is None:
            service.guesses.note(now_ms)
        if flow is not None:
            return self._forward(segment, flow, now_ms)
        if segment.flags & RST:
            return DROP[DropReason.RESET_UNANSWERED]
        if self.unknown.is_lost(key, now_ms):
            return send(Event.RESET, tcp.reset_for(segment))
        return DROP[DropReason.UNKNOWN_FLOW if proven is None else DropReason.BAD_ECHO]

    # --- the first payload; old: a flow of the same five-tuple, which a new one replaces ---

    def _on_first(
        self, segment: Segment, service: ServiceState, handshake_hash: int,
        old: BackendFlow | None, now_ms: int,
    ) -> Verdict:
        """The first segment after a handshake of ours."""
        if segment.flags & RST:
            return DROP[DropReason.RESET_UNANSWERED]
        if not segment.payload_len:
            if segment.flags & FIN:
                return send(Event.FIN_ANSWERED, handshake.answer_fin(segment))
            return DROP[DropReason.HANDSHAKE_ACK]
        chosen = _choose(service.config, segment, segment.payload, bool(segment.flags & FIN))
        if chosen is not None:
            return self._open(service, [segment], chosen, handshake_hash, old, now_ms)
        if not segment.checksum_holds():
            return DROP[DropReason.BAD_CHECKSUM]
        held = hold.Held(service, service.config.hold, segment, now_ms, handshake_hash)
        self.holds.add(held, segment)
        return self._wait(segment, held, old, now_ms)

    def _on_held(
        self, segment: Segment, held: hold.Held, old: BackendFlow | None, now_ms: int
    ) -> Verdict:
        """A segment of a flow whose key is not complete yet."""
        if segment.flags & RST:
            self.holds.remove(held)
            return DROP[DropReason.RESET_UNANSWERED]
        if not segment.seq_len:
            held.useless += 1
            return (self._on_hold_bound(held, old, now_ms) if held.is_full
                    else DROP[DropReason.HANDSHAKE_ACK])
        if not segment.checksum_holds():
            return DROP[DropReason.BAD_CHECKSUM]  # it may get acknowledged, and a new checksum
        if self.holds.add(held, segment):
            payload, ended = held.prefix()
            chosen = _choose(held.service.config, segment, payload, ended)
            if chosen is not None:
                return self._open_held(held, chosen, old, now_ms)
        return self._wait(segment, held, old, now_ms)

    def _wait(
        self, segment: Segment, held: hold.Held, old: BackendFlow | None, now_ms: int
    ) -> Verdict:
        """The key is not complete yet: wait for more, unless a bound is reached.

        segment: the latest.
        """
        if held.is_awaited:
            self.holds.take(held)  # joined, they may be within the bounds again
        crowded_out: list[Verdict] = []
        while (oldest := self.holds.crowded_by(held)) is not None and oldest is not held:
            verdict = self._on_hold_bound(oldest, self.flows.get(oldest.key), now_ms)
            self._counters[verdict.reason] += 1
            crowded_out.append(verdict)
        if held.is_full or oldest is held:
            verdict = self._on_hold_bound(held, old, now_ms)
        elif held.is_awaited:
            wscale = held.service.config.wscale
            verdict = send(Event.ACKNOWLEDGED, handshake.acknowledge(segment, held, wscale))
        else:
            verdict = HELD
        for other in crowded_out:
            verdict = verdict._replace(packets=verdict.packets + other.packets)
        return verdict

    def _on_hold_bound(
        self, held: hold.Held, old: BackendFlow | None, now_ms: int
    ) -> Verdict:
        """A bound was reached before the key was complete: hash what is there, or reset."""
        service = held.service.config
        if service.hold.policy == "reset":
            self.holds.remove(held)
            return send(Event.RESET, tcp.reset_for(held.first))
        payload, _ = held.prefix()
        chosen = _choose(service, held.first, payload, complete=True)
        return self._open_held(held, chosen or b"", old, now_ms)

    def _open_held(
        self, held: hold.Held, chosen: bytes, old: BackendFlow | None, now_ms: int
    ) -> Verdict:
        """Let held segments go to the backend that their key chooses."""
        self.holds.remove(held)
        segments = held.segments(held.service.mss - held.first.options_len)
        return self._open(
            held.service, segments, chosen, held.handshake_hash, old, now_ms, held)

    def _open(
        self, service: ServiceState, segments: list[Segment], chosen: bytes, handshake_hash: int,
        old: BackendFlow | None, now_ms: int, held: hold.Held | None = None,
    ) -> Verdict:
        """Choose a backend, enter the flow and hand its first segments over.

        held: where they had to wait: that is no part of the round trip.
        """
        first = segments[0]
        if old is not None:
            self._remove(old)  # before choosing: it no longer loads its backend
        backend = service.pool.pick(chosen, self.flows.count)
        if backend is None:
            return send(DropReason.NO_BACKEND, tcp.reset_for(first))
        timestamps = first.timestamps
        shift, arrived_ms = 0, self._unix_ms(held.arrived_ms if held else now_ms)
        if timestamps:
            shift = takeover.ts_shift(backend, handshake_hash, timestamps[1], arrived_ms)
        flow = BackendFlow(first.five_tuple, backend, delta(first.seq, 1), shift, now_ms,
                           has_timestamps=bool(timestamps))
        flow.state = NEW
        for segment in segments:
            if segment.flags & FIN:
                flow.state = HALF_CLOSED if flow.has_timestamps else DOUBTED
                flow.noted_seq = end_of(segment)
        if not self.flows.insert(flow, least=DOUBTED if self._flood.is_on else OPEN):
            return send(DropReason.TABLE_FULL, tcp.reset_for(first))
        self.unknown.forget(flow.key)
        if timestamps:
            service.handshakes.note(stamps.age_ms(timestamps[1], arrived_ms))
        backend.handoffs += 1
        packets = [_to_backend(segment, backend, shift, flow.client_isn) for segment in segments]
        verdict = send(Event.HANDOFF, *packets)
        if held and held.taken and not held.is_a_nuisance:
            self._deliver(flow, Delivery(verdict.packets, add(held.cookie_isn, 1), now_ms))
        return verdict

    # --- what goes on ---

    def _forward(self, segment: Segment, flow: BackendFlow, now_ms: int) -> Verdict:
        """Send a packet to its flow's backend, and note what it does to the flow."""
        if flow.backend.is_cut:
            self._remove(flow)
            return _reset(segment)
        if flow.goes_up:
            self._watch(segment, flow)
        if flow.state == NEW and flow.is_unanswered(segment):
            self._note_unanswered(flow)
        state = after(flow, segment)
        if flow.state == NEW and state == OPEN and not segment.payload_len:
            flow.backend.first_acks.note(now_ms - flow.created_ms)
        if segment.flags & (RST | FIN) and not flow.has_timestamps and not flow.syn_seen:
            flow.noted_seq = end_of(segment)
        if state != flow.state or segment.flags & (RST | FIN):
            self.flows.move(flow, state, now_ms)
        elif now_ms - flow.seen_ms >= SEEN_MS:
            self.flows.touch(flow, now_ms)
        return send(Event.FORWARDED, _to_backend(
            segment, flow.backend, self._shift(flow, now_ms), flow.client_isn))

    def _note_unanswered(self, flow: BackendFlow) -> None:
        """Count a handoff that nobody has answered; once, however often it is repeated."""
        flow.is_repeated = True
        flow.backend.unanswered += 1
        self.flows.update(flow)

    def _shift(self, flow: BackendFlow, now_ms: int) -> int:
        """For echoes of T0; none are left when the server's clock has wrapped."""
        return flow.ts_shift if now_ms - flow.created_ms < 1 << self._id_shift else 0

    def _deliver(self, flow: BackendFlow, delivery: Delivery) -> None:
        """Repeat a flow's handoff, and see all its packets until the server has answered."""
        crowded_out = self.deliveries.add(flow.key, delivery)
        flow.goes_up = flow.key not in crowded_out
        self.flows.update(flow)
        for key in crowded_out:
            other = self.flows.get(key)
            if other is not None and other.goes_up:
                self._end_delivery(other)

    def _watch(self, segment: Segment, flow: BackendFlow) -> None:
        """Look whether a flow's handoff need be repeated no more."""
        delivery = self.deliveries.get(flow.key)
        if delivery is None or delivery.is_settled_by(segment):
            self._end_delivery(flow)

    def _end_delivery(self, flow: BackendFlow) -> None:
        self.deliveries.settle(flow.key)
        flow.goes_up = False
        self.flows.update(flow)

    def _repeat(self, now_ms: int) -> list[bytes]:
        """The handoffs that are due, of flows that still have theirs."""
        packets: list[bytes] = []
        for key, delivery in self.deliveries.due(now_ms):
            flow = self.flows.get(key)
            if flow is None or not flow.goes_up:
                self.deliveries.settle(key)  # it had to make room, or is another connection's
                continue
            if flow.state == NEW and not flow.is_repeated:
                self._note_unanswered(flow)  # its client has been told, and will not repeat it
            packets += delivery.packets
            if delivery.is_last:
                self._end_delivery(flow)
        return packets

    def _remove(self, flow: BackendFlow) -> None:
        self.deliveries.settle(flow.key)
        self.flows.remove(flow)


def _may_be_answered(segment: Segment) -> bool:
    """Whether the source is one that a host on the network can have, and not the VIP."""
    packet = segment.packet
    return packet.family.source_is_possible(packet.src) and packet.src != packet.dst


def _reset(segment: Segment) -> Verdict:
    """Reset the client of a flow whose backend is down."""
    if segment.flags & RST:
        return DROP[DropReason.RESET_UNANSWERED]
    return send(Event.RESET, tcp.reset_for(segment))


def _choose(
    service: Service, segment: Segment, payload: bytes, complete: bool
) -> bytes | None:
    """The key in `payload`; None while more octets may tell, which they may not if `complete`."""
    sport = int.from_bytes(segment.sport, "big")
    key = choose_key(service.key, service.fallback, payload, segment.packet.src, sport, complete)
    return None if isinstance(key, Missing) else key


def _to_backend(segment: Segment, backend: Backend, ts_shift: int, client_isn: int) -> bytes:
    """`segment` with its backend's address, DSCP, TTL, and a TSecr that names the backend.

    client_isn: the flow's; the segment that comes right after it also proves whom it is for.
    """
    octets = bytearray(segment.octets)
    changes = backend.way.changes
    if ts_shift and segment.ts_off:
        off = segment.ts_off + 4
        tsecr = _U32.unpack_from(octets, off)[0]
        if 0 < tsecr <= stamps.T0_MASK:  # an echo of T0
            shifted = add(tsecr, ts_shift)
            if delta(segment.seq, 1) != client_isn:
                shifted = stamps.stripped(shifted)
            _U32.pack_into(octets, off, shifted)
            changes += change_at(off, tsecr, shifted)
    tcp.patch_checksum(octets, segment.off, changes)
    backend.packets += 1
    backend.octets += len(octets)
    return backend.way.wrap(octets)


def hand_over(segment: Segment, backend: Backend, secrets: Secrets, now_ms: int) -> bytes:
    """The handoff of a first segment to this backend, without a flow: a health check's."""
    shift = 0
    timestamps = segment.timestamps
    if timestamps:
        handshake_hash = handshake.check_cookie(segment, secrets, now_ms) or 0
        shift = takeover.ts_shift(backend, handshake_hash, timestamps[1], now_ms)
    return _to_backend(segment, backend, shift, delta(segment.seq, 1))
