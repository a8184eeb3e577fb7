"""Flows that nobody knows yet: patience for a second, then a reset.

A second segment may overtake the first, so an unknown flow is never reset at
once; one that is still unknown a second later has lost its state, and a reset
tells its client so. The memory of them is bounded: the oldest is forgotten,
first of a source prefix that has more than its share (common/flow/crowd.py).
"""

from common.flow.crowd import Crowd

PATIENCE_MS = 1000
FORGET_MS = 60_000


class UnknownFlows:
    """When each unknown flow was first seen, for at most `size` of them."""

    def __init__(self, size: int = 65536) -> None:
        self._first_seen_ms: Crowd[int] = Crowd(size)

    def __len__(self) -> int:
        return len(self._first_seen_ms)

    def is_lost(self, key: bytes, now_ms: int) -> bool:
        """Note a packet of the unknown flow `key`; True when it is time to reset it."""
        seen = self._first_seen_ms
        first_ms = seen.get(key)
        if first_ms is not None:
            age_ms = now_ms - first_ms
            if age_ms < PATIENCE_MS:
                return False
            seen.remove(key, 1)
            if age_ms <= FORGET_MS:
                return True
        seen.put(key, now_ms, 1)
        crowded_out = seen.crowded_by(key)
        if crowded_out is not None:
            seen.remove(crowded_out, 1)
        return False

    def forget(self, key: bytes) -> None:
        """The flow is known now."""
        if key in self._first_seen_ms:
            self._first_seen_ms.remove(key, 1)
