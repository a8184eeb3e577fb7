"""What the data path counts, in a form that metrics, logs and the API read."""

from collections import defaultdict
from typing import NamedTuple

from common.histogram import BOUNDS_MS, Histogram
from common.verdict import DropReason, Event

Counters = defaultdict[Event | DropReason, int]


def new_counters() -> Counters:
    """Packets by what became of them, all zero."""
    return defaultdict(int)


class Sample(NamedTuple):
    """One value at this moment.

    name: without the program's prefix. kind: `counter`, `gauge` or `histogram`. labels: name to
    value. value: of a histogram the sum. buckets: of a histogram; upper bound, and how many are not
    above it.
    """

    name: str
    kind: str
    help: str
    labels: dict[str, str]
    value: float
    buckets: tuple[tuple[float, int], ...] = ()

    def __str__(self) -> str:
        """As the log has it."""
        labels = ",".join(f"{name}={value}" for name, value in self.labels.items())
        name = self.name + (labels and f"{{{labels}}}")
        if self.kind != "histogram":
            return f"{name}={self.value:g}"
        return f"{name}={self.value:g}/{self.buckets[-1][1]}"


class Metric(NamedTuple):
    """What there is to be seen, declared once for all who show it.

    name: without the program's prefix, and without the `_total` of counters; with its base unit.
    kind: `counter`, `gauge` or `histogram`, whose values are durations. more: for the reference.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    more: str = ""

    def at(self, value: float, *labels: str) -> Sample:
        """Its value now. labels: in the order in which they are declared."""
        named = dict(zip(self.labels, labels, strict=True))
        return Sample(self.name, self.kind, self.help, named, value)

    def of(self, histogram: Histogram, *labels: str, step: int = 1) -> Sample:
        """A histogram's values now, in seconds. step: 2 leaves every second bound out.

        Of thousands of backends, buckets are most of what is told.
        """
        buckets, count = [], 0
        for place, bound_ms in enumerate(BOUNDS_MS):
            count += histogram.counts[place]
            if place % step == 0:
                buckets.append((bound_ms / 1000, count))
        buckets.append((float("inf"), count + histogram.counts[-1]))
        return self.at(histogram.sum_ms / 1000, *labels)._replace(buckets=tuple(buckets))
