"""The balancer's flow: which backend has it, and since when."""

from typing import Any

from balancer import config
from balancer.modes.split.delivery import DeliveringFlow
from common.encap import Way

# States, in the order in which flows are evicted last.
OPEN, HALF_CLOSED, RESET = 0, 1, 2


class Backend:
    """A backend of a service, as the packet path needs it, with its counters.

    address: as on the wire. way: how the VIP's packets get there.
    service:  whose it is; nothing here looks into it.
    ts_start: its id, as timestamps carry it (balancer/modes/split/takeover.py).
    """

    __slots__ = ("address", "flows", "handoffs", "id", "octets", "packets", "service", "ts_start",
                 "way", "weight")

    def __init__(
        self, service: Any, backend: config.Backend, way: Way, id_shift: int
    ) -> None:
        self.service = service
        self.id = backend.id
        self.weight = backend.weight
        self.address = backend.address.packed
        self.way = way
        self.ts_start = backend.id << id_shift
        self.flows = self.handoffs = self.packets = self.octets = 0


class BackendFlow(DeliveringFlow):
    """A flow that has its backend.

    client_isn: tells a retransmitted first segment from a new connection.
    ts_shift:   what turns an echo of the SYN-ACK's TSval into one that names the backend.
    created_ms: unix time, to see whether the backend's timestamps can have wrapped.
    delivery:   a handoff to repeat, which hardly any flow has.
    """

    __slots__ = ("backend", "client_isn", "created_ms", "ts_shift")

    def __init__(
        self, key: bytes, backend: Backend, client_isn: int, ts_shift: int, now_ms: int
    ) -> None:
        super().__init__(key, OPEN, now_ms)
        self.backend = backend
        self.client_isn = client_isn
        self.ts_shift = ts_shift
        self.created_ms = now_ms
        self.delivery = None
