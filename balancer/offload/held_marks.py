"""Marks on held flows, so that the program leaves all their packets alone."""

import sys

from balancer.modes.split.hold import Held, HoldTable
from common.bpf.maps import Map
from common.wire.tcp import Segment


class MarkedHolds(HoldTable):
    """A HoldTable whose flows are marked in a map, so that all their packets go up."""

    def __init__(self, octets_total: int, marks: Map, told_count: memoryview) -> None:
        """told_count: where the program reads how many there are."""
        super().__init__(octets_total)
        self._marks = marks
        self._told_count = told_count

    def add(self, held: Held, segment: Segment) -> None:
        """As HoldTable."""
        if self.get(held.key) is None:
            self._marks.update(held.key, 1)
        super().add(held, segment)
        self._tell_count()

    def remove(self, held: Held) -> None:
        """As HoldTable."""
        self._marks.delete(held.key)
        super().remove(held)
        self._tell_count()

    def _tell_count(self) -> None:
        """The program looks into the map only while there is something in it."""
        self._told_count[:] = len(self).to_bytes(4, sys.byteorder)
