"""The engine: verdicts carried out, faults survived, time kept, on a real queue."""

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns import inside, received, udp_packet, udp_socket

from common.counters import Sample, new_counters
from common.engine import clock
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.loop import TICK_MS, Engine
from common.engine.queue import RawSender
from common.engine.signals import Signals
from common.verdict import DROP, HELD, PASS, DropReason, Event, Verdict, send
from lab.topology import BALANCER, CLIENT, Lab

NUMBER, PORT, BACK = 6, 4000, 4001
HEADERS_LEN = 28


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Datagrams to PORT are queued at the balancer."""
    with Lab(backends=1, mtu=9000) as network:
        with inside(network.balancer):
            host = Host("test", NUMBER)
            host.install_rules([Rule("prerouting", NUMBER, protocol="udp", dport=PORT)])
        yield network
        with inside(network.balancer):
            host.undo()


@pytest.fixture(autouse=True)
def _unchanged_process() -> Iterator[None]:
    handlers = {number: signal.getsignal(number)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    gc.enable()
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Stub:
    """A data path that does what the first octet says, and stops the engine after some ticks."""

    def __init__(self, signals: Signals, ticks: int = 2) -> None:
        self.counters = new_counters()
        self.clock_offset_ms = 0
        self.seen: list[bytes] = []
        self.ticks_ms: list[int] = []
        self._signals, self._ticks_left = signals, ticks
        self.on_seen: Callable[[], object] = lambda: None

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        payload = packet[HEADERS_LEN:]
        self.seen.append(payload)
        self.on_seen()
        if payload[:1] == b"f":
            raise ZeroDivisionError("a fault of the data path")
        back = udp_packet(BALANCER, CLIENT, BACK, b"back" + payload)
        return {
            b"p": PASS, b"d": DROP[DropReason.UNKNOWN_FLOW], b"h": HELD,
            b"s": send(Event.FORWARDED, back, back),
            b"b": send(Event.FORWARDED, back + bytes(9000)),
        }[payload[:1]]

    def collect(self) -> None:
        pass

    def on_tick(self, now_ms: int) -> list[bytes]:
        self.ticks_ms.append(now_ms)
        self._ticks_left -= 1
        if self._ticks_left == 0:
            self._signals.stop = True
        return [udp_packet(BALANCER, CLIENT, BACK, b"tick")] if len(self.ticks_ms) == 1 else []

    def on_too_big(self, packet: bytes, mtu: int, now_ms: int) -> list[bytes]:
        said = b"at most %d" % mtu
        return [udp_packet(BALANCER, CLIENT, BACK, said + packet[HEADERS_LEN:])]

    def samples(self) -> list[Sample]:
        return [Sample("flows", "gauge", "Flows", {}, 7),
                Sample("backend_flows", "gauge", "Flows", {"backend": "1"}, 7)]


Run = Callable[..., tuple[Engine, Stub]]


@pytest.fixture
def run(lab: Lab, client: socket.socket) -> Run:
    """Runs an engine over what the client has sent, for a few ticks."""
    def run_with(*payloads: bytes, ticks: int = 2, prepare: Callable[[Stub], None] | None = None,
                 report: bool = False) -> tuple[Engine, Stub]:
        signals = Signals()
        signals.report = report
        stub = Stub(signals, ticks)
        if prepare:
            prepare(stub)
        with inside(lab.balancer):
            engine = Engine(stub, NUMBER, RawSender(9), signals)
            for payload in payloads:
                client.send(payload)
            engine.run("ready: it is tested")
            engine.close()
        return engine, stub

    return run_with


@pytest.fixture
def client(lab: Lab) -> Iterator[socket.socket]:
    with udp_socket(lab.client) as made:
        made.connect((BALANCER, PORT))
        made.send(b"so that ARP is done")
        yield made


@pytest.fixture
def server(lab: Lab) -> Iterator[socket.socket]:
    with udp_socket(lab.balancer, port=PORT) as made:
        yield made


@pytest.fixture
def back(lab: Lab) -> Iterator[socket.socket]:
    with udp_socket(lab.client, port=BACK) as made:
        yield made


def test_each_verdict_is_carried_out(run: Run, server, back) -> None:
    run(b"pass", b"drop", b"hold", b"send", b"pass too")

    assert received(server) == [b"pass", b"pass too"]
    assert sorted(received(back)) == [b"backsend", b"backsend", b"tick"]


def test_the_first_packet_finds_the_time_known(run: Run) -> None:
    """It may have waited; a cookie of another time would hold for nobody."""
    offsets_ms = []

    def prepare(stub: Stub) -> None:
        stub.on_seen = lambda: offsets_ms.append(stub.clock_offset_ms)

    run(b"pass", b"pass too", prepare=prepare)

    assert len(offsets_ms) == 2
    assert all(abs(offset_ms - clock.offset_ms()) < 1000 for offset_ms in offsets_ms)


def test_a_packet_that_turns_out_too_big_is_answered(run: Run, back) -> None:
    run(b"big")

    assert sorted(received(back)) == [b"at most 9000big", b"tick"]


def test_a_packet_that_the_queue_cut_off_is_dropped_and_counted(run: Run) -> None:
    _, stub = run(b"p" * 8000, b"p" * 100)

    assert stub.seen == [b"p" * 100]
    assert stub.counters[DropReason.TRUNCATED] == 1


def test_a_fault_drops_its_packet_and_nothing_else(run: Run, server, caplog) -> None:
    _, stub = run(b"pass", b"fault", b"fault", b"fault", b"pass too")

    assert received(server) == [b"pass", b"pass too"]
    assert stub.counters[DropReason.INTERNAL_ERROR] == 3
    faults = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(faults) == 1
    assert "ZeroDivisionError" in faults[0].exc_text


def test_a_fault_on_a_tick_ends_nothing(run: Run, server, monkeypatch) -> None:
    def prepare(stub: Stub) -> None:
        sound = stub.on_tick

        def on_tick(now_ms: int) -> list[bytes]:
            sound(now_ms)
            raise ZeroDivisionError

        stub.on_tick = on_tick

    _, stub = run(b"pass", ticks=3, prepare=prepare)

    assert received(server) == [b"pass"]
    assert stub.counters[DropReason.INTERNAL_ERROR] == 3


def test_ticks_come_every_tenth_of_a_second(run: Run) -> None:
    _, stub = run(ticks=6)

    numbers = [now_ms // TICK_MS for now_ms in stub.ticks_ms]
    assert numbers == sorted(set(numbers))  # at most one in each tenth
    assert 4 * TICK_MS < stub.ticks_ms[-1] - stub.ticks_ms[0] < 20 * TICK_MS


def test_ticks_come_and_an_end_is_possible_while_packets_never_cease(run: Run, client) -> None:
    def prepare(stub: Stub) -> None:
        stub.on_seen = lambda: client.send(b"drop")  # the queue is never empty

    started_ms = clock.now_ms()
    _, stub = run(b"drop", b"drop", ticks=5, prepare=prepare)

    assert len(stub.ticks_ms) == 5
    assert clock.now_ms() - started_ms < 5000
    assert len(stub.seen) > 100


def test_all_counters_are_one_line_of_the_log(run: Run, caplog) -> None:
    caplog.set_level(logging.INFO)
    def prepare(stub: Stub) -> None:
        stub.counters[Event.HANDOFF] = 5

    run(report=True, prepare=prepare)

    asked, at_end = (record.message for record in caplog.records if "counters" in record.message)
    assert asked == at_end
    assert asked == ("counters: handoff=5 flows=7 backend_flows{backend=1}=7 "
                     "packets_lost{where=queue}=0 packets_lost{where=socket}=0 send_failures=0")


def test_readiness_is_logged_and_told_to_the_service_manager(
    run: Run, tmp_path: Path, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        run(b"drop")

        assert received(manager) == [b"READY=1", b"STOPPING=1"]
    assert "ready: it is tested" in caplog.messages


def test_the_service_managers_watchdog_is_fed_while_packets_are_handled(
    run: Run, tmp_path: Path, monkeypatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(2 * TICK_MS * 1000))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

        run(b"drop")

        said = received(manager)
        assert (said[0], said[-1]) == (b"READY=1", b"STOPPING=1")
        assert len(said) > 2
        assert set(said[1:-1]) == {b"WATCHDOG=1"}
