"""Whether clients' own packets cast doubt on a backend, before its next check is due.

A client that hears nothing repeats its first payload. One may be a lost packet, or forged by
somebody who opens connections and stays silent; so it takes several, and more than half of the
handoffs of some seconds, and all that follows is a check.
"""

from collections import deque
from itertools import accumulate

LEAST_UNANSWERED = 3
_LOOKS = 4  # that are looked at together, at most


class Suspicion:
    """Of one backend; it is told of the counters at every look, once a second or so.

    handoffs, unanswered: the counters, as they stand when it begins.
    """

    __slots__ = ("_before", "_growth")

    def __init__(self, handoffs: int, unanswered: int) -> None:
        self._before = handoffs, unanswered
        self._growth: deque[tuple[int, int]] = deque(maxlen=_LOOKS)

    def look(self, handoffs: int, unanswered: int) -> bool:
        """Whether the latest look, or some together, are reason for doubt; then anew.

        What goes unanswered is known a while after its handoff, so any number of looks may say it.
        """
        if not self._growth and unanswered == self._before[1]:  # thousands are, every second
            self._before = handoffs, unanswered
            return False
        self._growth.appendleft((handoffs - self._before[0], unanswered - self._before[1]))
        self._before = handoffs, unanswered
        sums = accumulate(self._growth, lambda one, other: (one[0] + other[0], one[1] + other[1]))
        is_doubtful = any(silent >= LEAST_UNANSWERED and 2 * silent > handed
                          for handed, silent in sums)
        if is_doubtful or not any(silent for _, silent in self._growth):
            self._growth.clear()
        return is_doubtful
