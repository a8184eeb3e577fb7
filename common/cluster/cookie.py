"""The SYN cookie: the initial sequence number of the SYN-ACK, checkable anywhere.

     31                              8 7   5  4  3     0
    +---------------------------------+-----+---+-------+
    |   24-bit MAC                    | MSS |SAK| WSCALE|
    +---------------------------------+-----+---+-------+

The MAC is the low 24 bits of SipHash-2-4 over the flow's addresses and ports,
client_isn and the epoch. Any balancer and any bridge that has the cluster's
secret can check a cookie and read from it what the client offered; nobody
else can make one. Checks accept the epoch before this one, since a handshake
may take a minute, and shortly before its end the next one, since hosts' clocks
may be some seconds apart. The other bits of the hash are for timestamps
(common/cluster/stamps.py).

Source: RFC 4987 §3.6; SipHash: Aumasson and Bernstein, 2012.
Twin:   common/bpf/include/cookie.h
"""

import struct
from bisect import bisect_right
from typing import NamedTuple

from siphash24 import siphash24

from common.cluster.secrets import Secrets
from common.wire.options import WSCALE_MAX

EPOCH_S = 64
SKEW_S = 16  # how far a host's clock may be ahead
WSCALE_NONE = 15

# Ascending; a client's offer is rounded down to an entry, never up.
MSS_IPV4 = (536, 1200, 1300, 1360, 1400, 1440, 1460, 8960)
MSS_IPV6 = (1220, 1280, 1300, 1340, 1380, 1420, 1440, 8940)
_MSS = {12: MSS_IPV4, 36: MSS_IPV6}  # by the length of a five-tuple

_TAIL = struct.Struct("!II")
_U64 = (1 << 64) - 1


class Offer(NamedTuple):
    """What a client offered in its SYN, as far as a cookie carries it.

    mss: octets, an entry of the table; wscale: shift 0..14, None when not offered.
    """

    mss: int
    sack: bool
    wscale: int | None


def epoch_at(now_ms: int) -> int:
    """The epoch of a unix time in ms."""
    return now_ms // (EPOCH_S * 1000) & 0xFFFFFFFF


def epochs_at(now_ms: int) -> tuple[int, ...]:
    """The epochs whose cookies are good at a unix time in ms, the likeliest first."""
    epoch = epoch_at(now_ms)
    if now_ms % (EPOCH_S * 1000) < (EPOCH_S - SKEW_S) * 1000:
        return epoch, epoch - 1
    return epoch, epoch - 1, epoch + 1


def handshake_hash(key: bytes, five_tuple: bytes, client_isn: int, epoch: int) -> int:
    """All 64 bits that vouch for a handshake: SipHash-2-4.

    five_tuple: source address, destination address, source port, destination
                port as they stand in the client's packet (12 octets with IPv4).
    """
    message = five_tuple + _TAIL.pack(client_isn, epoch & 0xFFFFFFFF)
    return siphash24(message, key=key).intdigest() & _U64  # it may be signed


def mac(key: bytes, five_tuple: bytes, client_isn: int, epoch: int) -> int:
    """The cookie's 24 bits of it."""
    return handshake_hash(key, five_tuple, client_isn, epoch) & 0xFFFFFF


def encode(
    secrets: Secrets, five_tuple: bytes, client_isn: int, epoch: int, offer: Offer
) -> int:
    """The cookie_isn for a client's SYN; an MSS under the table's first takes the first."""
    return of_hash(handshake_hash(secrets.current, five_tuple, client_isn, epoch), five_tuple,
                   offer)


def of_hash(handshake_hash: int, five_tuple: bytes, offer: Offer) -> int:
    """As `encode`, where the hash is known."""
    table = _MSS[len(five_tuple)]
    index = max(bisect_right(table, offer.mss) - 1, 0)
    wscale = WSCALE_NONE if offer.wscale is None else min(offer.wscale, WSCALE_MAX)
    return (handshake_hash & 0xFFFFFF) << 8 | index << 5 | offer.sack << 4 | wscale


def check(
    secrets: Secrets, five_tuple: bytes, client_isn: int, cookie_isn: int, now_ms: int
) -> int | None:
    """The hash behind `cookie_isn`, if that is a cookie of ours for this flow, and not too old."""
    wanted = cookie_isn >> 8
    epochs = epochs_at(now_ms)
    for key in secrets:
        if key:
            for epoch in epochs:
                found = handshake_hash(key, five_tuple, client_isn, epoch)
                if found & 0xFFFFFF == wanted:
                    return found or None
    return None


def decode(cookie_isn: int, five_tuple: bytes) -> Offer:
    """What a cookie says that the client offered; check it first."""
    wscale = cookie_isn & 0xF
    return Offer(
        mss=_MSS[len(five_tuple)][cookie_isn >> 5 & 7],
        sack=bool(cookie_isn & 0x10),
        wscale=None if wscale == WSCALE_NONE else wscale,
    )
