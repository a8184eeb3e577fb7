"""The programs of an instance at one interface: are they still there, and put there again.

A link that is detached, by `bpftool` or with its interface, leaves a pin that leads nowhere; a
filter goes with its queueing discipline. The kernel says so to nobody.
"""

import threading
from collections.abc import Callable

from common.bpf.libbpf import BpfError
from common.bpf.links import Direction, Link, TcFilter
from common.bpf.pins import Pins


class Hooks:
    """For any thread. A change waits for a look, so that no look sees it half-way.

    attach: puts the programs of `pins` at the interface of an index. Raises: BpfError.
    """

    def __init__(self, pins: Pins, attach: Callable[[int], None]) -> None:
        self._pins = pins
        self._attach = attach
        self._turn = threading.RLock()
        self._index = 0
        self._known: dict[str, int] | None = None

    def attach(self, index: int) -> None:
        """Attach, and know from now on what is to be there. Raises: BpfError."""
        with self._turn:
            self._attach(index)
            self._index, self._known = index, self._at(index)

    def exchange(self, change: Callable[[Pins], None]) -> None:
        """Have a change put another program in place of one that is there. Raises: BpfError."""
        with self._turn:
            is_whole = not self.are_lost(self._index)
            change(self._pins)
            if is_whole and self._known is not None:
                self._known = self._at(self._index)

    def are_lost(self, index: int) -> bool:
        """Whether one is not at the interface any more, or another program in its place."""
        with self._turn:
            return self._known is not None and self._at(index) != self._known

    def _at(self, index: int) -> dict[str, int]:
        """The numbers of the programs at an interface, by the names of their links."""
        found = {}
        for name in self._pins.links():
            kind, side, number = name.split("-")
            if int(number) != index:
                continue
            try:
                if kind == "clsact":
                    program = TcFilter(index, Direction(side), self._pins.handle).program_id()
                else:
                    program = _program_at(Link.open_pinned(self._pins.link_path(name)), index)
            except BpfError:
                program = 0
            if program:
                found[name] = program
        return found


def _program_at(link: Link, index: int) -> int:
    """The number of a link's program; 0 if the link does not lead to the interface."""
    try:
        return link.program_id() if link.interface() == index else 0
    finally:
        link.close()
