"""Captures whose packets have comments, as other readers see them."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.capture import pcap
from common.capture.pcapng import Writer
from common.wire import tcp

PACKET = tcp.emit(bytes(range(1, 13)), 7, 0, 2)
TIME_NS = 1_700_000_000_123_456_789


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Three packets: a whole one, one that is cut, and one with a long comment."""
    path = tmp_path / "made.pcapng"
    with path.open("wb") as file:
        writer = Writer(file, "balancer", "a test")
        writer.add(TIME_NS, PACKET, len(PACKET), "handoff, key /ä")
        writer.add(TIME_NS + 1, PACKET[:33], len(PACKET), "")
        writer.add(TIME_NS + 2, PACKET, len(PACKET), "é" * 100_000)
    return path


def test_packets_come_out_as_they_went_in(capture: Path) -> None:
    found = list(pcap.read(capture))

    assert [each.time_ns for each in found] == [TIME_NS, TIME_NS + 1, TIME_NS + 2]
    assert [each.packet for each in found] == [PACKET, PACKET[:33], PACKET]
    assert [each.cut_len for each in found] == [0, len(PACKET) - 33, 0]


def test_each_has_its_comment(capture: Path) -> None:
    from scapy.utils import RawPcapNgReader

    with RawPcapNgReader(str(capture)) as reader:
        comments = [_comment(meta) for _, meta in reader]

    assert comments == ["handoff, key /ä".encode(), b"", ("é" * 2048).encode()]


def _comment(meta: Any) -> bytes:
    """A packet's only comment, as releases of scapy tell it."""
    fields = meta._asdict()
    comment, = fields.get("comments") or [fields.get("comment")]
    return bytes(comment)


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="this system has no tcpdump")
def test_tcpdump_reads_it(capture: Path) -> None:
    done = subprocess.run(["tcpdump", "-nr", str(capture)], capture_output=True, text=True,
                          check=True)

    assert done.stdout.count("1.2.3.4.2314 > 5.6.7.8.2828: Flags [S]") == 2
