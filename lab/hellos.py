"""ClientHellos as browsers of 2026 send them: post-quantum, so two segments of Ethernet each.

Shapes only: which extensions, in which order, how long. Keys are random, but such that a server can
calculate with them. What a balancer meets depends on where the server name stands. Chrome shuffles
its extensions, so the name comes before or after the key share of 1,216 octets; Firefox and Safari
begin with it.

Source: RFC 8446 §4.1.2, §4.2 (ClientHello, extensions); RFC 8701 (GREASE);
        draft-ietf-tls-ecdhe-mlkem (X25519MLKEM768); draft-ietf-tls-esni §6.2 (GREASE ECH).
"""

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple

from lab.node import Node, Process, run

SEGMENT_LEN = 1448  # of payload, on Ethernet with timestamps
NAMES = tuple(f"w{number}.shop.example.net".encode() for number in range(256))

_SOURCE = Path(__file__).with_suffix(".c")
_SERVER_NAME, _STATUS, _GROUPS, _POINTS, _SIGNATURES, _ALPN, _SCT = 0, 5, 10, 11, 13, 16, 18
_MASTER, _COMPRESS, _RECORD_LIMIT, _DELEGATED, _TICKET, _PSK, _VERSIONS = 23, 27, 28, 34, 35, 41, 43
_PSK_MODES, _KEY_SHARE, _ALPS, _ECH, _RENEGOTIATION = 45, 51, 0x44CD, 0xFE0D, 0xFF01
_HYBRID, _X25519, _P256 = 0x11EC, 29, 23
_MLKEM_MODULUS, _MLKEM_COEFFICIENTS = 3329, 768
_P256_BASE = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")  # SEC 2 §2.4.2

Extension = tuple[int, bytes]


class Hello(NamedTuple):
    """A ClientHello in its record. name_end: the offset just past the server name."""

    octets: bytes
    name_end: int

    @property
    def is_named_at_once(self) -> bool:
        """Whether the first segment has the whole name."""
        return self.name_end <= SEGMENT_LEN


def mix(count: int, random: Random) -> list[Hello]:
    """So many of all browsers, about as often as they are met. All take two segments."""
    makers: tuple[Callable[[bytes, Random], bytes], ...] = (chrome, safari, firefox)
    hellos = []
    for make in random.choices(makers, (70, 20, 10), k=count):
        name = random.choice(NAMES)
        octets = make(name, random)
        hellos.append(Hello(octets, octets.index(name) + len(name)))
    return hellos


def chrome(name: bytes, random: Random) -> bytes:
    """Chrome, Edge and others of Chromium: all but GREASE and a ticket are shuffled."""
    grease = [_grease(random) for _ in range(5)]
    shuffled = [
        *_common(name, (grease[1], _HYBRID, _X25519, _P256, 24)),
        (_TICKET, b""), (_SCT, b""), (_ALPS, b"\0\3\2h2"), (_COMPRESS, b"\2\0\2"),
        (_SIGNATURES, _vector(_numbers(0x403, 0x804, 0x401, 0x503, 0x805, 0x501, 0x806, 0x601))),
        (_KEY_SHARE, _key_shares((grease[1], b"\0"), *_hybrid_shares(random))),
        (_VERSIONS, _vector(_numbers(grease[2], 0x304, 0x303), 1)),
        (_ECH, _grease_ech(random, random.choice((144, 176, 208, 240)))),
    ]
    random.shuffle(shuffled)
    ticket = [(_PSK, _ticket(random, 192))] if random.random() < 0.25 else []
    return _record(random, (
        grease[0], 0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC013,
        0xC014, 0x9C, 0x9D, 0x2F, 0x35,
    ), [(grease[3], b""), *shuffled, (grease[4], b"\0"), *ticket])


def safari(name: bytes, random: Random) -> bytes:
    """Safari, and all browsers of iOS."""
    grease = [_grease(random) for _ in range(5)]
    signatures = (0x403, 0x804, 0x401, 0x503, 0x805, 0x805, 0x501, 0x806, 0x601, 0x201)
    return _record(random, (
        grease[0], 0x1301, 0x1302, 0x1303, 0xC02C, 0xC02B, 0xCCA9, 0xC030, 0xC02F, 0xCCA8, 0xC00A,
        0xC009, 0xC014, 0xC013, 0x9D, 0x9C, 0x35, 0x2F, 0xC008, 0xC012, 0x0A,
    ), [
        (grease[3], b""), *_common(name, (grease[1], _HYBRID, _X25519, _P256, 24, 25)),
        (_SIGNATURES, _vector(_numbers(*signatures))), (_SCT, b""),
        (_KEY_SHARE, _key_shares((grease[1], b"\0"), *_hybrid_shares(random))),
        (_VERSIONS, _vector(_numbers(grease[2], 0x304, 0x303), 1)),
        (_COMPRESS, b"\2\0\1"), (grease[4], b"\0"),
    ])


