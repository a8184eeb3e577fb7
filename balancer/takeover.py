"""Timestamps that name the backend, so that any balancer can take over any flow.

The first segment's echo of our T0 is replaced by `(id << 24) + el`, where `el`
is the handshake's round trip. The server counts on from there, so its TSvals,
and the client's echo of them in every later packet, carry the backend's id in
the top octet for 2**24 ms; and the server measures the true round trip.

Source: RFC 7323 §3.2 (TSecr), §5.5 (PAWS: a jump must stay inside half the circle).
Twin:   balancer/bpf/takeover.h
"""

from balancer.handshake import CLOCK_MASK, clock
from common.seq import MASK, delta

ID_SHIFT = 24
_ROUND_TRIP_MS = range(1, 334)
_WRAP_SLACK_MS = 2000


def backend_id(tsecr: int) -> int:
    """The backend that an echo names; 0 while the client has only seen our SYN-ACK."""
    return tsecr >> ID_SHIFT


def ts_shift(chosen_id: int, tsecr: int, now_ms: int) -> int:
    """What to add to the client's first echoes so that they name the backend.

    tsecr: the first segment's, i.e. T0.
    """
    round_trip_ms = clock(now_ms) - tsecr & CLOCK_MASK
    round_trip_ms = min(max(round_trip_ms, _ROUND_TRIP_MS.start), _ROUND_TRIP_MS.stop - 1)
    return delta((chosen_id << ID_SHIFT) + round_trip_ms, tsecr)


def may_have_wrapped(entry_id: int, tsecr: int, age_ms: int) -> bool:
    """Whether a flow of this age can echo `tsecr` although it began at `entry_id`."""
    return tsecr - (entry_id << ID_SHIFT) & MASK <= age_ms + _WRAP_SLACK_MS


class RateLimit:
    """At most `rate` packets a second, on average over a second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._allowance = float(rate)
        self._last_ms = 0

    def allows(self, now_ms: int) -> bool:
        """Whether one more packet may pass now."""
        elapsed_ms = max(now_ms - self._last_ms, 0)
        self._last_ms = now_ms
        self._allowance = min(self._rate, self._allowance + elapsed_ms * self._rate / 1000)
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True
