"""What balancers and bridges must agree on about timestamps (docs/wire.md).

The SYN-ACK's TSval T0, and the TSecr of the handoff, prove more than a cookie has room for:

     T0                               TSecr of a handoff
     31    24 23          10 9     0  31    24 23          10 9         0
    +--------+--------------+-------+ +--------+--------------+-----------+
    |   0    |    MAC 14    | clock | |   id   |    MAC 14    | round trip|
    +--------+--------------+-------+ +--------+--------------+-----------+

Both MACs are of the hash whose lowest 24 bits are the cookie's MAC. A client sees that of T0, and
has to echo it. That of the handoff it never sees; it names the backend that the handoff is for.
With fewer bits of id, zeros stand below the id.

Twin: common/bpf/include/stamps.h
"""

MIN_ROUND_TRIP_MS, MAX_ROUND_TRIP_MS = 1, 333  # of a handshake, as the handoff's echo tells it
CLOCK_BITS = 10
CLOCK_MASK = 1023
T0_MAC_SHIFT = 24  # in the hash: the cookie has the bits below
SECRET_SHIFT = 38  # in the hash: what no client ever sees has the bits from there on
STAMP_MAC_MASK = 0xFFFC00  # in T0, and in a handoff's TSecr
T0_MASK = 0xFFFFFF
T0_VERSION_1_MASK = 0x3FFFFF  # a clock alone
SPREAD = 0x9E3779B1  # odd

_U32 = 0xFFFFFFFF


def t0(handshake_hash: int, now_ms: int) -> int:
    """The SYN-ACK's TSval: never 0, and its top octet is, so that the echo names no backend."""
    return _t0_mac(handshake_hash) | now_ms & CLOCK_MASK or 1


def is_t0(handshake_hash: int, tsecr: int) -> bool:
    """Whether an echo is of the SYN-ACK's TSval of that handshake, at whatever time."""
    return tsecr & ~CLOCK_MASK == _t0_mac(handshake_hash)


def age_ms(t0: int, now_ms: int) -> int:
    """How long ago T0 was told, modulo 1024."""
    return now_ms - t0 & CLOCK_MASK


def round_trip_ms(t0: int, now_ms: int) -> int:
    """A handshake's round trip, within bounds."""
    return min(max(age_ms(t0, now_ms), MIN_ROUND_TRIP_MS), MAX_ROUND_TRIP_MS)


def handoff_mac(handshake_hash: int, bridge: bytes) -> int:
    """What a handoff's TSecr proves, in its place there. bridge: the address that it is for.

    The product's top bits depend on all bits of the secret, and on the address.
    """
    secret = handshake_hash >> SECRET_SHIFT << 6 & _U32
    number = int.from_bytes(bridge[-4:])
    return (secret * (number * SPREAD & _U32 | 1) & _U32) >> 18 << CLOCK_BITS


def check_mark(handshake_hash: int) -> int:
    """A health check's TSval: what of the hash no client ever sees, so none can call itself one."""
    return handshake_hash >> SECRET_SHIFT


def stripped(tsecr: int) -> int:
    """A handoff's TSecr without its MAC: from there the server's clock counts on."""
    return tsecr & ~STAMP_MAC_MASK


def _t0_mac(handshake_hash: int) -> int:
    """T0's MAC, in its place there."""
    return (handshake_hash >> T0_MAC_SHIFT & STAMP_MAC_MASK >> CLOCK_BITS) << CLOCK_BITS
