"""What `balancer trace` and the balancer say to each other, over a socket that is root's alone.

    trace     a Request
    balancer  a Welcome; from the fast engine with two descriptors: the ring that its program writes
              decisions into, and the map that counts those that were lost
    balancer  a Decision for each of the portable engine's
    trace     PING each second, or it is taken for dead; the balancer answers with a count
    balancer  GOODBYE and why, where it is the one that ends it

Each is a message of its own (SOCK_SEQPACKET); the first octet says what it is.
"""

import json
import struct
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from common.engine import netns
from common.verdict import DropReason, Event, Reason

PING, REFUSAL = b".", b"!"
WELCOME, DECISION, LOST = b"W", b"D", b"L"
PING_S, LEASE_MS = 1.0, 10_000  # how often it is said, and for how long it holds
MOST_OCTETS = 1 << 16  # of a message
MOST_WELCOME = 1 << 18  # of a welcome, to 64 services of 127 backends
REASONS: dict[str, Event | DropReason] = {
    reason.value: reason for kind in (Event, DropReason) for reason in kind}
_DIRECTORY = Path("/run/l3dsr")
_HEAD = struct.Struct("=QHH24s")  # time, backend, length of the packet, reason
_COUNT = struct.Struct("=Q")


def path_of(queue: int) -> Path:
    """Where the balancer with that queue listens, in this network namespace."""
    return _DIRECTORY / f"balancer-{queue}.{netns.inode()}.trace"


class Request(NamedTuple):
    """client: whose packets. reasons: which decisions. rate: how many a second, of each engine."""

    client: IPv4Network
    reasons: frozenset[Event | DropReason]
    rate: int
    version: str

    def pack(self) -> bytes:
        """As a message."""
        fields = self._asdict() | {
            "client": str(self.client), "reasons": [reason.value for reason in self.reasons]}
        return json.dumps(fields).encode()

    @classmethod
    def parse(cls, message: bytes) -> "Request":
        """Raises: ValueError."""
        fields = json.loads(message)
        try:
            reasons = frozenset(REASONS[name] for name in fields["reasons"] if name in REASONS)
            return cls(IPv4Network(fields["client"]), reasons, int(fields["rate"]),
                       str(fields["version"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no request: {error}") from None


@dataclass(frozen=True)
class ServiceWords:
    """A service, as far as its decisions can be told by it. backends: addresses by id."""

    name: str
    vip: str
    port: int
    key: str
    fallback: str
    backends: dict[str, str]


@dataclass(frozen=True)
class Welcome:
    """reasons: values by the fast engine's numbers; empty without one."""

    services: list[ServiceWords]
    reasons: dict[str, str]

    def pack(self) -> bytes:
        """As a message."""
        return WELCOME + json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, text: bytes) -> "Welcome":
        """text: without the first octet."""
        fields: dict[str, Any] = json.loads(text)
        return cls([ServiceWords(**each) for each in fields["services"]], fields["reasons"])


class Decision(NamedTuple):
    """What was decided about a packet.

    time_ns: since the boot. backend: its id; 0: none. packet: as it came, or the first of it.
    payload: with a handoff, what the backend was chosen by, unless it is the packet's own.
    """

    time_ns: int
    reason: Reason
    backend: int
    packet: bytes
    payload: bytes = b""

    def pack(self) -> bytes:
        """As a message."""
        head = _HEAD.pack(self.time_ns, self.backend, len(self.packet), self.reason.value.encode())
        return (DECISION + head + self.packet + self.payload)[:MOST_OCTETS]

    @classmethod
    def parse(cls, text: bytes) -> "Decision":
        """text: without the first octet."""
        time_ns, backend, packet_len, name = _HEAD.unpack_from(text)
        payload_off = _HEAD.size + packet_len
        return cls(time_ns, REASONS[name.rstrip(b"\0").decode()], backend,
                   text[_HEAD.size:payload_off], text[payload_off:])


def pack_lost(count: int) -> bytes:
    """How many of the portable engine's decisions were not told."""
    return LOST + _COUNT.pack(count)


def parse_lost(text: bytes) -> int:
    """The inverse, without the first octet."""
    return int(_COUNT.unpack(text)[0])
