"""ICMP errors (RFC 792): which flow they quote, and the one that we send ourselves.

An error quotes the packet that it is about: its IP header and at least 8
octets after it (RFC 792), which hold the ports and the sequence number.
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed, options, tcp
from common.wire.checksum import checksum, word_sum
from common.wire.family import look
from common.wire.packet import TCP, Packet, Rewrite

HEADER_LEN = 8
DEST_UNREACHABLE, SOURCE_QUENCH, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 4, 11, 12
FRAGMENTATION_NEEDED = 4  # code of DEST_UNREACHABLE (RFC 1191 §4)
ERRORS = (DEST_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
_CHECKSUM_OFF = 2  # within the header
_MTU_OFF = 6
_TOO_BIG = bytes([DEST_UNREACHABLE, FRAGMENTATION_NEEDED])
_QUOTED_LEN = 8  # of the quoted packet's layer 4
_MAX_ERROR_LEN = 576  # RFC 1812 §4.3.2.3

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


def is_about_tcp(packet: Packet) -> bool:
    """Whether this is an error that quotes TCP, or too little to say what.

    packet: one without a fault.
    """
    octets, off = packet.octets, packet.l4_off
    if len(octets) <= off or octets[off] not in ERRORS:
        return False
    quoted = packet.family.quoted(octets[off + HEADER_LEN:])
    return not quoted.src or quoted.protocol == TCP


def is_fragmentation_needed(packet: Packet) -> bool:
    """Whether this says that a path is narrower than a packet (RFC 1191 §4)."""
    off = packet.l4_off
    return packet.protocol == packet.family.icmp and packet.octets[off:off + 2] == _TOO_BIG


class Quote:
    """A view of an ICMP error that quotes a TCP segment.

    packet: the packet that the error is in. octets: the packet's.
    off:    where the ICMP header begins. quoted_off: where the quoted packet does.
    quoted: the packet that it quotes, whose offsets are its own. tcp_off: of its segment, in
            `octets` as all other offsets here.
    next_hop_mtu: of "fragmentation needed", in octets; 0: a router from before RFC 1191.
    quoted_len, quoted_seq: the quoted packet's whole length and its sequence number.
    """

    __slots__ = ("octets", "off", "packet", "quoted", "quoted_off", "tcp_off")

    def __init__(self, packet: Packet) -> None:
        """Check the bounds of every header. Raises: Malformed."""
        packet.check()
        self.packet = packet
        self.octets = octets = packet.octets
        self.off = packet.l4_off
        self.quoted_off = self.off + HEADER_LEN
        self.quoted = quoted = packet.family.quoted(octets[self.quoted_off:])
        self.tcp_off = self.quoted_off + quoted.l4_off
        if len(octets) < self.tcp_off + _QUOTED_LEN or octets[self.off] not in ERRORS:
            raise Malformed(DropReason.MALFORMED_ICMP)
        if quoted.fault is not None or quoted.protocol != TCP:
            raise Malformed(DropReason.MALFORMED_ICMP)

    @property
    def five_tuple(self) -> bytes:
        """That of the quoted packet, as it has it."""
        return self.octets[self.quoted_off + self.quoted.family.addresses_off:
                           self.tcp_off + tcp.SEQ_OFF]

    @property
    def next_hop_mtu(self) -> int:
        """As the class says."""
        return int(_U16.unpack_from(self.octets, self.off + _MTU_OFF)[0])

    @property
    def quoted_len(self) -> int:
        """As the class says."""
        return self.quoted.family.stated_len(self.octets[self.quoted_off:])

    @property
    def quoted_seq(self) -> int:
        """As the class says."""
        return int(_U32.unpack_from(self.octets, self.tcp_off + tcp.SEQ_OFF)[0])

    @property
    def tsval_off(self) -> int:
        """Where the quoted segment's TSval lies, 0 if the quotation does not go that far."""
        octets, off = self.octets, self.tcp_off
        start = off + tcp.HEADER_LEN
        if len(octets) < start:
            return 0
        end = min(off + tcp.data_offset(octets, off), len(octets))
        return options.timestamps_off(octets, start, end) if end > start else 0

    @property
    def tsval(self) -> int:
        """The quoted segment's TSval, 0 if the quotation does not go that far."""
        off = self.tsval_off
        return _U32.unpack_from(self.octets, off)[0] if off else 0

    def checksum_holds(self) -> bool:
        """Whether the ICMP checksum is right."""
        return word_sum(self.octets[self.off:]) == 0xFFFF


def renew_checksum(octets: bytearray, off: int) -> None:
    """Reckon the checksum of the message at `off`, which ends the packet, anew."""
    _U16.pack_into(octets, off + _CHECKSUM_OFF, 0)
    _U16.pack_into(octets, off + _CHECKSUM_OFF, checksum(octets[off:]))


def emit_fragmentation_needed(octets: bytes, mtu: int, src: bytes) -> bytes:
    """Tell the sender of a packet that the path takes `mtu` octets (RFC 1191 §4).

    octets: the packet as it arrived. src: who says so.
    """
    packet = look(octets)
    family = packet.family
    quoted = octets[:_MAX_ERROR_LEN - family.header_len - HEADER_LEN]
    message = bytearray(
        struct.pack("!BBHHH", DEST_UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
    )
    renew_checksum(message, 0)
    return family.emit(src, packet.src, family.icmp, bytes(message))


def emit_retold(quote: Quote, src: bytes, rewrite: Rewrite) -> bytes:
    """The same error about the packet as it was before it was sent on, to whoever had sent it.

    src: who says so now. rewrite: makes the quoted header the one that was sent; the quoted
    checksum of TCP follows, where the quotation goes that far.
    """
    message = bytearray(quote.octets[quote.off:])
    quoted = message[HEADER_LEN:]
    rewrite.apply(quoted)
    if len(quoted) >= quote.quoted.l4_off + tcp.CHECKSUM_OFF + 2:
        tcp.patch_checksum(quoted, quote.quoted.l4_off, rewrite.changes)
    message[HEADER_LEN:] = quoted
    renew_checksum(message, 0)
    family = quote.packet.family
    return family.emit(src, quote.packet.dst, family.icmp, bytes(message))
