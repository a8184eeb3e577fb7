"""A bounded table of flows: exact oldest-idle-first, with a timeout for each state.

Flows of a state are linked from the longest idle to the latest seen, so both
expiry and eviction take the head of a list, and no packet ever pays for a
walk. To keep that cheap, a flow is relinked at most once a second: idleness is
exact to a second, which is finer than any timeout.

A flow links its neighbours and they it; a removed flow is unlinked at once, so
that no cycle outlives it and memory is freed without the garbage collector.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

RELINK_MS = 1000


class Flow:
    """What any flow has; each program adds its own fields.

    key:     the five-tuple. state: index of its timeout. seen_ms: about the last packet.
    """

    __slots__ = ("key", "newer", "older", "seen_ms", "state")

    def __init__(self, key: bytes, state: int, now_ms: int) -> None:
        self.key = key
        self.state = state
        self.seen_ms = now_ms
        self.older: Flow = self
        self.newer: Flow = self


F = TypeVar("F", bound=Flow)


class FlowTable(Generic[F]):
    """Flows by five-tuple.

    max_flows:   how many it holds; one more evicts the longest idle, first of
                 the highest state (states are numbered in order of rising readiness to go).
    timeouts_ms: idle time after which a flow of each state is removed.
    on_remove:   called with each flow that leaves, whatever the cause.
    """

    def __init__(
        self, max_flows: int, timeouts_ms: Sequence[int],
        on_remove: Callable[[F], None] = lambda flow: None,
    ) -> None:
        self._max_flows = max_flows
        self._timeouts_ms = tuple(timeouts_ms)
        self._heads = [Flow(b"", state, 0) for state in range(len(self._timeouts_ms))]
        self._on_remove = on_remove
        self._flows: dict[bytes, F] = {}
        self.get = self._flows.get
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[F]:
        return iter(list(self._flows.values()))

    def insert(self, flow: F, spares_open: bool = False) -> bool:
        """Add a flow; one with the same key leaves. Returns: whether there was room.

        spares_open: a full table has room only where flows of other states than the first can go.
        """
        old = self._flows.get(flow.key)
        if old is not None:
            self.remove(old)
        elif len(self._flows) >= self._max_flows and not self._evict(spares_open):
            return False
        self._flows[flow.key] = flow
        self._link(flow)
        return True

    def touch(self, flow: F, now_ms: int) -> None:
        """Note that a packet of `flow` was seen."""
        if now_ms - flow.seen_ms >= RELINK_MS:
            self.move(flow, flow.state, now_ms)

    def move(self, flow: F, state: int, now_ms: int) -> None:
        """Put `flow` into `state`, seen now."""
        self._unlink(flow)
        flow.state = state
        flow.seen_ms = now_ms
        self._link(flow)

    def remove(self, flow: F) -> None:
        """Take `flow` out."""
        del self._flows[flow.key]
        self._unlink(flow)
        self._on_remove(flow)

    def expire(self, now_ms: int, limit: int = 10_000) -> list[F]:
        """Remove and return up to `limit` flows idle for longer than their state's timeout."""
        gone: list[F] = []
        for head, timeout_ms in zip(self._heads, self._timeouts_ms, strict=True):
            while len(gone) < limit:
                oldest = head.newer
                if oldest is head or now_ms - oldest.seen_ms < timeout_ms:
                    break
                self.remove(oldest)  # type: ignore[arg-type]  # heads are never in the table
                gone.append(oldest)  # type: ignore[arg-type]
        return gone

    def _evict(self, spares_open: bool) -> bool:
        for head in reversed(self._heads[1:] if spares_open else self._heads):
            if head.newer is not head:
                self.remove(head.newer)  # type: ignore[arg-type]
                self.evicted += 1
                return True
        return False

    def _link(self, flow: F) -> None:
        head = self._heads[flow.state]
        newest = head.older
        newest.newer = flow
        flow.older = newest
        flow.newer = head
        head.older = flow

    @staticmethod
    def _unlink(flow: Flow) -> None:
        flow.older.newer = flow.newer
        flow.newer.older = flow.older
        # not to itself: that would be a cycle, and only the collector could free it
        del flow.older, flow.newer
