"""First segments that wait for the rest of their key.

A request or ClientHello may not fit into one segment. Its segments are kept,
unacknowledged, until the key is complete: the client's initial window covers
ten segments (RFC 6928 §2), so it sends the rest unasked. What is kept is
bounded in segments, octets and time for each flow, and in octets over all.

Two clients would wait for an acknowledgment: one that writes octet by octet,
whose window is full after ten of them, and one that has lost a segment and now
repeats the first of all. Theirs is acknowledged, and so is all that follows
until the key is complete. What was acknowledged is the balancer's to deliver:
it leaves joined into few segments, and is sent again until the server is
known to have it (balancer/modes/split/delivery.py).
"""

import heapq
from typing import Any, Protocol

from balancer.config import Hold
from common.wire import tcp
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, PSH, RST, Segment

_TOO_FAR = 1 << 20  # no held segment can be so far from the first
_UNACKNOWLEDGED_MAX = 8  # fewer than the initial window (RFC 6928 §2)
_MAX_STALE = 1024  # times of flows that have left, before they are swept out


class Marks(Protocol):
    """Five-tuples of flows of which a program, where there is one, must leave all packets alone."""

    def add(self, key: bytes, /) -> None: ...
    def discard(self, key: bytes, /) -> None: ...


class Held:
    """The segments of one flow, from its first octet on.

    service:    whose it is; nothing here looks into it.
    key:        the five-tuple. client_isn, cookie_isn: of its handshake.
    arrived_ms: when the first segment came. expires_ms: when the time bound comes.
    first:      the first segment, as it came first.
    octets:     of all that is kept. taken: the stream's octets that were acknowledged.
    """

    __slots__ = ("_bound", "_by_seq", "_count", "_waits", "arrived_ms", "client_isn",
                 "cookie_isn", "expires_ms", "first", "key", "octets", "service", "taken")

    def __init__(self, service: Any, bound: Hold, first: Segment, now_ms: int) -> None:
        self.service = service
        self._bound = bound
        self.first = first
        self.key = first.five_tuple
        self.client_isn = delta(first.seq, 1)
        self.cookie_isn = delta(first.ack, 1)
        self.arrived_ms = now_ms
        self.expires_ms = now_ms + bound.time_ms
        self.octets = 0
        self.taken = b""
        self._count = 0  # of segments that ever came, without copies
        self._waits = False
        self._by_seq: dict[tuple[int, int], Segment] = {}

    def add(self, segment: Segment) -> int:
        """Keep `segment` and return by how many octets that grew; of copies the first stays.

        What would exceed the bound on octets from behind a gap is left to be sent again.
        """
        offset = delta(segment.seq, self.client_isn + 1)
        if offset >= _TOO_FAR:
            return 0
        place = (offset, segment.payload_len)
        twin = self._by_seq.get(place)
        if (twin is not None or offset + segment.seq_len <= len(self.taken)
                or self._is_beyond(offset, segment)):
            self._waits = True
            return 0
        self._by_seq[place] = segment
        self._count += 1
        self._waits = self._waits or len(self._by_seq) > _UNACKNOWLEDGED_MAX
        grown = len(segment.octets)
        self.octets += grown
        return grown

    def is_continued_by(self, segment: Segment) -> bool:
        """Whether it can be of this connection, whose client has seen nothing but our cookie.

        Source: RFC 9293 §3.10.7.4; RFC 5961 §3.2 and §5.2.
        """
        if delta(segment.seq, self.client_isn + 1) >= _TOO_FAR:
            return False
        if not segment.flags & ACK:
            return bool(segment.flags & RST)
        return delta(segment.ack, self.cookie_isn) == 1

    @property
    def is_full(self) -> bool:
        """Whether a bound on segments or octets is reached."""
        return self._count >= self._bound.segments or self.octets >= self._bound.octets

    @property
    def is_awaited(self) -> bool:
        """Whether the client is, or soon will be, waiting for an acknowledgment."""
        return self._waits and self._count < self._bound.segments

    def take(self) -> int:
        """Take the stream up to its first gap as acknowledged.

        Returns: by how many octets that grew (less than 0: headers are forgotten).
        """
        stream, _ = self.prefix()
        beyond = {
            place: segment for place, segment in self._by_seq.items()
            if place[0] + segment.seq_len > len(stream)
        }
        octets = len(stream) + sum(len(segment.octets) for segment in beyond.values())
        grown = octets - self.octets
        self.taken, self._by_seq, self.octets = stream, beyond, octets
        return grown

    def segments(self, payload_max: int) -> list[Segment]:
        """All that is kept, in the order of the stream.

        payload_max: octets of payload in a segment, where acknowledged ones are joined.
        """
        first = self.first
        joined = [
            tcp.checked(tcp.emit(
                first.five_tuple, add(first.seq, offset), first.ack, ACK | PSH,
                window=first.window, option_octets=first.option_octets,
                payload=self.taken[offset:offset + payload_max],
            ))
            for offset in range(0, len(self.taken), payload_max)
        ]
        return joined + [segment for _, segment in self._in_order()]

    def prefix(self) -> tuple[bytes, bool]:
        """The stream's octets up to the first gap, and whether a FIN ends them.

        From each segment what is beyond those before it, as the server will read them.
        """
        stream = bytearray(self.taken)
        for (offset, length), segment in self._in_order():
            if offset > len(stream):
                break
            stream += segment.payload[len(stream) - offset:]
            if segment.flags & FIN and offset + length >= len(stream):
                return bytes(stream), True
        return bytes(stream), False

    def islands(self, latest: Segment) -> list[tuple[int, int]]:
        """What lies behind gaps: first and next sequence numbers, that of `latest` first.

        Source: RFC 2018 §4.
        """
        edges: list[list[int]] = []
        for (offset, _), segment in self._in_order():
            if edges and offset <= edges[-1][1]:
                edges[-1][1] = max(edges[-1][1], offset + segment.seq_len)
            elif offset > len(self.taken):
                edges.append([offset, offset + segment.seq_len])
        at = delta(latest.seq, self.client_isn + 1)
        edges.sort(key=lambda edge: not edge[0] <= at < edge[1])
        base = self.client_isn + 1
        return [(add(base, start), add(base, end)) for start, end in edges]

    def _is_beyond(self, offset: int, segment: Segment) -> bool:
        """Whether a segment lies behind a gap, and exceeds the bound on octets."""
        octets = self.octets + len(segment.octets)
        return octets > self._bound.octets and offset > len(self.prefix()[0])

    def _in_order(self) -> list[tuple[tuple[int, int], Segment]]:
        return sorted(self._by_seq.items(), key=lambda kept: kept[0])


