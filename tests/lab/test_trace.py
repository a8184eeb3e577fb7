"""`balancer trace` beside the running balancer, with either engine in front."""

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest
from netns import inside
from traffic import ALONE, PATIENCE_S, URL, need_programs

from common.capture import pcap
from common.wire import tcp
from lab.node import Process
from lab.topology import CLIENT, VIP, Lab, program, wait_until

_BURST = 20  # packets at once, 5 ms apart: what a slow machine can bear


class Traced:
    """A lab whose balancer is traced."""

    def __init__(self, lab: Lab, engine: str) -> None:
        self.lab = lab
        self.is_fast = engine == "fast"
        for backend in lab.backends:
            lab.start_nginx(backend)
        lab.start_bridges()
        self.balancer = lab.start_balancer("--engine", engine)

    def trace(self, *flags: str) -> Process:
        """A trace that has begun."""
        before = self._said(r"traces [0-9.]+/")
        started = self.lab.balancer.start("trace", [*program("balancer"), "trace", *flags])
        wait_until(lambda: self._said(r"traces [0-9.]+/") > before or not started.running,
                   PATIENCE_S, "the trace begins")
        assert started.running, started.log()
        return started

    def wait_for_end(self) -> None:
        """Wait until nothing is told any more."""
        wait_until(lambda: self._said("traces no more") == self._said(r"traces [0-9.]+/"),
                   PATIENCE_S, "the trace ends")

    def _said(self, pattern: str) -> int:
        return len(re.findall(pattern, self.balancer.log()))

    def answered(self) -> int:
        """How many SYNs have been answered, up to now."""
        before = self._said("counters:")
        self.balancer.popen.send_signal(signal.SIGUSR1)
        wait_until(lambda: self._said(r"counters:.*\n") > before, PATIENCE_S, "it counts")
        return int(re.findall(r"counters:.* syn_answered=(\d+)", self.balancer.log())[-1])

    def program_id(self) -> str | None:
        """Of the program at the balancer's interface."""
        link = self.lab.balancer.run(["ip", "-d", "link", "show", "eth1"])
        found = re.search(r"prog/xdp id (\d+)", link)
        return found[1] if found else None


@pytest.fixture(scope="module", params=["fast", "portable"])
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    if request.param == "fast":
        need_programs()
    with Lab() as lab:
        yield Traced(lab, request.param)


def test_a_connection_is_shown_from_its_syn_to_its_end(traced: Traced, tmp_path: Path) -> None:
    capture = tmp_path / "trace.pcapng"
    trace = traced.trace("--client", CLIENT, "--pcap", str(capture))

    backend, _, client = traced.lab.client.curl(f"{URL}/object/7", *ALONE).split()
    wait_until(lambda: len(trace.log().splitlines()) >= 5, PATIENCE_S, "it is shown")
    code = trace.stop(signal.SIGINT)

    flow = [line for line in trace.log().splitlines() if f" {client} → {VIP}:80 " in line]
    reasons = [line.split()[6] for line in flow]
    assert (code, reasons[:3]) == (0, ["syn_answered", "handshake_ack", "handoff"])
    assert set(reasons[3:]) == {"forwarded"}
    assert [line.split()[4] for line in flow[:3]] == ["S", "A", "PA"]
    number = int(backend.removeprefix("backend"))
    sent_to = f"{number} ({traced.lab.backend(number).address})"
    assert all(re.search(rf"{re.escape(sent_to)} +/object/7$", line) for line in flow[2:])
    assert "decisions shown, 0 lost" in trace.log()
    assert len(list(pcap.read(capture))) >= len(flow)
    assert f"handoff, to backend {sent_to}, key /object/7".encode() in capture.read_bytes()
    traced.wait_for_end()


def test_only_what_is_asked_for_is_shown_and_it_ends_by_itself(traced: Traced) -> None:
    trace = traced.trace("--key", "/object/7*", "--reason", "handoff", "--count", "2", "--json")

    for path in ("/object/71", "/object/8", "/object/72"):
        traced.lab.client.curl(URL + path, *ALONE)
    trace.popen.wait(PATIENCE_S)

    lines = trace.log().splitlines()
    shown = [json.loads(line) for line in lines[:-1]]
    assert [(each["reason"], each["key"], each["dropped"]) for each in shown] == [
        ("handoff", "/object/71", False), ("handoff", "/object/72", False)]
    assert lines[-1] == "2 decisions shown, 0 lost"
    traced.wait_for_end()


def test_it_ends_when_nobody_reads_it_though_nothing_happens(traced: Traced) -> None:
    words = " ".join([*program("balancer"), "trace"])

    assert traced.lab.balancer.run(["sh", "-c", f"{words} | head -1"]).startswith("time")
    traced.wait_for_end()


def test_a_killed_trace_leaves_the_usual_program(traced: Traced) -> None:
    usual = traced.program_id()
    trace = traced.trace()
    during = traced.program_id()
    trace.kill()
    traced.wait_for_end()

    assert (during != usual) == traced.is_fast
    assert traced.program_id() == usual
    assert traced.lab.client.curl(f"{URL}/", *ALONE)


def test_no_packet_is_lost_when_traces_begin_and_end(traced: Traced) -> None:
    before = traced.answered()
    syns = _Syns(traced.lab)

    for _ in range(3):
        traced.trace("--count", "100").popen.wait(PATIENCE_S)
        traced.wait_for_end()
    sent = syns.stop()

    assert sent > 3 * 100
    wait_until(lambda: traced.answered() - before >= sent, PATIENCE_S, "all are answered")
    assert traced.answered() - before == sent


class _Syns:
    """SYNs of a host that is not there, so that nobody answers the answers; until `stop`."""

    def __init__(self, lab: Lab) -> None:
        with inside(lab.client):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._ended = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """Returns: how many have been sent."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        return self._sent

    def _run(self) -> None:
        source, vip = IPv4Address("192.168.33.77").packed, IPv4Address(VIP).packed
        ports = count(1024)
        while not self._ended.wait(0.005):
            for port in (next(ports) % 64512 + 1024 for _ in range(_BURST)):
                syn = tcp.emit(source + vip + port.to_bytes(2) + b"\0\x50", 7, 0, tcp.SYN)
                self._socket.sendto(syn, (VIP, 0))
                self._sent += 1


def test_a_handover_leaves_the_usual_program(traced: Traced) -> None:
    """The last test with this balancer."""
    usual = traced.program_id()
    trace = traced.trace()

    traced.balancer.stop(signal.SIGUSR2)
    trace.popen.wait(PATIENCE_S)

    assert traced.program_id() == usual
    assert trace.popen.returncode == 1
    assert "balancer: trace: the balancer ends" in trace.log()
