"""First segments that wait for the rest of their key.

A request or ClientHello may not fit into one segment. Its segments are kept,
unacknowledged, until the key is complete: the client's initial window covers
ten segments (RFC 6928 §2), so it sends the rest unasked. What is kept is
bounded in segments, octets and time for each flow, and in octets over all.

What still dissatisfies: a client that writes octet by octet fills its window
with ten octets, and is then hashed by those when the time bound comes.
"""

import heapq
from typing import Any

from balancer.config import Hold
from common.seq import delta
from common.wire.tcp import FIN, Segment

_TOO_FAR = 1 << 20  # no held segment can be so far from the first


class Held:
    """The segments of one flow, from its first octet on.

    service:    whose it is; nothing here looks into it.
    key:        the five-tuple. client_isn, cookie_isn: of its handshake.
    arrived_ms: when the first segment came. expires_ms: when the time bound comes.
    """

    __slots__ = ("_bound", "_by_seq", "arrived_ms", "client_isn", "cookie_isn", "expires_ms",
                 "key", "octets", "service")

    def __init__(self, service: Any, bound: Hold, first: Segment, now_ms: int) -> None:
        self.service = service
        self._bound = bound
        self.key = first.five_tuple
        self.client_isn = delta(first.seq, 1)
        self.cookie_isn = delta(first.ack, 1)
        self.arrived_ms = now_ms
        self.expires_ms = now_ms + bound.time_ms
        self.octets = 0
        self._by_seq: dict[tuple[int, int], Segment] = {}

    def add(self, segment: Segment) -> int:
        """Keep `segment` and return by how many octets that grew; a copy replaces its twin."""
        offset = delta(segment.seq, self.client_isn + 1)
        if offset >= _TOO_FAR:
            return 0
        place = (offset, segment.payload_len)
        grown = 0 if place in self._by_seq else len(segment.packet)
        self._by_seq[place] = segment
        self.octets += grown
        return grown

    @property
    def is_full(self) -> bool:
        """Whether a bound on segments or octets is reached."""
        bound = self._bound
        return len(self._by_seq) >= bound.segments or self.octets >= bound.octets

    def segments(self) -> list[Segment]:
        """What is held, in the order of the stream."""
        return [segment for _, segment in sorted(self._by_seq.items(), key=lambda kept: kept[0])]

    def prefix(self) -> tuple[bytes, bool]:
        """The stream's octets up to the first gap, and whether a FIN ends them."""
        stream = bytearray()
        for (offset, length), segment in sorted(self._by_seq.items(), key=lambda kept: kept[0]):
            if offset > len(stream):
                break
            stream[offset:offset + length] = segment.payload
            if segment.flags & FIN and offset + length >= len(stream):
                return bytes(stream), True
        return bytes(stream), False


class HoldTable:
    """All held flows; `octets` is the sum over them, bounded by `octets_total`."""

    def __init__(self, octets_total: int) -> None:
        self._octets_total = octets_total
        self._held: dict[bytes, Held] = {}
        self._due: list[tuple[int, bytes]] = []  # heap; a flow that left early stays until due
        self.octets = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Held | None:
        """The held flow of a five-tuple."""
        return self._held.get(key)

    def add(self, held: Held, segment: Segment) -> bool:
        """Keep `segment`; False once a bound is reached and the flow must be decided."""
        if held.key not in self._held:
            self._held[held.key] = held
            heapq.heappush(self._due, (held.expires_ms, held.key))
        self.octets += held.add(segment)
        return not held.is_full and self.octets <= self._octets_total

    def remove(self, held: Held) -> None:
        """Let a flow go."""
        if self._held.pop(held.key, None) is not None:
            self.octets -= held.octets

    def expired(self, now_ms: int) -> list[Held]:
        """The flows whose time bound has come (still in the table)."""
        expired = []
        while self._due and self._due[0][0] <= now_ms:
            _, key = heapq.heappop(self._due)
            held = self._held.get(key)
            if held is not None and held.expires_ms <= now_ms:
                expired.append(held)
        return expired