class HoldTable:
    """All held flows; `octets` is the sum over them, bounded by `octets_total`.

    marks: the five-tuples of all of them.
    """

    def __init__(self, octets_total: int, marks: "Marks") -> None:
        self._octets_total = octets_total
        self._marks = marks
        self._held: dict[bytes, Held] = {}
        self._due: list[tuple[int, bytes]] = []  # heap; a flow that left early stays until due
        self.octets = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Held | None:
        """The held flow of a five-tuple."""
        return self._held.get(key)

    def add(self, held: Held, segment: Segment) -> None:
        """Keep `segment`."""
        if held.key not in self._held:
            self._marks.add(held.key)  # first: where it fails, nothing is held for ever
            self._held[held.key] = held
            heapq.heappush(self._due, (held.expires_ms, held.key))
            if len(self._due) > 2 * len(self._held) + _MAX_STALE:
                self._due = [(each.expires_ms, key) for key, each in self._held.items()]
                heapq.heapify(self._due)
        self.octets += held.add(segment)

    def is_at_bound(self, held: Held) -> bool:
        """Whether a flow must be decided, with its key incomplete."""
        return held.is_full or self.octets > self._octets_total

    def take(self, held: Held) -> None:
        """Take what `held` has up to its first gap as acknowledged."""
        self.octets += held.take()

    def remove(self, held: Held) -> None:
        """Let a flow go."""
        if self._held.pop(held.key, None) is not None:
            self._marks.discard(held.key)
            self.octets -= held.octets

    def expired(self, now_ms: int) -> list[Held]:
        """The flows whose time bound has come (still in the table), each once."""
        expired = {}  # a flow that left and came again within a millisecond is due twice
        while self._due and self._due[0][0] <= now_ms:
            _, key = heapq.heappop(self._due)
            held = self._held.get(key)
            if held is not None and held.expires_ms <= now_ms:
                expired[key] = held
        return list(expired.values())
