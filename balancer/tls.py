"""The server name in a TLS ClientHello, over any number of records.

Source: RFC 8446 §4.1.2 (ClientHello), §5.1 (records); RFC 6066 §3 (server_name).
Twin:   balancer/bpf/tls.h
"""

from balancer.http import NEED_MORE, NO_KEY, Missing

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_RECORD_HEADER_LEN, _MESSAGE_HEADER_LEN = 5, 4
_MAX_RECORD_LEN = 1 << 14
_MAX_HELLO_LEN = 1 << 16


class _Reader:
    """A cursor over the ClientHello as far as it has arrived."""

    def __init__(self, octets: bytes, off: int) -> None:
        self._octets = octets
        self.off = off

    def number(self, length: int) -> int:
        """The next `length` octets as a number. Raises: IndexError past what has arrived."""
        return int.from_bytes(self.octets(length), "big")

    def octets(self, length: int) -> bytes:
        """The next `length` octets. Raises: IndexError past what has arrived."""
        end = self.off + length
        if end > len(self._octets):
            raise IndexError
        taken = self._octets[self.off:end]
        self.off = end
        return taken

    def skip_vector(self, length_len: int) -> None:
        """Pass over a vector with a length field of `length_len` octets."""
        length = self.number(length_len)
        self.off += length


def server_name(payload: bytes) -> bytes | Missing:
    """The host name of the ClientHello's server_name extension, in lower case."""
    message = _handshake_octets(payload)
    if isinstance(message, Missing):
        return message
    if message[:1] not in (b"", b"\x01"):
        return NO_KEY
    if len(message) < _MESSAGE_HEADER_LEN:
        return NEED_MORE
    end = _MESSAGE_HEADER_LEN + int.from_bytes(message[1:4], "big")
    if end > _MAX_HELLO_LEN:
        return NO_KEY
    try:
        return _find_name(_Reader(message[:end], _MESSAGE_HEADER_LEN), end)
    except IndexError:
        return NEED_MORE if len(message) < end else NO_KEY


def _handshake_octets(payload: bytes) -> bytes | Missing:
    """The content of the handshake records at the start of the stream."""
    message = bytearray()
    off = 0
    while off < len(payload):
        header = payload[off:off + _RECORD_HEADER_LEN]
        if header[0] != _HANDSHAKE or header[1:2] not in (b"", b"\x03"):
            return bytes(message) if _is_whole(message) else NO_KEY
        if len(header) < _RECORD_HEADER_LEN:
            break
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= _MAX_RECORD_LEN:
            return NO_KEY
        off += _RECORD_HEADER_LEN
        message += payload[off:off + length]
        off += length
    return bytes(message)


def _is_whole(message: bytearray) -> bool:
    return len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big")


def _find_name(reader: _Reader, end: int) -> bytes | Missing:
    reader.octets(2 + 32)  # legacy_version, random
    reader.skip_vector(1)  # legacy_session_id
    reader.skip_vector(2)  # cipher_suites
    reader.skip_vector(1)  # legacy_compression_methods
    if reader.off >= end:
        return NO_KEY
    extensions_end = min(reader.number(2) + reader.off, end)
    while reader.off < extensions_end:
        kind, length = reader.number(2), reader.number(2)
        if kind != _SERVER_NAME:
            reader.off += length
            continue
        reader.number(2)  # length of the list
        if reader.number(1) != _HOST_NAME:
            return NO_KEY
        return reader.octets(reader.number(2)).lower() or NO_KEY
    return NO_KEY
