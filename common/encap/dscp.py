"""The DSCP field names the service, and the destination is the bridge's: no octet is added.

Source: RFC 2474 §3 (field), §6 (pool 2, `xxxx11`, for local use); RFC 3168 §5 (ECN).
Twin:   common/bpf/include/packet.h:rewrite_ipv4, packetbridge/offload/bpf/bridge.h:rewrite
"""

from collections.abc import Mapping

from common.wire.family import of_address
from common.wire.packet import ECN_MASK, Packet, Rewrite

DEFAULT = 3  # the first of pool 2; 1 has meant "drop me first" since RFC 8622
MAX = 63
OVERHEAD = 0


def of_tos(tos: int) -> int:
    """The codepoint 0..63 in a TOS octet."""
    return tos >> 2


class Way:
    """As encap.Way. codepoint: 0..63, unshifted."""

    __slots__ = ("_apply", "changes", "codepoint")
    overhead = OVERHEAD

    def __init__(self, vip: bytes, bridge: bytes, codepoint: int) -> None:
        self.codepoint = codepoint
        rewrite = of_address(vip).rewrite_dst(
            vip, bridge, hops=1, tos_mask=ECN_MASK, tos_bits=codepoint << 2
        )
        self.changes = rewrite.changes
        self._apply = rewrite.apply

    def wrap(self, octets: bytearray) -> bytes:
        """As encap.Way."""
        self._apply(octets)
        return bytes(octets)


class Label:
    """As encap.Label. bridge: the own address. names: keys of services by codepoint."""

    __slots__ = ("_bridge", "_names")
    overhead = OVERHEAD

    def __init__(self, bridge: bytes, names: Mapping[int, bytes]) -> None:
        self._bridge = bridge
        self._names = {codepoint << 2: name for codepoint, name in names.items()}

    def unwrap(self, packet: Packet) -> tuple[Packet, bytes] | None:
        """As encap.Label."""
        if packet.dst != self._bridge:
            return None
        name = self._names.get(packet.tos & ~ECN_MASK)
        return None if name is None else (packet, name)

    def rewrite_to(self, address: bytes, *, hops: int) -> Rewrite:
        """As encap.Label; the codepoint is taken off."""
        return of_address(address).rewrite_dst(
            self._bridge, address, hops=hops, tos_mask=ECN_MASK
        )
