"""Sequence-number arithmetic modulo 2**32 (RFC 9293 §3.4).

Every function takes and returns plain integers 0..2**32-1.
"""

MASK = 0xFFFFFFFF
_HALF = 0x80000000


def add(seq: int, count: int) -> int:
    """`seq` moved by `count` octets (may be negative)."""
    return (seq + count) & MASK


def delta(new: int, old: int) -> int:
    """What must be added to `old` to give `new`."""
    return (new - old) & MASK


def before(first: int, second: int) -> bool:
    """Whether `first` precedes `second` on the circle; of opposite ones, neither does.

    Twin: common/bpf/include/tcp.h:is_after
    """
    return (first - second) & MASK > _HALF


def between(low: int, value: int, high: int) -> bool:
    """Whether `value` lies in `low..high`, both ends included."""
    return (value - low) & MASK <= (high - low) & MASK
