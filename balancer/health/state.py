"""Up or down: what results in a row make of a backend, and how a ramp and flapping are dealt with.

A backend is up until checks have failed `fall` times in a row, and down until they have been passed
`rise` times. Of one that nothing is known of yet, the first check decides: a restart must not give
a dead one flows for long. One that keeps falling has to prove itself for longer each time, and one
that comes back gets its share step by step.
"""

from collections import deque

from balancer.health.settings import Check
from balancer.pool.share import RAMP_STEPS

_DAMPED_MS = 600_000  # how long a fall counts
_MOST_DOUBLED = 4


class Health:
    """Of one backend. Times are monotonic, in ms.

    is_up, since_ms: since when; None: from the start. in_doubt: whether results contradict it.
    check: what it goes by, which may become another.
    """

    __slots__ = ("_count", "_falls", "_is_ramping", "check", "is_up", "since_ms")

    def __init__(self, check: Check) -> None:
        self.check = check
        # of results in a row that contradict the state; the first one of all decides alone
        self._count = check.fall - 1
        self._falls: deque[float] = deque(maxlen=_MOST_DOUBLED + 1)
        self._is_ramping = False
        self.is_up = True
        self.since_ms: float | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether the latest result contradicts the state."""
        return self._count > 0

    def note(self, is_passed: bool, now_ms: float) -> bool:
        """A check has ended. Returns: whether the state is another one now."""
        if is_passed is self.is_up:
            self._count = 0
            return False
        self._count += 1
        if self._count < (self.check.fall if self.is_up else self.needed(now_ms)):
            return False
        self._count = 0
        self.is_up = not self.is_up
        self.since_ms = now_ms
        self._is_ramping = self.is_up and self.check.ramp_ms > 0
        if not self.is_up:
            self._falls.append(now_ms)
        return True

    def needed(self, now_ms: float) -> int:
        """How many checks in a row have to be passed to come up."""
        falls = sum(now_ms - fall_ms < _DAMPED_MS for fall_ms in self._falls)
        return self.check.rise << min(max(falls - 1, 0), _MOST_DOUBLED)

    def steps(self, now_ms: float) -> int:
        """How far the ramp is, 1..RAMP_STEPS."""
        if not self._is_ramping or self.since_ms is None:
            return RAMP_STEPS
        done = int((now_ms - self.since_ms) * RAMP_STEPS / self.check.ramp_ms) + 1
        if done >= RAMP_STEPS:
            self._is_ramping = False
        return min(done, RAMP_STEPS)
