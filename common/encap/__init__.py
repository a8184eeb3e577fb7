"""What names a packet's service on the way from balancer to bridge, one file a kind.

A balancer wraps (`Way`), a bridge unwraps (`Label`). Neither knows what the
packet says above its IP header.
"""

from typing import Protocol

from common.wire.packet import Packet, Rewrite


class Way(Protocol):
    """From the balancer to one backend's bridge, for the packets of one service.

    overhead: octets that a packet grows by.
    changes:  what wrapping adds to the sum of a checksum that covers the addresses. Whoever has
              such a checksum patches it before.
    """

    overhead: int
    changes: int

    def wrap(self, octets: bytearray) -> bytes:
        """The packet, which was for the VIP, as it goes to the bridge; its TTL is one less."""


class Label(Protocol):
    """What the bridge reads the service from. overhead: as of Way."""

    overhead: int

    def unwrap(self, packet: Packet) -> tuple[Packet, bytes] | None:
        """The packet inside, and its service's key (cluster/service.py), None for what is not ours.

        It is the label that names the service: whether the packet fits it is another question.
        """

    def rewrite_to(self, address: bytes, *, hops: int) -> Rewrite:
        """What turns packets that were unwrapped into ones for `address`."""
