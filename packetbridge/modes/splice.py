"""Splice: the client's handshake is played again to the server, and both sides are translated.

Theory of operation
-------------------
A data segment with a valid cookie is a handoff: the client's handshake is
replayed towards the server (replay.py), and the flow's segments wait meanwhile.
The server's SYN-ACK tells how its numbers, clock and windows differ from those
that the cookie promised; from then on every packet is translated both ways
(translate.py).

For a packet from the client the tests come in this order:

1. It fits its flow's numbers: translated, or held while the server is silent.
   What these may be says the server, by what it has sent and acknowledged:
   anybody can write what a client sends.
2. It has payload and follows a cookie with another client_isn: a handoff, over
   whatever flow was there (a reused port), if its timestamps prove that it is
   for this bridge, and the cookie has not opened a connection before (spent.py).
   Where the cookie is all that it has to show, guesses that fail are counted
   (common/flow/guesses.py).
3. It has a flow all the same: translated; the stacks will answer it.
4. Nobody knows it: dropped, and a second later reset.

Rules: a segment without payload opens nothing, nor does a cookie that is not
ours. How a flow ends is a table (packetbridge/flows.py). A client's RST ends it
only if it has exactly the number that the server expects (RFC 5961 §3.2); of any
other the server's stack decides what it is, and the flow lives on.
"""

import heapq
from collections.abc import Collection

from common.cluster import cookie, stamps
from common.cluster.cookie import Secrets
from common.counters import Sample
from common.flow.store import SEEN_MS, FlowStore
from common.flow.unknown import UnknownFlows
from common.verdict import DROP, HELD, PASS, DropReason, Event, Verdict, send
from common.wire import five_tuple, icmp, tcp
from common.wire.seq import add, before, delta
from common.wire.tcp import ACK, FIN, RST, SYN, Segment
from packetbridge import metrics
from packetbridge.flows import (
    AFTER,
    CLIENT_FIN,
    ENDED,
    OPEN,
    REPLAY,
    RESET,
    SERVER_FIN,
    TOLD_BY_CLIENT,
    TOLD_BY_SERVER,
    BridgeFlow,
    Turn,
)
from packetbridge.modes import replay, translate
from packetbridge.modes.diagnosis import Diagnosis
from packetbridge.modes.replay import Replay
from packetbridge.modes.spent import SpentCookies
from packetbridge.modes.translate import ServiceState
from packetbridge.modes.trouble import Trouble

PLAUSIBLE_LEN = 1 << 20  # by so much numbers may exceed what windows allow
_HELD_OCTETS = 64 << 20  # of all flows that wait for their server


