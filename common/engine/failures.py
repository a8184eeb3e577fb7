"""What the kernel would not send: counted, and said with its error, but not too often."""

import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable

from common.engine.log import fields

EVERY_S = 10
_MOST_KINDS = 16  # of which each is said; a flood has any number of destinations
log = logging.getLogger(__name__)


class Failures:
    """The first of a kind is said at once; what follows is counted, and said together later.

    total: of all times. clock_s: a clock that never goes back.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self._clock_s = clock_s
        self._next_s = 0.0
        self._unsaid: Counter[tuple[int, bytes]] = Counter()
        self._others = 0

    def note(self, error: OSError, destination: bytes) -> None:
        """A packet was not sent. destination: 4 octets."""
        self.total += 1
        kind = error.errno or 0, destination
        if kind in self._unsaid or len(self._unsaid) < _MOST_KINDS:
            self._unsaid[kind] += 1
        else:
            self._others += 1
        self.say()

    def say(self) -> None:
        """Say what is not said yet, unless something was said within the last seconds."""
        if not self._unsaid or self._clock_s() < self._next_s:
            return
        self._next_s = self._clock_s() + EVERY_S
        for (number, destination), count in self._unsaid.items():
            packets, were = ("packet", "was") if count == 1 else ("packets", "were")
            where = socket.inet_ntoa(destination)
            log.warning("%d %s to %s %s not sent: %s (errno %d)%s", count, packets, where, were,
                        os.strerror(number), number, _remedy(number, where),
                        extra=fields(event="send_failed", destination=where, errno=number,
                                     count=count))
        if self._others:
            log.warning("%d packets to other destinations were not sent", self._others)
        self._unsaid.clear()
        self._others = 0


def _remedy(number: int, destination: str) -> str:
    """What to look at, where an error says it."""
    looks_at = {
        errno.ENETUNREACH: f"ip route get {destination}",
        errno.EHOSTUNREACH: f"ip neigh show {destination}",
        errno.EPERM: "this host's firewall",
        errno.ENOBUFS: "ip -s link, and the queue of the interface",
    }
    return f"; look at {looks_at[number]}" if number in looks_at else ""
