"""The balancer's watch over routes, whatever becomes of a look."""

import time

import pytest

from balancer.paths import NO_ROUTE
from balancer.routes import Routes, RouteWatch
from common.engine.sources import Sources

ADDRESS = b"\xc0\0\2\x01"
PATIENCE_S = 20


def _raise(_: object) -> None:
    raise


@pytest.mark.parametrize("fault", [ValueError("a name that is no text"), BlockingIOError()])
def test_a_look_that_fails_is_not_the_last_and_says_nothing(
    caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    said: list[Routes] = []
    watch = RouteWatch([ADDRESS], said.append, "lo")
    sources = Sources(watch.sources, _raise)
    looks = iter([fault, {ADDRESS: NO_ROUTE}])

    def look_up(addresses: list[bytes], probe: bool) -> Routes:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    watch._table.look_up = look_up  # type: ignore[method-assign,assignment]
    end_s = time.monotonic() + PATIENCE_S
    while not said:
        assert time.monotonic() < end_s, "it looks no more"
        watch._next_probe_s = 0.0
        sources.wait(0.01)

    assert said == [{ADDRESS: NO_ROUTE}]
    assert "the ways to the backends cannot be looked up" in caplog.text
