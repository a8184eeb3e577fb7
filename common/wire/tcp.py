"""A TCP segment in an IP packet: a view over its octets, and segments of our own.

Source: RFC 9293 §3.1 (header), §3.10.7.1 (answer to a segment of no connection).
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed, five_tuple, options
from common.wire.checksum import checksum, patch, pseudo_sum, word_sum
from common.wire.family import look, of_five_tuple
from common.wire.packet import TCP, Packet
from common.wire.seq import MASK, add

HEADER_LEN, PORT_LEN = 20, 2
# Offsets within the header, to be added to where it begins.
SPORT_OFF, DPORT_OFF, SEQ_OFF, ACK_OFF, WINDOW_OFF, CHECKSUM_OFF, URGENT_OFF = (
    0, 2, 4, 8, 14, 16, 18
)
_DATA_OFFSET_OFF = 12
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128

_FIELDS = struct.Struct("!2s2sIIBBH")  # ports, seq, ack, data offset, flags, window
_HEADER = struct.Struct("!4sIIBBHHH")
_U16 = struct.Struct("!H")
_U32_PAIR = struct.Struct("!II")


class Segment:
    """A view of one TCP segment.

    packet:       the IP packet that it is in. octets: the packet's.
    off:          where the header begins, from the packet's start, as all offsets here.
    sport, dport: two octets each.
    seq, ack:     sequence numbers as sent; `ack` means nothing without the ACK flag.
    flags:        the eight bits FIN..CWR. window: as sent, unscaled.
    options_off, payload_off: where options and payload begin; the options end at the payload.
    ts_off:       where the TSval lies (TSecr follows), 0 if there is none.
    """

    __slots__ = ("ack", "dport", "flags", "octets", "off", "options_off", "packet", "payload_off",
                 "seq", "sport", "ts_off", "window")

    def __init__(self, packet: Packet) -> None:
        """Check the bounds of every header. Raises: Malformed."""
        if packet.fault is not None:
            raise Malformed(packet.fault)
        self.packet = packet
        self.octets = octets = packet.octets
        self.off = off = packet.l4_off
        self.options_off = options_off = off + HEADER_LEN
        if len(octets) < options_off:
            raise Malformed(DropReason.MALFORMED_TCP)
        self.sport, self.dport, self.seq, self.ack, data_offset, self.flags, self.window = (
            _FIELDS.unpack_from(octets, off)
        )
        self.payload_off = payload_off = off + (data_offset >> 4) * 4
        if payload_off > options_off:
            if payload_off > len(octets):
                raise Malformed(DropReason.MALFORMED_TCP)
            self.ts_off = options.timestamps_off(octets, options_off, payload_off)
        elif payload_off == options_off:
            self.ts_off = 0
        else:
            raise Malformed(DropReason.MALFORMED_TCP)

    @property
    def five_tuple(self) -> bytes:
        """Source, destination, source port, destination port (common/wire/five_tuple.py)."""
        return self.octets[self.packet.family.addresses_off:self.off + SEQ_OFF]

    @property
    def options_len(self) -> int:
        """Octets of options."""
        return self.payload_off - self.options_off

    @property
    def option_octets(self) -> bytes:
        """A copy of the options, with their padding."""
        return self.octets[self.options_off:self.payload_off]

    @property
    def payload(self) -> bytes:
        """A copy of the payload."""
        return self.octets[self.payload_off:]

    @property
    def payload_len(self) -> int:
        """Octets of payload."""
        return len(self.octets) - self.payload_off

    @property
    def seq_len(self) -> int:
        """What the segment takes of the sequence space: payload, SYN and FIN (RFC 9293 §3.4)."""
        return self.payload_len + bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def timestamps(self) -> tuple[int, int] | None:
        """(TSval, TSecr), or None."""
        if not self.ts_off:
            return None
        tsval, tsecr = _U32_PAIR.unpack_from(self.octets, self.ts_off)
        return tsval, tsecr

    def options(self) -> options.Options:
        """What the options say, as those of a SYN or SYN-ACK do."""
        return options.parse(self.octets, self.options_off, self.payload_off)

    def sack_blocks(self) -> tuple[int, int]:
        """Where the SACK blocks begin and how many there are (8 octets each), (0, 0) if none."""
        return options.sack_blocks(self.octets, self.options_off, self.payload_off)

    def checksum_holds(self) -> bool:
        """Whether the TCP checksum is right."""
        packet = self.packet
        segment = memoryview(self.octets)[self.off:]
        pseudo = pseudo_sum(packet.src + packet.dst, TCP, len(segment))
        return (word_sum(segment) + pseudo) % 0xFFFF == 0


def checked(octets: bytes) -> Segment:
    """A view of the segment in a packet's octets. Raises: Malformed."""
    return Segment(look(octets))


