"""The log: one line each, fields for programs, and no flood of packets that floods it."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from random import Random

import pytest

from common.counters import new_counters
from common.engine import log
from common.engine.failures import Failures
from common.engine.remedies import EVERY_MS, REMEDIES, Remedies
from common.verdict import DropReason
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, RST, SYN
from packetbridge.modes import trouble
from tests.fuzz import datapaths
from tests.fuzz.datapaths import REQUEST, START_MS

ours = logging.getLogger("common.test")


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Log:
    """What set_up makes, on a stream and a clock of a test's own."""

    def __init__(self, style: str) -> None:
        self.clock, self._stream = Clock(), io.StringIO()
        self.handler = log.BoundedHandler(self._stream, self.clock)
        self.handler.setFormatter(log.formatter(style))

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


@pytest.fixture
def written(request: pytest.FixtureRequest) -> Iterator[Log]:
    """Everything from debug on. Its parameter is the style; text, where there is none."""
    made = Log(getattr(request, "param", "text"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(made.handler)
    yield made
    root.removeHandler(made.handler)
    root.setLevel(level)


def flood(number: int) -> None:
    for each in range(number):
        ours.warning("a packet from %d", each)


def test_a_flood_of_lines_is_cut_and_what_is_left_out_is_said(written: Log) -> None:
    flood(10_000)
    ours.error("another kind")
    before = len(written.lines)
    written.clock.now_s = log.PERIOD_S
    flood(1)

    assert before == log.MOST + 2
    assert written.lines[log.MOST].endswith("further lines like the last one are left out for 10 s")
    assert written.lines[log.MOST + 1].endswith("ERROR another kind")
    assert [line.partition("WARNING ")[2] for line in written.lines[-2:]] == [
        f"{10_000 - log.MOST} lines like the next one were left out", "a packet from 0"]


@pytest.mark.parametrize("written", ["text", "json"], indirect=True)
def test_whatever_words_come_into_it_a_line_is_one(written: Log) -> None:
    ours.warning("it says %s", "200 OK\r\n2026-01-01 ERROR forged\n")

    assert len(written.lines) == 1


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_programs_read_fields_and_not_sentences(written: Log) -> None:
    ours.warning("backend %d is down", 2, extra=log.fields(event="backend_down", backend="2"))

    entry = json.loads(written.lines[0])
    assert entry["message"] == "backend 2 is down"
    assert entry["level"] == "warning"
    assert (entry["event"], entry["backend"]) == ("backend_down", "2")


def test_each_drop_that_should_not_be_is_a_line_in_a_minute(caplog) -> None:
    remedies, counters = Remedies(), new_counters()
    counters[DropReason.TABLE_FULL] = 5
    remedies.begin(counters)

    for now_ms in range(0, 3 * EVERY_MS, 100):
        counters[DropReason.TABLE_FULL] += 1000
        counters[DropReason.UNKNOWN_FLOW] += 1000
        remedies.on_tick(counters, now_ms)

    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("1000 new clients were reset: the flow table is full")
    assert "max_flows" in caplog.messages[0]


def test_what_happens_now_and_then_is_no_news(caplog) -> None:
    remedies, counters = Remedies(), new_counters()

    for now_ms in range(0, 3 * EVERY_MS, 1000):
        counters[DropReason.TTL_EXPIRED] += 1
        remedies.on_tick(counters, now_ms)

    assert REMEDIES[DropReason.TTL_EXPIRED].least > 60
    assert caplog.messages == []


@pytest.mark.parametrize("number, remedy", [
    (errno.ENETUNREACH, "; look at ip route get 10.0.0.1"),
    (errno.EPERM, "; look at this host's firewall"), (errno.EMSGSIZE, ""),
])
def test_what_cannot_be_sent_is_said_with_what_to_look_at(number: int, remedy: str, caplog) -> None:
    Failures().note(OSError(number, ""), b"\x0a\0\0\1")

    assert caplog.messages[0].endswith(f"(errno {number}){remedy}")
    assert getattr(caplog.records[0], log.FIELDS)["errno"] == number


def test_a_server_that_refuses_is_said_at_once_and_then_together(caplog) -> None:
    bridge = datapaths.bridge()

    for number in range(50):
        now_ms = START_MS + 10 * number
        made = datapaths.handshake(40_000 + number, 7, now_ms)
        stamps = options.emit(Options(timestamps=(5, made.handed(datapaths.BRIDGE.packed))))
        (syn,) = bridge.on_packet(tcp.emit(
            datapaths.ends(40_000 + number, datapaths.BRIDGE), 8, made.cookie_isn + 1, PSH | ACK,
            option_octets=stamps, payload=REQUEST, tos=datapaths.DSCP << 2), now_ms).packets
        ends = five_tuple.reverse(tcp.checked(syn).five_tuple)
        bridge.on_packet(tcp.emit(ends, 0, 8, RST | ACK), now_ms)
        bridge.on_tick(now_ms)
    bridge.on_tick(now_ms + trouble.EVERY_MS)

    server = f"{datapaths.SERVER}:{datapaths.SERVER_PORT}"
    assert [message.partition(",")[0] for message in caplog.messages] == [
        f"{server} refuses connections of web (1)", f"{server} refuses connections of web (49)"]
    assert "ss -ltn" in caplog.messages[0]


def test_no_flood_of_packets_floods_the_log(written: Log) -> None:
    random = Random(1)
    for datapath, address, tos in ((datapaths.balancer(), datapaths.VIP, 0),
                                   (datapaths.bridge(), datapaths.BRIDGE, datapaths.DSCP << 2)):
        remedies = Remedies()
        for number in range(5000):
            now_ms = START_MS + number
            ends = datapaths.ends(random.randrange(1, 1 << 16), address)
            flags = random.choice((SYN, ACK, PSH | ACK, RST))
            packet = bytearray(tcp.emit(
                ends, random.getrandbits(32), random.getrandbits(32), flags, tos=tos,
                payload=random.randbytes(random.randrange(40))))
            if number % 2:
                packet[random.randrange(len(packet))] ^= 1 << random.randrange(8)
            datapath.on_packet(bytes(packet), now_ms)
            if number % 100 == 0:
                datapath.on_tick(now_ms)
                remedies.on_tick(datapath.counters, now_ms)

    assert len(written.lines) < 50
