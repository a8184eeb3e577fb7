"""Held segments, where a program that shares the work does not take what it is told."""

import sys
import tracemalloc

import pytest

from balancer.config import Hold
from balancer.modes.split.hold import FLOW_COST, SEGMENT_COST, Held, HoldTable
from common.wire import tcp
from common.wire.tcp import ACK, Segment


class Refusing:
    """Marks that cannot be set."""

    def add(self, key: bytes) -> None:
        raise OSError(12, "no memory")

    def discard(self, key: bytes) -> None:
        raise AssertionError("it was never set")


def test_a_flow_that_cannot_be_marked_is_not_held_for_ever() -> None:
    table = HoldTable(1000, Refusing())
    first = tcp.checked(tcp.emit(bytes(12), 1, 8, ACK, payload=b"GET "))
    held = Held(None, Hold(), first, 0)

    with pytest.raises(OSError, match="no memory"):
        table.add(held, first)

    assert len(table) == 0
    assert table.octets == 0


def test_repetitions_behind_a_gap_are_not_looked_at_again_and_again() -> None:
    """A hole, many segments of one octet behind it, then the same once more: what each costs does
    not grow with what is held, and nothing is kept of most."""
    table, held = _held()
    table.add(held, held.first)
    behind = [_segment(20 + at, b"x") for at in range(500)]
    steps = [_steps(table, held, segment) for segment in [*behind, *behind]]

    assert held.octets < 2000
    assert max(steps) <= 3 * min(steps)
    assert held.is_full, "and it is borne no longer"


def test_a_stream_of_single_octets_costs_the_same_for_each() -> None:
    table, held = _held()
    table.add(held, held.first)

    steps = []
    for at in range(400):
        steps.append(_steps(table, held, _segment(4 + at, b"x")))
        table.take(held)

    assert held.prefix()[0] == b"GET " + b"x" * 400
    assert max(steps) <= 2 * min(steps)


def test_memory_is_counted_as_it_is_allocated() -> None:
    """Single octets are kept as objects: what is counted is no less than what these take."""
    table = HoldTable(1 << 30, set())
    held = None
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            for at in range(5):
                segment = _segment(at, b"x", ends=number.to_bytes(4) + bytes(8))
                held = table.get(segment.five_tuple) or Held(None, Hold(), segment, 0)
                table.add(held, segment)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert len(table) == 200
    assert taken < table.octets < 2 * taken


def test_the_oldest_flow_is_crowded_out_but_for_those_of_a_network_with_too_many() -> None:
    table = HoldTable(16 * (FLOW_COST + SEGMENT_COST), set())
    first = None
    for number in range(40):
        segment = _segment(0, b"GET ", ends=bytes((10, number > 0, 0, 1)) + number.to_bytes(8))
        held = Held(None, Hold(), segment, number)
        first = first or held
        table.add(held, segment)
        while (oldest := table.crowded_by(held)) is not None:
            assert oldest is not first
            table.remove(oldest)

    assert table.get(first.key) is first
    for number in range(9):
        segment = _segment(0, b"GET ", ends=bytes((11, number, 0, 1)) + bytes(8))
        held = Held(None, Hold(), segment, 99)
        table.add(held, segment)
        if (oldest := table.crowded_by(held)) is not None:
            table.remove(oldest)
    assert table.get(first.key) is None


def _held() -> tuple[HoldTable, Held]:
    first = _segment(0, b"GET ")
    return HoldTable(1 << 30, set()), Held(None, Hold(), first, 0)


def _segment(offset: int, payload: bytes, ends: bytes = bytes(12)) -> Segment:
    return tcp.checked(tcp.emit(ends, 1 + offset, 8, ACK, payload=payload))


def _steps(table: HoldTable, held: Held, segment: Segment) -> int:
    """How many calls it takes to keep a segment."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        table.add(held, segment)
    finally:
        sys.setprofile(None)
    return calls
