"""The bridge's programs before its data path, against the data path alone: the same octets.

Others, and more of them: lab/run test tests/bpf -k differential --seed 7 --times 100
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from common.cluster.cookie import Offer, Secrets
from common.flow import guesses
from common.settings.table import Table
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST, SYN
from lab.handshakes import Handshake
from packetbridge import config
from packetbridge.datapath import Datapath
from tests.bpf.bridge_engine import Spliced

SECRET = bytes(range(16))
NOW_MS = 1_700_000_010_000
CASE = {
    "secrets": [SECRET.hex()],
    "config": {
        "address": "192.168.33.20",
        "service": [
            {"name": "web", "dscp": 3, "vip": "192.168.33.10:80", "server": "192.168.33.30:8080"}
        ],
    },
}
VIP, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}").packed for host in (10, 20, 30))
TAG = 3 << 2
FLAGS = [ACK, ACK | PSH, ACK | PSH | 0x40, ACK | 0x20, 0] * 30 + [ACK | FIN, RST | ACK, RST, SYN]

pytestmark = pytest.mark.root


class Talk:
    """A connection's two ends: what they were told, and segments about there."""

    def __init__(self, random: Random, port: int) -> None:
        self.random = random
        self.client_end = bytes((10, 0, port >> 8 & 255, port & 255)) + port.to_bytes(2)
        self.client_isn, self.server_isn = random.getrandbits(32), random.getrandbits(32)
        self.offer = Offer(1460, random.random() < 0.7, random.choice([None, 0, 7, 14]))
        self.has_timestamps = random.random() < 0.7
        address, number = self.client_end[:4], self.client_end[4:]
        ends = address + VIP + number + struct.pack("!H", 80)
        self.handshake = Handshake(Secrets(SECRET), ends, self.client_isn, NOW_MS, self.offer)
        self.cookie_isn = self.handshake.cookie_isn
        self.to_bridge = address + BRIDGE + number + struct.pack("!H", 80)
        self.to_client = SERVER + address + struct.pack("!H", 8080) + number

    def handoff(self) -> bytes:
        """The client's first data."""
        stamps = Options(
            timestamps=(5, self.handshake.handed(BRIDGE)) if self.has_timestamps else None)
        return tcp.emit(self.to_bridge, self.client_isn + 1, self.cookie_isn + 1, ACK | PSH,
                        option_octets=options.emit(stamps), payload=b"GET / HTTP/1.0\r\n\r\n",
                        tos=TAG)

    def syn_ack(self) -> bytes:
        """The server's, which may offer less than the cookie had to."""
        random = self.random
        made = Options(
            mss=1460, sack=self.offer.sack and random.random() < 0.8,
            timestamps=(random.getrandbits(32), 5) if self.has_timestamps else None,
            wscale=None if self.offer.wscale is None else random.choice([None, 0, 3, 10]),
        )
        return tcp.emit(self.to_client, self.server_isn, self.client_isn + 1, SYN | ACK,
                        option_octets=options.emit(made))

    def segment(self) -> bytes:
        """A segment of either end's, its numbers not far from what was said."""
        random = self.random
        to_client = random.random() < 0.5
        mine, other = self.client_isn, self.cookie_isn
        if to_client:
            mine, other = self.server_isn, self.client_isn
        octets = b"".join(random.choices(
            [b"\x01\x01" + self._stamps(), self._stamps() + b"\x01\x01", self._sack(),
             b"\x01\x01" + self._sack(), b"\x02\x04\x05\xb4", b"\xfd\x04\0\1", b"\x05\x01", b""],
            k=random.choice([0, 1, 1, 1, 2, 3]),
        ))[:40]
        return tcp.emit(
            self.to_client if to_client else self.to_bridge,
            mine + random.choice([1, 2, 1500, 2**31, 0]) & 0xFFFFFFFF,
            other + random.choice([1, 2, 1500, 2**31]) & 0xFFFFFFFF,
            random.choice(FLAGS), window=random.getrandbits(16),
            option_octets=octets + bytes(-len(octets) % 4),
            payload=random.randbytes(random.choice([0, 0, 1, 2, 99, 1400])),
            tos=random.getrandbits(2) | (0 if to_client else TAG),
        )

    def _stamps(self) -> bytes:
        return struct.pack("!BBII", 8, 10, self.random.getrandbits(32), self.random.getrandbits(32))

    def _sack(self) -> bytes:
        edges = [self.random.getrandbits(32) for _ in range(2 * self.random.randrange(1, 5))]
        return struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """What the test generates from."""
    return Random(f"{request.config.getoption('seed')} {request.function.__name__}")


@pytest.fixture
def spliced() -> Iterator[Spliced]:
    """The programs before the data path."""
    with pytest.MonkeyPatch.context() as patch:  # time stands still, and much is taken for a guess
        patch.setattr(guesses, "MAX_GUESSES", 1 << 30)
        engine = Spliced(CASE)
        yield engine
        engine.close()


def test_connections_are_translated_alike(
    spliced: Spliced, random: Random, request: pytest.FixtureRequest
) -> None:
    alone = Datapath(config.read(Table("case.toml", CASE["config"])), Secrets(SECRET),
                     random=Random(1))
    differences, count = [], 0
    for number in range(200 * request.config.getoption("times")):
        talk = Talk(random, 1024 + number % 60_000)
        packets = [talk.handoff(), talk.syn_ack(), *(talk.segment() for _ in range(100))]
        for packet in packets:
            count += 1
            found, expected = (each.on_packet(packet, NOW_MS) for each in (spliced, alone))
            if found != expected:
                differences.append((packet.hex(), found, expected))

    assert not differences[:3]
    assert spliced.carried > count // 10
