"""The last hour, for whoever looks: a few numbers every ten seconds, noted while nobody does."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from balancer.control.views import Shown
from balancer.services import ServiceState
from common.control.api import in_loop
from common.control.forms import Asked, Handler, Refused
from common.control.inbox import Inbox
from common.histogram import BOUNDS_MS

EVERY_S = 10
_POINTS = 3600 // EVERY_S
_NO_TRIPS = (0,) * (len(BOUNDS_MS) + 1)


class Totals(NamedTuple):
    """What is counted, of all services, at one moment.

    seconds: by the clock of the counts. slowest_s: of the latest checks that were passed; None
    where there are none. trips: handshakes, by common/histogram.py's bounds.
    """

    seconds: float = 0.0
    flows: int = 0
    handoffs: int = 0
    octets: int = 0
    slowest_s: float | None = None
    trips: Sequence[int] = _NO_TRIPS

    def plus(self, other: "Totals") -> "Totals":
        """Both together."""
        slowest = [each for each in (self.slowest_s, other.slowest_s) if each is not None]
        return Totals(
            max(self.seconds, other.seconds), self.flows + other.flows,
            self.handoffs + other.handoffs, self.octets + other.octets,
            max(slowest, default=None),
            [mine + more for mine, more in zip(self.trips, other.trips, strict=True)])


class Point(NamedTuple):
    """What the charts show of one moment, and of the time since the one before it.

    The names are those of docs/api.md.
    """

    seconds: float
    flows: int
    new_flows_per_second: float
    bytes_per_second: float
    check_seconds: float | None
    round_trip_seconds: float | None


def between(before: Totals, now: Totals) -> Point:
    """What has become of it meanwhile. Counters that began anew have counted nothing."""
    elapsed_s = max(now.seconds - before.seconds, 1e-3)
    return Point(
        round(now.seconds, 1), now.flows,
        round(max(now.handoffs - before.handoffs, 0) / elapsed_s, 2),
        round(max(now.octets - before.octets, 0) / elapsed_s, 1),
        now.slowest_s,
        median_s([max(new - old, 0) for old, new in zip(before.trips, now.trips, strict=True)]),
    )


def median_s(counts: Sequence[int]) -> float | None:
    """The bound below which half of them are; None where there are none, or half are beyond it."""
    half, below = sum(counts) / 2, 0
    for count, bound_ms in zip(counts, BOUNDS_MS, strict=False):
        below += count
        if below >= half > 0:
            return bound_ms / 1000
    return None


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
        points = list(self._points)
        return {"every_seconds": EVERY_S,
                **{name: [point[place] for point in points]
                   for place, name in enumerate(Point._fields)}}

    def gets(self) -> dict[str, Handler]:
        """By name."""
        async def tell(_: Asked) -> Mapping[str, Any]:
            return self.as_json()

        return {"history": tell}

    async def _look(self) -> Totals:
        """A service at a time, so that packets wait for one of them at most."""
        found = Totals(self._shown.counted_s())
        for service in await in_loop(self._inbox, lambda: list(self._shown.services)):
            found = found.plus(await in_loop(self._inbox, partial(self._of, service)))
        return found

    def _of(self, service: ServiceState) -> Totals:
        backends = self._shown.backends(service)
        checks = [each["check"]["seconds"] for each in backends
                  if each["check"] and each["check"]["up"]]
        return Totals(
            0.0, sum(each["flows"] for each in backends),
            sum(each["handoffs"] for each in backends), sum(each["bytes"] for each in backends),
            max(checks, default=None), self._shown.round_trips(service).counts)
