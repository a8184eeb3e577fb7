"""First octets that the balancer has acknowledged, until their server has them.

The client never sends these again, so the balancer does: the handoff is
repeated, ever more slowly, until the client acknowledges something of the
server's (which answers a request only when it has read it), or resets, or the
last repetition is out. To a server that has them already they are duplicates.
Only clients that had to be acknowledged (balancer/modes/split/hold.py) come here.
"""

import heapq
from collections.abc import Iterator

from common.wire.tcp import RST, Segment

DUE_MS = (200, 600, 1400, 3000, 6200)  # after the handoff; RFC 6298 §5.5: each wait twice the last


class Delivery:
    """A handoff whose octets only the balancer can repeat.

    packets: as they were sent. server_first: the first sequence number of the server's data.
    """

    __slots__ = ("octets", "packets", "sent_ms", "server_first", "times_sent")

    def __init__(self, packets: tuple[bytes, ...], server_first: int, now_ms: int) -> None:
        self.packets = packets
        self.server_first = server_first
        self.sent_ms = now_ms
        self.times_sent = 0
        self.octets = sum(map(len, packets))

    @property
    def due_ms(self) -> int:
        """When it is to be repeated."""
        return self.sent_ms + DUE_MS[self.times_sent]

    @property
    def is_last(self) -> bool:
        """Whether it is repeated only once more."""
        return self.times_sent == len(DUE_MS) - 1

    def is_settled_by(self, segment: Segment) -> bool:
        """Whether the client's segment shows that the server has answered, or that all is over."""
        return segment.ack != self.server_first or bool(segment.flags & RST)


class Deliveries:
    """All handoffs to repeat, by five-tuple. octets_total: of more, new ones are not repeated."""

    def __init__(self, octets_total: int) -> None:
        self._octets_total = octets_total
        self._deliveries: dict[bytes, Delivery] = {}
        self._due: list[tuple[int, bytes]] = []  # heap of times and five-tuples
        self.octets = 0

    def get(self, key: bytes) -> Delivery | None:
        """What is to be repeated for a five-tuple."""
        return self._deliveries.get(key)

    def add(self, key: bytes, delivery: Delivery) -> bool:
        """Repeat `delivery` until it is settled. Returns: whether there was room."""
        self.settle(key)
        if self.octets + delivery.octets > self._octets_total:
            return False
        self._deliveries[key] = delivery
        self.octets += delivery.octets
        heapq.heappush(self._due, (delivery.due_ms, key))
        return True

    def settle(self, key: bytes) -> None:
        """Repeat a handoff no more."""
        delivery = self._deliveries.pop(key, None)
        if delivery is not None:
            self.octets -= delivery.octets

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
