"""Timestamps that name the backend, so that any balancer can take over any flow.

The first segment's echo of our T0 is replaced by the backend's id, what proves
that the handoff is for it, and the handshake's round trip (stamps.py). The
bridge takes the proof out, and the server counts on from the rest, so its
TSvals, and the client's echo of them in every later packet, carry the backend's
id in the top bits for 2**id_shift ms (24: 4.6 hours; 27: 37 hours); and the
server measures the true round trip.

Source: RFC 7323 §3.2 (TSecr), §5.5 (PAWS: a jump must stay inside half the circle).
Twin:   balancer/offload/bpf/takeover.h
"""

from balancer.pool.pool import Backend
from common.cluster import stamps
from common.wire.seq import MASK, delta

_TOP_BIT = 31  # never set by an id: PAWS would reject the jump from T0
WRAP_SLACK_MS = 2000


def id_shift(id_bits: int) -> int:
    """By how much a backend's id of `id_bits` bits is shifted within a timestamp."""
    return _TOP_BIT - id_bits


def backend_id(tsecr: int, id_shift: int) -> int:
    """The backend that an echo names; 0 while the client has only seen our SYN-ACK."""
    return tsecr >> id_shift


def ts_shift(backend: Backend, handshake_hash: int, tsecr: int, now_ms: int) -> int:
    """What to add to the client's echoes of T0 so that they name the backend, and prove it.

    tsecr: the first segment's, i.e. T0.
    """
    proof = stamps.handoff_mac(handshake_hash, backend.address)
    return delta(backend.ts_start | proof | stamps.round_trip_ms(tsecr, now_ms), tsecr)


def may_have_wrapped(start: int, tsecr: int, age_ms: int) -> bool:
    """Whether a flow of this age can echo `tsecr` although it began at `start`."""
    return tsecr - start & MASK <= age_ms + WRAP_SLACK_MS


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
