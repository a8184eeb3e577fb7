"""The server name in a TLS ClientHello, over any number of records.

Source: RFC 8446 §4.1.2 (ClientHello), §5.1 (records); RFC 6066 §3 (server_name).
Twin:   balancer/offload/bpf/tls.h
"""

import struct

from balancer.keys.http import NEED_MORE, NO_KEY, Missing, Part

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_MAJOR_VERSION = 3
_RECORD_HEADER_LEN, _MESSAGE_HEADER_LEN = 5, 4
_MAX_RECORD_LEN = 1 << 14
_MAX_HELLO_LEN = 1 << 16
_SESSION_ID_OFF = _MESSAGE_HEADER_LEN + 2 + 32  # after legacy_version and random
_U16 = struct.Struct("!H")
_EXTENSION = struct.Struct("!HH")  # its type and length


def server_name(payload: bytes) -> Part | Missing:
    """The host name of the ClientHello's server_name extension, in lower case."""
    message, rest = _handshake_octets(payload)
    if message[:1] not in (b"", bytes((_CLIENT_HELLO,))):
        return NO_KEY
    if len(message) < _MESSAGE_HEADER_LEN:
        return rest
    end = _hello_end(message)
    if end > _MAX_HELLO_LEN:
        return NO_KEY
    try:
        return _find_name(message[:end], end, rest)
    except (IndexError, struct.error):  # past what has arrived
        return rest if len(message) < end else NO_KEY


def _hello_end(message: bytes | bytearray) -> int:
    return _MESSAGE_HEADER_LEN + int.from_bytes(message[1:_MESSAGE_HEADER_LEN], "big")


def _handshake_octets(payload: bytes) -> tuple[bytes, Missing]:
    """The handshake records' content, at least until the first message is whole, if it arrives.

    With it what to expect after it: NO_KEY where an octet cannot be a handshake record's.
    """
    message = bytearray()
    off = 0
    while off < len(payload):
        if len(message) >= _MESSAGE_HEADER_LEN and len(message) >= _hello_end(message):
            break
        header = payload[off:off + _RECORD_HEADER_LEN]
        if header[0] != _HANDSHAKE or (len(header) > 1 and header[1] != _MAJOR_VERSION):
            return bytes(message), NO_KEY
        if len(header) < _RECORD_HEADER_LEN:
            break
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= _MAX_RECORD_LEN:
            return bytes(message), NO_KEY
        off += _RECORD_HEADER_LEN
        if not message and off + length >= len(payload):  # as in most of them
            return payload[off:], NEED_MORE
        message += payload[off:off + length]
        off += length
    return bytes(message), NEED_MORE


def _find_name(message: bytes, end: int, rest: Missing) -> Part | Missing:
    """The name in a ClientHello of `end` octets. rest: what follows those that have arrived.

    Raises: IndexError or struct.error past what has arrived.
    """
    off = _SESSION_ID_OFF
    off += 1 + message[off]
    off += 2 + _U16.unpack_from(message, off)[0]  # cipher_suites
    off += 1 + message[off]  # legacy_compression_methods
    if off >= end:
        return NO_KEY
    extensions_end = min(off + 2 + _U16.unpack_from(message, off)[0], end)
    off += 2
    while off < extensions_end:
        kind, length = _EXTENSION.unpack_from(message, off)
        off += 4
        if kind == _SERVER_NAME:
            return _host_name(message, off, min(off + length, extensions_end), rest)
        off += length
    return NO_KEY


def _host_name(message: bytes, off: int, extension_end: int, rest: Missing) -> Part | Missing:
    """The first name of the list at `off`, which may only be a host_name."""
    if message[off + 2] != _HOST_NAME:
        return NO_KEY
    length = _U16.unpack_from(message, off + 3)[0]
    off += 5
    if off + length > extension_end:
        return NO_KEY
    name = message[off:off + length]
    return Part(name.lower(), None if len(name) == length else rest)
