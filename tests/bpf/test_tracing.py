"""The program that stands in while somebody traces: it decides the same, and tells it."""

import os
import struct
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from balancer.offload.maps import SNAP_MAX
from balancer.offload.tracing import PROGRAM_NAME, TRACE_MAPS, Tracing
from balancer.trace.client import Ring
from balancer.trace.messages import REASONS, Decision
from common.bpf import BpfError
from common.bpf.objects import XDP_DROP, XDP_PASS, XDP_TX, Object
from common.verdict import DropReason, Event, Reason
from common.wire import tcp
from common.wire.family import stated_len
from common.wire.tcp import ACK, PSH, SYN
from lab.handshakes import Handshake
from tests.bpf.loaded import shared
from tests.bpf.test_balancer_differential import ETHERNET, NOW_MS, SECRETS, VIP, Twins
from tests.golden import test_golden
from tests.golden.test_golden import OF_BALANCER

ALL = frozenset(REASONS.values())
CLIENT = IPv4Address("198.51.100.7")
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


def tracing(original: Object, client: str = "0.0.0.0/0", reasons: frozenset[Reason] = ALL,
            rate: int = 10_000) -> Tracing:
    """The program once more, which tells."""
    with shared():
        return Tracing(original, IPv4Network(client), reasons, rate)


class Traced:
    """Twins whose program tells."""

    def __init__(self, twins: Twins, client: str = "0.0.0.0/0",
                 reasons: frozenset[Reason] = ALL, rate: int = 10_000) -> None:
        self.tracing = tracing(twins.loaded.object, client, reasons, rate)
        self.tracing.allow_until(NOW_MS + 1)
        self.run = self.tracing.program.test_run
        ring, counts = self.tracing.descriptors
        self._ring = Ring(_dup(ring), _dup(counts), self.tracing.reasons)

    def told(self) -> list[Decision]:
        """Since the last time."""
        return self._ring.read()

    def lost(self) -> int:
        return self._ring.lost()

    def close(self) -> None:
        self._ring.close()
        self.tracing.close()


def _dup(descriptor: int) -> int:
    return os.dup(descriptor)


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    made = Twins()
    yield made
    made.loaded.close()


@pytest.fixture
def traced(twins: Twins, request: pytest.FixtureRequest) -> Iterator[Callable[..., Traced]]:
    """Makes programs that tell, with a wish."""
    made = []

    def make(**wish: Any) -> Traced:
        made.append(Traced(twins, **wish))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ends(sport: int, source: IPv4Address = CLIENT) -> bytes:
    return source.packed + VIP.packed + struct.pack("!HH", sport, 1000)


def life(sport: int) -> list[bytes]:
    """A connection's first packets."""
    made = Handshake(SECRETS, ends(sport), 7, NOW_MS)
    return [
        tcp.emit(ends(sport), 7, 0, SYN), tcp.emit(ends(sport), 8, made.cookie_isn + 1, ACK),
        tcp.emit(ends(sport), 8, made.cookie_isn + 1, PSH | ACK, payload=GET),
        tcp.emit(ends(sport), 8 + len(GET), made.cookie_isn + 1, ACK),
    ]


def test_a_connections_packets_are_told_as_they_came(traced: Callable[..., Traced]) -> None:
    program = traced()
    packets = life(5000)

    # with what pads a frame, which is no part of the packet
    ran = [program.run(ETHERNET + packet + bytes(6)).retval for packet in packets]

    told = program.told()
    assert ran == [XDP_TX, XDP_DROP, XDP_TX, XDP_TX]
    assert [each.reason for each in told] == [
        Event.SYN_ANSWERED, DropReason.HANDSHAKE_ACK, Event.HANDOFF, Event.FORWARDED]
    assert [each.packet for each in told] == packets
    chosen = told[2].backend
    assert 1 <= chosen <= 7
    assert [each.backend for each in told] == [0, 0, chosen, chosen]
    assert told[0].time_ns < told[1].time_ns < told[2].time_ns < told[3].time_ns
    assert program.lost() == 0


def test_what_goes_up_is_left_to_those_who_decide(traced: Callable[..., Traced]) -> None:
    program = traced()
    made = Handshake(SECRETS, ends(5001), 7, NOW_MS)
    begun = tcp.emit(ends(5001), 8, made.cookie_isn + 1, PSH | ACK, payload=GET[:6])

    for frame in (ETHERNET + begun, bytes(12) + b"\x86\xdd" + bytes(60), ETHERNET + bytes(20),
                  ETHERNET + b"\x45"):
        assert program.run(frame).retval == XDP_PASS

    assert not program.told()


