"""The IPv4 header (RFC 791 §3.1), as far as a load balancer reads and writes it.

Packets with IP options and fragments are not carried (`Malformed`), so every
header that passes `checked` has 20 octets, and offsets are constants.
"""

import struct

from common.encap.dscp import with_dscp
from common.verdict import DropReason
from common.wire import Malformed
from common.wire.checksum import change, checksum, fold, patch, word_sum

HEADER_LEN = 20
TOS_OFF, TTL_OFF, PROTOCOL_OFF, CHECKSUM_OFF, SRC_OFF, DST_OFF = 1, 8, 9, 10, 12, 16
PROTOCOL_ICMP, PROTOCOL_TCP = 1, 6
TTL = 64
DONT_FRAGMENT = 0x4000
_MORE_OR_OFFSET = 0x3FFF

HEADER = struct.Struct("!BBHHHBBH4s4s")
_START = struct.Struct("!BxHxxH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_PSEUDO = struct.Struct("!4s4sBBH")


def checked_len(packet: bytes) -> int:
    """The packet's length by its header, once its bounds hold; a link's padding lies after it.

    Raises: Malformed: MALFORMED_IP, IP_OPTIONS or FRAGMENT.
    """
    if len(packet) < HEADER_LEN:
        raise Malformed(DropReason.MALFORMED_IP)
    version_ihl, total_len, fragment = _START.unpack_from(packet)
    if version_ihl != 0x45:
        if version_ihl >> 4 == 4 and version_ihl > 0x45:
            raise Malformed(DropReason.IP_OPTIONS)
        raise Malformed(DropReason.MALFORMED_IP)
    if not HEADER_LEN <= total_len <= len(packet):
        raise Malformed(DropReason.MALFORMED_IP)
    if fragment & _MORE_OR_OFFSET:
        raise Malformed(DropReason.FRAGMENT)
    return total_len


def emit(
    src: bytes, dst: bytes, protocol: int, payload: bytes, *, tos: int = 0, ttl: int = TTL
) -> bytes:
    """A whole packet that must not be fragmented.

    src, dst: 4 octets each. tos: the whole octet.
    """
    header = bytearray(HEADER.pack(
        0x45, tos, HEADER_LEN + len(payload), 0, DONT_FRAGMENT, ttl, protocol, 0, src, dst
    ))
    _U16.pack_into(header, CHECKSUM_OFF, checksum(header))
    return bytes(header) + payload


def pseudo_sum(src: bytes, dst: bytes, protocol: int, payload_len: int) -> int:
    """The pseudo-header's share of a TCP checksum (RFC 9293 §3.1)."""
    return word_sum(_PSEUDO.pack(src, dst, 0, protocol, payload_len))


def source_is_possible(src: bytes) -> bool:
    """Whether a packet from the network can have this source (RFC 1122 §3.2.1.3)."""
    return src[0] not in (0, 127) and src[0] < 224


def set_source(packet: bytearray, src: bytes) -> None:
    """Write another source into an IPv4 header in place; its checksum is patched.

    src: 4 octets. What covers the addresses as well, as TCP's checksum does, is not looked at.
    Source: RFC 1624 §3, eqn. 3.
    """
    field = _U16.unpack_from(packet, CHECKSUM_OFF)[0]
    changes = change(_U32.unpack_from(packet, SRC_OFF)[0], _U32.unpack(src)[0])
    _U16.pack_into(packet, CHECKSUM_OFF, patch(field, changes))
    packet[SRC_OFF:SRC_OFF + 4] = src


class Rewrite:
    """A change of destination or source address, DSCP and TTL, applied to many packets.

    What the new address adds to a checksum is the same for every packet of a
    flow, so it is reckoned once, from the old and the new address.

    off:  SRC_OFF or DST_OFF.
    dscp: codepoint to write, or None to leave the packet's own.
    hops: what the TTL loses: 1 where a packet passes on, 0 where it is just being made.
    Twin: common/bpf/include/ipv4.h:rewrite
    """

    __slots__ = ("_changes", "_dscp", "_hops", "_new", "_off")

    def __init__(
        self, off: int, old: bytes, new: bytes, dscp: int | None = None, *, hops: int = 1
    ) -> None:
        self._off = off
        self._hops = hops
        self._new = new
        self._dscp = dscp
        self._changes = fold(change(_U32.unpack(old)[0], _U32.unpack(new)[0]))

    def apply(self, packet: bytearray) -> int:
        """Rewrite the IP header in place and return what the TCP checksum must be patched by."""
        tos = packet[TOS_OFF]
        new_tos = tos if self._dscp is None else with_dscp(tos, self._dscp)
        ttl = packet[TTL_OFF]
        new_ttl = ttl - self._hops
        packet[TOS_OFF] = new_tos
        packet[TTL_OFF] = new_ttl
        field = packet[CHECKSUM_OFF] << 8 | packet[CHECKSUM_OFF + 1]
        changes = self._changes + change(tos, new_tos) + change(ttl << 8, new_ttl << 8)
        _U16.pack_into(packet, CHECKSUM_OFF, patch(field, changes))
        packet[self._off:self._off + 4] = self._new
        return self._changes
