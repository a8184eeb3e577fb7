"""A UDP datagram in an IP packet: a view over its octets.

Source: RFC 768.
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed
from common.wire.checksum import pseudo_sum, word_sum
from common.wire.packet import UDP, Packet

HEADER_LEN = 8
# Offsets within the header, to be added to where it begins.
SPORT_OFF, DPORT_OFF, LENGTH_OFF, CHECKSUM_OFF = 0, 2, 4, 6

_FIELDS = struct.Struct("!2s2sHH")


class Datagram:
    """A view of one UDP datagram.

    packet:       the IP packet that it is in. octets: the packet's.
    off:          where the header begins. payload_off: where the payload does.
    sport, dport: two octets each. checksum: 0 where the sender made none (with IPv4).
    """

    __slots__ = ("checksum", "dport", "octets", "off", "packet", "payload_off", "sport")

    def __init__(self, packet: Packet) -> None:
        """Check the bounds of every header. Raises: Malformed."""
        if packet.fault is not None:
            raise Malformed(packet.fault)
        self.packet = packet
        self.octets = octets = packet.octets
        self.off = off = packet.l4_off
        self.payload_off = off + HEADER_LEN
        if len(octets) < self.payload_off:
            raise Malformed(DropReason.MALFORMED_IP)
        self.sport, self.dport, length, self.checksum = _FIELDS.unpack_from(octets, off)
        if length != len(octets) - off:
            raise Malformed(DropReason.MALFORMED_IP)

    @property
    def five_tuple(self) -> bytes:
        """Source, destination, source port, destination port (common/wire/five_tuple.py)."""
        return self.octets[self.packet.family.addresses_off:self.off + LENGTH_OFF]

    @property
    def payload(self) -> bytes:
        """A copy of the payload."""
        return self.octets[self.payload_off:]

    def checksum_holds(self) -> bool:
        """Whether the checksum is right, or was not made."""
        packet = self.packet
        datagram = memoryview(self.octets)[self.off:]
        pseudo = pseudo_sum(packet.src + packet.dst, UDP, len(datagram))
        return not self.checksum or (word_sum(datagram) + pseudo) % 0xFFFF == 0
