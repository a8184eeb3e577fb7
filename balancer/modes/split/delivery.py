"""First octets that the balancer has acknowledged, until their server has them.

The client never sends these again, so the balancer does: the handoff is
repeated, ever more slowly, until the client acknowledges something of the
server's (which answers a request only when it has read it), or resets, or the
last repetition is out. To a server that has them already they are duplicates.
Only clients that had to be acknowledged (balancer/modes/split/hold.py) come here.
"""

import heapq
from collections.abc import Callable

from common.flow.table import Flow
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

    def is_settled_by(self, segment: Segment) -> bool:
        """Whether the client's segment shows that the server has answered, or that all is over."""
        return segment.ack != self.server_first or bool(segment.flags & RST)


class DeliveringFlow(Flow):
    """A flow that may have something to be delivered."""

    __slots__ = ("delivery",)
    delivery: Delivery | None


class Deliveries:
    """All handoffs to repeat. octets_total: more than that, and new ones are not repeated."""

    def __init__(self, octets_total: int) -> None:
        self._octets_total = octets_total
        self._due: list[tuple[int, bytes]] = []  # heap of times and five-tuples
        self.octets = 0

    def add(self, flow: DeliveringFlow, delivery: Delivery) -> None:
        """Repeat `delivery` until it is settled."""
        if self.octets + delivery.octets <= self._octets_total:
            flow.delivery = delivery
            self.octets += delivery.octets
            heapq.heappush(self._due, (delivery.due_ms, flow.key))

    def settle(self, flow: DeliveringFlow) -> None:
        """Repeat a flow's handoff no more."""
        if flow.delivery is not None:
            self.octets -= flow.delivery.octets
            flow.delivery = None

    def due(self, now_ms: int, get: Callable[[bytes], DeliveringFlow | None]) -> list[bytes]:
        """The packets to send again now. get: the flow of a five-tuple."""
        packets: list[bytes] = []
        while self._due and self._due[0][0] <= now_ms:
            _, key = heapq.heappop(self._due)
            flow = get(key)
            if flow is None or flow.delivery is None or flow.delivery.due_ms > now_ms:
                continue
            delivery = flow.delivery
            packets += delivery.packets
            delivery.times_sent += 1
            if delivery.times_sent == len(DUE_MS):
                self.settle(flow)
            else:
                heapq.heappush(self._due, (delivery.due_ms, key))
        return packets
