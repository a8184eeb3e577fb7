"""Properties of the bounded tables, against models that are slow and plain."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.config import Hold
from balancer.modes.split.delivery import COST, DUE_MS, Deliveries, Delivery
from balancer.modes.split.hold import FLOW_COST, SEGMENT_COST, Held, HoldTable
from common.flow.memory import MemoryStore
from common.flow.store import SEEN_MS, Flow
from common.flow.unknown import FORGET_MS, PATIENCE_MS, UnknownFlows
from common.wire import tcp
from common.wire.tcp import ACK, Segment

MAX_FLOWS = 5
TIMEOUTS_MS = (5000, 3000, 1000)
KEYS = st.integers(0, 9).map(lambda number: number.to_bytes(12))


class Flows(RuleBasedStateMachine):
    """MemoryStore against a list in order of last use."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.gone: list[bytes] = []
        self.model: list[tuple[bytes, int, int]] = []  # key, state, seen; the longest idle first
        self.table: MemoryStore[Flow] = MemoryStore(
            MAX_FLOWS, TIMEOUTS_MS, lambda flow: self.gone.append(flow.key)
        )

    @rule(key=KEYS, state=st.integers(0, 2))
    def insert(self, key: bytes, state: int) -> None:
        known = [kept for kept in self.model if kept[0] == key]
        expected = [key] if known else []
        if not known and len(self.model) == MAX_FLOWS:
            readiest = max(kept[1] for kept in self.model)
            victim = next(kept for kept in self.model if kept[1] == readiest)
            self.model.remove(victim)
            expected = [victim[0]]
        self.model = [kept for kept in self.model if kept[0] != key]

        self.table.insert(Flow(key, state, self.now_ms))

        self.model.append((key, state, self.now_ms))
        self._left(expected)

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, MAX_FLOWS - 1), state=st.integers(0, 2))
    def move(self, index: int, state: int) -> None:
        key, *_ = self.model.pop(index % len(self.model))

        self.table.move(self.table.get(key), state, self.now_ms)

        self.model.append((key, state, self.now_ms))

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, MAX_FLOWS - 1))
    def touch(self, index: int) -> None:
        kept = self.model[index % len(self.model)]

        self.table.touch(self.table.get(kept[0]), self.now_ms)

        if self.now_ms - kept[2] >= SEEN_MS:
            self.model.remove(kept)
            self.model.append((kept[0], kept[1], self.now_ms))

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, MAX_FLOWS - 1))
    def remove(self, index: int) -> None:
        key, *_ = self.model.pop(index % len(self.model))

        self.table.remove(self.table.get(key))

        self._left([key])

    @rule(wait_ms=st.integers(0, 6000))
    def expire(self, wait_ms: int) -> None:
        self.now_ms += wait_ms

        gone = self.table.expire(self.now_ms)

        expected = [
            kept for state in range(3) for kept in self.model
            if kept[1] == state and self.now_ms - kept[2] >= TIMEOUTS_MS[state]
        ]
        self.model = [kept for kept in self.model if kept not in expected]
        assert [flow.key for flow in gone] == [kept[0] for kept in expected]
        self._left([kept[0] for kept in expected])

    def _left(self, expected: list[bytes]) -> None:
        assert self.gone == expected  # each once
        self.gone.clear()

    @invariant()
    def the_table_is_the_model(self) -> None:
        assert len(self.table) == len(self.model) <= MAX_FLOWS
        assert {(flow.key, flow.state, flow.seen_ms) for flow in self.table} == set(self.model)


BOUND = Hold(segments=12, octets=600, time_ms=3000)
STREAM = bytes(range(200))


