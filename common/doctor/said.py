"""Which complaints are news. Pure; times are monotonic, in seconds.

A cause is said once while it holds. One that comes again and again is said at longer and longer
intervals, so that nothing that flaps, or somebody has flap, fills a log.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from common.doctor.report import Complaint

_PAUSE_S, _MOST_DOUBLED = 1.0, 7  # between two times; it doubles each time
_FORGET_S = 600.0
_MOST = 1000  # causes that are remembered


class News(NamedTuple):
    """begun: what is the matter now. ended: what is no more."""

    begun: list[Complaint]
    ended: list[Complaint]


class Said:
    """What has been said of any number of things; several may have the same cause."""

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[str, Complaint]] = {}  # all that hold, by name
        self._standing: dict[str, Complaint] = {}  # those that have been said
        self._times: dict[str, tuple[int, float]] = {}  # how often, and when last

    def note(self, whom: Hashable, complaints: Iterable[Complaint], now_s: float) -> News:
        """These hold for it now, and no others."""
        before = self._of.pop(whom, {})
        held = {complaint.name: complaint for complaint in complaints}
        if held:
            self._of[whom] = held
        begun = [complaint for name, complaint in held.items()
                 if name not in self._standing and self._may_say(name, now_s)]
        self._standing |= {complaint.name: complaint for complaint in begun}
        ended = [self._standing.pop(name) for name in before.keys() - held.keys()
                 if name in self._standing and not self._holds(name)]
        return News(begun, ended)

    def _holds(self, name: str) -> bool:
        return any(name in held for held in self._of.values())

    def _may_say(self, name: str, now_s: float) -> bool:
        times, last_s = self._times.get(name, (0, float("-inf")))
        if now_s - last_s >= _FORGET_S:
            times = 0
        elif now_s - last_s < _PAUSE_S * (1 << times):
            return False
        if name not in self._times and len(self._times) >= _MOST and not self._forget(now_s):
            return False
        self._times[name] = min(times + 1, _MOST_DOUBLED), now_s
        return True

    def _forget(self, now_s: float) -> bool:
        """Returns: whether there is room."""
        for name, (_, last_s) in list(self._times.items()):
            if now_s - last_s >= _FORGET_S and name not in self._standing:
                del self._times[name]
        return len(self._times) < _MOST
