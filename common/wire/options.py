"""TCP options (RFC 9293 §3.2): MSS, window scale and timestamps (RFC 7323), SACK (RFC 2018)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

END, NOP, MSS, WSCALE, SACK_PERMITTED, SACK, TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
WSCALE_MAX = 14  # RFC 7323 §2.3
MSS_DEFAULT = 536  # RFC 9293 §3.7.1: what no MSS option means with IPv4
TIMESTAMPS_LEN = 10
# How common stacks lay out an established segment: NOP, NOP, timestamps.
_ALIGNED_TIMESTAMPS = b"\x01\x01\x08\x0a"

_U16 = struct.Struct("!H")
_U32_PAIR = struct.Struct("!II")


class Options(NamedTuple):
    """What a SYN's options say; None or False where one was not offered.

    mss: octets. wscale: shift as sent (may exceed 14). timestamps: (TSval, TSecr).
    """

    mss: int | None = None
    sack: bool = False
    timestamps: tuple[int, int] | None = None
    wscale: int | None = None


def walk(packet: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, offset, length) of each option but NOP in `packet[start:end]`.

    Stops at END and at the first option whose length does not fit, as Linux
    does: a peer's odd tail never costs it the options before.
    """
    off = start
    while off < end:
        kind = packet[off]
        if kind == END:
            return
        if kind == NOP:
            off += 1
            continue
        if off + 2 > end:
            return
        length = packet[off + 1]
        if length < 2 or off + length > end:
            return
        yield kind, off, length
        off += length


def parse(packet: bytes | bytearray, start: int, end: int) -> Options:
    """Read the options of a SYN or SYN-ACK; a wrong length is ignored, the last one counts."""
    mss = timestamps = wscale = None
    sack = False
    for kind, off, length in walk(packet, start, end):
        if kind == MSS and length == 4:
            mss = _U16.unpack_from(packet, off + 2)[0]
        elif kind == WSCALE and length == 3:
            wscale = packet[off + 2]
        elif kind == SACK_PERMITTED and length == 2:
            sack = True
        elif kind == TIMESTAMPS and length == TIMESTAMPS_LEN:
            timestamps = _U32_PAIR.unpack_from(packet, off + 2)
    return Options(mss, sack, timestamps, wscale)


def emit(options: Options) -> bytes:
    """The options of a SYN or SYN-ACK in the layout that Linux sends, padded to words."""
    parts = []
    if options.mss is not None:
        parts.append(struct.pack("!BBH", MSS, 4, options.mss))
    if options.timestamps:
        lead = bytes((SACK_PERMITTED, 2)) if options.sack else bytes((NOP, NOP))
        parts.append(lead + struct.pack("!BBII", TIMESTAMPS, TIMESTAMPS_LEN, *options.timestamps))
    elif options.sack:
        parts.append(bytes((NOP, NOP, SACK_PERMITTED, 2)))
    if options.wscale is not None:
        parts.append(bytes((NOP, WSCALE, 3, options.wscale)))
    return b"".join(parts)


def timestamps_off(packet: bytes | bytearray, start: int, end: int) -> int:
    """Where the TSval lies in a segment's options (TSecr follows it), 0 if there is none."""
    if packet[start:start + 4] == _ALIGNED_TIMESTAMPS and end - start >= 12:
        return start + 4
    if start == end:
        return 0
    for kind, off, length in walk(packet, start, end):
        if kind == TIMESTAMPS and length == TIMESTAMPS_LEN:
            return off + 2
    return 0


def sack_blocks(packet: bytes | bytearray, start: int, end: int) -> tuple[int, int]:
    """Where the SACK blocks begin and how many there are (8 octets each), (0, 0) if none."""
    for kind, off, length in walk(packet, start, end):
        if kind == SACK and length >= 10 and (length - 2) % 8 == 0:
            return off + 2, (length - 2) // 8
    return 0, 0


def emit_sack(blocks: list[tuple[int, int]]) -> bytes:
    """A SACK option of up to three blocks (first and next sequence number), padded to words."""
    if not blocks:
        return b""
    edges = b"".join(_U32_PAIR.pack(*block) for block in blocks[:3])
    return bytes((NOP, NOP, SACK, 2 + len(edges))) + edges
