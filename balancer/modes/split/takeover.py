"""Timestamps that name the backend, so that any balancer can take over any flow.

The first segment's echo of our T0 is replaced by the backend's id, what proves
that the handoff is for it, and the handshake's round trip (stamps.py). The
bridge takes the proof out, and the server counts on from the rest, so its
TSvals, and the client's echo of them in every later packet, carry the backend's
id in the top bits for 2**id_shift ms (24: 4.6 hours; 27: 37 hours); and the
server measures the true round trip.

Anybody can write such an echo. So what has nothing else to show is limited, for each prefix of
sources and over all; and a flow whose packets go on as one connection's do, three of them, is
entered in the table, where it is the first to be evicted, and limited no more. It is watched for
that also while its packets are dropped, so real flows come through any flood of strangers.

Source: RFC 7323 §3.2 (TSecr), §5.5 (PAWS: a jump must stay inside half the circle).
Twin:   balancer/offload/bpf/takeover.h
"""

from enum import Enum
from typing import NamedTuple

from balancer.pool.pool import Backend
from common.cluster import stamps
from common.wire import five_tuple
from common.wire.seq import MASK, delta

_TOP_BIT = 31  # never set by an id: PAWS would reject the jump from T0
WRAP_SLACK_MS = 2000

VOUCHED_COUNT = 3  # packets, after which a flow is limited no more
REACH = 1 << 24  # how far its numbers may move from one packet to the next
_CANDIDATES = 1 << 15  # flows that are watched; a program, which sees more of them, watches more
KEPT_MS = 2000  # for how long one that has gone on gives way to no other
PREFIXES = 4096  # limits of prefixes; some share one
PREFIX_LEN = 3  # octets
PREFIX_SHARE = 8  # of the rate: as many prefixes at their limit use it up


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


class Standing(Enum):
    """What speaks for a packet that names a backend, of a flow that the table does not know."""

    LIMITED = "too many like it"
    STRANGER = "nothing, but there is room"
    VOUCHED = "the packets before it"


class Candidate(NamedTuple):
    """The latest of a flow's packets. packets: that went on where the last one was."""

    key: bytes
    id: int
    seq: int
    ack: int
    tsecr: int
    seen_ms: int
    packets: int

    def is_of(self, other: "Candidate") -> bool:
        """Whether they are of one flow."""
        return self.key == other.key and self.id == other.id


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


class Takeovers:
    """Which packets may pass on their echo alone.

    What is kept is of fixed size: a flow has one of two places, by a hash of its five-tuple that no
    stranger can reckon, and takes that of an older one, unless this has gone on just now. Now and
    then it is the younger one that gives way, or three flows of two places would for ever push
    each other out.
    Twin: balancer/offload/bpf/takeover.h
    """

    def __init__(self, rate: int) -> None:
        """rate: of strangers, packets a second."""
        self._candidates: list[Candidate | None] = [None] * _CANDIDATES
        self.set_rate(rate)

    def set_rate(self, rate: int) -> None:
        """Let so many pass from now on."""
        self._overall = RateLimit(rate)
        self._again = RateLimit(rate)  # those that have gone on once
        self._prefix_rate = -(-rate // PREFIX_SHARE)
        self._by_prefix: list[RateLimit | None] = [None] * PREFIXES

    def judge(
        self, key: bytes, backend_id: int, seq: int, ack: int, tsecr: int, now_ms: int
    ) -> Standing:
        """Note a packet of a flow, and say whether it may pass."""
        packets = self._note(Candidate(key, backend_id, seq, ack, tsecr, now_ms, 1))
        if packets >= VOUCHED_COUNT:
            return Standing.VOUCHED
        if packets > 1:
            allowed = self._again.allows(now_ms)
        else:
            allowed = self._of_prefix(key).allows(now_ms) and self._overall.allows(now_ms)
        return Standing.STRANGER if allowed else Standing.LIMITED

    def _note(self, packet: Candidate) -> int:
        """Returns: how many packets have gone on, this one among them; 1 for a stranger's."""
        place = self._place_of(packet)
        if place is None:
            return 1
        last = self._candidates[place]
        if last is not None and last.is_of(packet):
            moves = _moves(last, packet)
            if moves is None and _is_kept(last, packet):
                return 1
            if moves is not None:
                if not moves:
                    return last.packets  # a copy, or late: says nothing
                packet = packet._replace(packets=min(last.packets + 1, VOUCHED_COUNT))
        self._candidates[place] = packet
        return packet.packets

    def _place_of(self, packet: Candidate) -> int | None:
        """Where a packet's flow is, or of its two places the one that can be had, if any can."""
        start = hash(packet.key) % _CANDIDATES & ~1
        first, second = self._candidates[start:start + 2]
        for place, last in (start, first), (start + 1, second):
            if last is not None and last.is_of(packet):
                return place
        if first is None or second is None:
            return start if first is None else start + 1
        if _is_kept(first, packet):
            return None if _is_kept(second, packet) else start + 1
        if _is_kept(second, packet):
            return start
        first_is_older = first.seen_ms <= second.seen_ms
        return start if first_is_older != _takes_the_younger(packet) else start + 1

    def _of_prefix(self, key: bytes) -> RateLimit:
        prefix = five_tuple.split(key).src[:PREFIX_LEN]
        place = hash(prefix) % PREFIXES
        limit = self._by_prefix[place]
        if limit is None:
            limit = self._by_prefix[place] = RateLimit(self._prefix_rate)
        return limit


def _takes_the_younger(packet: Candidate) -> bool:
    """One time in four, by numbers that differ from one packet of a flow to the next."""
    mixed = (packet.seq + packet.ack + packet.tsecr + packet.seen_ms) * stamps.SPREAD & MASK
    return mixed >> 30 == 0


def _is_kept(last: Candidate, packet: Candidate) -> bool:
    return last.packets > 1 and 0 <= packet.seen_ms - last.seen_ms < KEPT_MS


def _moves(last: Candidate, packet: Candidate) -> bool | None:
    """Whether a packet goes on where the last one was; None where it is elsewhere altogether."""
    steps = [new - old & MASK for new, old in (
        (packet.seq, last.seq), (packet.ack, last.ack), (packet.tsecr, last.tsecr))]
    if any(REACH <= step <= MASK + 1 - REACH for step in steps):
        return None
    return any(steps) and all(step < REACH for step in steps)
