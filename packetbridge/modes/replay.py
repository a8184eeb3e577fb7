"""The client's handshake, played again towards the server.

From the handoff until the server's SYN-ACK, segments of the flow wait here.
The SYN has the client's own address, port, ISN and options; it is sent again
after 1, 2, 4 … seconds (RFC 6298 §2.1, §5.5) until the service's patience ends.
"""

from common.cluster import cookie, stamps
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.tcp import SYN, Segment
from packetbridge.flows import BridgeFlow

FIRST_TIMEOUT_MS = 1000
MAX_SEGMENTS = 64
MAX_OCTETS = 160 << 10
SEGMENT_COST = 640  # octets of memory that a held segment takes besides its own
MAX_MSS = 3960  # with headers, as much as the packet queue copies (common/engine/queue.py)
_MAX_EAGER_SYNS = 3


class Replay:
    """What is kept while the server has not answered.

    offer:      what the client offered. handoff: the first data segment. proof: the hash that
                vouches for it.
    syn:        the packet to the server. due_ms: when it is sent again, or given up.
    expires_ms: when the server is given up.
    octets:     of memory that all held segments take, about.
    """

    __slots__ = ("_by_seq", "_eager_syns", "_timeout_ms", "due_ms", "expires_ms", "handoff",
                 "octets", "offer", "proof", "syn")

    def __init__(
        self, flow: BridgeFlow, handoff: Segment, proof: int, now_ms: int, patience_ms: int
    ) -> None:
        self.offer = cookie.decode(flow.cookie_isn, flow.key)
        self.handoff = handoff
        self.proof = proof
        self.syn = _emit_syn(flow, handoff, self.offer)
        self._timeout_ms = FIRST_TIMEOUT_MS
        self.expires_ms = now_ms + patience_ms
        self.due_ms = min(now_ms + FIRST_TIMEOUT_MS, self.expires_ms)
        self._eager_syns = 0
        self.octets = 0
        self._by_seq: dict[tuple[int, int], Segment] = {}

    def hold(self, segment: Segment, client_isn: int) -> int:
        """Keep a segment and return by how many octets that grew; 0 for a copy or at the bound."""
        offset = segment.seq - client_isn & 0xFFFFFFFF
        place = (offset, segment.seq_len)
        full = len(self._by_seq) >= MAX_SEGMENTS or self.octets >= MAX_OCTETS
        if place in self._by_seq or full or offset >= 1 << 30:
            return 0
        self._by_seq[place] = segment
        grown = SEGMENT_COST + len(segment.octets)
        self.octets += grown
        return grown

    def segments(self) -> list[Segment]:
        """What is held, in the order of the stream."""
        return [segment for _, segment in sorted(self._by_seq.items(), key=lambda kept: kept[0])]

    def repeat(self, now_ms: int) -> bytes:
        """The SYN once more; the next time it waits twice as long."""
        self._timeout_ms *= 2
        self.due_ms = min(now_ms + self._timeout_ms, self.expires_ms)
        return self.syn

    def may_repeat_at_once(self) -> bool:
        """Whether an old connection that was just reset warrants another SYN now; bounded."""
        self._eager_syns += 1
        return self._eager_syns <= _MAX_EAGER_SYNS


def client_five_tuple(flow: BridgeFlow) -> bytes:
    """The five-tuple of packets from the VIP to the client."""
    client, _, port, _ = five_tuple.split(flow.key)
    service = flow.service
    return five_tuple.join(service.vip, client, service.vip_port, port)


def _emit_syn(flow: BridgeFlow, handoff: Segment, offer: cookie.Offer) -> bytes:
    """The client's SYN, as far as the cookie and the handoff tell it."""
    timestamps = handoff.timestamps
    offered = Options(
        mss=min(offer.mss, MAX_MSS),
        sack=offer.sack,
        wscale=offer.wscale,
        timestamps=(timestamps[0], 0) if timestamps else None,
    )
    window = min(handoff.window << (offer.wscale or 0), 0xFFFF)
    return tcp.emit(
        flow.key, flow.client_isn, 0, SYN,
        window=window, option_octets=options.emit(offered),
    )


def open_flow(flow: BridgeFlow, syn_ack: Segment) -> None:
    """Reckon, from the server's SYN-ACK, how the two connections differ."""
    replay = flow.replay
    assert replay is not None
    flow.is_open = True
    flow.seq_delta = flow.cookie_isn - syn_ack.seq & 0xFFFFFFFF
    answered = syn_ack.options()
    timestamps = replay.handoff.timestamps
    if timestamps and answered.timestamps:
        # The handoff then echoes just what the server sent. Linux 6.15 and later answers any other
        # TSecr that completes a handshake with an ACK, and drops the segment.
        flow.ts_delta = stamps.stripped(timestamps[1]) - answered.timestamps[0] & 0xFFFFFFFF
    offered_wscale = replay.offer.wscale
    if offered_wscale is not None:
        flow.advertised_wscale = flow.service.config.wscale
        flow.server_wscale = min(answered.wscale or 0, options.WSCALE_MAX)
        flow.client_wscale = offered_wscale if answered.wscale is None else 0