@pytest.mark.parametrize("length", [SNAP_MAX - 1, SNAP_MAX, SNAP_MAX + 1, 8000])
def test_of_a_long_packet_the_first_octets_are_told(
    traced: Callable[..., Traced], length: int
) -> None:
    program = traced()
    packet = tcp.emit(ends(5002), 7, 0, SYN, payload=bytes(length - 40))

    program.run(ETHERNET + packet)

    assert [each.packet for each in program.told()] == [packet[:SNAP_MAX]]


def test_only_what_is_asked_for_is_told(traced: Callable[..., Traced]) -> None:
    of_client = traced(client="198.51.100.0/28")
    of_reason = traced(reasons=frozenset({DropReason.HANDSHAKE_ACK}))
    sources = [IPv4Address("198.51.100.15"), IPv4Address("198.51.100.16")]
    for source in sources:
        of_client.run(ETHERNET + tcp.emit(ends(5003, source), 7, 0, SYN))
    for packet in life(5004):
        of_reason.run(ETHERNET + packet)

    assert [each.packet[12:16] for each in of_client.told()] == [sources[0].packed]
    assert [each.reason for each in of_reason.told()] == [DropReason.HANDSHAKE_ACK]


def test_more_than_the_rate_are_counted(traced: Callable[..., Traced]) -> None:
    program = traced(rate=100)

    program.run(ETHERNET + life(5005)[1], repeat=100_000)  # well within a second

    told = len(program.told())
    assert told + program.lost() == 100_000
    assert 10 <= told < 1000


def test_when_its_time_is_over_it_tells_nothing(
    twins: Twins, traced: Callable[..., Traced]
) -> None:
    program = traced()
    program.tracing.allow_until(NOW_MS)

    assert program.run(ETHERNET + life(5006)[0]).retval == XDP_TX
    assert not program.told()
    assert program.lost() == 0


def test_the_usual_program_knows_nothing_of_traces(twins: Twins) -> None:
    """All that is for them is pruned, down to the maps, which are not even there."""
    for name in TRACE_MAPS:
        with pytest.raises(BpfError):
            twins.loaded.object.map(name)
    usual = twins.loaded.object.program(PROGRAM_NAME).info()
    told = tracing(twins.loaded.object)
    telling = told.program.info()
    told.close()

    assert usual.xlated_len + 1000 < telling.xlated_len


@pytest.mark.parametrize("folder", [
    pytest.param(folder, marks=[pytest.mark.kernels] * (not index % 4))
    for index, folder in enumerate(OF_BALANCER[::4])  # each loads both programs, for a second
], ids=lambda folder: folder.name)
def test_the_golden_cases_come_out_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    told: list[Decision] = []

    def fast(case: dict[str, Any]) -> test_golden.FastBalancer:
        balancer = test_golden.fast(case)
        assert isinstance(balancer, test_golden.FastBalancer)
        telling = Telling(balancer, told)
        monkeypatch.setattr(balancer, "_run", telling.run)
        monkeypatch.setattr(balancer, "close", telling.close)
        return balancer

    test_golden.test_case(folder, fast)

    assert all(each.reason.value in " ".join(case["verdicts"]) for each in told)


class Telling:
    """A golden case's program, which tells."""

    def __init__(self, balancer: test_golden.FastBalancer, told: list[Decision]) -> None:
        self._balancer = balancer
        self._told = told
        self._tracing = tracing(balancer._loaded.object, rate=100_000)
        self._tracing.allow_until(1 << 62)
        ring, counts = self._tracing.descriptors
        self._ring = Ring(_dup(ring), _dup(counts), self._tracing.reasons)

    def run(self, frame: bytes) -> Any:
        run = self._tracing.program.test_run(frame)
        before = len(self._told)
        self._told += self._ring.read()
        told = self._told[before:]
        if run.retval == XDP_PASS:
            assert not told
        else:
            assert [(each.reason, each.packet) for each in told] == [
                (self._balancer._loaded.last_reason(), frame[14:14 + stated_len(frame[14:])])]
        return run

    def close(self) -> None:
        self._ring.close()
        self._tracing.close()
        self._balancer._loaded.close()
