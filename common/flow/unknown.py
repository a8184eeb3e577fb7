"""Flows that nobody knows yet: patience for a second, then a reset.

A second segment may overtake the first, so an unknown flow is never reset at
once; one that is still unknown a second later has lost its state, and a reset
tells its client so. The memory of them is bounded: the oldest is forgotten.
"""

PATIENCE_MS = 1000
FORGET_MS = 60_000


class UnknownFlows:
    """When each unknown flow was first seen, for at most `size` of them."""

    def __init__(self, size: int = 65536) -> None:
        self._size = size
        self._first_seen_ms: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._first_seen_ms)

    def is_lost(self, key: bytes, now_ms: int) -> bool:
        """Note a packet of the unknown flow `key`; True when it is time to reset it."""
        first_ms = self._first_seen_ms.get(key)
        if first_ms is not None and PATIENCE_MS <= now_ms - first_ms <= FORGET_MS:
            del self._first_seen_ms[key]
            return True
        if first_ms is None or now_ms - first_ms > FORGET_MS:
            self._first_seen_ms.pop(key, None)
            if len(self._first_seen_ms) >= self._size:
                del self._first_seen_ms[next(iter(self._first_seen_ms))]
            self._first_seen_ms[key] = now_ms
        return False

    def forget(self, key: bytes) -> None:
        """The flow is known now."""
        self._first_seen_ms.pop(key, None)
