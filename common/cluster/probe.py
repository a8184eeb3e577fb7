"""Probes: what a doctor asks a bridge, and what the bridge answers. Pure: octets in, values out.

A question and its answer are UDP payloads. A question has QUESTION_LEN octets, and no answer is
longer, so nobody gains by having answers sent to others. Both end in a MAC by the key that the
question names; the MAC has a domain of its own, so it says nothing of cookies. Whoever asks under
no key of the bridge's hears which keys that has, by their fingerprints, and no more; whoever asks
at another time than the bridge's hears what that is. The nonce binds an answer to its question.

     0  magic, version, kind (8)      8  fingerprint of the key (4)    12  nonce (16)
    28  unix time, ms (8)            36  the rest, by kind            −16  MAC

Numbers are in network order. Documented in docs/wire.md.
"""

import hmac
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from hashlib import blake2s
from ipaddress import IPv4Address
from typing import NamedTuple

from common.cluster.secrets import Secrets

QUESTION_LEN = 512  # with its headers less than what every host takes (RFC 1122 §3.3.2)
NONCE_LEN, ID_LEN = 16, 4
BOUND_MS = 64_000  # an epoch of cookies: how far the clocks may be apart
_MAGIC, _VERSION = b"L3D?", 1
_MAC_LEN = 16
_MAC_DOMAIN, _ID_DOMAIN = b"l3dsrprb", b"l3dsr-id"  # eight octets each, as BLAKE2s takes them
_HEAD = struct.Struct("!4sBBxx4s16sQ")
_ASKED = struct.Struct("!HB4sH")  # first service, DSCP, address, port
_SAW = struct.Struct("!BBBHBBBB")  # tos, TTL, keys, services; then the sighting
_SERVICE = struct.Struct("!BB4sH4sHBBB4sHH")
_MOST_TEXT = 120


class Kind(IntEnum):
    """Of a datagram."""

    QUESTION = 1
    ANSWER = 2
    OTHER_SECRET = 3
    OTHER_TIME = 4


class Listener(IntEnum):
    """How a server listens."""

    NONE = 0
    TCP = 1
    MPTCP = 2
    UNSEEN = 3  # on another host, or the kernel does not say


class Socket(IntEnum):
    """What the bridge's host has of a connection."""

    NONE = 0
    OPENING = 1
    OPEN = 2


class Watch(NamedTuple):
    """TCP that the bridge shall look out for: to a DSCP's service, from an address and port."""

    dscp: int
    address: bytes
    port: int


NO_WATCH = Watch(0, bytes(4), 0)


class Question(NamedTuple):
    """key_id: of the key that its MAC is made with. first: the first service that is asked for."""

    key_id: bytes
    nonce: bytes
    time_ms: int
    first: int = 0
    watch: Watch = NO_WATCH


class Served(NamedTuple):
    """A service as the bridge has it.

    elsewhere:  where something listens at the server's port, if not at its address; else zeros.
    queue, room: connections that wait to be accepted, and how many may. reason: for the mode.
    """

    dscp: int
    wscale: int
    vip: bytes
    port: int
    server: bytes
    server_port: int
    adopts: bool
    is_fast: bool
    listener: Listener
    elsewhere: bytes = bytes(4)
    queue: int = 0
    room: int = 0
    reason: str = ""

    @property
    def vip_end(self) -> str:
        """In text."""
        return f"{IPv4Address(self.vip)}:{self.port}"

    @property
    def server_end(self) -> str:
        """In text."""
        return f"{IPv4Address(self.server)}:{self.server_port}"


class Sighting(NamedTuple):
    """What came of a watch: how many packets, up to 255, and the last one's TOS octet and TTL."""

    packets: int = 0
    tos: int = 0
    ttl: int = 0
    socket: Socket = Socket.NONE


class Answer(NamedTuple):
    """What a bridge says. tos, ttl: of the question as it arrived. keys: fingerprints.

    total: how many services it has; `services` are some of them, from the first asked for on.
    """

    nonce: bytes
    time_ms: int
    tos: int
    ttl: int
    keys: tuple[bytes, ...]
    version: str
    kernel: str
    total: int
    services: tuple[Served, ...] = ()
    sighting: Sighting = Sighting()


class OtherSecret(NamedTuple):
    """The bridge has other keys. Nobody vouches for it."""

    nonce: bytes
    keys: tuple[bytes, ...]


class OtherTime(NamedTuple):
    """The bridge's clock is another one."""

    nonce: bytes
    time_ms: int


def key_id(key: bytes) -> bytes:
    """A key's fingerprint, which tells nothing of it but whether it is another one."""
    return blake2s(key=key, person=_ID_DOMAIN, digest_size=ID_LEN).digest()


def key_ids(secrets: Secrets) -> tuple[bytes, ...]:
    """Of all keys, the current one first."""
    return tuple(key_id(key) for key in secrets if key)


def key_named(secrets: Iterable[bytes | None], wanted: bytes) -> bytes | None:
    """The key that has a fingerprint."""
    return next((key for key in secrets if key and key_id(key) == wanted), None)


# --- questions ---


def emit_question(question: Question, key: bytes) -> bytes:
    """QUESTION_LEN octets."""
    body = _head(Kind.QUESTION, question.key_id, question.nonce, question.time_ms) + _ASKED.pack(
        question.first, *question.watch)
    return _signed(body + bytes(QUESTION_LEN - _MAC_LEN - len(body)), key)


