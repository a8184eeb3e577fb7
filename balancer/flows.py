"""The balancer's flow: which backend has it, and since when."""

from balancer.pool.pool import Backend
from common.flow.store import Flow

# States, in the order in which flows are evicted last.
OPEN, HALF_CLOSED, RESET = 0, 1, 2


class BackendFlow(Flow):
    """A flow that has its backend.

    client_isn: tells a retransmitted first segment from a new connection.
    ts_shift:   what turns an echo of the SYN-ACK's TSval into one that names the backend.
    created_ms: to see whether the backend's timestamps can have wrapped.
    goes_up:    whether a program leaves all its packets to the data path, which has a handoff to
                repeat until it has seen that the server has it.
    """

    __slots__ = ("backend", "client_isn", "created_ms", "goes_up", "ts_shift")

    def __init__(
        self, key: bytes, backend: Backend, client_isn: int, ts_shift: int, now_ms: int
    ) -> None:
        super().__init__(key, OPEN, now_ms)
        self.backend = backend
        self.client_isn = client_isn
        self.ts_shift = ts_shift
        self.created_ms = now_ms
        self.goes_up = False
