"""Packets as scapy stacks, in the words of the wire protocol (docs/wire.md).

A `Client` is one connection as its client sees it; it names sequence numbers
relative to the two initial ones, of which it reckons the cookie itself. What
the balancer must make of a packet is said by `to_bridge`. Checksums and lengths
are scapy's, always reckoned whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet, Raw

from tests.golden.case import SECRET, START_MS
from tests.golden.hashes import siphash_2_4

CLIENT, VIP, ROUTER = "192.168.33.1", "192.168.33.10", "10.99.0.1"
BRIDGES = {1: "192.168.33.20", 2: "192.168.33.21", 3: "192.168.33.22"}
DSCP = 3
EPOCH_MS = 64_000
CLIENT_CLOCK = 7_000_000  # the TSval of a client's first data
REQUEST = b"GET /a HTTP/1.1\r\nHost: example.net\r\n\r\n"
MSS_TABLE = (536, 1200, 1300, 1360, 1400, 1440, 1460, 8960)

Options = list[tuple[Any, Any]]
NOP: tuple[str, None] = ("NOP", None)
SACK_OK: tuple[str, bytes] = ("SAckOK", b"")


def named(backend_id: int, ms: int, id_bits: int = 7) -> int:
    """A timestamp of the server that names its backend."""
    return (backend_id << 31 - id_bits) + ms


@dataclass(frozen=True)
class Client:
    """One connection as its client sees it.

    mss, sack, wscale, timestamps: what its SYN offered (and the service has).
    isn:       its initial sequence number. syn_at_ms: when its SYN was answered.
    """

    port: int = 40000
    address: str = CLIENT
    vip: str = VIP
    vip_port: int = 80
    isn: int = 0x1000_0000
    syn_at_ms: int = START_MS
    mss: int | None = 1460
    sack: bool = True
    wscale: int | None = 7
    timestamps: bool = True
    secret: bytes = SECRET

    @cached_property
    def hash(self) -> int:
        """64 bits for the handshake: 24 for the cookie, 14 for T0, and 26 that no client sees."""
        message = (
            IPv4Address(self.address).packed + IPv4Address(self.vip).packed
            + self.port.to_bytes(2, "big") + self.vip_port.to_bytes(2, "big")
            + self.isn.to_bytes(4, "big") + (self.syn_at_ms // EPOCH_MS).to_bytes(4, "big")
        )
        return siphash_2_4(self.secret, message)

    @property
    def cookie_isn(self) -> int:
        """The SYN-ACK's initial sequence number."""
        mac = self.hash % (1 << 24)
        fitting = [index for index, mss in enumerate(MSS_TABLE) if mss <= (self.mss or 536)]
        wscale = 15 if self.wscale is None else min(self.wscale, 14)
        return mac << 8 | max(fitting, default=0) << 5 | self.sack << 4 | wscale

    @property
    def t0(self) -> int:
        """The SYN-ACK's TSval, which the client echoes at first."""
        return self.t0_at(self.syn_at_ms)

    def t0_at(self, now_ms: int) -> int:
        """14 bits for the handshake, and a millisecond clock of 10; never 0."""
        return (self.hash >> 24) % (1 << 14) * 1024 + now_ms % 1024 or 1

    def handed(self, backend_id: int, ms: int, id_bits: int = 7) -> int:
        """A handoff's TSecr: it names the backend, and proves whom it is for."""
        return named(backend_id, ms, id_bits) + self.proof(BRIDGES[backend_id])

    def proof(self, bridge: str) -> int:
        """14 bits of the handoff's TSecr that only the balancer and this bridge can know."""
        number = int(IPv4Address(bridge)) * 0x9E3779B1 % (1 << 32)
        product = (self.hash >> 38) * 64 * (number + 1 - number % 2) % (1 << 32)
        return product // (1 << 18) * 1024

    @property
    def check_mark(self) -> int:
        """A health check's TSval, which no client can know."""
        return self.hash >> 38

    def syn(self, options: Options | None = None, payload: bytes = b"", **fields: Any) -> Packet:
        """Its SYN."""
        return whole(
            src=self.address, dst=self.vip, id=self.port & 0xFFFF, sport=self.port,
            dport=self.vip_port, seq=self.isn, flags="S", window=64240, options=options or [],
            payload=payload, **fields,
        )

    def syn_ack(self, options: Options) -> Packet:
        """The answer to it."""
        return self.reply("SA", seq=0, window=65535, options=options)

    def reply(self, flags: str, seq: int = 1, ack: int = 1, **fields: Any) -> Packet:
        """A packet of the VIP's own, with relative numbers."""
        return whole(
            src=self.vip, dst=self.address, id=0, sport=self.vip_port, dport=self.port,
            seq=self.cookie_isn + seq, ack=self.isn + ack, flags=flags, **fields,
        )

    def taken(self, octets: bytes, *islands: tuple[int, int]) -> Packet:
        """The balancer's ACK of the first octets, by its window of 65535 from the first on.

        islands: relative sequence numbers of SACK blocks.
        """
        scale = 0 if self.wscale is None else 7
        options = timestamps(self.t0, CLIENT_CLOCK) if self.timestamps else []
        if islands:
            options += [NOP, NOP, ("SAck", tuple(
                self.isn + edge & 0xFFFFFFFF for island in islands for edge in island
            ))]
        return self.reply(
            "A", ack=1 + len(octets), window=65535 - len(octets) >> scale, options=options,
        )

    def joined(self, octets: bytes, seq: int = 1) -> Packet:
        """Acknowledged octets as the balancer joins them, before they are sent to a bridge."""
        return self.segment("PA", seq, payload=octets, id=0)

    def segment(
        self, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
        ts: tuple[int, int] | None = None, options: Options | None = None, **fields: Any,
    ) -> Packet:
        """A packet of the client's that is no SYN, with relative numbers.

        ts: (TSval, TSecr); without it, the echo of T0.
        """
        if options is None:
            options = timestamps(*(ts or (CLIENT_CLOCK, self.t0))) if self.timestamps else []
        stack = {"id": self.port + 1 & 0xFFFF, "window": 502, **fields}
        return whole(
            src=self.address, dst=self.vip, sport=self.port, dport=self.vip_port,
            seq=self.isn + seq, ack=self.cookie_isn + ack, flags=flags, options=options,
            payload=payload, **stack,
        )


