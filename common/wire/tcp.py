"""A TCP segment in an IPv4 packet: a view over its octets, and segments of our own.

Source: RFC 9293 §3.1 (header), §3.10.7.1 (answer to a segment of no connection).
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed, ipv4, options
from common.wire.checksum import checksum, word_sum
from common.wire.seq import MASK, add

HEADER_LEN = 20
# Offsets within the packet, whose IP header always has 20 octets.
TCP_OFF = ipv4.HEADER_LEN
SEQ_OFF, ACK_OFF, WINDOW_OFF, CHECKSUM_OFF, URGENT_OFF = 24, 28, 34, 36, 38
OPTIONS_OFF = TCP_OFF + HEADER_LEN
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128

_FIELDS = struct.Struct("!IIBBH")  # seq, ack, data offset, flags, window
_HEADER = struct.Struct("!HHIIBBHHH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class Segment:
    """A view of one TCP segment.

    packet:      the IPv4 packet, cut to the length that its header gives.
    five_tuple:  12 octets: source, destination, source port, destination port.
    seq, ack:    sequence numbers as sent; `ack` means nothing without the ACK flag.
    flags:       the eight bits FIN..CWR. window: as sent, unscaled.
    payload_off: offset of the payload in the packet; options lie between OPTIONS_OFF and it.
    """

    __slots__ = ("ack", "flags", "packet", "payload_off", "seq", "ts_off", "window")

    def __init__(self, packet: bytes) -> None:
        """Check the bounds of every header. Raises: Malformed."""
        total_len = ipv4.checked_len(packet)
        if total_len < OPTIONS_OFF:
            raise Malformed(DropReason.MALFORMED_TCP)
        self.packet = packet if total_len == len(packet) else packet[:total_len]
        self.seq, self.ack, data_offset, self.flags, self.window = _FIELDS.unpack_from(
            packet, SEQ_OFF
        )
        payload_off = TCP_OFF + (data_offset >> 4) * 4
        if not OPTIONS_OFF <= payload_off <= total_len:
            raise Malformed(DropReason.MALFORMED_TCP)
        self.payload_off = payload_off
        self.ts_off = (
            options.timestamps_off(packet, OPTIONS_OFF, payload_off)
            if payload_off > OPTIONS_OFF else 0
        )

    @property
    def five_tuple(self) -> bytes:
        """12 octets: source, destination, source port, destination port."""
        return self.packet[12:24]

    @property
    def options_len(self) -> int:
        """Octets of options."""
        return self.payload_off - OPTIONS_OFF

    @property
    def payload(self) -> bytes:
        """A copy of the payload."""
        return self.packet[self.payload_off:]

    @property
    def payload_len(self) -> int:
        """Octets of payload."""
        return len(self.packet) - self.payload_off

    @property
    def seq_len(self) -> int:
        """What the segment takes of the sequence space: payload, SYN and FIN (RFC 9293 §3.4)."""
        return self.payload_len + bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def timestamps(self) -> tuple[int, int] | None:
        """(TSval, TSecr), or None."""
        if not self.ts_off:
            return None
        tsval, tsecr = struct.unpack_from("!II", self.packet, self.ts_off)
        return tsval, tsecr

    def checksum_holds(self) -> bool:
        """Whether the TCP checksum is right."""
        segment = memoryview(self.packet)[TCP_OFF:]
        src, dst = self.packet[12:16], self.packet[16:20]
        total = word_sum(segment) + ipv4.pseudo_sum(src, dst, ipv4.PROTOCOL_TCP, len(segment))
        return total % 0xFFFF == 0


def reverse(five_tuple: bytes) -> bytes:
    """The five-tuple of the other direction."""
    return five_tuple[4:8] + five_tuple[:4] + five_tuple[10:12] + five_tuple[8:10]


def emit(
    five_tuple: bytes, seq: int, ack: int, flags: int, *, window: int = 0,
    option_octets: bytes = b"", payload: bytes = b"", tos: int = 0,
) -> bytes:
    """A whole IPv4 packet with one segment.

    five_tuple:    as it shall stand in this packet. option_octets: padded to words.
    """
    src, dst = five_tuple[:4], five_tuple[4:8]
    sport, dport = struct.unpack_from("!HH", five_tuple, 8)
    data_offset = (HEADER_LEN + len(option_octets)) // 4 << 4
    segment = bytearray(_HEADER.pack(
        sport, dport, seq & MASK, ack & MASK, data_offset, flags, window, 0, 0
    ))
    segment += option_octets
    segment += payload
    pseudo = ipv4.pseudo_sum(src, dst, ipv4.PROTOCOL_TCP, len(segment))
    _U16.pack_into(segment, CHECKSUM_OFF - TCP_OFF, checksum(segment, pseudo))
    return ipv4.emit(src, dst, ipv4.PROTOCOL_TCP, bytes(segment), tos=tos)


def reset_for(segment: Segment) -> bytes:
    """The RST that answers a segment of no connection (RFC 9293 §3.10.7.1)."""
    five_tuple = reverse(segment.five_tuple)
    if segment.flags & ACK:
        return emit(five_tuple, segment.ack, 0, RST)
    return emit(five_tuple, 0, add(segment.seq, segment.seq_len), RST | ACK)
