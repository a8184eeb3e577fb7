"""The IPv4 header (RFC 791 §3.1), as far as a load balancer reads and writes it.

Packets with IP options and fragments are not carried, so every header without
a fault has 20 octets.
"""

import struct

from common.verdict import DropReason
from common.wire.checksum import change, checksum, fold, patch
from common.wire.packet import ICMP, TTL, Packet

_HEADER_LEN, _ADDRESS_LEN = 20, 4
_TOS_OFF, _LENGTH_OFF, _TTL_OFF, _CHECKSUM_OFF, _SRC_OFF, _DST_OFF = 1, 2, 8, 10, 12, 16
_DONT_FRAGMENT = 0x4000
_MORE_OR_OFFSET = 0x3FFF

_HEADER = struct.Struct("!BBHHHBBH4s4s")
_READ = struct.Struct("!BBHxxHBBxx4s4s")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class Ipv4:
    """As packet.Family."""

    name = "IPv4"
    header_len = _HEADER_LEN
    address_len = _ADDRESS_LEN
    addresses_off = _SRC_OFF
    icmp = ICMP

    def look(self, octets: bytes) -> Packet:
        """As packet.Family. Faults: MALFORMED_IP, IP_OPTIONS or FRAGMENT."""
        packet = Packet()
        packet.family = self
        packet.octets = octets
        if len(octets) < _HEADER_LEN:
            return _too_short(packet)
        (
            version_ihl, packet.tos, total_len, fragment, packet.ttl, packet.protocol, packet.src,
            packet.dst,
        ) = _READ.unpack_from(octets)
        packet.l4_off = _HEADER_LEN
        packet.fault = None
        if version_ihl != 0x45 or total_len != len(octets) or fragment & _MORE_OR_OFFSET:
            _judge(packet, version_ihl, total_len, fragment)
        return packet

    def quoted(self, octets: bytes) -> Packet:
        """As packet.Family (RFC 792: the header and at least 8 octets)."""
        packet = self.look(octets)
        if packet.src and octets[0] == 0x45:
            packet.octets, packet.fault = octets, None
        return packet

    def stated_len(self, octets: bytes) -> int:
        """As packet.Family."""
        return int(_U16.unpack_from(octets, _LENGTH_OFF)[0])

    def emit(
        self, src: bytes, dst: bytes, protocol: int, payload: bytes, *, tos: int = 0,
        ttl: int = TTL,
    ) -> bytes:
        """As packet.Family."""
        header = bytearray(_HEADER.pack(
            0x45, tos, _HEADER_LEN + len(payload), 0, _DONT_FRAGMENT, ttl, protocol, 0, src, dst
        ))
        _U16.pack_into(header, _CHECKSUM_OFF, checksum(header))
        return bytes(header) + payload

    def source_is_possible(self, src: bytes) -> bool:
        """As packet.Family (RFC 1122 §3.2.1.3)."""
        return src[0] not in (0, 127) and src[0] < 224

    def rewrite_src(self, old: bytes, new: bytes, *, hops: int = 0) -> "Rewrite":
        """As packet.Family."""
        return Rewrite(_SRC_OFF, old, new, hops, 0xFF, 0)

    def rewrite_dst(
        self, old: bytes, new: bytes, *, hops: int = 0, tos_mask: int = 0xFF, tos_bits: int = 0
    ) -> "Rewrite":
        """As packet.Family."""
        return Rewrite(_DST_OFF, old, new, hops, tos_mask, tos_bits)


IPV4 = Ipv4()


class Rewrite:
    """As packet.Rewrite.

    What the new address and the hops add to a checksum is the same for every
    packet of a flow, so it is reckoned once (RFC 1624 §3, eqn. 3).
    """

    __slots__ = ("_end", "_header_changes", "_hops", "_new", "_off", "_tos_bits", "_tos_mask",
                 "changes")

    def __init__(
        self, off: int, old: bytes, new: bytes, hops: int, tos_mask: int, tos_bits: int
    ) -> None:
        self._off, self._end = off, off + _ADDRESS_LEN
        self._new = new
        self._hops = hops
        self._tos_mask, self._tos_bits = tos_mask, tos_bits
        self.changes = fold(change(_U32.unpack(old)[0], _U32.unpack(new)[0]))
        # 0xffff, which is 0 in a checksum, so that no TOS makes the sum less than 1
        self._header_changes = fold(self.changes + change(hops << 8, 0)) + 0xFFFF

    def apply(self, octets: bytearray) -> None:
        """As packet.Rewrite."""
        tos = octets[_TOS_OFF]
        octets[_TOS_OFF] = new_tos = tos & self._tos_mask | self._tos_bits
        octets[_TTL_OFF] -= self._hops
        field = octets[_CHECKSUM_OFF] << 8 | octets[_CHECKSUM_OFF + 1]
        field = patch(field, self._header_changes + new_tos - tos)
        octets[_CHECKSUM_OFF] = field >> 8
        octets[_CHECKSUM_OFF + 1] = field & 0xFF
        octets[self._off:self._end] = self._new


def with_length(octets: bytes, total_len: int) -> bytes:
    """The packet, whose length is `total_len` if its header leaves that to the sender's NIC (0)."""
    header_len = 4 * (octets[0] & 15) if octets else 0
    if octets[_LENGTH_OFF:_LENGTH_OFF + 2] != bytes(2) or total_len > 0xFFFF \
            or not _HEADER_LEN <= header_len <= len(octets):
        return octets
    header = bytearray(octets[:header_len])
    _U16.pack_into(header, _LENGTH_OFF, total_len)
    _U16.pack_into(header, _CHECKSUM_OFF, 0)
    _U16.pack_into(header, _CHECKSUM_OFF, checksum(header))
    return bytes(header) + octets[header_len:]


def _judge(packet: Packet, version_ihl: int, total_len: int, fragment: int) -> None:
    """Find the fault of an unusual header, if it is one."""
    if version_ihl != 0x45:
        packet.fault = DropReason.MALFORMED_IP
        if version_ihl >> 4 == 4 and version_ihl > 0x45:
            packet.fault = DropReason.IP_OPTIONS
            packet.l4_off = (version_ihl & 0xF) * 4
    elif not _HEADER_LEN <= total_len <= len(packet.octets):
        packet.fault = DropReason.MALFORMED_IP
    elif fragment & _MORE_OR_OFFSET:
        packet.fault = DropReason.FRAGMENT
    else:  # a link's padding lies after the packet
        packet.octets = packet.octets[:total_len]


def _too_short(packet: Packet) -> Packet:
    """A view of what has not even a header."""
    packet.src = packet.dst = b""
    packet.protocol = packet.tos = packet.ttl = packet.l4_off = 0
    packet.fault = DropReason.MALFORMED_IP
    return packet
