"""Durations by their size: by powers of two of a millisecond."""

from collections.abc import Sequence

BOUNDS = 13
# A duration of exactly so many ms is within. What takes longer than the last is counted beyond it.
# Twin: common/bpf/include/histogram.h
BOUNDS_MS = tuple(1 << power for power in range(BOUNDS))


class Histogram:
    """counts: by bound, and one more for what is beyond them; not cumulative."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (BOUNDS + 1)
        self.sum_ms = 0.0

    def note(self, duration_ms: float) -> None:
        """One more."""
        whole_ms = -int(-duration_ms // 1)  # a fraction is beyond the bound below it
        self.counts[min(max(whole_ms - 1, 0).bit_length(), BOUNDS)] += 1
        self.sum_ms += duration_ms

    def plus(self, counts: Sequence[int], sum_ms: float) -> "Histogram":
        """Another one, with as many more of each size."""
        made = Histogram()
        made.counts = [mine + more for mine, more in zip(self.counts, counts, strict=True)]
        made.sum_ms = self.sum_ms + sum_ms
        return made
