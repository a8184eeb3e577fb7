"""The Internet checksum: whole, and patched in place of a change.

A packet that is rewritten keeps the checksum it came with, patched by what
changed. So a packet that arrived damaged leaves damaged, and the end host's
stack still finds out.

Source: RFC 1071; RFC 1624 §3, eqn. 3.
Twin:   common/bpf/include/checksum.h
"""


def fold(total: int) -> int:
    """Fold carries back until 16 bits are left; never turns non-zero into zero."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def word_sum(octets: bytes | bytearray | memoryview) -> int:
    """The ones'-complement sum of `octets` taken as big-endian 16-bit words, 0..65535.

    2**16 is 1 modulo 65535, so the sum of the words is the whole read as one
    number modulo 65535. An odd tail is padded with a zero octet.
    """
    number = int.from_bytes(octets, "big")
    if len(octets) & 1:
        number <<= 8
    if not number:
        return 0
    return number % 0xFFFF or 0xFFFF


def checksum(octets: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The checksum field for `octets`, with `initial` (a pseudo-header's sum) added in."""
    return fold(word_sum(octets) + initial) ^ 0xFFFF


def pseudo_sum(addresses: bytes, protocol: int, length: int) -> int:
    """The pseudo-header's share of a checksum, in any family (RFC 9293 §3.1; RFC 8200 §8.1).

    addresses: source and destination. length: of header and payload of layer 4, in octets.
    """
    return word_sum(addresses) + protocol + length


def change(old: int, new: int) -> int:
    """What replacing `old` by `new` adds to a sum; both are 16 or both 32 bits wide."""
    return (old ^ 0xFFFFFFFF) + new


def change_at(off: int, old: int, new: int) -> int:
    """As `change`, for 32 bits at offset `off`, which need not be even (RFC 1071 §2 (B))."""
    return change(old, new) << (off & 1) * 8


def patch(field: int, changes: int) -> int:
    """The checksum `field` after the sum of `change(...)` terms `changes`."""
    total = (field ^ 0xFFFF) + changes
    return 0xFFFF - (total % 0xFFFF or (total and 0xFFFF))  # as `fold`, which is slower
