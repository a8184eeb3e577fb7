"""Cookies that are spent: their first data segment has opened a connection, and opens no second.

A cookie holds for minutes, its connection may be over in an instant. Whoever has
seen the first data segment could send it again then, and it would be executed
again. So the hash that vouches for a handshake (common/cluster/cookie.py) is
remembered once its connection is open: not before, since a handoff that the server
did not take comes again and must be served. A segment that comes again while its
connection is there is none of this: whoever asks has looked the flow up before.

The hash is of five-tuple, client's ISN, epoch and key, so no two handshakes have
the same. A bucket has the fingerprints of the last fifteen; the newest takes the
oldest's place. Nothing is swept and no clock is asked, and where more come than
there is room for, old ones are forgotten: no connection is refused for that. One in
three hundred million is refused because its fingerprint is another's.

Twin: packetbridge/offload/bpf/spent.h
"""

import struct
from typing import Protocol

SPENT_IN_BUCKET = 15  # with their count, a line of cache
BUCKET = struct.Struct("=16I")  # of all that have come, the count; then fingerprints


class Buckets(Protocol):
    """Where buckets lie, 64 octets each; a power of two of them."""

    count: int

    def read(self, index: int) -> bytes: ...
    def write(self, index: int, bucket: bytes) -> None: ...


class MemoryBuckets:
    """In this process's memory, of which the kernel gives what is written to."""

    def __init__(self, handoffs: int) -> None:
        """handoffs: how many shall be remembered at least."""
        self.count = bucket_count(handoffs)
        self._octets = bytearray(self.count * BUCKET.size)

    def read(self, index: int) -> bytes:
        """As Buckets."""
        return bytes(self._octets[index * BUCKET.size:(index + 1) * BUCKET.size])

    def write(self, index: int, bucket: bytes) -> None:
        """As Buckets."""
        self._octets[index * BUCKET.size:(index + 1) * BUCKET.size] = bucket


class SpentCookies:
    """The filter. places: several where programs have their own; each is told of all."""

    def __init__(self, *places: Buckets) -> None:
        self._places = places

    def __contains__(self, handshake_hash: int) -> bool:
        """Whether a connection has been opened by it."""
        fingerprint = _fingerprint(handshake_hash)
        return any(
            fingerprint in BUCKET.unpack(place.read(handshake_hash & place.count - 1))[1:]
            for place in self._places
        )

    def add(self, handshake_hash: int) -> None:
        """A connection has been opened by it."""
        fingerprint = _fingerprint(handshake_hash)
        for place in self._places:
            index = handshake_hash & place.count - 1
            count, *fingerprints = BUCKET.unpack(place.read(index))
            if fingerprint not in fingerprints:
                fingerprints[count % SPENT_IN_BUCKET] = fingerprint
                place.write(index, BUCKET.pack(count + 1 & 0xFFFFFFFF, *fingerprints))


def bucket_count(handoffs: int) -> int:
    """How many buckets have room for so many handoffs: a power of two."""
    return 1 << (max(1, -(-handoffs // SPENT_IN_BUCKET)) - 1).bit_length()


def _fingerprint(handshake_hash: int) -> int:
    """Never 0, which is a free place's."""
    return handshake_hash >> 32 or 1
