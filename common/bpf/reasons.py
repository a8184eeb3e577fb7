"""Packets by reason, as a program counts them for as long as its maps are pinned.

C numbers the reasons as it likes: what a number means is the name that its enumerator has, which a
counter carries. So counts survive a program whose reasons have other numbers.
"""

from collections.abc import Callable

from common.bpf.btf import Btf
from common.bpf.maps import Map
from common.bpf.objects import Object
from common.bpf.pins import Kept
from common.counters import Counters
from common.verdict import DropReason, Event, Reason

_PREFIX = "REASON_"
_BY_NAME: dict[str, Event | DropReason] = {
    reason.name: reason for kind in (Event, DropReason) for reason in kind}


def numbered(types: Btf) -> dict[int, Event | DropReason]:
    """The reasons that a program has, by their numbers there. Raises: KeyError: one is unknown."""
    return {each.value: _BY_NAME[each.name.removeprefix(_PREFIX)] for each in types.enum("reason")
            if each.name.startswith(_PREFIX)}


def kept(counts: Callable[[], "ReasonCounts"]) -> Kept:
    """The counters, to be kept. counts: those of the new program, once it is loaded."""
    return Kept("reasons", keyed_by="reason",
                copy=lambda old, replace: counts().take_over(old) if replace else None)


class ReasonCounts:
    """The counters of a loaded program."""

    def __init__(self, program_file: Object) -> None:
        self._map = program_file.map("reasons")
        self.numbered = numbered(program_file.btf)
        self._added: dict[Reason, int] = {}
        for number, reason in self.numbered.items():
            per_cpu = self._map.lookup(number)
            if not per_cpu[0].name.strip(b"\0"):
                name = reason.name.encode()
                self._map.update(number, [each._replace(name=name) for each in per_cpu])

    def totals(self) -> dict[Event | DropReason, int]:
        """Packets by reason, of all CPUs. Raises: BpfError."""
        return {self.numbered[number]: sum(each.packets for each in per_cpu)
                for number, per_cpu in self._map.items() if number in self.numbered}

    def add_to(self, counters: Counters) -> None:
        """Add what is new since the last call. Raises: BpfError."""
        for reason, total in self.totals().items():
            if total != self._added.get(reason, 0):
                counters[reason] += total - self._added.get(reason, 0)
                self._added[reason] = total

    def take_over(self, old: Map) -> None:
        """Go on from an earlier program's counters, before this one counts. Raises: BpfError."""
        numbers = {reason.name.encode(): number for number, reason in self.numbered.items()}
        for _, per_cpu in old.items():
            counters = [self._map.value.unpack(each) for each in per_cpu]
            number = numbers.get(counters[0].name.rstrip(b"\0"))
            if number is not None:
                self._map.update(number, counters)

    def close(self) -> None:
        """Let go of the map."""
        self._map.close()
