"""First segments that wait for the rest of their key.

A request or ClientHello may not fit into one segment. Its segments are kept,
unacknowledged, until the key is complete: the client's initial window covers
ten segments (RFC 6928 §2), so it sends the rest unasked. What is kept is
bounded in segments, octets and time for each flow, and in memory over all,
where the oldest flow makes room (common/flow/crowd.py).

Two clients would wait for an acknowledgment: one that writes octet by octet,
whose window is full after ten of them, and one that has lost a segment and now
repeats the first of all. Theirs is acknowledged, and so is all that follows
until the key is complete. What was acknowledged is the balancer's to deliver:
it leaves joined into few segments, and is sent again until the server is
known to have it (balancer/modes/split/delivery.py).

No packet takes long, whatever came before it: the stream is put together as its
segments come, few are kept as they came, and a flow of which too many packets
come is at its bound as well.
"""

import heapq
from bisect import bisect_left, insort
from typing import Any, NamedTuple, Protocol

from balancer.config import Hold
from common.flow.crowd import Crowd
from common.wire import tcp
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, PSH, RST, Segment

SEGMENT_COST = 640  # octets of memory that a kept segment takes besides its own
FLOW_COST = 1536  # and a flow, besides its segments
_TOO_FAR = 1 << 20  # no held segment can be so far from the first
_UNACKNOWLEDGED_MAX = 8  # fewer than the initial window (RFC 6928 §2)
_BEHIND_MAX = 16  # segments behind a gap; a client that is not acknowledged sends ten
_USELESS_MAX = 64  # packets of which nothing is kept: copies, bare ACKs, too much behind a gap
_MAX_STALE = 1024  # times of flows that have left, before they are swept out


class Marks(Protocol):
    """Five-tuples of flows of which a program, where there is one, must leave all packets alone."""

    def add(self, key: bytes, /) -> None: ...
    def discard(self, key: bytes, /) -> None: ...


class _Kept(NamedTuple):
    """A segment as it came, in the order of the stream. offset: from the stream's first octet."""

    offset: int
    payload_len: int
    has_fin: bool
    segment: Segment

    def place(self) -> tuple[int, int, bool]:
        """By which segments are told apart, and put in order."""
        return self[:3]

    @property
    def end(self) -> int:
        """Just past what it takes of the sequence space."""
        return self.offset + self.payload_len + self.has_fin


