"""Flows in memory: exact oldest-idle-first.

Flows of a state are linked from the longest idle to the latest seen, so both
expiry and eviction take the head of a list, and no packet ever pays for a
walk. To keep that cheap, a flow is relinked at most once in SEEN_MS.

A flow links its neighbours and they it; a removed flow is unlinked at once, so
that no cycle outlives it and memory is freed without the garbage collector.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic

from common.flow.store import SEEN_MS, F, Flow


class MemoryStore(Generic[F]):
    """As store.FlowStore.

    max_flows:   how many it holds; one more evicts the longest idle, first of the highest state.
    timeouts_ms: idle time after which a flow of each state is removed.
    on_remove:   called with each flow that leaves, whatever the cause.
    owner:       whose a flow is, for `count`.
    """

    def __init__(
        self, max_flows: int, timeouts_ms: Sequence[int],
        on_remove: Callable[[F], None] = lambda flow: None, *,
        owner: Callable[[F], object] = lambda flow: None,
    ) -> None:
        self._max_flows = max_flows
        self._timeouts_ms = tuple(timeouts_ms)
        self._heads = [_head(state) for state in range(len(self._timeouts_ms))]
        self._on_remove = on_remove
        self._owner = owner
        self._counts: dict[object, int] = {}
        self._flows: dict[bytes, F] = {}
        self.get = self._flows.get
        self.evicted = 0

    def set_bounds(self, max_flows: int, timeouts_ms: Sequence[int]) -> None:
        """Other ones from now on. What is too much leaves as new flows come."""
        self._max_flows = max_flows
        self._timeouts_ms = tuple(timeouts_ms)

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[F]:
        return iter(list(self._flows.values()))

    def glance(self) -> Iterator[F]:
        """As FlowStore: a list is made at one go, so that no other thread changes it meanwhile."""
        return iter(self)

    def insert(self, flow: F, least: int = 0) -> bool:
        """As FlowStore."""
        old = self._flows.get(flow.key)
        if old is not None:
            self.remove(old)
        elif len(self._flows) >= self._max_flows and not self._evict(least):
            return False
        self._flows[flow.key] = flow
        owner = self._owner(flow)
        self._counts[owner] = self._counts.get(owner, 0) + 1
        self._link(flow)
        return True

    def update(self, flow: F) -> None:
        """As FlowStore: a flow is kept as it is."""

    def touch(self, flow: F, now_ms: int) -> None:
        """As FlowStore."""
        if now_ms - flow.seen_ms >= SEEN_MS:
            self.move(flow, flow.state, now_ms)

    def move(self, flow: F, state: int, now_ms: int) -> None:
        """As FlowStore."""
        self._unlink(flow)
        flow.state = state
        flow.seen_ms = now_ms
        self._link(flow)

    def remove(self, flow: F) -> None:
        """As FlowStore."""
        del self._flows[flow.key]
        self._unlink(flow)
        owner = self._owner(flow)
        count = self._counts.pop(owner) - 1
        if count:
            self._counts[owner] = count
        self._on_remove(flow)

    def expire(self, now_ms: int, limit: int = 10_000) -> list[F]:
        """As FlowStore; at most `limit` in a call."""
        gone: list[F] = []
        for head, timeout_ms in zip(self._heads, self._timeouts_ms, strict=True):
            while len(gone) < limit:
                if head.newer is head or now_ms - head.newer.seen_ms < timeout_ms:
                    break
                oldest = self._flows[head.newer.key]
                self.remove(oldest)
                gone.append(oldest)
        return gone

    def count(self, owner: object) -> int:
        """As FlowStore."""
        return self._counts.get(owner, 0)

    def _evict(self, least: int) -> bool:
        for head in reversed(self._heads[least:]):
            if head.newer is not head:
                self.remove(self._flows[head.newer.key])
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


def _head(state: int) -> Flow:
    """The beginning and end of a state's flows."""
    head = Flow(b"", state, 0)
    head.older = head.newer = head
    return head
