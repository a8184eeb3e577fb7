"""How many guesses at a handshake a service bears: those that 24 bits alone stand against.

A client without timestamps proves its handshake by its cookie alone. Whoever sends first segments
from sources that it does not have needs 2**24 guesses or so for one that is believed, so it is
their number that is bounded: so many may fail in a tenth of a second. Beyond that, segments that
have no more to show open nothing until the next tenth (docs/security.md has the arithmetic).

Twin: common/bpf/include/guesses.h
"""

GUESS_PERIOD_MS = 100
MAX_GUESSES = 250  # in a period; programs have as many again


class Guesses:
    """Of one service."""

    __slots__ = ("_failed", "_most", "_period")

    def __init__(self, most: int | None = None) -> None:
        """most: in a period; None for MAX_GUESSES."""
        self._most = MAX_GUESSES if most is None else most
        self._period = self._failed = 0

    def is_over(self, now_ms: int) -> bool:
        """Whether no more may be tried now."""
        return self._failed >= self._most and self._period == now_ms // GUESS_PERIOD_MS

    def note(self, now_ms: int) -> None:
        """One has failed."""
        period = now_ms // GUESS_PERIOD_MS
        if self._period != period:
            self._period, self._failed = period, 0
        self._failed += 1
