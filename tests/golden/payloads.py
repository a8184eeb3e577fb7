"""Octets that clients send first, and where in them a key is complete."""

from collections.abc import Sequence
from itertools import pairwise

HOST = b"shop.example.net"
POST_QUANTUM_SHARE_LEN = 1216  # X25519MLKEM768 in a ClientHello


def client_hello(
    name: bytes = HOST, *, share_len: int = 32, name_last: bool = False, lead: bytes = b"",
) -> bytes:
    """A ClientHello, without record headers (RFC 8446 §4.1.2).

    share_len: octets of its key share. name_last: whether server_name comes after it.
    lead: extensions before all others.
    """
    server_name = _extension(0, _vector(2, b"\0" + _vector(2, name)))
    share = _extension(51, _vector(2, b"\x11\xec" + _vector(2, bytes(share_len))))
    extensions = lead + (share + server_name if name_last else server_name + share)
    body = (
        b"\x03\x03" + bytes(range(32)) + _vector(1, b"") + _vector(2, b"\x13\x01")
        + _vector(1, b"\0") + _vector(2, extensions)
    )
    return b"\x01" + _vector(3, body)


def records(message: bytes, *cuts: int) -> bytes:
    """`message` in TLS records, cut at the given offsets."""
    edges = [0, *cuts, len(message)]
    return b"".join(
        b"\x16\x03\x01" + _vector(2, message[start:end])
        for start, end in pairwise(edges)
    )


def pieces(octets: bytes, cuts: Sequence[int]) -> list[tuple[int, bytes]]:
    """(relative sequence number, octets) of each piece of a stream that is cut at `cuts`."""
    edges = [0, *cuts, len(octets)]
    return [
        (1 + start, octets[start:end]) for start, end in pairwise(edges)
    ]


def _vector(length_len: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_len, "big") + content


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(2, content)
