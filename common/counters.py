"""What the data path counts, in a form that metrics and logs read."""

from collections import defaultdict
from typing import NamedTuple

from common.verdict import DropReason, Event

Counters = defaultdict[Event | DropReason, int]


def new_counters() -> Counters:
    """Packets by what became of them, all zero."""
    return defaultdict(int)


class Sample(NamedTuple):
    """One value at this moment.

    name: without the program's prefix. kind: `counter` or `gauge`. labels: name to value.
    """

    name: str
    kind: str
    help: str
    labels: dict[str, str]
    value: float
