"""Packets by reason, as a program counts them for as long as its maps are pinned.

Twin: common/bpf/include/verdict.h
"""

import struct

from common.bpf.objects import Object
from common.counters import Counters
from common.verdict import DropReason, Event, Reason

REASONS: tuple[Event | DropReason, ...] = (*Event, *DropReason)
_INDEX = struct.Struct("=I")
_COUNT = struct.Struct("=Q")


class ReasonCounts:
    """The counters of a loaded program."""

    def __init__(self, program_file: Object) -> None:
        self._map = program_file.map("reasons", _INDEX, _COUNT)
        self._added: dict[Reason, int] = {}

    def totals(self) -> dict[Event | DropReason, int]:
        """Packets by reason, of all CPUs. Raises: BpfError."""
        return {REASONS[number]: sum(per_cpu) for number, per_cpu in self._map.items()}

    def add_to(self, counters: Counters) -> None:
        """Add what is new since the last call. Raises: BpfError."""
        for reason, total in self.totals().items():
            if total != self._added.get(reason, 0):
                counters[reason] += total - self._added.get(reason, 0)
                self._added[reason] = total

    def close(self) -> None:
        """Let go of the map."""
        self._map.close()
