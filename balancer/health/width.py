"""How long a packet a path carries, by what padded checks find: searched for, and looked after.

A router that cannot pass a packet on should say so, and balancer/measure.py hears it. Where nobody
says anything, long packets vanish and short ones arrive: a black hole (RFC 2923 §2.1). What tells
it from loss is that it is the length that matters, again and again: silence counts only where a
short check is passed after it.
"""

from collections.abc import Iterable

# What links and tunnels leave: RFC 1191 §7.1, and PPPoE, IPIP, GRE, VXLAN, WireGuard, IPsec.
PLATEAUS = (576, 1006, 1200, 1280, 1300, 1340, 1360, 1380, 1400, 1420, 1438, 1450, 1460, 1476, 1480,
            1492, 1500, 2002, 3000)
SURE_AFTER = 3  # silences, until there is a black hole
SURE_AGAIN_AFTER = 2  # once there is one
EVERY_MS = 30_000


def ladder(shortest: int, longest: int) -> tuple[int, ...]:
    """The lengths to be tried, ascending; none where even the longest is too short."""
    if longest < shortest:
        return ()
    return (*(each for each in PLATEAUS if shortest <= each < longest), longest)


class Width:
    """Of one path. lengths: its ladder; what is wanted and noted are places in that.

    due_ms: when to try the next one.

    low:  the longest that has arrived, −1 while there is none.
    high: the shortest that has not, len(lengths) while there is none.
    """

    __slots__ = ("_high", "_low", "_silences", "due_ms", "lengths", "place")

    def __init__(self, lengths: Iterable[int]) -> None:
        self.lengths = tuple(lengths)
        self.place = len(self.lengths) - 1
        self._low, self._high = -1, len(self.lengths)
        self._silences = 0
        self.due_ms = float("-inf")

    @property
    def length(self) -> int:
        """What to try now, in octets of an IP packet."""
        return self.lengths[self.place]

    def is_due(self, now_ms: float) -> bool:
        """Whether to try it."""
        return now_ms >= self.due_ms

    def note(self, has_arrived: bool, now_ms: float) -> int | None:
        """What was tried has come to its end.

        Returns: the longest that the path carries, 0 where none does; None: that is not known yet.
        """
        place, was_known = self.place, self._is_known
        if has_arrived:
            if place >= self._high:
                self._high = len(self.lengths)  # it is wider than it was
            self._low = max(self._low, place)
        elif place < self._high:
            self._silences += 1
            if self._silences < (SURE_AFTER if self._high == len(self.lengths)
                                 else SURE_AGAIN_AFTER):
                return None
            self._high = place
            if self._low >= place:
                self._low = -1
        elif self._low >= 0:  # still too narrow for that: does it still carry the rest?
            self.place = self._low
            return None
        self._silences = 0
        if not self._is_known:
            self.place = (len(self.lengths) - 1 if self._high == len(self.lengths)
                          else (self._low + self._high) // 2)
            return None
        if not was_known or has_arrived or self._low < 0:
            self.due_ms = now_ms + EVERY_MS
        self.place = min(self._high, len(self.lengths) - 1)
        return self.lengths[self._low] if self._low >= 0 else 0

    @property
    def _is_known(self) -> bool:
        return self._high - self._low == 1