class Held:
    """The segments of one flow, from its first octet on.

    service:    whose it is; nothing here looks into it.
    key:        the five-tuple. client_isn, cookie_isn, handshake_hash: of its handshake.
    arrived_ms: when the first segment came. expires_ms: when the time bound comes.
    first:      the first segment, as it came first.
    octets:     of all that is kept. taken: how many of the stream's octets were acknowledged.
    useless:    packets of which nothing was kept.
    stream:     the octets up to the first gap. In overlaps, what is in it already counts.
    has_ended:  whether a FIN ends them.
    """

    __slots__ = ("_behind", "_bound", "_count", "_waits", "_within", "arrived_ms", "client_isn",
                 "cookie_isn", "expires_ms", "first", "handshake_hash", "has_ended", "key",
                 "octets", "service", "stream", "taken", "useless")

    def __init__(
        self, service: Any, bound: Hold, first: Segment, now_ms: int, handshake_hash: int = 0
    ) -> None:
        self.service = service
        self.handshake_hash = handshake_hash
        self._bound = bound
        self.first = first
        self.key = first.five_tuple
        self.client_isn = delta(first.seq, 1)
        self.cookie_isn = delta(first.ack, 1)
        self.arrived_ms = now_ms
        self.expires_ms = now_ms + bound.time_ms
        self.octets = self.useless = 0
        self.taken = 0
        self.stream = bytearray()
        self.has_ended = False
        self._count = 0  # of segments that ever came, without copies
        self._waits = False
        self._within: list[_Kept] = []  # in order: they are in the stream, beyond what was taken
        self._behind: list[_Kept] = []  # in order: behind the gap

    def add(self, segment: Segment) -> bool:
        """Keep `segment`, unless all of it is there already. Returns: whether the stream grew.

        What lies behind a gap and exceeds a bound is left to be sent again.
        """
        offset = delta(segment.seq, self.client_isn + 1)
        if offset >= _TOO_FAR:
            self.useless += 1
            return False
        kept = _Kept(offset, segment.payload_len, bool(segment.flags & FIN), segment)
        if self._is_copy(kept) or (offset > len(self.stream) and self._is_too_much(segment)):
            self._waits = True
            self.useless += 1
            return False
        self._count += 1
        self.octets += len(segment.octets)
        grows = offset <= len(self.stream)
        if grows:
            self._append(kept)
            while self._behind and self._behind[0].offset <= len(self.stream):
                self._append(self._behind.pop(0))
        else:
            insort(self._behind, kept, key=_Kept.place)
        self._waits = self._waits or self._kept > _UNACKNOWLEDGED_MAX
        return grows

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
        """Whether a bound on segments, octets or useless packets is reached."""
        return (
            self._count >= self._bound.segments or self.octets >= self._bound.octets
            or self.is_a_nuisance
        )

    @property
    def is_a_nuisance(self) -> bool:
        """Whether too many useless packets have come."""
        return self.useless >= _USELESS_MAX

    @property
    def is_awaited(self) -> bool:
        """Whether the client is, or soon will be, waiting for an acknowledgment."""
        return self._waits and self._count < self._bound.segments

    @property
    def cost(self) -> int:
        """Octets of memory that all this takes, about."""
        return FLOW_COST + self.octets + len(self.stream) + SEGMENT_COST * self._kept

    def take(self) -> None:
        """Take the stream up to its first gap as acknowledged: headers are forgotten."""
        self.taken = len(self.stream)
        self._within = [kept for kept in self._within if kept.end > self.taken]
        self.octets = self.taken + sum(
            len(kept.segment.octets) for kept in (*self._within, *self._behind))

    def segments(self, payload_max: int) -> list[Segment]:
        """All that is kept, in the order of the stream: read in this order, it is the stream.

        payload_max: octets of payload in a segment, where acknowledged ones are joined.
        """
        first = self.first
        joined = [
            tcp.checked(tcp.emit(
                first.five_tuple, add(first.seq, offset), first.ack, ACK | PSH,
                window=first.window, option_octets=first.option_octets,
                payload=bytes(self.stream[offset:min(offset + payload_max, self.taken)]),
            ))
            for offset in range(0, self.taken, payload_max)
        ]
        return joined + [kept.segment for kept in (*self._within, *self._behind)]

    def prefix(self) -> tuple[bytes, bool]:
        """The stream's octets up to the first gap, and whether a FIN ends them."""
        return bytes(self.stream), self.has_ended

    def islands(self, latest: Segment) -> list[tuple[int, int]]:
        """What lies behind gaps: first and next sequence numbers, that of `latest` first.

        Source: RFC 2018 §4.
        """
        edges: list[list[int]] = []
        for kept in self._behind:
            if edges and kept.offset <= edges[-1][1]:
                edges[-1][1] = max(edges[-1][1], kept.end)
            else:
                edges.append([kept.offset, kept.end])
        at = delta(latest.seq, self.client_isn + 1)
        edges.sort(key=lambda edge: not edge[0] <= at < edge[1])
        base = self.client_isn + 1
        return [(add(base, start), add(base, end)) for start, end in edges]

    @property
    def _kept(self) -> int:
        """How many segments are kept as they came."""
        return len(self._within) + len(self._behind)

    def _is_copy(self, kept: _Kept) -> bool:
        """Whether there is nothing new in a segment."""
        if kept.end <= len(self.stream) + self.has_ended:
            return True
        place = bisect_left(self._behind, kept.place(), key=_Kept.place)
        return place < len(self._behind) and self._behind[place].place() == kept.place()

    def _is_too_much(self, segment: Segment) -> bool:
        """Whether a segment from behind a gap exceeds a bound."""
        return (len(self._behind) >= _BEHIND_MAX
                or self.octets + len(segment.octets) > self._bound.octets)

    def _append(self, kept: _Kept) -> None:
        """Let the stream go on by a segment that begins within it, or at its end."""
        self._within.append(kept)
        if not self.has_ended:
            self.stream += kept.segment.payload[len(self.stream) - kept.offset:]
            self.has_ended = kept.has_fin and kept.offset + kept.payload_len == len(self.stream)


class HoldTable:
    """All held flows, bounded in memory. marks: the five-tuples of all of them."""

    def __init__(self, octets_total: int, marks: "Marks") -> None:
        self._marks = marks
        self._held: Crowd[Held] = Crowd(octets_total)
        self._due: list[tuple[int, bytes]] = []  # heap; a flow that left early stays until due
        self.get = self._held.get
        self.set_room = self._held.set_room

    def __len__(self) -> int:
        return len(self._held)

    @property
    def octets(self) -> int:
        """Of memory, about."""
        return self._held.weight

    def add(self, held: Held, segment: Segment) -> bool:
        """Keep `segment`. Returns: whether the stream grew."""
        if held.key not in self._held:
            self._marks.add(held.key)  # first: where it fails, nothing is held for ever
            self._held.put(held.key, held, held.cost)
            heapq.heappush(self._due, (held.expires_ms, held.key))
            if len(self._due) > 2 * len(self._held) + _MAX_STALE:
                self._due = [(each.expires_ms, key) for key, each in self._held.items()]
                heapq.heapify(self._due)
        before = held.cost
        grew = held.add(segment)
        self._held.reweigh(held.key, held.cost - before)
        return grew

    def crowded_by(self, held: Held) -> Held | None:
        """The flow that must be decided now, since `held` takes the room; None: there is enough."""
        key = self._held.crowded_by(held.key)
        return None if key is None else self._held.get(key)

    def take(self, held: Held) -> None:
        """Take what `held` has up to its first gap as acknowledged."""
        before = held.cost
        held.take()
        self._held.reweigh(held.key, held.cost - before)

    def remove(self, held: Held) -> None:
        """Let a flow go."""
        if held.key in self._held:
            self._held.remove(held.key, held.cost)
            self._marks.discard(held.key)

    def expired(self, now_ms: int) -> list[Held]:
        """The flows whose time bound has come (still in the table), each once."""
        expired = {}  # a flow that left and came again within a millisecond is due twice
        while self._due and self._due[0][0] <= now_ms:
            _, key = heapq.heappop(self._due)
            held = self._held.get(key)
            if held is not None and held.expires_ms <= now_ms:
                expired[key] = held
        return list(expired.values())