class Splice:
    """What is done with the packets of spliced connections.

    services, flows: the data path's. patience_ms: how long a server may stay silent.
    foreign_servers: as of the data path. accepts_version_1: whether a cookie alone makes a handoff,
              as version 1 of the protocol has it. spent: cookies that have opened a connection.
    """

    def __init__(
        self, services: list[ServiceState], flows: FlowStore[BridgeFlow], secrets: Secrets,
        patience_ms: int, foreign_servers: frozenset[bytes], accepts_version_1: bool,
        spent: SpentCookies,
    ) -> None:
        self.secrets = secrets
        self.clock_offset_ms = 0  # unix time − the times that are given
        self.spent = spent
        self.diagnosis = Diagnosis()
        self.trouble = Trouble()
        self.unknown = UnknownFlows()
        self.held_octets = 0
        self._services = services
        self._flows = flows
        self._patience_ms = patience_ms
        self._foreign_servers = foreign_servers
        self._accepts_version_1 = accepts_version_1
        self._due: list[tuple[int, bytes]] = []  # heap of replays' timers

    def on_packet(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        """Decide about a packet of a client."""
        packet = segment.packet
        if segment.flags & SYN:
            return PASS  # no balancer sends one
        if packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        key = service.key_of(packet.src, segment.sport)
        flow = self._flows.get(key)
        if flow is not None and flow.service is service and _is_plausible(segment, flow):
            return self._on_known(segment, flow, now_ms)
        if segment.payload_len and not segment.flags & RST:
            is_new = (
                flow is None or flow.service is not service
                or flow.client_isn != delta(segment.seq, 1)
            )
            if is_new and segment.flags & ACK:
                proof = self._proof_of(segment, service, now_ms)
                if isinstance(proof, int):
                    return self._on_handoff(segment, service, proof, flow, now_ms)
                if proof in (DropReason.BAD_ECHO, DropReason.COOKIE_SPENT) or (
                    proof is DropReason.GUESSES_LIMITED and flow is None
                ):
                    return DROP[proof]
                if flow is None:
                    self.diagnosis.look_at(self.secrets, *_handshake_of(segment, service),
                                           now_ms + self.clock_offset_ms)
        if flow is not None and flow.service is service:
            return self._on_known(segment, flow, now_ms)
        if segment.flags & RST:
            return DROP[DropReason.RESET_UNANSWERED]
        if not packet.family.source_is_possible(packet.src):
            return DROP[DropReason.BAD_SOURCE]
        if self.unknown.is_lost(key, now_ms):
            return send(Event.RESET, tcp.reset_for(segment, service.vip))
        return DROP[DropReason.UNKNOWN_FLOW]

    def on_tick(self, now_ms: int) -> list[bytes]:
        """Repeat SYNs that are due, give up servers that stay silent. Returns: packets to send."""
        self.trouble.on_tick(now_ms)
        packets = []
        while self._due and self._due[0][0] <= now_ms:
            _, key = heapq.heappop(self._due)
            flow = self._flows.get(key)
            if flow is None or flow.replay is None or flow.replay.due_ms > now_ms:
                continue
            if now_ms >= flow.replay.expires_ms:
                packets += [self._reset_to_client(flow), *self._reset_to_server(flow)]
                self._end(flow, Turn.GIVEN_UP, now_ms)
            else:
                packets.append(flow.replay.repeat(now_ms))
                heapq.heappush(self._due, (flow.replay.due_ms, key))
        return packets

    def serve(
        self, services: list[ServiceState], foreign_servers: frozenset[bytes]
    ) -> None:
        """Have these services from now on."""
        self._services, self._foreign_servers = services, foreign_servers

    def set_patience(self, patience_ms: int) -> None:
        """How long a server may stay silent, from now on."""
        self._patience_ms = patience_ms

    def end_flows(self, services: Collection[ServiceState]) -> list[bytes]:
        """Resets for both sides of every flow of these, which nobody will translate any more."""
        packets: list[bytes] = []
        ended = set(services)
        for flow in self._flows:
            if flow.service not in ended:
                continue
            if flow.state in (OPEN, REPLAY):
                packets += [self._reset_to_client(flow), *self._reset_to_server(flow)]
            self._flows.remove(flow)
        return packets

    def on_icmp(self, quote: icmp.Quote, service: ServiceState) -> Verdict:
        """An error about a packet to a client reaches the server that sent it."""
        packet = quote.packet
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the VIP to the client
        flow = self._flows.get(service.key_of(quoted.dst, quoted.dport))
        if flow is None or not flow.is_open or flow.service is not service:
            return DROP[DropReason.UNKNOWN_FLOW]
        if packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        return send(Event.ICMP_FORWARDED, translate.error_to_server(quote, flow))

    def forget(self, flow: BridgeFlow) -> None:
        """A flow leaves the store: what waits for its server goes with it."""
        if flow.replay is not None:
            self.held_octets -= flow.replay.octets
            flow.replay = None

    def samples(self) -> list[Sample]:
        """What there is to be seen besides what is counted."""
        return [
            metrics.HELD_BYTES.at(self.held_octets),
            *self.diagnosis.samples(),
        ]

    def _proof_of(
        self, segment: Segment, service: ServiceState, now_ms: int
    ) -> int | DropReason:
        """The hash that vouches for a handoff; or why a segment with payload is none.

        It is one where cookie(five_tuple with the VIP, seq−1) = ack−1, its TSecr, if it has one,
        proves that the balancer has sent it to this bridge, and it comes for the first time.

        Twin: packetbridge/offload/bpf/cookie.h:proof_of
        """
        timestamps, guesses = segment.timestamps, service.guesses
        is_guess = timestamps is None or self._accepts_version_1
        if is_guess and guesses.is_over(now_ms):
            return DropReason.GUESSES_LIMITED
        proven = cookie.check(
            self.secrets, *_handshake_of(segment, service), now_ms + self.clock_offset_ms)
        if proven is None:
            if is_guess:
                guesses.note(now_ms)
            return DropReason.UNKNOWN_FLOW
        if timestamps is not None:
            told = timestamps[1] & stamps.STAMP_MAC_MASK
            if told != stamps.handoff_mac(proven, segment.packet.dst) and (
                told or not self._accepts_version_1
            ):
                return DropReason.BAD_ECHO
        return DropReason.COOKIE_SPENT if proven in self.spent else proven

    def _on_handoff(
        self, segment: Segment, service: ServiceState, proof: int, old: BridgeFlow | None,
        now_ms: int,
    ) -> Verdict:
        """The segment that opens a flow: replay its handshake. proof: what vouches for it."""
        if not segment.checksum_holds():
            return DROP[DropReason.BAD_CHECKSUM]
        if old is not None and old.service is not service and old.state == OPEN:
            # the same client port through another VIP: the server cannot tell them apart
            return send(Event.RESET, tcp.reset_for(segment, service.vip))
        if self.held_octets >= _HELD_OCTETS:
            return DROP[DropReason.REPLAY_PENDING]
        key = service.key_of(segment.packet.src, segment.sport)
        flow = BridgeFlow(key, service, delta(segment.seq, 1), delta(segment.ack, 1), now_ms)
        flow.replay = Replay(flow, segment, proof, now_ms, self._patience_ms)
        self.held_octets += flow.replay.hold(segment, flow.client_isn)
        self._note_client(segment, flow)
        self._flows.insert(flow)
        self.unknown.forget(key)
        heapq.heappush(self._due, (flow.replay.due_ms, key))
        timestamps = segment.timestamps
        is_check = timestamps is not None and timestamps[0] == stamps.check_mark(proof)
        return send(Event.CHECK if is_check else Event.REPLAYED, flow.replay.syn)

    def _on_known(self, segment: Segment, flow: BridgeFlow, now_ms: int) -> Verdict:
        """A packet of a flow that there is."""
        if not flow.is_open:
            return self._on_waiting(segment, flow, now_ms)
        self._note_client(segment, flow)
        self.note_seen(flow, _is_exact_reset(segment, flow), now_ms)
        return send(Event.TO_SERVER, translate.to_server(segment, flow))

    def _on_waiting(self, segment: Segment, flow: BridgeFlow, now_ms: int) -> Verdict:
        """A packet of a flow whose server has not answered."""
        if segment.flags & RST:
            if flow.replay is None:
                return DROP[DropReason.FLOW_CLOSED]
            handoff = flow.replay.handoff
            if segment.seq not in (handoff.seq, add(handoff.seq, handoff.seq_len)):
                return DROP[DropReason.REPLAY_PENDING]
            verdict = send(Event.RESET, *self._reset_to_server(flow))
            self._end(flow, Turn.RESET, now_ms)
            return verdict
        if flow.replay is None:  # refused or given up; the client has not heard of it
            return send(Event.RESET, tcp.reset_for(segment, flow.service.vip))
        if not segment.seq_len or self.held_octets >= _HELD_OCTETS:
            return DROP[DropReason.REPLAY_PENDING]
        held = flow.replay.hold(segment, flow.client_isn)
        if not held:
            return DROP[DropReason.REPLAY_PENDING]
        self.held_octets += held
        self._note_client(segment, flow)
        return HELD

    # --- from the server ---

    def on_server_packet(self, segment: Segment, now_ms: int) -> Verdict:
        """Decide about a packet of a server."""
        packet = segment.packet
        flow = self._flows.get(packet.dst + packet.src + segment.dport + segment.sport)
        if flow is None:
            return self._on_orphan(segment, now_ms)
        if not flow.is_open:
            return self._on_answer(segment, flow, now_ms)
        if segment.flags & SYN:
            # The server has not seen the handoff; the client will send it again.
            return DROP[DropReason.REPLAY_DONE]
        self._note_server(segment, flow)
        self.note_seen(flow, bool(segment.flags & RST), now_ms)
        return send(Event.TO_CLIENT, translate.to_client(segment, flow))

    def _on_orphan(self, segment: Segment, now_ms: int) -> Verdict:
        """A server's packet of no flow: what a killed bridge left behind, if it is marked.

        Its client may wait in silence for ever, and its numbers are not known any more. A bare
        ACK with numbers that cannot fit makes it say them (RFC 9293 §3.10.7.4): its answer comes
        here as a packet of an unknown flow, and is reset like any other, as is the server.
        """
        packet = segment.packet
        if packet.src in self._foreign_servers:
            return PASS
        if segment.flags & RST:
            return DROP[DropReason.RESET_UNANSWERED]
        probes = [
            tcp.emit(five_tuple.join(service.vip, packet.dst, service.vip_port, segment.dport),
                     segment.seq, 0, ACK)
            for service in self._services
            if service.server_end == packet.src + segment.sport
        ]
        if self.unknown.is_lost(segment.five_tuple, now_ms):
            return send(Event.RESET, *probes, tcp.reset_for(segment))
        return send(Event.PROBED, *probes)

    def _on_answer(self, segment: Segment, flow: BridgeFlow, now_ms: int) -> Verdict:
        """The server's answer to the replayed SYN (RFC 9293 §3.10.7.3)."""
        flags = segment.flags
        if flow.replay is None:
            if flags & RST:
                return DROP[DropReason.FLOW_CLOSED]
            return send(Event.RESET, tcp.reset_for(segment))
        if not flags & ACK or segment.ack != add(flow.client_isn, 1):
            if flags & RST or not flags & ACK:
                return DROP[DropReason.REPLAY_PENDING]
            # TIME_WAIT, or what is left of an older connection: end it, and ask again.
            again = [flow.replay.syn] if flow.replay.may_repeat_at_once() else []
            return send(Event.RESET, tcp.reset_for(segment), *again)
        if flags & RST:
            refused = self._reset_to_client(flow)
            self._end(flow, Turn.REFUSED, now_ms)
            return send(Event.RESET, refused)
        if not flags & SYN:
            return DROP[DropReason.REPLAY_PENDING]
        replay.open_flow(flow, segment)
        self.spent.add(flow.replay.proof)
        packets = [translate.to_server(held, flow) for held in flow.replay.segments()]
        self._end(flow, Turn.ANSWERED, now_ms)
        return send(Event.OPENED, *packets)

    # --- a flow's life ---

    def _note_client(self, segment: Segment, flow: BridgeFlow) -> None:
        """Keep track of what the client has sent and acknowledged."""
        flags = segment.flags
        end = add(segment.seq, segment.seq_len)
        if (before(flow.client_next, end) and delta(end, flow.client_acked) <= _reach(flow)
                and not _client_is_done(flow)):
            flow.client_next = end
            flow.ending &= ~CLIENT_FIN  # it was none: there is more
        if flags & FIN or flow.ending & SERVER_FIN:
            ends = bool(flags & FIN) and end == flow.client_next
            acks_fin = bool(flow.ending & SERVER_FIN) and segment.ack == flow.server_next
            flow.ending |= TOLD_BY_CLIENT[ends, acks_fin]

    def _note_server(self, segment: Segment, flow: BridgeFlow) -> None:
        """Keep track of what the server has sent and acknowledged."""
        flags = segment.flags
        end = add(segment.seq, segment.seq_len + flow.seq_delta)
        if before(flow.server_next, end):
            flow.server_next = end
        if flags & ACK and before(flow.client_acked, segment.ack):
            flow.client_acked = segment.ack
        if flags & FIN or flow.ending & CLIENT_FIN:
            acks_fin = bool(flow.ending & CLIENT_FIN) and segment.ack == flow.client_next
            flow.ending |= TOLD_BY_SERVER[bool(flags & FIN), acks_fin]

    def note_seen(self, flow: BridgeFlow, is_reset: bool, now_ms: int) -> None:
        """Let the flow's state follow a packet that was translated."""
        if is_reset:
            self._turn(flow, Turn.RESET, now_ms)
        elif flow.ending == ENDED and flow.state == OPEN:
            self._turn(flow, Turn.ENDED, now_ms)
        elif now_ms - flow.seen_ms >= SEEN_MS and flow.state != RESET:
            self._flows.touch(flow, now_ms)

    def _turn(self, flow: BridgeFlow, turn: Turn, now_ms: int) -> None:
        self._flows.move(flow, AFTER[flow.state][turn], now_ms)

    def _end(self, flow: BridgeFlow, turn: Turn, now_ms: int) -> None:
        """Nothing more comes of a replay; the flow is kept to answer what is still under way."""
        self.forget(flow)
        self.trouble.note(flow.service, turn)
        self._turn(flow, turn, now_ms)

    def _reset_to_client(self, flow: BridgeFlow) -> bytes:
        """A RST with exactly the number that the client expects next (RFC 5961 §3.2)."""
        return tcp.emit(
            replay.client_five_tuple(flow), flow.server_next, flow.client_next, RST | ACK
        )

    def _reset_to_server(self, flow: BridgeFlow) -> list[bytes]:
        """A RST as from the client, with what the server expects next, as far as that is known.

        Before it has answered that is right after the SYN, later what it has acknowledged, or if it
        has yet to do that, all that was sent.
        """
        seqs = {flow.client_acked: None, flow.client_next: None} if flow.is_open else (
            add(flow.client_isn, 1),)
        return [tcp.emit(flow.key, seq, 0, RST) for seq in seqs]


def _is_exact_reset(segment: Segment, flow: BridgeFlow) -> bool:
    """Whether a client's segment is a RST that the server's stack must take for one."""
    return bool(segment.flags & RST) and segment.seq == flow.client_acked


def _client_is_done(flow: BridgeFlow) -> bool:
    """Whether the server has all that the client sends, and its FIN: what comes behind that is of
    the next connection from its port.

    Twin: packetbridge/offload/bpf/splice.bpf.c:client_is_done
    """
    return bool(flow.ending & CLIENT_FIN) and flow.client_acked == flow.client_next


def _reach(flow: BridgeFlow) -> int:
    """How far from what the server has acknowledged a client's segment may lie: its window."""
    return PLAUSIBLE_LEN + (0xFFFF << flow.server_wscale)


def _handshake_of(segment: Segment, service: ServiceState) -> tuple[bytes, int, int]:
    """Five-tuple with the VIP, client_isn and cookie_isn, if this is a first data segment."""
    ends = five_tuple.join(segment.packet.src, service.vip, segment.sport, segment.dport)
    return ends, delta(segment.seq, 1), delta(segment.ack, 1)


def _is_plausible(segment: Segment, flow: BridgeFlow) -> bool:
    """Whether the numbers fit the flow so well that it can be no other connection.

    Source: RFC 5961 §5.2, with the largest windows that there can have been.
    """
    if flow.state == RESET or flow.ending == ENDED:
        return False
    reach = _reach(flow)
    wscale = flow.cookie_isn & 0xF
    in_flight = PLAUSIBLE_LEN + (0xFFFF << (0 if wscale == cookie.WSCALE_NONE else wscale))
    return (
        segment.seq - flow.client_acked + reach & 0xFFFFFFFF <= 2 * reach
        and flow.server_next - segment.ack & 0xFFFFFFFF <= in_flight
    )
