"""Why first data segments are refused: clocks that differ, another secret, or a forger.

A cookie that does not hold says nothing of the reason, and its client is reset a
second later. So some that are refused are tried once more, under each key and in
the epochs of ten minutes around this one, and what that shows is logged and counted:

- from an epoch to come: the balancer's clock is ahead, there is no other reason;
- from one that is over: it is behind, if no connection at all is opened meanwhile;
  else some client has waited so long after its handshake;
- of none: another secret, if no connection at all is opened; else forged, or no
  first data at all.

Where the cookie is good and the echo is not (DropReason.BAD_ECHO), the segment was for
another bridge, or is of another version of the protocol; these are only counted.

An epoch has 64 s; when its cookies arrive says more. If one that was made in epoch e
comes at `now`, the balancer's clock was within [64 e, 64 e + 64) then: each narrows
down by how much it is ahead.
"""

import logging
from enum import Enum

from common.cluster import cookie
from common.cluster.cookie import EPOCH_S, Secrets
from common.counters import Sample
from common.engine.log import fields
from packetbridge import metrics

MOST = 10  # segments a second: 42 hashes each
AROUND = 10  # epochs
WINDOW_MS = 60_000  # between two words about the same
SURE_AFTER_MS = 10_000  # that nothing is opened is no accident any more
ENOUGH = 3  # a forged one seems to be of some epoch once in 400,000
log = logging.getLogger(__name__)


class Cause(Enum):
    """What the value says."""

    AHEAD = "clock_ahead"
    LATE = "late"
    ECHO = "bad_echo"
    NONE = "secret_or_forged"


class Diagnosis:
    """What is known of the causes. ahead_s: how far the balancer's clock is ahead; 0: not known."""

    def __init__(self) -> None:
        self.ahead_s = 0
        self._counts = dict.fromkeys(Cause, 0)
        self._second = self._looked_at = 0
        self._said_ms: dict[Cause, int] = {}
        self._begin(0, 0)

    def look_at(
        self, secrets: Secrets, five_tuple: bytes, client_isn: int, cookie_isn: int, unix_ms: int
    ) -> None:
        """A segment that would be a first one, and whose cookie does not hold."""
        second = unix_ms // 1000
        if second != self._second:
            self._second, self._looked_at = second, 0
        if self._looked_at >= MOST:
            return
        self._looked_at += 1
        offset = _offset(secrets, five_tuple, client_isn, cookie_isn, cookie.epoch_at(unix_ms))
        cause = Cause.NONE
        if offset is not None:
            cause = Cause.AHEAD if offset > 0 else Cause.LATE
            least_s = EPOCH_S * (second // EPOCH_S + offset) - second
            least, most = self._bounds.get(cause, (least_s, least_s + EPOCH_S))
            self._bounds[cause] = max(least, least_s), min(most, least_s + EPOCH_S)
        self._counts[cause] += 1
        self._seen[cause] += 1

    def on_tick(self, opened: int, bad_echoes: int, now_ms: int) -> None:
        """Say what has been found. opened, bad_echoes: connections, and handoffs, up to now."""
        new = bad_echoes - self._counts[Cause.ECHO]
        self._counts[Cause.ECHO] = bad_echoes
        self._seen[Cause.ECHO] += new
        age_ms = now_ms - self._since_ms
        if not 0 <= age_ms <= WINDOW_MS:
            if age_ms < 0 or not any(self._seen.values()):
                self.ahead_s = 0
            self._begin(opened, now_ms)
            return
        nothing_opened = opened == self._opened_before and age_ms >= SURE_AFTER_MS
        if self._seen[Cause.AHEAD] >= ENOUGH:
            self._say_clock(Cause.AHEAD, "ahead of", now_ms)
        elif nothing_opened and self._seen[Cause.LATE] >= ENOUGH:
            self._say_clock(Cause.LATE, "behind", now_ms)
        elif nothing_opened and self._seen[Cause.ECHO] >= ENOUGH:
            self._say(Cause.ECHO, now_ms, "first segments are refused whose cookies are right: "
                      "the balancer has another version (accept_version_1 bears that while you "
                      "upgrade), or they were for another bridge")
        elif nothing_opened and self._seen[Cause.NONE] >= ENOUGH:
            self._say(Cause.NONE, now_ms, "no first segment's cookie holds, whatever the time: the "
                      "balancer has another secret, or they are forged; copy its secret_file here")

    def samples(self) -> list[Sample]:
        """What there is to be seen."""
        return [
            *(metrics.HANDOFFS_REFUSED.at(count, cause.value)
              for cause, count in self._counts.items()),
            metrics.CLOCK_AHEAD.at(self.ahead_s),
        ]

    def _begin(self, opened: int, now_ms: int) -> None:
        """A new window."""
        self._since_ms, self._opened_before = now_ms, opened
        self._seen = dict.fromkeys(Cause, 0)
        self._bounds: dict[Cause, tuple[int, int]] = {}

    def _say_clock(self, cause: Cause, where: str, now_ms: int) -> None:
        least, most = self._bounds[cause]
        self.ahead_s = (least + most) // 2
        self._say(cause, now_ms, f"the clock of the balancer is about {abs(self.ahead_s)} s "
                  f"{where} this host's: its handoffs are refused; synchronise both (NTP)")

    def _say(self, cause: Cause, now_ms: int, text: str) -> None:
        if abs(now_ms - self._said_ms.get(cause, -WINDOW_MS)) >= WINDOW_MS:
            self._said_ms[cause] = now_ms
            log.warning("%s", text, extra=fields(event="handoffs_refused", cause=cause.value))


def _offset(
    secrets: Secrets, five_tuple: bytes, client_isn: int, cookie_isn: int, epoch: int
) -> int | None:
    """How many epochs before or after this one a cookie was made; the nearest first."""
    wanted = cookie_isn >> 8
    for offset in sorted(range(-AROUND, AROUND + 1), key=abs):
        for key in filter(None, secrets):
            if cookie.mac(key, five_tuple, client_isn, epoch + offset) == wanted:
                return offset
    return None
