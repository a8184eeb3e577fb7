"""Packets in any form for the properties, and checksums reckoned without the code under test."""

import struct

from hypothesis import strategies as st

from common.wire import tcp

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
ADDRESS = st.binary(min_size=4, max_size=4)
ICMP, TCP = 1, 6

# The kinds of options that stacks send, and some that nobody knows.
OPTION = st.sampled_from([b"\x01", b"\x02\x04\x05\xb4", b"\x03\x03\x07", b"\x04\x02"]) | st.builds(
    lambda kind, body: bytes((kind, 2 + len(body))) + body, st.integers(6, 255),
    st.binary(max_size=6),
)
TIMESTAMPS = st.tuples(U32, U32).map(lambda pair: struct.pack("!BBII", 8, 10, *pair))
SACK = st.lists(U32, min_size=2, max_size=8).filter(lambda edges: len(edges) % 2 == 0).map(
    lambda edges: struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)
)
OPTION_OCTETS = st.lists(OPTION | TIMESTAMPS | SACK, max_size=5).map(b"".join).filter(
    lambda octets: len(octets) <= 40
).map(lambda octets: octets + bytes(-len(octets) % 4))


@st.composite
def segments(
    draw: st.DrawFn, src: bytes | None = None, dst: bytes | None = None,
    sport: int | None = None, dport: int | None = None,
    option_octets: st.SearchStrategy[bytes] = OPTION_OCTETS,
) -> bytes:
    """A sound segment, whatever it says."""
    five_tuple = (
        (src or draw(ADDRESS)) + (dst or draw(ADDRESS))
        + struct.pack("!HH", sport or draw(U16), dport or draw(U16))
    )
    return tcp.emit(
        five_tuple, draw(U32), draw(U32), draw(U8), window=draw(U16),
        option_octets=draw(option_octets), payload=draw(st.binary(max_size=40)), tos=draw(U8),
    )


def internet_checksum(octets: bytes) -> int:
    """The checksum field for `octets`, word by word (RFC 1071 §4.1)."""
    total = 0
    for word, in struct.iter_unpack("!H", octets + bytes(len(octets) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def faults(packet: bytes) -> list[str]:
    """What a receiver would find wrong with a packet's lengths and checksums.

    A field that holds the right checksum makes the sum over all come to nothing.
    """
    if len(packet) < 20 or packet[0] != 0x45:
        return ["header"]
    found = [] if internet_checksum(packet[:20]) == 0 else ["IP checksum"]
    if int.from_bytes(packet[2:4]) != len(packet):
        return [*found, "length"]
    message = packet[20:]
    if packet[9] == TCP:
        pseudo = packet[12:20] + struct.pack("!HH", TCP, len(message))
        if len(message) < 20 or not 20 <= (message[12] >> 4) * 4 <= len(message):
            found.append("TCP header")
        elif internet_checksum(pseudo + message) != 0:
            found.append("TCP checksum")
    elif packet[9] == ICMP and internet_checksum(message) != 0:
        found.append("ICMP checksum")
    return found


def mended(packet: bytes) -> bytes:
    """The packet with length and checksums made right, as far as it has the room for them."""
    made = bytearray(packet)
    if len(made) < 20:
        return packet
    made[2:4] = len(made).to_bytes(2)
    made[10:12] = bytes(2)
    made[10:12] = internet_checksum(bytes(made[:20])).to_bytes(2)
    pseudo, off = {
        TCP: (made[12:20] + struct.pack("!HH", TCP, len(made) - 20), 36), ICMP: (b"", 22)
    }.get(made[9], (b"", 0))
    if off and len(made) >= off + 2:
        made[off:off + 2] = bytes(2)
        made[off:off + 2] = internet_checksum(bytes(pseudo + made[20:])).to_bytes(2)
    return bytes(made)


def fragments(packet: bytes, size: int) -> list[bytes]:
    """The packet in fragments (RFC 791 §3.2) of `size` octets, a multiple of 8."""
    message = packet[20:]
    made = []
    for off in range(0, len(message), size):
        more = 0x2000 if off + size < len(message) else 0
        header = packet[:6] + (more | off // 8).to_bytes(2) + packet[8:20]
        fragment = bytearray(header + message[off:off + size])
        fragment[2:4] = len(fragment).to_bytes(2)
        fragment[10:12] = bytes(2)
        fragment[10:12] = internet_checksum(bytes(fragment[:20])).to_bytes(2)
        made.append(bytes(fragment))
    return made


def icmp_error(kind: int, src: bytes, dst: bytes, quoted: bytes, tos: int = 0) -> bytes:
    """An ICMP error of `kind` that quotes `quoted`."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, tos, 0, 7, 0, 60, ICMP, 0, src, dst)
    return mended(header + struct.pack("!BBHI", kind, 4, 0, 1300) + quoted)
