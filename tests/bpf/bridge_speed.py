"""Nanoseconds per packet of the bridge's programs, by test runs: python -m tests.bpf.bridge_speed

A test run repeats the program on what the run before has left, so flows are made whose translation
changes nothing but the TTL. Of each figure, an empty program takes EMPTY's.
"""

import socket
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from os import getpid

from pyroute2 import netns

from common.bpf.objects import Program, SkBuff
from common.checksum import checksum
from packetbridge import splice
from packetbridge.adopt import Adopt
from packetbridge.config import Config, Service
from packetbridge.splice import Splice
from tests.lab.netns import tcp_packet

CLIENT, HOST = "10.0.0.1", "10.0.0.2"
SERVICE = Service("speed", 0, IPv4Address(HOST), 80, IPv4Address(HOST), 80)
CONFIG = Config((SERVICE,), address=IPv4Address(HOST), max_flows=1000)
ACK = 16
_REPEATS = 250  # the TTL has no more
_ETHERNET = bytes(12) + b"\x08\x00"
_SEQ, _ECHO = 5000, (1 << 24) + 5000


def frame(source: str, destination: str, sport: int, dport: int, options: bytes = b"",
          payload: bytes = b"", tos: int = 0) -> bytes:
    """A segment with the numbers that `main`'s flows have."""
    packet = bytearray(tcp_packet(source, destination, dport, ACK, sport=sport, seq=_SEQ, ack=_SEQ,
                                  payload=options + payload, tos=tos))
    packet[32] = (20 + len(options)) // 4 << 4
    packet[8] = 255
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = checksum(packet[:20]).to_bytes(2, "big")
    return _ETHERNET + bytes(packet)


def stamps(tsecr: int = _ECHO) -> bytes:
    """The timestamps option in the usual layout."""
    return b"\x01\x01\x08\x0a" + bytes(4) + tsecr.to_bytes(4, "big")


def sack(blocks: int) -> bytes:
    """The SACK option in the usual layout."""
    return bytes((1, 1, 5, 2 + 8 * blocks)) + bytes(8 * blocks)


def measure(program: Program, octets: bytes, mark: int = 0) -> float:
    """The median of many runs, in ns."""
    runs = [program.test_run(octets, SkBuff(mark=mark), _REPEATS).duration_ns for _ in range(300)]
    return statistics.median(runs)


@contextmanager
def connection() -> Iterator[None]:
    """A namespace with an established connection from CLIENT:5000 to HOST:80."""
    name = f"l3dsr-speed-{getpid()}"
    netns.create(name)
    netns.pushns(name)
    try:
        for words in ("link set lo up", f"addr add {CLIENT}/32 dev lo",
                      f"addr add {HOST}/32 dev lo"):
            subprocess.run(["ip", *words.split()], check=True)
        with socket.create_server((HOST, 80)) as server, \
                socket.create_connection((HOST, 80), source_address=(CLIENT, 5000)), \
                server.accept()[0]:
            yield
    finally:
        netns.popns()
        netns.remove(name)


def adopt_figures() -> dict[str, float]:
    """Of packets that the host's stack gets."""
    program = Adopt(CONFIG, [SERVICE]).program("on_ingress")
    to_vip = (CLIENT, HOST, 5000, 80)
    return {
        "EMPTY: not IPv4": measure(program, bytes(12) + b"\x86\xdd" + bytes(60)),
        "adopt: untagged": measure(program, frame(*to_vip, tos=4)),
        "adopt: established, timestamps": measure(program, frame(*to_vip, stamps())),
        "adopt: established, first round trips": measure(program, frame(*to_vip, stamps(1 << 24))),
        "adopt: established, no timestamps": measure(program, frame(*to_vip)),
    }


def splice_figures() -> dict[str, float]:
    """Of packets that are translated, by differences of zero."""
    programs = Splice(CONFIG, [SERVICE])
    programs.write(CLIENT_KEY, splice.Entry(
        0, 0, 1, 1, IPv4Address(HOST).packed, b"\0\x50", 0, 7, 7, 0, 0, _SEQ, _SEQ, _SEQ, 0))
    way_in, way_out = programs.program("on_ingress"), programs.program("on_egress")
    up, down = (CLIENT, HOST, 5000, 80), (HOST, CLIENT, 80, 5000)
    return {
        "splice in: timestamps": measure(way_in, frame(*up, stamps())),
        "splice in: timestamps, 1 SACK block": measure(way_in, frame(*up, stamps() + sack(1))),
        "splice in: timestamps, 3 SACK blocks": measure(way_in, frame(*up, stamps() + sack(3))),
        "splice out: timestamps": measure(way_out, frame(*down, stamps(), b"x" * 1000),
                                          CONFIG.mark),
        "splice out: not a bridged connection's": measure(way_out, frame(*down, stamps())),
    }


CLIENT_KEY = (IPv4Address(CLIENT).packed + (5000).to_bytes(2, "big")
              + IPv4Address(HOST).packed + b"\0\x50")


def figures() -> dict[str, float]:
    """All of them, by name, in ns. Needs root."""
    with connection():
        return adopt_figures() | splice_figures()


def main() -> None:
    """Print them."""
    for name, value in figures().items():
        print(f"{value:6.0f} ns  {name}")


if __name__ == "__main__":
    main()
