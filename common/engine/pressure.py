"""Whether the engine wants a processor all the time: then all that it does takes from all else.

What counts is the time for which it ran or waited for a processor that others had. The kernel tells
both (CONFIG_SCHED_INFO, in every distribution's); where it does not, the time for which it ran.
"""

import time
from collections.abc import Callable
from pathlib import Path

BUSY_SHARE = 0.75
CALM_MS = 1000  # for so long it is as it was, so that a flood is not let in every other tick
_SCHEDULE = Path("/proc/thread-self/schedstat")


class Pressure:
    """Of the thread that asks. wanted_ns: the time so far for which it wanted a processor."""

    def __init__(self, wanted_ns: Callable[[], int] | None = None) -> None:
        self._wanted_ns = wanted_ns or _wanted_ns
        self._last: tuple[int, int] | None = None  # when it was asked, and what there was
        self._calm_from_ms = 0

    def is_high(self, now_ms: int) -> bool:
        """Whether it has been busy of late. Asked in each tick; what happened since counts."""
        wanted_ns = self._wanted_ns()
        last, self._last = self._last, (now_ms, wanted_ns)
        if last is not None and now_ms > last[0]:
            share = (wanted_ns - last[1]) / ((now_ms - last[0]) * 1_000_000)
            if share >= BUSY_SHARE:
                self._calm_from_ms = now_ms + CALM_MS
        return now_ms < self._calm_from_ms


def _wanted_ns() -> int:
    try:
        ran_ns, waited_ns, _ = map(int, _SCHEDULE.read_bytes().split())
    except (OSError, ValueError):
        return time.thread_time_ns()
    return ran_ns + waited_ns
