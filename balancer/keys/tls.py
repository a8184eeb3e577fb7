"""The server name in a TLS ClientHello, over any number of records.

Source: RFC 8446 §4.1.2 (ClientHello), §5.1 (records); RFC 6066 §3 (server_name).
Twin:   balancer/offload/bpf/tls.h
"""

from balancer.keys.http import NEED_MORE, NO_KEY, Missing, Part

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_MAJOR_VERSION = 3
_RECORD_HEADER_LEN, _MESSAGE_HEADER_LEN = 5, 4
_MAX_RECORD_LEN = 1 << 14
_MAX_HELLO_LEN = 1 << 16


class _Reader:
    """A cursor over the ClientHello as far as it has arrived."""

    def __init__(self, message: bytes, off: int) -> None:
        self.message = message
        self.off = off

    def number(self, length: int) -> int:
        """The next `length` octets as a number. Raises: IndexError past what has arrived."""
        end = self.off + length
        if end > len(self.message):
            raise IndexError
        number = int.from_bytes(self.message[self.off:end], "big")
        self.off = end
        return number

    def skip_vector(self, length_len: int) -> None:
        """Pass over a vector with a length field of `length_len` octets."""
        length = self.number(length_len)
        self.off += length


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
        return _find_name(_Reader(message[:end], _MESSAGE_HEADER_LEN), end, rest)
    except IndexError:
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
        message += payload[off:off + length]
        off += length
    return bytes(message), NEED_MORE


def _find_name(reader: _Reader, end: int, rest: Missing) -> Part | Missing:
    """The name in a ClientHello of `end` octets. rest: what follows those that have arrived."""
    reader.off += 2 + 32  # legacy_version, random
    reader.skip_vector(1)  # legacy_session_id
    reader.skip_vector(2)  # cipher_suites
    reader.skip_vector(1)  # legacy_compression_methods
    if reader.off >= end:
        return NO_KEY
    length = reader.number(2)
    extensions_end = min(reader.off + length, end)
    while reader.off < extensions_end:
        kind, length = reader.number(2), reader.number(2)
        extension_end = reader.off + length
        if kind == _SERVER_NAME:
            return _host_name(reader, min(extension_end, extensions_end), rest)
        reader.off = extension_end
    return NO_KEY


def _host_name(reader: _Reader, extension_end: int, rest: Missing) -> Part | Missing:
    """The first name of the list, which may only be a host_name."""
    reader.number(2)  # length of the list
    if reader.number(1) != _HOST_NAME:
        return NO_KEY
    length = reader.number(2)
    end = reader.off + length
    if end > extension_end:
        return NO_KEY
    name = reader.message[reader.off:end]
    return Part(name.lower(), None if len(name) == length else rest)
