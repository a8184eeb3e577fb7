"""Marks on held flows, so that the program leaves all their packets alone."""

import sys

from common.bpf.maps import Map


class HeldMarks:
    """As hold.Marks, in a map."""

    def __init__(self, marks: Map, told_count: memoryview) -> None:
        """told_count: where the program reads how many there are."""
        self._marks = marks
        self._told_count = told_count
        self._count = 0

    def add(self, key: bytes) -> None:
        """Leave this flow's packets alone; it has no mark yet."""
        self._marks.update(key, 1)
        self._count += 1
        self._tell_count()

    def discard(self, key: bytes) -> None:
        """Handle this flow's packets; it has a mark."""
        self._marks.delete(key)
        self._count -= 1
        self._tell_count()

    def _tell_count(self) -> None:
        """The program looks into the map only while there is something in it."""
        self._told_count[:] = self._count.to_bytes(4, sys.byteorder)
