"""First octets that the balancer has acknowledged, until their server has them.

The client never sends these again, so the balancer does: the handoff is
repeated, ever more slowly, until the client acknowledges something of the
server's (which answers a request only when it has read it), or resets, or the
last repetition is out. To a server that has them already they are duplicates.
Only clients that had to be acknowledged (balancer/modes/split/hold.py) come here.
"""

import heapq
from collections.abc import Iterator

from common.flow.crowd import Crowd
from common.wire.tcp import RST, Segment

DUE_MS = (200, 600, 1400, 3000, 6200)  # after the handoff; RFC 6298 §5.5: each wait twice the last
COST = 768  # octets of memory that a delivery takes besides its packets
_WATCHED_MAX = 256  # packets of a flow, one of which should have shown that its server has answered
_MAX_STALE = 1024  # times of deliveries that are settled, before they are swept out


class Delivery:
    """A handoff whose octets only the balancer can repeat.

    packets: as they were sent. cost: octets of memory, about.
    server_first: the first sequence number of the server's data.
    """

    __slots__ = ("cost", "packets", "sent_ms", "server_first", "times_sent", "watched")

    def __init__(self, packets: tuple[bytes, ...], server_first: int, now_ms: int) -> None:
        self.packets = packets
        self.server_first = server_first
        self.sent_ms = now_ms
        self.times_sent = self.watched = 0
        self.cost = COST + sum(map(len, packets))

    @property
    def due_ms(self) -> int:
        """When it is to be repeated."""
        return self.sent_ms + DUE_MS[self.times_sent]

    @property
    def is_last(self) -> bool:
        """Whether it is repeated only once more."""
        return self.times_sent == len(DUE_MS) - 1

    def is_settled_by(self, segment: Segment) -> bool:
        """Whether the client's segment shows that the server has answered, or that all is over.

        So does their number: a program forwards the flow's packets again once they are not watched.
        """
        self.watched += 1
        return (segment.ack != self.server_first or bool(segment.flags & RST)
                or self.watched >= _WATCHED_MAX)


class Deliveries:
    """All handoffs to repeat, by five-tuple. octets_total: of memory; the oldest make room."""

    def __init__(self, octets_total: int) -> None:
        self._deliveries: Crowd[Delivery] = Crowd(octets_total)
        self._due: list[tuple[int, bytes]] = []  # heap of times and five-tuples
        self.get = self._deliveries.get
        self.set_room = self._deliveries.set_room

    @property
    def octets(self) -> int:
        """Of memory, about."""
        return self._deliveries.weight

    def add(self, key: bytes, delivery: Delivery) -> list[bytes]:
        """Repeat `delivery` until it is settled.

        Returns: whose handoffs are repeated no more for want of room; `key` may be among them.
        """
        self.settle(key)
        self._deliveries.put(key, delivery, delivery.cost)
        heapq.heappush(self._due, (delivery.due_ms, key))
        if len(self._due) > 2 * len(self._deliveries) + _MAX_STALE:
            self._due = [(each.due_ms, at) for at, each in self._deliveries.items()]
            heapq.heapify(self._due)
        crowded_out = []
        while (oldest := self._deliveries.crowded_by(key)) is not None:
            self.settle(oldest)
            crowded_out.append(oldest)
        return crowded_out

    def settle(self, key: bytes) -> None:
        """Repeat a handoff no more."""
        delivery = self._deliveries.get(key)
        if delivery is not None:
            self._deliveries.remove(key, delivery.cost)

    def due(self, now_ms: int) -> Iterator[tuple[bytes, Delivery]]:
        """What is to be sent again now; what is not settled meanwhile is due again later."""
        while self._due and self._due[0][0] <= now_ms:
            at_ms, key = heapq.heappop(self._due)
            delivery = self._deliveries.get(key)
            if delivery is None or delivery.due_ms != at_ms:
                continue  # of one that was settled
            yield key, delivery
            if self._deliveries.get(key) is not delivery:
                continue
            if delivery.is_last:
                self.settle(key)
            else:
                delivery.times_sent += 1
                heapq.heappush(self._due, (delivery.due_ms, key))
