"""ClientHellos as clients send them, built field by field (RFC 8446 §4.1.2)."""

import struct
from typing import NamedTuple


class Hello(NamedTuple):
    """name: None without the extension. extensions: how many others, of a few octets each.

    name_place: after so many of them. record_len: of each record's content; None: all in one.
    tail: what follows in the stream.
    """

    name: bytes | None
    key_share_len: int = 0
    session_len: int = 32
    ciphers: int = 16
    extensions: int = 0
    name_place: int = 0
    record_len: int | None = None
    tail: bytes = b""
    has_extensions: bool = True


def hello(made: Hello) -> bytes:
    """The octets."""
    extensions = [_extension(0x7F00 + number, bytes(3 * number))
                  for number in range(made.extensions)]
    if made.key_share_len:
        extensions.insert(len(extensions) // 2, _extension(51, bytes(made.key_share_len)))
    if made.name is not None:
        names = b"\0" + struct.pack("!H", len(made.name)) + made.name
        place = min(made.name_place, len(extensions))
        extensions.insert(place, _extension(0, struct.pack("!H", len(names)) + names))
    body = b"\x03\x03" + bytes(range(32)) + bytes((made.session_len,)) + bytes(made.session_len)
    body += struct.pack("!H", 2 * made.ciphers) + b"\x13\x01" * made.ciphers + b"\x01\x00"
    if made.has_extensions:
        listed = b"".join(extensions)
        body += struct.pack("!H", len(listed)) + listed
    message = b"\x01" + len(body).to_bytes(3) + body
    step = made.record_len or len(message)
    records = [message[at:at + step] for at in range(0, len(message), step)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(each)) + each
                    for each in records) + made.tail


def _extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content
