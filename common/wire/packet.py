"""A view of one IP packet, and what there is to know of its family.

A packet is looked at before anybody knows whether it is ours, so a look never
raises: what speaks against carrying the packet is its `fault`, which counts
only where it is ours to carry. Views of layer 4 (tcp.Segment, udp.Datagram) are
made of a packet without a fault, and reckon their offsets from `l4_off`.

A family is a value: everything that differs between IPv4 and another one is a
method or a number of it, and a packet knows its own (`packet.family`).
"""

from __future__ import annotations

from typing import Protocol

from common.verdict import DropReason
from common.wire import Malformed

ICMP, TCP, UDP = 1, 6, 17  # protocols, the same in all families but for ICMP's
TTL = 64  # of what we send ourselves
ECN_MASK = 3  # of a TOS octet (RFC 3168 §5); the other six bits are the DSCP (RFC 2474 §3)


class Packet:
    """A view of one IP packet.

    octets:   the packet, cut to the length that its header gives, unless there is a fault.
    src, dst: addresses as on the wire; empty where the octets do not go that far.
    tos:      the whole octet. l4_off: where the next header begins.
    fault:    why the packet cannot be carried, None where it can be.
    """

    __slots__ = ("dst", "family", "fault", "l4_off", "octets", "protocol", "src", "tos", "ttl")
    octets: bytes
    family: Family
    src: bytes
    dst: bytes
    protocol: int
    tos: int
    ttl: int
    l4_off: int
    fault: DropReason | None

    def check(self) -> None:
        """Raises: Malformed, where the packet cannot be carried."""
        if self.fault is not None:
            raise Malformed(self.fault)


class Rewrite(Protocol):
    """A change of an address, the TOS octet and the TTL, applied to many packets.

    changes: what it adds to the sum of a checksum that covers the addresses.
    """

    changes: int

    def apply(self, octets: bytearray) -> None:
        """Rewrite the IP header in place, with a checksum of its own patched, if it has one."""


class Family(Protocol):
    """What differs between the families of addresses.

    header_len, address_len: octets. icmp: the protocol number of its control messages.
    addresses_off: where the source lies in the header; the destination, and the ports of the next
                   header, follow without a gap.
    """

    name: str
    header_len: int
    address_len: int
    addresses_off: int
    icmp: int

    def look(self, octets: bytes) -> Packet:
        """A view of whatever octets came; see Packet.fault."""

    def quoted(self, octets: bytes) -> Packet:
        """A view of a packet that an error quotes: it may be cut anywhere after its header."""

    def stated_len(self, octets: bytes) -> int:
        """How long a packet is by its header, which is whole; the rest may be cut."""

    def emit(
        self, src: bytes, dst: bytes, protocol: int, payload: bytes, *, tos: int = 0,
        ttl: int = TTL,
    ) -> bytes:
        """A whole packet that must not be fragmented on its way."""

    def source_is_possible(self, src: bytes) -> bool:
        """Whether a packet from the network can have this source."""

    def rewrite_src(self, old: bytes, new: bytes, *, hops: int = 0) -> Rewrite:
        """Another source; the TTL loses `hops`."""

    def rewrite_dst(
        self, old: bytes, new: bytes, *, hops: int = 0, tos_mask: int = 0xFF, tos_bits: int = 0
    ) -> Rewrite:
        """Another destination; of the TOS octet `tos_mask` is kept and `tos_bits` are set."""
