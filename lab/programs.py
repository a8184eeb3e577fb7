"""Nanoseconds for a packet of the eBPF programs, path by path, by test runs in the kernel.

The balancer's program gets fresh frames from a small one before it (lab/bpf/feed.bpf.c), whose own
time, with a program that does nothing behind it, is taken off. The bridge's programs run again and
again on one packet, with a flow whose translation changes nothing but the TTL; what an empty run
takes is taken off, too. Of many runs the median counts, of the rounds the least.
"""

import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import cycle
from os import getpid
from pathlib import Path
from random import Random

from pyroute2 import netns

from balancer import config as balancer_config
from balancer.keys.request import KeySpec
from balancer.modes.split import takeover
from balancer.offload import program as balancer_program
from balancer.offload.flow_map import Entry, key_of
from balancer.paths import NextHop
from common.bpf import build
from common.bpf.objects import Object, Program, SkBuff
from common.cluster.cookie import Secrets
from common.verdict import DropReason, Event, Reason
from common.wire import five_tuple, options, tcp
from common.wire.checksum import checksum
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, SYN
from lab import hellos, payloads
from lab.handshakes import Handshake
from packetbridge.config import Config, Service
from packetbridge.offload import splice
from packetbridge.offload.adopt import Adopt
from packetbridge.offload.splice import Splice

# Paths whose time has an aim, ns.
AIMS = {
    "balancer: flow hit, 1,024 flows": 30,
    "balancer: flow hit, 131,072 flows": 90,
    "balancer: SYN answered": 100,
    "balancer: first payload, path of 200 octets": 550,
    "balancer: first payload, a browser's ClientHello, first segment": 450,
    "balancer: first payload, header, request of 500 octets": 700,
    "balancer: first payload, cookie, request of 500 octets": 700,
    "balancer: first payload, query, request of 500 octets": 700,
    "adopt: established": 60,
    "splice: in": 90,
    "splice: out": 90,
}
_SECRETS = Secrets(bytes(range(16)))
_VIP = IPv4Address("192.168.33.10")
_ETHERNET = bytes(12) + b"\x08\x00"
_FEED = Path(__file__).parent / "bpf/feed.bpf.c"
_FRESH = 4096  # frames that open flows
_HITS = (1 << 10, 1 << 17, 1 << 20)
_RUNS = 1 << 17
_TRIES = 3
_ISN = 1000
_BACKENDS = 16
_HELLOS = 64
_UP_TO_VIP = _VIP.packed + struct.pack("!HH", 5000, 80)


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """All paths by name, in ns. say: for progress. Raises: BpfError, BuildError."""
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        say(f"programs, round {number + 1} of {rounds}")
        for name, value in (*_balancer_paths(), *_bridge_paths()):
            found.setdefault(name, []).append(value)
    return {name: min(values) for name, values in found.items()}


# --- the balancer ---