def firefox(name: bytes, random: Random) -> bytes:
    """Firefox: no GREASE but ECH's, and a third key share."""
    signatures = (0x403, 0x503, 0x603, 0x804, 0x805, 0x806, 0x401, 0x501, 0x601, 0x203, 0x201)
    return _record(random, (
        0x1301, 0x1303, 0x1302, 0xC02B, 0xC02F, 0xCCA9, 0xCCA8, 0xC02C, 0xC030, 0xC00A, 0xC009,
        0xC013, 0xC014, 0x9C, 0x9D, 0x2F, 0x35,
    ), [
        *_common(name, (_HYBRID, _X25519, _P256, 24, 25, 256, 257)), (_TICKET, b""),
        (_DELEGATED, _vector(_numbers(0x403, 0x503, 0x603, 0x203))), (_SCT, b""),
        (_KEY_SHARE, _key_shares(*_hybrid_shares(random), (_P256, _P256_BASE))),
        (_VERSIONS, _vector(_numbers(0x304, 0x303), 1)),
        (_SIGNATURES, _vector(_numbers(*signatures))), (_RECORD_LIMIT, b"\x40\1"),
        (_COMPRESS, b"\6\0\1\0\2\0\3"), (_ECH, _grease_ech(random, 239)),
    ])


# --- their parts ---


def _common(name: bytes, groups: tuple[int, ...]) -> list[Extension]:
    """What all of them send, in the order in which two of them do."""
    return [
        (_SERVER_NAME, _vector(b"\0" + _vector(name))), (_MASTER, b""), (_RENEGOTIATION, b"\0"),
        (_GROUPS, _vector(_numbers(*groups))), (_POINTS, b"\1\0"),
        (_ALPN, _vector(b"\2h2\x08http/1.1")), (_STATUS, b"\1\0\0\0\0"), (_PSK_MODES, b"\1\1"),
    ]


def _record(random: Random, suites: tuple[int, ...], extensions: list[Extension]) -> bytes:
    body = b"".join((
        b"\3\3", random.randbytes(32), _vector(random.randbytes(32), 1),
        _vector(_numbers(*suites)), b"\1\0",
        _vector(b"".join(struct.pack("!H", kind) + _vector(data) for kind, data in extensions)),
    ))
    return b"\x16\3\1" + _vector(b"\1" + _vector(body, 3))


def _hybrid_shares(random: Random) -> list[tuple[int, bytes]]:
    """X25519MLKEM768, whose 12-bit coefficients are below the modulus, and X25519."""
    packed = bytearray()
    for _ in range(_MLKEM_COEFFICIENTS // 2):
        low, high = random.randrange(_MLKEM_MODULUS), random.randrange(_MLKEM_MODULUS)
        packed += (low | high << 12).to_bytes(3, "little")
    x25519 = random.randbytes(32)
    return [(_HYBRID, bytes(packed) + random.randbytes(32) + x25519), (_X25519, x25519)]


def _key_shares(*shares: tuple[int, bytes]) -> bytes:
    return _vector(b"".join(struct.pack("!H", group) + _vector(key) for group, key in shares))


def _grease_ech(random: Random, payload_len: int) -> bytes:
    """HKDF-SHA256, AES-128-GCM, an encapsulated key and what looks like a ciphertext."""
    return b"\0\0\1\0\1" + random.randbytes(1) + _vector(random.randbytes(32)) \
        + _vector(random.randbytes(payload_len))


def _ticket(random: Random, length: int) -> bytes:
    """A session to resume: its ticket, how old it is, and the binder."""
    return _vector(_vector(random.randbytes(length)) + random.randbytes(4)) \
        + _vector(_vector(random.randbytes(32), 1))


def _grease(random: Random) -> int:
    return random.randrange(16) * 0x1010 + 0x0A0A


def _numbers(*numbers: int) -> bytes:
    return struct.pack(f"!{len(numbers)}H", *numbers)


def _vector(octets: bytes, length_len: int = 2) -> bytes:
    return len(octets).to_bytes(length_len, "big") + octets


# --- sent through real stacks ---


class Load(NamedTuple):
    """What became of connections: how many a second were answered, how many failed."""

    rate: float
    failed: int
    p99_ms: float


class Sender:
    """Clients that say hellos, and servers for them. directory: for what it has to write."""

    def __init__(self, directory: Path) -> None:
        """Raises: RuntimeError with what the compiler says."""
        self._program = directory / "hellos"
        run(["clang", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(self._program),
             str(_SOURCE)])

    def serve(self, node: Node, address: str, port: int) -> Process:
        """Answer hellos at once, until stopped."""
        process = node.start("hellos", [str(self._program), "answer", address, str(port)])
        return process.wait_for_listener(address, port)

    def send(
        self, node: Node, address: str, port: int, hellos: Iterable[Hello], seconds: float,
        connections: int = 32,
    ) -> Load:
        """So many connections at a time, for so long. Raises: RuntimeError."""
        path = self._program.with_suffix(".in")
        path.write_bytes(b"".join(len(hello.octets).to_bytes(4) + hello.octets
                                  for hello in hellos))
        words = [str(self._program), "send", address, str(port), str(seconds), str(connections)]
        answered, failed, p99_us = map(
            int, node.run(["sh", "-c", '"$@" < "$0"', str(path), *words]).split())
        return Load(answered / seconds, failed, p99_us / 1000)
