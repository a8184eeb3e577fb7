"""One check: a connection of the balancer's own to one backend, which takes a client's way.

The handshake is made here, by both sides of the data path's own functions; the request is the
handoff. So a bridge sees what it sees of any client, and the server's answer comes straight to the
balancer's own address. A reset ends it: nothing is left to be remembered by anybody.
"""

from balancer.health.request import MOST_ANSWER_OCTETS, Outcome, Request
from balancer.modes.split import handshake
from balancer.modes.split.mode import hand_over
from balancer.pool.pool import Backend
from balancer.services import ServiceState
from common.cluster import cookie, stamps
from common.cluster.cookie import Secrets
from common.wire import five_tuple, options, tcp
from common.wire.family import of_five_tuple
from common.wire.options import Options
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment

WINDOW = 65535  # not scaled
REFUSES = "refuses the connection"
_AHEAD = 1 << 30


class Exchange:
    """A check under way.

    key:     the five-tuple of its answer. handoff: the packet that opens it, and is sent again.
    is_seen: whether the backend has the request.
    """

    __slots__ = ("_answer", "_ends", "_expected", "_next", "_peer_clock", "_request", "_tsval",
                 "_way", "handoff", "is_seen", "key")

    def __init__(
        self, service: ServiceState, backend: Backend, request: Request, secrets: Secrets, *,
        source: bytes, sport: int, client_isn: int, now_ms: int,
    ) -> None:
        """source: the balancer's own address. now_ms: unix time."""
        vip, port = service.config.vip.packed, service.config.port.to_bytes(2, "big")
        ends = five_tuple.join(source, vip, sport.to_bytes(2, "big"), port)
        syn = tcp.checked(tcp.emit(
            ends, client_isn, 0, SYN, window=WINDOW,
            option_octets=options.emit(Options(mss=service.mss, timestamps=(0, 0)))))
        syn_ack = tcp.checked(
            handshake.answer_syn(
                syn, syn.options(), service.config, service.mss, secrets, now_ms))
        t0 = syn_ack.timestamps
        # bridges count it as a check, which no client can have them do
        tsval = stamps.check_mark(cookie.check(
            secrets, ends, client_isn, syn_ack.seq, now_ms) or 0)
        first = tcp.checked(tcp.emit(
            ends, add(client_isn, 1), add(syn_ack.seq, 1), PSH | ACK, window=WINDOW,
            option_octets=_stamps(tsval, t0[0]) if t0 else b"", payload=request.octets))
        self.handoff = hand_over(first, backend, secrets, now_ms)
        self.key = five_tuple.reverse(ends)
        self.is_seen = False
        self._ends = ends
        self._way = backend.way
        self._request = request
        self._next = add(client_isn, 1 + len(request.octets))  # what comes after the request
        self._expected = add(syn_ack.seq, 1)
        self._answer = b""
        self._tsval = tsval if t0 else 0
        self._peer_clock = 0

    def on_segment(self, segment: Segment) -> tuple[Outcome | None, bytes | None]:
        """What a segment says of the backend, and the packet that answers it."""
        if segment.flags & RST:
            if segment.seq != self._expected:
                return None, None  # not of this connection, or forged
            return self._ended("resets the connection" if self._answer or self.is_seen
                               else REFUSES), None
        acked = delta(self._next, segment.ack)
        if segment.flags & (ACK | SYN) != ACK or acked > len(self._request.octets):
            return None, None
        self.is_seen = self.is_seen or not acked
        if segment.timestamps:
            self._peer_clock = segment.timestamps[0]
        if not segment.seq_len:
            return None, None
        is_last = self._take(segment) or len(self._answer) >= MOST_ANSWER_OCTETS
        if is_last:
            return self._ended("ends the connection"), self.reset()
        outcome = self._request.judge(self._answer, False) if self._answer else None
        return (outcome, self.reset()) if outcome else (None, self._acknowledge())

    def on_timeout(self, timeout_ms: int) -> Outcome:
        """What is to be said of a backend from which no more was heard."""
        within = f"within {timeout_ms / 1000:g} s"
        if self._answer:
            return self._ended(f"does not end its answer {within}")
        if self.is_seen:
            return Outcome(False, f"takes the request and does not answer {within}")
        return Outcome(False, f"is silent for {timeout_ms / 1000:g} s: no bridge there, another "
                              "secret or clock, or packets lost or remarked on the way")

    def reset(self) -> bytes:
        """The packet that ends it, with the number that the server expects (RFC 5961 §3.2)."""
        return self._send(tcp.emit(self._ends, self._next, 0, RST))

    def _ended(self, words: str) -> Outcome:
        """No more will come."""
        outcome = self._request.judge(self._answer, True) if self._answer else None
        return outcome or Outcome(False, words)

    def _take(self, segment: Segment) -> bool:
        """Take what is new of an answer in its order. Returns: whether it ends there."""
        before = delta(self._expected, segment.seq)
        if before >= _AHEAD or before > segment.payload_len:
            return False  # the server will send again what is missing
        new = segment.payload[before:]
        self._answer += new
        is_last = bool(segment.flags & FIN)
        self._expected = add(self._expected, len(new) + is_last)
        return is_last

    def _acknowledge(self) -> bytes:
        """So that more comes, or what is missing comes again."""
        stamps = _stamps(self._tsval, self._peer_clock) if self._peer_clock else b""
        return self._send(tcp.emit(self._ends, self._next, self._expected, ACK, window=WINDOW,
                                   option_octets=stamps))

    def _send(self, packet: bytes) -> bytes:
        """As the data path sends a client's packet."""
        octets = bytearray(packet)
        tcp.patch_checksum(octets, of_five_tuple(self._ends).header_len, self._way.changes)
        return self._way.wrap(octets)


def _stamps(tsval: int, tsecr: int) -> bytes:
    return options.emit(Options(timestamps=(tsval, tsecr)))