class _Measured:
    """The balancer's program behind the one that feeds it. key: the service's."""

    def __init__(self, key: str, max_flows: int) -> None:
        backends = tuple(
            balancer_config.Backend(number, IPv4Address("192.168.33.20") + number)
            for number in range(1, _BACKENDS + 1)
        )
        service = balancer_config.Service(
            name="bench", vip=_VIP, port=80, dscp=3, key=KeySpec.parse(key), backends=backends,
        )
        self._program = balancer_program.Program(
            balancer_config.Config(services=(service,), max_flows=max_flows,
                                   takeover_rate=10**9), _SECRETS)
        for backend in backends:
            self._program.set_next_hop(0, backend.id, NextHop(1, 1500, b"\2" * 6, b"\4" * 6))
        self.flows = self._program.flows

    def close(self) -> None:
        self._program.close()

    def ns(
        self, packets: Sequence[bytes], reason: Reason, runs: int, clients: int = 0,
        tries: int = _TRIES, missing: int = 0,
    ) -> float:
        """Time for a packet, the least of the tries. reason: why each is sent or dropped.

        clients: so many send the first of the packets, instead of one after the other; both are
                 powers of two.
        missing: so many of the clients have no flow.
        Raises: AssertionError where a packet takes another path.
        """
        longest = len(_ETHERNET) + max(map(len, packets))
        with Object(build.compile(_FEED)) as feed:
            feed.set_variable("mask", (clients or len(packets)) - 1)
            feed.set_max_entries("frames", len(packets))
            feed.load()
            frames = feed.map("frames")
            frames.update_all(
                (place, {"len": len(_ETHERNET + packet), "octets": _ETHERNET + packet})
                for place, packet in enumerate(packets))
            frames.close()
            feeding = feed.program("feed_clients" if clients else "feed_frames")
            target = feed.map("measured")
            target.update(0, feed.program("nothing").fd)
            empty_ns = min(_run(feeding, runs, longest) for _ in range(_TRIES))
            own = self._program.object.program(balancer_program.PROGRAM_NAME)
            target.update(0, own.fd)
            before = self._counted()
            whole_ns = min(_run(feeding, runs, longest) for _ in range(tries))
            grown = {each: count - before[each] for each, count in self._counted().items()
                     if count != before[each]}
            target.close()
        # all but the few that go up, such as those whose checksum looks unfinished
        assert grown.pop(reason) > 0.97 * tries * runs, grown
        assert sum(grown.values()) <= missing * tries * -(-runs // max(1, clients)), grown
        return whole_ns - empty_ns

    def forget_flows(self) -> None:
        """Empty the table."""
        for chunk in self.flows.chunks():
            for flow in chunk:
                self.flows.delete(key_of(flow))

    def _counted(self) -> dict[Reason, int]:
        return dict(self._program.reasons.totals())


def _run(program: Program, runs: int, longest: int) -> float:
    """ns for a run, on average over so many. longest: of the frames that are fed."""
    return program.test_run(bytes(max(64, longest - 1000)), repeat=runs).duration_ns


@contextmanager
def _measured(key: str = "http.host+path", max_flows: int = 2 * _FRESH) -> Iterator[_Measured]:
    made = _Measured(key, max_flows)
    try:
        yield made
    finally:
        made.close()


def _five_tuples(count: int) -> list[bytes]:
    ends = Random(7).sample(range(1 << 40), count)
    return [b"\x0a" + end.to_bytes(5)[:3] + _VIP.packed + end.to_bytes(5)[3:] + b"\0\x50"
            for end in ends]


def _segment(client: bytes, tsecr: int, ack: int, payload: bytes = b"") -> bytes:
    return tcp.emit(client, _ISN + 1, ack, ACK | PSH if payload else ACK, window=502,
                    option_octets=options.emit(Options(timestamps=(5_000_000, tsecr))),
                    payload=payload)


def _after_cookie(client: bytes, payload: bytes = b"") -> bytes:
    """The segment that follows a handshake, now."""
    now_ms = time.time_ns() // 1_000_000
    made = Handshake(_SECRETS, client, _ISN, now_ms)
    return _segment(client, made.t0, made.cookie_isn + 1, payload)


def _balancer_paths() -> Iterator[tuple[str, float]]:
    """Name and ns of each."""
    clients = _five_tuples(_FRESH)
    offer = options.emit(Options(1460, True, (5_000_000, 0), 7))
    named = (3 << takeover.id_shift(7)) + 500
    with _measured() as balancer:
        syns = [tcp.emit(client, _ISN, 0, SYN, window=64240, option_octets=offer)
                for client in clients]
        yield "balancer: SYN answered", balancer.ns(syns, Event.SYN_ANSWERED, _RUNS)
        yield "balancer: handshake's ACK", balancer.ns(
            [_after_cookie(client) for client in clients], DropReason.HANDSHAKE_ACK, _RUNS)
        yield "balancer: takeover", balancer.ns(
            [_segment(client, named, 77) for client in clients], Event.TAKEOVER, _RUNS)
        yield "balancer: unknown flow", balancer.ns(  # the first few of which go up
            [_segment(client, 0, 77) for client in clients], DropReason.LIMITED_UNKNOWN, 32 * _RUNS)
        for length in (40, 200, 800):
            yield f"balancer: first payload, path of {length} octets", _first_ns(
                balancer, clients, payloads.request(length))
    with _measured("tls.sni") as balancer:
        yield "balancer: first payload, ClientHello", _first_ns(
            balancer, clients, payloads.client_hello())
        yield "balancer: first payload, a browser's ClientHello, first segment", _first_ns(
            balancer, clients, *_first_segments())
    for name, key in (("header", "http.header:x-session"), ("cookie", "http.cookie:session"),
                      ("query", "http.query:session")):
        with _measured(key) as balancer:
            yield f"balancer: first payload, {name}, request of 500 octets", _first_ns(
                balancer, clients, payloads.browsers_request())
    for count in _HITS:
        with _measured(max_flows=2 * count) as balancer:
            yield f"balancer: flow hit, {count:,} flows", _hit_ns(balancer, count)


def _first_segments() -> list[bytes]:
    """Of browsers' hellos, those with the whole name."""
    return [hello.octets[:hellos.SEGMENT_LEN] for hello in hellos.mix(_HELLOS, Random(7))
            if hello.is_named_at_once]


def _first_ns(balancer: _Measured, clients: Sequence[bytes], *first: bytes) -> float:
    """Each opens a flow of its own, by one of the payloads in turn."""
    found = []
    for _ in range(16):
        balancer.forget_flows()
        packets = [_after_cookie(client, payload)
                   for client, payload in zip(clients, cycle(first), strict=False)]
        found.append(balancer.ns(packets, Event.HANDOFF, len(packets), tries=1))
    return statistics.median(found)


def _hit_ns(balancer: _Measured, count: int) -> float:
    """Packets of flows at random."""
    now_ms = time.time_ns() // 1_000_000
    for number in range(count):
        key = (10 << 24 | number).to_bytes(4) + _UP_TO_VIP
        entry = Entry(key, _ISN, 0, now_ms, now_ms, 0, 3, 0)
        balancer.flows.enter(entry.pack(), now_ms)
    missing = count - len(balancer.flows)  # those that found their places taken
    assert missing < 0.001 * count
    packet = _segment(bytes(4) + _UP_TO_VIP, (3 << takeover.id_shift(7)) + 500, 77)
    return balancer.ns([packet], Event.FORWARDED, max(_RUNS, count), clients=count,
                       missing=missing)


# --- the bridge ---

CLIENT, HOST = "10.0.0.1", "10.0.0.2"
_SERVICE = Service(name="bench", dscp=0, vip=IPv4Address(HOST), port=80, server=IPv4Address(HOST),
                   server_port=80)
_CONFIG = Config(services=(_SERVICE,), address=IPv4Address(HOST), max_flows=1000)
_REPEATS = 250  # the TTL has no more
_SEQ, _ECHO = 5000, (1 << 24) + 5000
_UP = socket.inet_aton(CLIENT) + socket.inet_aton(HOST) + struct.pack("!HH", 5000, 80)


def _frame(ends: bytes, *layout: bytes, payload: bytes = b"") -> bytes:
    """A segment with the numbers that the flows here have."""
    packet = bytearray(tcp.emit(ends, _SEQ, _SEQ, ACK, option_octets=b"".join(layout),
                                payload=payload))
    packet[8] = 255  # the TTL
    packet[10:12] = bytes(2)
    packet[10:12] = checksum(packet[:20]).to_bytes(2)
    return _ETHERNET + bytes(packet)


def _stamps(tsecr: int = _ECHO) -> bytes:
    return options.emit(Options(timestamps=(0, tsecr)))


def _sack(blocks: int) -> bytes:
    return bytes((1, 1, 5, 2 + 8 * blocks)) + bytes(8 * blocks)


def _bridge_paths() -> Iterator[tuple[str, float]]:
    """Name and ns of each."""
    with connection():
        way_in = Adopt(_CONFIG, [_SERVICE]).program("on_ingress")
        empty_ns = _median_ns(way_in, bytes(12) + b"\x86\xdd" + bytes(60))
        programs = Splice(_CONFIG, [_SERVICE])
        programs.write(_UP, splice.Entry(
            0, 0, 1, 1, IPv4Address(HOST).packed, b"\0\x50", 0, 7, 7, 0, splice.states().OPEN, True,
            _SEQ, _SEQ, _SEQ, 0, 0, 0))
        up, down = programs.program("on_ingress"), programs.program("on_egress")
        back = five_tuple.reverse(_UP)
        for name, program, frame, mark in (
            ("adopt: established", way_in, _frame(_UP, _stamps()), 0),
            ("adopt: established, first round trips", way_in, _frame(_UP, _stamps(1 << 24)), 0),
            ("adopt: established, no timestamps", way_in, _frame(_UP), 0),
            ("splice: in", up, _frame(_UP, _stamps()), 0),
            ("splice: in, 1 SACK block", up, _frame(_UP, _stamps(), _sack(1)), 0),
            ("splice: in, 3 SACK blocks", up, _frame(_UP, _stamps(), _sack(3)), 0),
            ("splice: out", down, _frame(back, _stamps(), payload=bytes(1000)), _CONFIG.mark),
            ("splice: out, not a bridged connection's", down, _frame(back, _stamps()), 0),
        ):
            yield name, _median_ns(program, frame, mark) - empty_ns
        programs.close()


def _median_ns(program: Program, octets: bytes, mark: int = 0) -> float:
    return statistics.median(
        program.test_run(octets, SkBuff(mark=mark), _REPEATS).duration_ns for _ in range(300))


@contextmanager
def connection() -> Iterator[None]:
    """A namespace with an established connection from CLIENT:5000 to HOST:80."""
    name = f"l3dsr-programs-{getpid()}"
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
