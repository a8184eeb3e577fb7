"""What a check sends, and whether the answer is right.

Only what has to be seen is looked at: a status, the type of a TLS record, some words. An answer may
come in any pieces, and need not be whole.
"""

import re
import ssl
import struct
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from balancer.health.settings import Check

MOST_ANSWER_OCTETS = 16 << 10  # looked at
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)[ \r\n]")
_STATUS_LEN = 13
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,7})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[^\r\n]*\bchunked[ \t]*\r\n")
_ALERT, _HANDSHAKE, _SERVER_HELLO = 21, 22, 2  # RFC 8446 §5.1, §4
_RECORD_HEADER_LEN = 5
_SWITCHING = 101
LEAST_PADDING = 16
_MOST_LINE = 1000  # of a header, in octets: any server takes it
_PADDING = 21  # RFC 7685
_HELLO_SESSION_OFF = 43  # in a record with a ClientHello: the length of the session's id


class Outcome(NamedTuple):
    """How a check ended. words: what was seen, as the end of a sentence about the backend."""

    is_passed: bool
    words: str


class Request(Protocol):
    """What is sent, and what is made of the answer."""

    @property
    def octets(self) -> bytes:
        """All that is sent: one segment."""

    def padded(self, length: int) -> bytes | None:
        """The same in so many octets, LEAST_PADDING more than it has at least; None: cannot be."""

    def judge(self, answer: bytes, is_all: bool) -> Outcome | None:
        """What the answer's first octets say; None: more is needed. is_all: no more will come."""


def request_of(check: Check, vip: IPv4Address) -> Request | None:
    """What a service's checks send; None where there are none."""
    if check.kind == "http":
        return Http(check, vip)
    if check.kind == "tls":
        return Tls(check)
    return Payload(check) if check.kind == "payload" else None


class Http:
    """A request, whose status has to be right, and whose body has to contain some words."""

    def __init__(self, check: Check, vip: IPv4Address) -> None:
        self.octets = (f"{check.method} {check.path} HTTP/1.1\r\nHost: {check.host or vip}\r\n"
                       "User-Agent: l3dsr-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
                       ).encode("ascii")
        self._low, self._high = check.status
        self._words = check.expect.encode()

    def padded(self, length: int) -> bytes | None:
        """As Request: by headers that nobody knows."""
        missing, lines = length - len(self.octets), b""
        while missing >= LEAST_PADDING:
            line = missing if missing <= _MOST_LINE else min(_MOST_LINE, missing - LEAST_PADDING)
            lines += b"X-Padding: %b\r\n" % (b"x" * (line - len("X-Padding: \r\n")))
            missing -= line
        return None if missing else self.octets[:-2] + lines + b"\r\n"

    def judge(self, answer: bytes, is_all: bool) -> Outcome | None:
        """As Request."""
        found = _STATUS.match(answer)
        if found is None:
            if len(answer) < _STATUS_LEN and b"HTTP/1.1 "[:len(answer)][:7] == answer[:7] \
                    and not is_all:
                return None
            return Outcome(False, "answers with something else than HTTP/1.1")
        status = int(found[1])
        head, end, body = answer.partition(b"\r\n\r\n")
        if status < 200 and status != _SWITCHING:  # more follows (RFC 9110 §15.2)
            return self.judge(body, is_all) if end or is_all else None
        if not self._low <= status <= self._high:
            return Outcome(False, f"answers with status {status}")
        if not self._words:
            return Outcome(True, f"answers with status {status}")
        if _CHUNKED.search(head + b"\r\n"):
            body = unchunked(body)
        if self._words in body:
            return Outcome(True, f"answers with status {status} and the words")
        return _lacks_words(f"answers with status {status}") if is_all else None


class Tls:
    """A ClientHello, which a ServerHello has to answer."""

    def __init__(self, check: Check) -> None:
        self.octets = client_hello(check.name)

    def padded(self, length: int) -> bytes | None:
        """As Request: by the extension that is there for it (RFC 7685)."""
        extra = length - len(self.octets)
        if extra < LEAST_PADDING:
            return None
        made = bytearray(self.octets)
        start = _HELLO_SESSION_OFF + 1 + made[_HELLO_SESSION_OFF]
        start += 2 + int.from_bytes(made[start:start + 2])  # cipher suites
        start += 1 + made[start]  # compression methods
        for off, size in ((3, 2), (6, 3), (start, 2)):  # of the record, the hello, the extensions
            made[off:off + size] = (int.from_bytes(made[off:off + size]) + extra).to_bytes(size)
        off = start + 2
        while off < len(made):
            kind, size = struct.unpack_from("!HH", made, off)
            if kind == _PADDING:  # OpenSSL has its own, and there may be one
                struct.pack_into("!H", made, off + 2, size + extra)
                made[off + 4:off + 4] = bytes(extra)
                return bytes(made)
            off += 4 + size
        return bytes(made) + struct.pack("!HH", _PADDING, extra - 4) + bytes(extra - 4)

    def judge(self, answer: bytes, is_all: bool) -> Outcome | None:
        """As Request."""
        if len(answer) <= _RECORD_HEADER_LEN + 1 and not is_all:
            return None
        if answer[:1] == bytes([_HANDSHAKE]) and answer[_RECORD_HEADER_LEN:][:1] == \
                bytes([_SERVER_HELLO]):
            return Outcome(True, "answers with a ServerHello")
        if answer[:1] == bytes([_ALERT]):
            return Outcome(False, f"answers with the TLS alert {answer[-1]}")
        return Outcome(False, "answers with something else than a ServerHello")


class Payload:
    """Whatever the service speaks: some words, which others have to answer."""

    def __init__(self, check: Check) -> None:
        self.octets = check.send.encode()
        self._words = check.expect.encode()

    def padded(self, length: int) -> bytes | None:
        """As Request: nobody knows what may be added."""
        return None

    def judge(self, answer: bytes, is_all: bool) -> Outcome | None:
        """As Request."""
        if self._words in answer:
            return Outcome(True, "answers with the words")
        return _lacks_words("answers") if is_all else None


def unchunked(body: bytes) -> bytes:
    """The content of a body in chunks, as far as it is there (RFC 9112 §7.1)."""
    parts, off = [], 0
    while found := _CHUNK.match(body, off):
        length = int(found[1], 16)
        parts.append(body[found.end():found.end() + length])
        off = found.end() + length + 2
    return b"".join(parts)


def client_hello(name: str) -> bytes:
    """OpenSSL's, as short as any server takes it: one segment on every path."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ecdh_curve("prime256v1")  # others may be of post-quantum length
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=name or None).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def _lacks_words(seen: str) -> Outcome:
    return Outcome(False, f"{seen}, without the words that are expected")
