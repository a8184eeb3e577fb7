"""Five-tuples: source, destination, source port and destination port, as they stand in a packet.

All are octets in network order, one after the other without a gap: 12 with
IPv4. The protocol is told by the table that a five-tuple is the key of.
"""

from typing import NamedTuple

_PORT_LEN = 2


class Ends(NamedTuple):
    """A five-tuple, taken apart. Each is octets as on the wire."""

    src: bytes
    dst: bytes
    sport: bytes
    dport: bytes


def split(five_tuple: bytes) -> Ends:
    """Take a five-tuple apart."""
    ports_off = len(five_tuple) - 2 * _PORT_LEN
    dst_off, dport_off = ports_off >> 1, ports_off + _PORT_LEN
    return Ends(five_tuple[:dst_off], five_tuple[dst_off:ports_off],
                five_tuple[ports_off:dport_off], five_tuple[dport_off:])


def join(src: bytes, dst: bytes, sport: bytes, dport: bytes) -> bytes:
    """The inverse of `split`."""
    return src + dst + sport + dport


def reverse(five_tuple: bytes) -> bytes:
    """The five-tuple of the other direction."""
    ports_off = len(five_tuple) - 2 * _PORT_LEN
    dst_off, dport_off = ports_off >> 1, ports_off + _PORT_LEN
    return (five_tuple[dst_off:ports_off] + five_tuple[:dst_off]
            + five_tuple[dport_off:] + five_tuple[ports_off:dport_off])
