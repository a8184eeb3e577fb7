"""The flows of the program's table, as the data path reads and writes them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from balancer.flows import DOUBTED, OPEN, BackendFlow
from balancer.offload.flow_map import ENTERED, STATE_MASK, TABLE_FULL, Entry, FlowMap, key_of
from balancer.offload.maps import place_of
from balancer.pool.pool import Backend
from common.flow.store import SEEN_MS

_WALK_MS = 1000  # between two walks through the table
# Looked at in a tick: whatever else has the processor waits for that long, 0.2 ms or so.
_STEP = 500  # flows
_STEP_CHUNKS = 8  # of a table that is all but empty
_CANDIDATES = 20_000  # flows looked at when the table is full
_EVICTED_SHARE = 10  # of these, one in so many makes room
_U32 = 0xFFFFFFFF
_FULL_MS = 100  # how long a table in which nothing could go is taken for full


class MapStore:
    """As FlowStore: the program's flows and the portable engine's are the same.

    The map has no order, so what is idle is looked for, a few flows at a time. A full table is as a
    kernel's LRU: of the next flows that are looked at, those closest to their end leave.

    find:   service's number, backend's id → backend.
    now_ms: set before each packet and tick. walks: how often all flows have been looked at.
    """

    def __init__(
        self, table: FlowMap, timeouts_ms: Sequence[int],
        find: Callable[[int, int], Backend | None],
    ) -> None:
        self._map = table
        self._timeouts_ms = tuple(timeouts_ms)
        self._find = find
        self.now_ms = 0
        self.evicted = 0
        self.walks = 0
        self._next_walk_ms = 0
        self._walk: Iterator[list[bytes]] | None = None
        self._candidates: Iterator[BackendFlow] = iter(())
        self._full_until_ms = self._full_least = 0
        self._glance = table.row("seen_ms", "tag.service", "tag.backend", "tag.state")

    def set_bounds(self, max_flows: int, timeouts_ms: Sequence[int]) -> None:
        """As FlowStore; how many flows there is room for stays as it is."""
        del max_flows
        self._timeouts_ms = tuple(timeouts_ms)

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[BackendFlow]:
        """All flows. Those of backends that are configured no more go when they are met."""
        return chain.from_iterable(self._parts())

    def glance(self) -> Iterator[BackendFlow]:
        """As FlowStore."""
        for chunk in self._map.chunks():
            for octets in chunk:
                flow = self._flow(octets)
                if flow is not None and not self._is_idle(flow):
                    yield flow

    def get(self, key: bytes, /) -> BackendFlow | None:
        """As FlowStore; a flow that has been idle for too long is none."""
        octets = self._map.lookup(key)
        flow = self._flow(octets) if octets else None
        if flow is None or not self._is_idle(flow):
            return flow
        self.remove(flow)
        return None

    def insert(self, flow: BackendFlow, least: int = OPEN) -> bool:
        """As FlowStore."""
        octets = self._octets(flow)
        result = self._map.enter(octets, self.now_ms)
        if result == TABLE_FULL and self._evict(least):
            result = self._map.enter(octets, self.now_ms)
        if result != ENTERED:  # in place of one of those in its buckets
            if self._map.enter(octets, self.now_ms, least) != ENTERED:
                return False
            self.evicted += 1
        return True

    def update(self, flow: BackendFlow) -> None:
        """As FlowStore."""
        self._map.enter(self._octets(flow), self.now_ms)

    def touch(self, flow: BackendFlow, now_ms: int) -> None:
        """As FlowStore."""
        if now_ms - flow.seen_ms >= SEEN_MS:
            self.move(flow, flow.state, now_ms)

    def move(self, flow: BackendFlow, state: int, now_ms: int) -> None:
        """As FlowStore."""
        flow.state = state
        flow.seen_ms = now_ms
        self.update(flow)

    def remove(self, flow: BackendFlow) -> None:
        """As FlowStore."""
        self._map.delete(flow.key)

    def expire(self, now_ms: int) -> list[BackendFlow]:
        """As FlowStore.

        That is no hurry: `get` and the program know no flow that has been idle for too long.
        """
        self.now_ms = now_ms
        if self._walk is None:
            if 0 <= self._next_walk_ms - now_ms <= _WALK_MS:
                return []
            self._walk = self._map.chunks()
        count, gone = 0, []
        for _ in range(_STEP_CHUNKS):
            chunk = next(self._walk, None)
            if chunk is None:
                self._walk, self._next_walk_ms = None, now_ms + _WALK_MS
                self.walks += 1
                break
            # nearly all of them are only looked at: no object is made for these
            flows = self._flows(octets for octets in chunk if self._may_go(octets))
            gone += [flow for flow in flows if self._is_idle(flow) and self._has_gone(flow)]
            count += len(chunk)
            if count >= _STEP:
                break
        return gone

    def count(self, owner: object, /) -> int:
        """As FlowStore, of a backend; exact, since whoever enters or removes a flow counts it."""
        assert isinstance(owner, Backend)
        return self._map.count(place_of(owner.service.number, owner.id))

    def _parts(self) -> Iterator[list[BackendFlow]]:
        """All flows, part by part of the table."""
        return map(self._flows, self._map.chunks())

    def _flows(self, chunk: Iterable[bytes]) -> list[BackendFlow]:
        """Flows as the table has them; those of no backend are removed."""
        flows = []
        for octets in chunk:
            flow = self._flow(octets)
            if flow is None:
                self._drop_unknown(key_of(octets))
            else:
                flows.append(flow)
        return flows

    def _may_go(self, octets: bytes) -> bool:
        """Whether a flow may have been idle for longer than its state may be, or has no backend."""
        seen, service, backend, state = self._glance.unpack(octets)
        return ((self.now_ms - seen & _U32) >= self._timeouts_ms[state & STATE_MASK]
                or self._find(service, backend) is None)

    def _drop_unknown(self, key: bytes) -> None:
        """Remove a flow of no backend, unless it was only being written when it was met."""
        octets = self._map.lookup(key)
        if octets and self._flow(octets) is None:
            self._map.delete(key)

    def _has_gone(self, seen: BackendFlow) -> bool:
        """Remove a flow that was seen in a walk, unless it has lived on since."""
        octets = self._map.lookup(seen.key)
        flow = self._flow(octets) if octets else None
        if flow is None or not self._is_idle(flow):
            return False
        self.remove(flow)
        return True

    def _evict(self, least: int) -> bool:
        """Make room: open flows go where there are no others. Returns: whether there is some."""
        if least >= self._full_least and 0 < self._full_until_ms - self.now_ms <= _FULL_MS:
            return False
        found = list(islice(self._candidates, _CANDIDATES))
        if len(found) < _CANDIDATES:  # the walk is at its end, and begins anew
            self._candidates = iter(self)
            found += islice(self._candidates, _CANDIDATES - len(found))
        leaving = ([flow for flow in found if flow.state >= max(least, DOUBTED)]
                   or [flow for flow in found if flow.state >= least])
        leaving.sort(key=lambda flow: (-flow.state, flow.seen_ms))
        for flow in leaving[:max(1, len(found) // _EVICTED_SHARE)]:
            self.remove(flow)
            self.evicted += 1
        if not leaving:
            self._full_until_ms, self._full_least = self.now_ms + _FULL_MS, least
        return bool(leaving)

    def _is_idle(self, flow: BackendFlow) -> bool:
        return self.now_ms - flow.seen_ms >= self._timeouts_ms[flow.state]

    def _flow(self, octets: bytes) -> BackendFlow | None:
        entry = Entry.unpack(octets, self.now_ms)
        backend = self._find(entry.service, entry.backend)
        if backend is None:
            return None
        flow = BackendFlow(entry.key, backend, entry.client_isn, 0, entry.created_ms,
                           entry.has_timestamps)
        if entry.has_timestamps:
            flow.ts_shift = entry.number
        else:
            flow.noted_seq = entry.number
        flow.seen_ms, flow.state, flow.goes_up = entry.seen_ms, entry.state, entry.goes_up
        flow.syn_seen, flow.is_repeated = entry.syn_seen, entry.is_repeated
        return flow

    def _octets(self, flow: BackendFlow) -> bytes:
        number = flow.ts_shift if flow.has_timestamps else flow.noted_seq
        return Entry(flow.key, flow.client_isn, number, flow.created_ms, flow.seen_ms,
                     flow.backend.service.number, flow.backend.id, flow.state, flow.goes_up,
                     flow.has_timestamps, flow.syn_seen, flow.is_repeated).pack()
