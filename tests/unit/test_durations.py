"""How long handshakes take, and backends to answer, as the portable engine measures it."""

import pytest

from common.histogram import Histogram
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST
from tests.fuzz import datapaths
from tests.fuzz.datapaths import REQUEST, START_MS

PORT, ISN = 40_000, 7


class Client:
    """One client's connection at a balancer."""

    def __init__(self, has_timestamps: bool = True) -> None:
        self.datapath = datapaths.balancer()
        (self.service,) = self.datapath.services
        self.made = datapaths.handshake(PORT, ISN, START_MS)
        self.has_timestamps = has_timestamps

    def send(self, at_ms: int, payload: bytes = b"", flags: int = ACK, *, off: int = 0) -> None:
        """A segment, so long after the SYN-ACK. off: of its first octet."""
        stamps = options.emit(Options(timestamps=(5, self.made.t0))) if self.has_timestamps else b""
        self.datapath.on_packet(
            tcp.emit(datapaths.ends(PORT), ISN + 1 + off, self.made.cookie_isn + 1, flags,
                     option_octets=stamps, payload=payload), START_MS + at_ms)

    @property
    def first_acks(self) -> Histogram:
        (found,) = (each.first_acks for each in self.service.pool if each.handoffs)
        return found


@pytest.mark.parametrize("at_ms, sum_ms", [(0, 0), (1, 1), (80, 80), (1000, 1000), (1029, 5)])
def test_a_handshake_takes_from_the_syn_ack_to_the_first_data(at_ms: int, sum_ms: int) -> None:
    client = Client()

    client.send(at_ms, REQUEST, PSH | ACK)
    client.send(at_ms + 50, REQUEST, PSH | ACK)  # once more

    assert client.service.handshakes.sum_ms == sum_ms
    assert sum(client.service.handshakes.counts) == 1


def test_a_handshake_does_not_wait_for_the_rest_of_the_key() -> None:
    client = Client()

    client.send(20, REQUEST[:9], PSH | ACK)
    client.send(500, REQUEST[9:], PSH | ACK, off=9)

    assert client.service.handshakes.sum_ms == 20


def test_without_timestamps_nobody_knows_how_long_a_handshake_took() -> None:
    client = Client(has_timestamps=False)

    client.send(80, REQUEST, PSH | ACK)

    assert sum(each.handoffs for each in client.service.pool) == 1
    assert sum(client.service.handshakes.counts) == 0


@pytest.mark.parametrize("has_timestamps", [True, False])
def test_the_first_ack_after_the_handoff_is_the_backends_answer(has_timestamps: bool) -> None:
    client = Client(has_timestamps)

    client.send(10, REQUEST, PSH | ACK)
    client.send(40, REQUEST, PSH | ACK)  # once more
    client.send(110, off=len(REQUEST))
    client.send(500, off=len(REQUEST))

    assert sum(client.first_acks.counts) == 1
    assert client.first_acks.sum_ms == 100


@pytest.mark.parametrize("payload, flags", [(b"more", PSH | ACK), (b"", FIN | ACK), (b"", RST)])
def test_what_else_comes_first_says_nothing_of_the_backend(payload: bytes, flags: int) -> None:
    client = Client()

    client.send(10, REQUEST, PSH | ACK)
    client.send(20, payload, flags, off=len(REQUEST))
    client.send(110, off=len(REQUEST) + 4)

    assert sum(client.first_acks.counts) == 0