class Holds(RuleBasedStateMachine):
    """One flow's segments, in any order and cut anywhere, in a table with a bound over all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._segment(0, 5)
        self.table = HoldTable(1 << 20, set())
        self.held = Held(None, BOUND, self.first, 0)
        self.came = [self.first]
        self.taken = b""
        self.table.add(self.held, self.first)

    @staticmethod
    def _segment(start: int, length: int) -> Segment:
        return tcp.checked(tcp.emit(bytes(12), 0xFFFFFFF0 + 1 + start, 8, ACK,
                                payload=STREAM[start:start + length]))

    @rule(start=st.integers(0, 190), length=st.integers(1, 40))
    def arrive(self, start: int, length: int) -> None:
        segment = self._segment(start, length)

        self.table.add(self.held, segment)

        self.came.append(segment)

    @precondition(lambda self: not self.held.is_full)
    @rule()
    def acknowledge(self) -> None:
        expected, _ = self.held.prefix()

        self.table.take(self.held)

        assert self.held.taken == len(expected)
        self.taken = expected

    @invariant()
    def the_stream_is_the_clients(self) -> None:
        prefix, ended = self.held.prefix()
        assert prefix == STREAM[:len(prefix)]
        assert not ended
        assert prefix.startswith(self.taken)  # what was acknowledged is never given up

    @invariant()
    def what_would_leave_is_what_is_held(self) -> None:
        assembled = bytearray()
        for segment in self.held.segments(20):
            offset = segment.seq - 0xFFFFFFF1 & 0xFFFFFFFF
            assert segment.checksum_holds()
            assert segment.payload == STREAM[offset:offset + segment.payload_len]
            if offset <= len(assembled):
                assembled[offset:offset + segment.payload_len] = segment.payload
        assert bytes(assembled) == self.held.prefix()[0]

    @invariant()
    def the_octets_are_counted(self) -> None:
        assert self.table.octets == self.held.cost > self.held.octets
        islands = self.held.islands(self.came[-1])
        assert all((end - start) & 0xFFFFFFFF <= len(STREAM) for start, end in islands)


class HeldFlows(RuleBasedStateMachine):
    """A HoldTable of several flows, used as the data path uses it: bounds, sums and times."""

    TOTAL = 3 * (FLOW_COST + SEGMENT_COST)

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.marks: set[bytes] = set()
        self.table = HoldTable(self.TOTAL, self.marks)
        self.model: dict[bytes, Held] = {}

    @rule(key=st.integers(0, 3), start=st.integers(0, 60), length=st.integers(1, 90),
          take=st.booleans())
    def arrive(self, key: int, start: int, length: int, take: bool) -> None:
        """A segment, which opens a held flow if it is the first octet's."""
        segment = tcp.checked(tcp.emit(key.to_bytes(12), 1 + start, 8, ACK,
                                   payload=STREAM[start:start + length]))
        held = self.table.get(segment.five_tuple)
        assert held is self.model.get(segment.five_tuple)
        if held is None:
            if start:
                return
            held = Held(None, BOUND, segment, self.now_ms)

        self.table.add(held, segment)
        if take:
            self.table.take(held)

        self.model[held.key] = held
        while (oldest := self.table.crowded_by(held)) is not None:
            assert oldest is next(iter(self.model.values()))
            self._remove(oldest)
        if held.is_full and held.key in self.model:
            self._remove(held)

    @precondition(lambda self: self.model)
    @rule(which=st.integers(0, 3))
    def leave(self, which: int) -> None:
        self._remove(list(self.model.values())[which % len(self.model)])

    @rule(wait_ms=st.sampled_from([0, 1, 1000, BOUND.time_ms, -1000]))
    def expire(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        due = {key for key, held in self.model.items() if held.expires_ms <= self.now_ms}

        expired = self.table.expired(self.now_ms)

        assert sorted(held.key for held in expired) == sorted(due)  # each once
        for held in expired:
            self._remove(held)

    def _remove(self, held: Held) -> None:
        self.table.remove(held)
        self.table.remove(held)  # a second time changes nothing
        del self.model[held.key]

    @invariant()
    def the_sum_is_kept_and_bounded(self) -> None:
        assert self.marks == set(self.model)
        assert len(self.table) == len(self.model)
        assert self.table.octets == sum(held.cost for held in self.model.values()) <= self.TOTAL
        assert all(held.octets < BOUND.octets for held in self.model.values())


class Repeated(RuleBasedStateMachine):
    """Deliveries of a few flows against a plain list of times."""

    TOTAL = 3 * COST

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.deliveries = Deliveries(self.TOTAL)
        self.model: dict[bytes, tuple[bytes, list[int]]] = {}  # the packet, when it is to be sent

    @rule(key=KEYS, length=st.integers(1, 200))
    def add(self, key: bytes, length: int) -> None:
        self.model.pop(key, None)  # it takes the place of an older connection's
        packet = key + bytes(length)
        self.model[key] = packet, [self.now_ms + due_ms for due_ms in DUE_MS]
        expected = []
        while sum(COST + len(sent) for sent, _ in self.model.values()) > self.TOTAL:
            oldest = next(iter(self.model))
            expected.append(oldest)
            del self.model[oldest]

        crowded_out = self.deliveries.add(key, Delivery((packet,), 1, self.now_ms))

        assert crowded_out == expected
        assert self.deliveries.get(key) is not None

    @rule(key=KEYS)
    def settle(self, key: bytes) -> None:
        """Its server has answered, or the flow has left its table."""
        self.deliveries.settle(key)
        self.deliveries.settle(key)  # a second time changes nothing
        self.model.pop(key, None)

    @rule(wait_ms=st.sampled_from([0, 1, 100, 200, 900, 7000]))
    def tick(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        expected = []
        for key, (packet, times_ms) in list(self.model.items()):
            while times_ms and times_ms[0] <= self.now_ms:
                expected.append(packet)
                del times_ms[0]
            if not times_ms:
                del self.model[key]

        sent = [packet for _, delivery in self.deliveries.due(self.now_ms)
                for packet in delivery.packets]

        assert sorted(sent) == sorted(expected)

    @invariant()
    def octets_are_counted_and_bounded(self) -> None:
        kept = sum(COST + len(packet) for packet, _ in self.model.values())
        assert self.deliveries.octets == kept <= self.TOTAL


class Unknown(RuleBasedStateMachine):
    """UnknownFlows: never reset at once, always bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.flows = UnknownFlows(size=4)
        self.seen_ms: dict[bytes, list[int]] = {}

    @rule(key=KEYS, wait_ms=st.integers(0, 2 * FORGET_MS) | st.integers(0, 2 * PATIENCE_MS))
    def packet(self, key: bytes, wait_ms: int) -> None:
        self.now_ms += wait_ms

        lost = self.flows.is_lost(key, self.now_ms)

        earlier_ms = self.seen_ms.setdefault(key, [])
        if lost:
            assert any(PATIENCE_MS <= self.now_ms - at <= FORGET_MS for at in earlier_ms)
            earlier_ms.clear()
        else:
            earlier_ms.append(self.now_ms)

    @rule(key=KEYS)
    def known(self, key: bytes) -> None:
        self.flows.forget(key)
        self.seen_ms.pop(key, None)

    @invariant()
    def bounded(self) -> None:
        assert len(self.flows) <= 4


TestFlows, TestHolds, TestUnknown = Flows.TestCase, Holds.TestCase, Unknown.TestCase
TestHeldFlows, TestRepeated = HeldFlows.TestCase, Repeated.TestCase
TestFlows.settings = TestHolds.settings = TestUnknown.settings = TestHeldFlows.settings \
    = TestRepeated.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
