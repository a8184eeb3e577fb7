"""Floods that would keep real flows out of the balancer's table, or drive them out of it."""

import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.datapath import Datapath
from balancer.keys.request import KeySpec
from balancer.paths import NextHop, Route
from common.bpf import BpfError, build
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.verdict import DropReason, Event, Reason
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH
from tests.bpf.loaded import shared

VIP = IPv4Address("192.168.33.10")
SECRETS = Secrets(bytes(16))
START_MS = 1_700_000_010_000
RATE, MAX_FLOWS = 1000, 2000
REQUEST = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
CONFIG = config.Config(
    takeover_rate=RATE, max_flows=MAX_FLOWS, new_flow_rate=100,
    services=(config.Service(
        name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("http.path"),
        backends=(config.Backend(1, VIP + 10), config.Backend(2, VIP + 11)),
    ),),
)
Engine = Callable[[bytes, int], Reason]


def portable() -> Iterator[Engine]:
    datapath = Datapath(CONFIG, SECRETS, random=Random(1))
    yield from ticked(datapath, lambda packet, now_ms: datapath.on_packet(packet, now_ms).reason)


def fast() -> Iterator[Engine]:
    from balancer.offload.offload import beside
    from balancer.offload.program import PROGRAM_NAME, Program
    from common.bpf.objects import XDP_PASS

    try:
        with shared():
            program = Program(CONFIG, SECRETS, for_tests=True)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    datapath, offload = beside(program, CONFIG, SECRETS, random=Random(1))
    hop = NextHop(1, 65535, b"\2" * 6, b"\4" * 6)
    datapath.paths.set_routes({address: Route(b"", 0, hop) for address in datapath.paths})
    offload.tell_paths(datapath.paths)
    run = program.object.program(PROGRAM_NAME).test_run

    def give(packet: bytes, now_ms: int) -> Reason:
        program.set_test_time(now_ms)
        if run(bytes(12) + b"\x08\0" + packet).retval == XDP_PASS:
            return datapath.on_packet(packet, now_ms).reason
        return program.last_reason()

    yield from ticked(datapath, give)
    program.close()


def ticked(datapath: Datapath, give: Engine) -> Iterator[Engine]:
    """Ten ticks a second, as a daemon has them."""
    next_ms = 0

    def on_packet(packet: bytes, now_ms: int) -> Reason:
        nonlocal next_ms
        if now_ms >= next_ms:
            next_ms = now_ms + 100
            datapath.on_tick(now_ms)
        return give(packet, now_ms)

    yield on_packet


@pytest.fixture(params=[portable, pytest.param(fast, marks=pytest.mark.root)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from request.param()


def ends(source: int, port: int) -> bytes:
    return struct.pack("!I4sHH", source, VIP.packed, port, 80)


def packet_of(number: int, step: int, now_ms: int) -> bytes:
    """One that a real flow sends, by way of this balancer for the first time."""
    echo = (1 + number % 2 << 24) + 5000 + (now_ms - START_MS)
    return tcp.emit(ends(0x0A000000 + number, 40000), 1000, number * 77 + 1448 * step, ACK,
                    option_octets=options.emit(Options(timestamps=(step, echo))))


def stranger(draw: Random) -> bytes:
    echo = (1 + draw.randrange(2) << 24) + draw.randrange(1 << 24)
    return tcp.emit(ends(draw.randrange(0x0B000000, 0x7E000000), draw.randrange(1024, 65536)),
                    draw.getrandbits(32), draw.getrandbits(32), ACK,
                    option_octets=options.emit(Options(timestamps=(5, echo))))


def test_real_flows_are_taken_over_through_a_flood_of_strangers(engine: Engine) -> None:
    """Twelve times as many as may pass, and more real flows than the limit would ever let in."""
    draw, now_ms = Random(1), START_MS
    reasons: list[list[Reason]] = []
    strangers = []
    for step in range(30):
        reasons.append([])
        for number in range(1500):
            now_ms += number % 5 == 0
            for _ in range(2 + number % 2):
                strangers.append(engine(stranger(draw), now_ms))
            reasons[-1].append(engine(packet_of(number, step, now_ms), now_ms))

    assert reasons[0].count(Event.TAKEOVER) < 750  # the limit holds for them, too, at first
    known = [each.count(Event.FORWARDED) for each in reasons]
    assert known[3] > 1200
    assert known[-1] >= 1499
    passed = strangers.count(Event.TAKEOVER)
    assert passed <= RATE + RATE * (now_ms - START_MS) // 1000
    assert passed + strangers.count(DropReason.TAKEOVER_LIMITED) == len(strangers)


def test_one_network_of_strangers_leaves_room_for_all_others(engine: Engine) -> None:
    draw = Random(1)
    flood = [engine(tcp.emit(
        ends(0x0B000000 + draw.randrange(256), draw.randrange(1024, 65536)), draw.getrandbits(32),
        draw.getrandbits(32), ACK,
        option_octets=options.emit(Options(timestamps=(5, 1 << 24 | number)))), START_MS)
        for number in range(3 * RATE)]

    assert flood.count(Event.TAKEOVER) <= RATE // 8
    others = [engine(packet_of(256 * number, 0, START_MS), START_MS) for number in range(100)]
    assert others.count(Event.TAKEOVER) >= 97  # now and then one shares the flood's place


def handoff(number: int, now_ms: int) -> bytes:
    made = cookie.encode(SECRETS, ends(number, 40000), 7, cookie.epoch_at(now_ms),
                         Offer(1460, True, 7))
    return tcp.emit(ends(number, 40000), 8, made + 1, ACK | PSH, payload=REQUEST)


def more(number: int) -> bytes:
    return tcp.emit(ends(number, 40000), 500, 9000, ACK)


@pytest.mark.parametrize("pause_ms", [0, 100], ids=["flood", "trickle"])
def test_new_flows_drive_out_none_that_has_gone_on(engine: Engine, pause_ms: int) -> None:
    """Idle ones without timestamps, in a full table; faster than `new_flow_rate`, and slower."""
    kept, now_ms = range(0x0A000000, 0x0A000000 + MAX_FLOWS * 9 // 10), START_MS
    for number in kept:
        engine(handoff(number, now_ms), now_ms)
        engine(more(number), now_ms)
    now_ms += 300_000

    came = []
    for number in range(0x0B000000, 0x0B000000 + 3000):
        now_ms += pause_ms or number % 2
        came.append(engine(handoff(number, now_ms), now_ms))

    assert came == [Event.HANDOFF] * len(came)
    found = [engine(more(number), now_ms) for number in kept]
    # a few may have found both of their buckets full of their own kind
    assert found.count(Event.FORWARDED) >= 0.99 * len(kept)
