"""Tables that strangers fill: who makes room in them, and what that takes."""

import time

from common.flow.crowd import SHARES
from common.flow.unknown import FORGET_MS, PATIENCE_MS, UnknownFlows


def _key(source: str, port: int = 0) -> bytes:
    return bytes(map(int, source.split("."))) + bytes(4) + port.to_bytes(2) + bytes(2)


def test_the_oldest_unknown_flow_makes_room() -> None:
    flows = UnknownFlows(size=2)
    for number in (1, 2, 3):
        flows.is_lost(_key(f"10.{number}.0.1"), number)

    now_ms = 3 + PATIENCE_MS
    lost = [flows.is_lost(_key(f"10.{number}.0.1"), now_ms) for number in (2, 3, 1)]

    assert lost == [True, True, False]
    assert len(flows) == 1


def test_a_prefix_with_more_than_its_share_puts_nobody_else_out() -> None:
    size = 8 * SHARES
    flows = UnknownFlows(size)
    flows.is_lost(_key("10.1.0.1"), 0)
    for port in range(10 * size):
        flows.is_lost(_key("10.2.0.1", port), 0)

    assert len(flows) == size
    assert flows.is_lost(_key("10.1.0.1"), PATIENCE_MS)


def test_an_unknown_flow_is_forgotten_after_a_minute() -> None:
    flows = UnknownFlows()
    flows.is_lost(_key("10.1.0.1"), 0)

    assert not flows.is_lost(_key("10.1.0.1"), FORGET_MS + 1)
    assert flows.is_lost(_key("10.1.0.1"), FORGET_MS + 1 + PATIENCE_MS)


def test_a_full_table_is_no_slower_than_one_with_room() -> None:
    """Once, making room walked over all that had left, and took fifteen times as long."""
    full, roomy, times = UnknownFlows(size=20_000), UnknownFlows(size=200_000), {}
    for flows in (full, roomy):
        start = time.process_time()
        for number in range(100_000):
            flows.is_lost(number.to_bytes(4) + bytes(8), 0)
        times[flows] = time.process_time() - start

    assert len(full) == 20_000
    assert times[full] < 5 * times[roomy]