def parse_question(octets: bytes) -> Question | None:
    """None: it is none. Whether it is genuine, `is_signed` says."""
    if len(octets) != QUESTION_LEN:
        return None
    kind, key, nonce, time_ms = _read_head(octets) or (None, b"", b"", 0)
    if kind is not Kind.QUESTION:
        return None
    first, *watch = _ASKED.unpack_from(octets, _HEAD.size)
    return Question(key, nonce, time_ms, first, Watch(*watch))


def is_signed(octets: bytes, key: bytes) -> bool:
    """Whether the MAC is right."""
    return hmac.compare_digest(_mac(octets[:-_MAC_LEN], key), octets[-_MAC_LEN:])


# --- answers ---


def emit_answer(answer: Answer, key: bytes) -> bytes:
    """With as many of the services as there is room for."""
    sighting = answer.sighting
    body = _head(Kind.ANSWER, key_id(key), answer.nonce, answer.time_ms) + _SAW.pack(
        answer.tos, answer.ttl, len(answer.keys), answer.total, *sighting)
    body += b"".join(answer.keys) + _text(answer.version) + _text(answer.kernel)
    for service in answer.services:
        packed = _SERVICE.pack(*service[:-1]) + _text(service.reason)
        if len(body) + len(packed) > QUESTION_LEN - _MAC_LEN:
            break
        body += packed
    return _signed(body, key)


def emit_other_secret(nonce: bytes, keys: Sequence[bytes]) -> bytes:
    """For whoever asks under a key that the bridge has not: unsigned."""
    return _head(Kind.OTHER_SECRET, bytes(ID_LEN), nonce, 0) + b"".join(keys)


def emit_other_time(nonce: bytes, time_ms: int, key: bytes) -> bytes:
    """For whoever asks too early or too late."""
    return _signed(_head(Kind.OTHER_TIME, key_id(key), nonce, time_ms), key)


def parse_answer(
    octets: bytes, question: Question, key: bytes
) -> Answer | OtherSecret | OtherTime | None:
    """What a bridge says to a question; None: it is no answer to it, or nobody vouches for it."""
    kind, _, nonce, time_ms = _read_head(octets) or (None, b"", b"", 0)
    if kind is None or nonce != question.nonce or len(octets) > QUESTION_LEN:
        return None
    if kind is Kind.OTHER_SECRET:
        rest = octets[_HEAD.size:]
        if not rest or len(rest) > 2 * ID_LEN or len(rest) % ID_LEN:
            return None
        return OtherSecret(nonce, _split(rest))
    if len(octets) < _HEAD.size + _MAC_LEN or not is_signed(octets, key):
        return None
    if kind is Kind.OTHER_TIME:
        return OtherTime(nonce, time_ms)
    if kind is not Kind.ANSWER:
        return None
    try:
        return _parse_body(octets[:-_MAC_LEN], nonce, time_ms)
    except (struct.error, ValueError):
        return None


def _parse_body(octets: bytes, nonce: bytes, time_ms: int) -> Answer:
    """Raises: struct.error, ValueError."""
    tos, ttl, keys_count, total, *seen = _SAW.unpack_from(octets, _HEAD.size)
    off = _HEAD.size + _SAW.size
    keys = _split(octets[off:off + keys_count * ID_LEN])
    version, off = _read_text(octets, off + keys_count * ID_LEN)
    kernel, off = _read_text(octets, off)
    services = []
    while off < len(octets):
        (dscp, wscale, vip, port, server, server_port, adopts, is_fast, listener, elsewhere, queue,
         room) = _SERVICE.unpack_from(octets, off)
        reason, off = _read_text(octets, off + _SERVICE.size)
        services.append(Served(
            dscp, wscale, vip, port, server, server_port, bool(adopts), bool(is_fast),
            Listener(listener), elsewhere, queue, room, reason))
    sighting = Sighting(seen[0], seen[1], seen[2], Socket(seen[3]))
    return Answer(nonce, time_ms, tos, ttl, keys, version, kernel, total, tuple(services), sighting)


# --- parts ---


def _head(kind: Kind, key: bytes, nonce: bytes, time_ms: int) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, kind, key, nonce, time_ms)


def _read_head(octets: bytes) -> tuple[Kind, bytes, bytes, int] | None:
    if len(octets) < _HEAD.size:
        return None
    magic, version, kind, key, nonce, time_ms = _HEAD.unpack_from(octets)
    if (magic, version) != (_MAGIC, _VERSION) or kind not in list(Kind):
        return None
    return Kind(kind), key, nonce, time_ms


def _mac(octets: bytes, key: bytes) -> bytes:
    return blake2s(octets, key=key, person=_MAC_DOMAIN, digest_size=_MAC_LEN).digest()


def _signed(octets: bytes, key: bytes) -> bytes:
    return octets + _mac(octets, key)


def _split(keys: bytes) -> tuple[bytes, ...]:
    return tuple(keys[off:off + ID_LEN] for off in range(0, len(keys), ID_LEN))


def _text(text: str) -> bytes:
    octets = text.encode("ascii", "replace")[:_MOST_TEXT]
    return bytes([len(octets)]) + octets


def _read_text(octets: bytes, off: int) -> tuple[str, int]:
    """Raises: ValueError where it is cut."""
    end = off + 1 + octets[off] if off < len(octets) else len(octets) + 1
    if end > len(octets):
        raise ValueError("a text is cut")
    return octets[off + 1:end].decode("ascii", "replace"), end
