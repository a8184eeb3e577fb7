"""The last hour, for whoever looks: a few numbers every ten seconds, noted while nobody does."""

import asyncio
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from balancer.control.views import Shown
from balancer.services import ServiceState
from common.control.api import Refused, in_loop
from common.control.inbox import Inbox

EVERY_S = 10
_POINTS = 3600 // EVERY_S


class Totals(NamedTuple):
    """What is counted, of all services, at one moment. slowest_s: of the latest checks; None where
    nothing is checked.
    """

    seconds: float
    flows: int
    handoffs: int
    octets: int
    slowest_s: float | None


class Point(NamedTuple):
    """What the charts show of one moment, and of the time since the one before it.

    seconds: by the clock of the counts. new_flows, octets: of a second. check_s: as `slowest_s`.
    """

    seconds: float
    flows: int
    new_flows: float
    octets: float
    check_s: float | None


def between(before: Totals, now: Totals) -> Point:
    """What has become of it meanwhile. Counters that began anew have counted nothing."""
    elapsed_s = max(now.seconds - before.seconds, 1e-3)
    return Point(
        round(now.seconds, 1), now.flows,
        round(max(now.handoffs - before.handoffs, 0) / elapsed_s, 2),
        round(max(now.octets - before.octets, 0) / elapsed_s, 1),
        now.slowest_s,
    )


class History:
    """Points of the last hour, the oldest first."""

    def __init__(self, inbox: Inbox, shown: Shown) -> None:
        self._inbox = inbox
        self._shown = shown
        self._last: Totals | None = None
        self._points: deque[Point] = deque(maxlen=_POINTS)

    async def keep(self) -> None:
        """Note a point after the other."""
        while True:
            await self.note()
            await asyncio.sleep(EVERY_S)

    async def note(self) -> None:
        """Note one more; none while the loop is stuck."""
        try:
            totals = await self._look()
        except Refused:
            return
        if self._last:
            self._points.append(between(self._last, totals))
        self._last = totals

    def as_json(self) -> Mapping[str, Any]:
        """By name, so that each chart has what it draws; all of the same length."""
        columns = zip(*self._points, strict=True) if self._points else ((),) * len(Point._fields)
        return {"every_seconds": EVERY_S,
                **{name: list(column) for name, column in zip(_NAMES, columns, strict=True)}}

    async def _look(self) -> Totals:
        services = await in_loop(self._inbox, lambda: list(self._shown.services))
        parts = [await in_loop(self._inbox, partial(self._of, service)) for service in services]
        slowest = [part[3] for part in parts if part[3] is not None]
        return Totals(self._shown.counted_s(), sum(part[0] for part in parts),
                      sum(part[1] for part in parts), sum(part[2] for part in parts),
                      max(slowest, default=None))

    def _of(self, service: ServiceState) -> tuple[int, int, int, float | None]:
        backends = self._shown.backends(service)
        checks = [each["check"]["seconds"] for each in backends
                  if each["check"] and each["check"]["up"]]
        return (sum(each["flows"] for each in backends),
                sum(each["handoffs"] for each in backends),
                sum(each["bytes"] for each in backends), max(checks, default=None))


_NAMES = ("seconds", "flows", "new_flows_per_second", "bytes_per_second", "check_seconds")