def timestamps(tsval: int, tsecr: int) -> Options:
    """Timestamps as an established segment has them."""
    return [NOP, NOP, ("Timestamp", (tsval, tsecr))]


def whole(
    *, src: str, dst: str, sport: int, dport: int, seq: int, flags: str, ack: int = 0,
    window: int = 0, urgent: int = 0, options: Sequence[Any] = (), payload: bytes = b"",
    tos: int = 0, ttl: int = 64, id: int = 0, ip_flags: str = "DF",
) -> Packet:
    """One segment in one packet, every field stated; numbers are taken modulo 2**32."""
    ip = IP(src=src, dst=dst, tos=tos, ttl=ttl, id=id, flags=ip_flags)
    tcp = TCP(
        sport=sport, dport=dport, seq=seq % 2**32, ack=ack % 2**32, flags=flags, window=window,
        urgptr=urgent, options=list(options),
    )
    return ip / tcp / Raw(payload) if payload else ip / tcp


def changed(packet: Packet, **fields: Any) -> Packet:
    """`packet` with some fields of its IP or TCP header replaced."""
    made = packet.copy()
    for name, value in fields.items():
        layer = made[IP] if name in ("src", "dst", "tos", "ttl", "id", "frag") else made[TCP]
        setattr(layer, name, value)
    return made


def echoing(packet: Packet, tsecr: int) -> Packet:
    """`packet` with another TSecr."""
    options = [
        (name, (value[0], tsecr) if name == "Timestamp" else value)
        for name, value in packet[TCP].options
    ]
    return changed(packet, options=options)


def to_bridge(packet: Packet, backend_id: int = 1, *, dscp: int = DSCP, tsecr: int | None = None
              ) -> Packet:
    """What leaves for a bridge: another destination, DSCP and TTL, and perhaps another TSecr."""
    made = changed(
        packet, dst=BRIDGES[backend_id], tos=dscp << 2 | packet[IP].tos & 3, ttl=packet[IP].ttl - 1
    )
    return made if tsecr is None else echoing(made, tsecr)


def with_raw_options(packet: Packet, octets: bytes) -> Packet:
    """`packet` with options that are octets, whatever they mean; padded to words with END."""
    octets += bytes(-len(octets) % 4)
    payload = bytes(packet[TCP].payload)
    made = changed(packet, options=[], dataofs=5 + len(octets) // 4)
    made[TCP].remove_payload()
    return made / Raw(octets + payload)


def icmp_error(
    quoted: bytes, *, src: str = ROUTER, dst: str = VIP, kind: int = 3, code: int = 4,
    mtu: int = 0, tos: int = 0, ttl: int = 60,
) -> Packet:
    """An ICMP error about the packet that begins with `quoted`."""
    error = ICMP(type=kind, code=code)
    if (kind, code) == (3, 4):
        error.nexthopmtu = mtu
    return IP(src=src, dst=dst, tos=tos, ttl=ttl, id=99, flags=0) / error / Raw(quoted)


def balancer_config(
    *, backends: Sequence[int] = (1,), weights: dict[int, int] | None = None,
    services: Sequence[dict[str, Any]] = ({},), **config: Any,
) -> dict[str, Any]:
    """A balancer's TOML: one service on VIP:80 unless `services` are given.

    backends: ids, of every service. config: keys at the top.
    """
    tables = []
    for described in services:
        service = {"vip": VIP, "port": 80, "dscp": DSCP, **described}
        service["backend"] = [
            {"id": backend_id, "address": BRIDGES[backend_id],
             "weight": (weights or {}).get(backend_id, 1)}
            for backend_id in backends
        ]
        tables.append(service)
    return {**config, "service": tables}
