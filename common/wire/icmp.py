"""ICMP errors (RFC 792): which flow they quote, and the one that we send ourselves.

An error quotes the packet that it is about: its IP header and at least 8
octets after it (RFC 792), which hold the ports and the sequence number.
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed, ipv4, options
from common.wire.checksum import checksum

HEADER_LEN = 8
DEST_UNREACHABLE, SOURCE_QUENCH, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 4, 11, 12
FRAGMENTATION_NEEDED = 4  # code of DEST_UNREACHABLE (RFC 1191 §4)
ERRORS = (DEST_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
_ERROR_OCTETS = tuple(bytes([kind]) for kind in ERRORS)
ICMP_OFF = ipv4.HEADER_LEN
CHECKSUM_OFF = ICMP_OFF + 2
QUOTE_OFF = ICMP_OFF + HEADER_LEN
QUOTE_TCP_OFF = QUOTE_OFF + ipv4.HEADER_LEN
_QUOTED_LEN = 8
_MAX_ERROR_LEN = 576  # RFC 1812 §4.3.2.3

_U16 = struct.Struct("!H")


def is_about_tcp(packet: bytes) -> bool:
    """Whether this is an error that quotes TCP, or too little to say what.

    packet: one whose IP header holds.
    """
    off = QUOTE_OFF + ipv4.PROTOCOL_OFF
    return (
        packet[ICMP_OFF:ICMP_OFF + 1] in _ERROR_OCTETS
        and packet[off:off + 1] in (b"", bytes([ipv4.PROTOCOL_TCP]))
    )


class Quote:
    """A view of an ICMP error that quotes a TCP segment in an IPv4 packet.

    packet:     the ICMP packet, cut to the length that its header gives.
    five_tuple: 12 octets, as the quoted packet has them.
    """

    __slots__ = ("packet",)

    def __init__(self, packet: bytes) -> None:
        """Check the bounds of every header. Raises: Malformed."""
        total_len = ipv4.checked_len(packet)
        packet = packet[:total_len]
        if total_len < QUOTE_TCP_OFF + _QUOTED_LEN or packet[ICMP_OFF] not in ERRORS:
            raise Malformed(DropReason.MALFORMED_ICMP)
        if packet[QUOTE_OFF] != 0x45 or packet[QUOTE_OFF + 9] != ipv4.PROTOCOL_TCP:
            raise Malformed(DropReason.MALFORMED_ICMP)
        self.packet = packet

    @property
    def five_tuple(self) -> bytes:
        """12 octets: source, destination, source port, destination port of the quoted packet."""
        return self.packet[QUOTE_OFF + 12:QUOTE_OFF + 24]

    @property
    def tsval_off(self) -> int:
        """Where the quoted segment's TSval lies, 0 if the quotation does not go that far."""
        start = QUOTE_TCP_OFF + 20
        if len(self.packet) < start:
            return 0
        end = min(QUOTE_TCP_OFF + (self.packet[QUOTE_TCP_OFF + 12] >> 4) * 4, len(self.packet))
        return options.timestamps_off(self.packet, start, end) if end > start else 0

    @property
    def tsval(self) -> int:
        """The quoted segment's TSval, 0 if the quotation does not go that far."""
        off = self.tsval_off
        return struct.unpack_from("!I", self.packet, off)[0] if off else 0


def emit_fragmentation_needed(packet: bytes, mtu: int, src: bytes) -> bytes:
    """Tell the sender of `packet` that the path takes `mtu` octets (RFC 1191 §4).

    packet: as it arrived. src: who says so, 4 octets.
    """
    quoted = packet[:_MAX_ERROR_LEN - ipv4.HEADER_LEN - HEADER_LEN]
    message = bytearray(
        struct.pack("!BBHHH", DEST_UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
    )
    _U16.pack_into(message, 2, checksum(message))
    return ipv4.emit(src, packet[12:16], ipv4.PROTOCOL_ICMP, bytes(message))
