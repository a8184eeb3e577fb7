"""Whether new flows come faster than they should: then no open one is evicted for them."""

_WINDOW_MS = 2000  # the program's counters are collected once a second


class Flood:
    """Compares a counter's growth with a rate. rate: a second."""

    def __init__(self, rate: int) -> None:
        self.set_rate(rate)
        self._count = 0
        self._next_ms = 0
        self.is_on = False

    def set_rate(self, rate: int) -> None:
        """Compare with another one from now on."""
        self._most = rate * _WINDOW_MS // 1000

    def watch(self, count: int, now_ms: int) -> None:
        """Note what the counter says. now_ms: unix time in ms."""
        if 0 < self._next_ms - now_ms <= _WINDOW_MS:
            return
        self.is_on = count - self._count > self._most
        self._count = count
        self._next_ms = now_ms + _WINDOW_MS
