"""How often something on the host had to be put right."""

from collections.abc import Iterable

from common.counters import Sample
from common.engine.guard import KINDS
from common.metrics import REPAIRS


class Repairs:
    """Repairs by kind, all of them from the start."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        """more: kinds, besides guard.KINDS."""
        self._counts = dict.fromkeys((*KINDS, *more), 0)

    def count(self, what: str) -> None:
        """One was made."""
        self._counts[what] += 1

    def samples(self) -> list[Sample]:
        """As a data path's."""
        return [REPAIRS.at(count, what) for what, count in self._counts.items()]
