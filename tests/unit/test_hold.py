"""Held segments, where a program that shares the work does not take what it is told."""

import pytest

from balancer.config import Hold
from balancer.modes.split.hold import Held, HoldTable
from common.wire import tcp
from common.wire.tcp import ACK


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