def sport_of(packet: Packet) -> bytes:
    """The source port, whatever the rest is. Raises: Malformed where the packet ends before it."""
    off = packet.l4_off
    port = packet.octets[off:off + DPORT_OFF]
    if len(port) < PORT_LEN:
        raise Malformed(packet.fault or DropReason.MALFORMED_TCP)
    return port


def dport_of(packet: Packet) -> bytes:
    """The destination port, as `sport_of`."""
    off = packet.l4_off
    port = packet.octets[off + DPORT_OFF:off + SEQ_OFF]
    if len(port) < PORT_LEN:
        raise Malformed(packet.fault or DropReason.MALFORMED_TCP)
    return port


def data_offset(octets: bytes | bytearray, off: int) -> int:
    """The length of the header at `off` with its options, as it says itself."""
    return (octets[off + _DATA_OFFSET_OFF] >> 4) * 4


def patch_checksum(octets: bytearray, off: int, changes: int) -> None:
    """Let the checksum of the segment at `off` follow the sum of `change(...)` terms `changes`."""
    at = off + CHECKSUM_OFF
    field = patch(octets[at] << 8 | octets[at + 1], changes)
    octets[at] = field >> 8
    octets[at + 1] = field & 0xFF


def renew_checksum(octets: bytes | bytearray) -> bytes:
    """The packet with its segment's checksum reckoned anew, whatever it was."""
    packet = look(bytes(octets))
    renewed = bytearray(octets)
    off = packet.l4_off
    _U16.pack_into(renewed, off + CHECKSUM_OFF, 0)
    pseudo = pseudo_sum(packet.src + packet.dst, TCP, len(renewed) - off)
    _U16.pack_into(renewed, off + CHECKSUM_OFF, checksum(renewed[off:], pseudo))
    return bytes(renewed)


def emit(
    ends: bytes, seq: int, ack: int, flags: int, *, window: int = 0,
    option_octets: bytes = b"", payload: bytes = b"", tos: int = 0,
) -> bytes:
    """A whole IP packet with one segment.

    ends: the five-tuple as it shall stand in this packet. option_octets: padded to words.
    """
    family = of_five_tuple(ends)
    address_len = family.address_len
    ports_off = 2 * address_len
    data_offset = (HEADER_LEN + len(option_octets)) // 4 << 4
    segment = bytearray(_HEADER.pack(
        ends[ports_off:], seq & MASK, ack & MASK, data_offset, flags, window, 0, 0
    ))
    segment += option_octets
    segment += payload
    pseudo = pseudo_sum(ends[:ports_off], TCP, len(segment))
    _U16.pack_into(segment, CHECKSUM_OFF, checksum(segment, pseudo))
    return family.emit(
        ends[:address_len], ends[address_len:ports_off], TCP, bytes(segment), tos=tos
    )


def reset_for(segment: Segment, as_if_to: bytes | None = None) -> bytes:
    """The RST that answers a segment of no connection (RFC 9293 §3.10.7.1).

    as_if_to: the address that answers, where it is not the one that the segment came to.
    """
    answered = five_tuple.reverse(segment.five_tuple)
    if as_if_to is not None:
        answered = as_if_to + answered[len(as_if_to):]
    if segment.flags & ACK:
        return emit(answered, segment.ack, 0, RST)
    return emit(answered, 0, add(segment.seq, segment.seq_len), RST | ACK)
