"""Mutated packets: programs and data paths take anything, and say the same of it.

A million for each program, and a minute on the wire: lab/run fuzz --minutes 1
"""

import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from common.bpf import features
from common.bpf.objects import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, SkBuff
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.flow import guesses
from common.settings.table import Table
from common.verdict import DropReason
from common.wire import options, tcp
from common.wire.options import Options
from lab.programs import HOST, connection
from packetbridge import config as bridge_config
from packetbridge.config import Config, Service
from packetbridge.datapath import Datapath as Bridge
from packetbridge.offload.adopt import KFUNC, Adopt
from tests.bpf import test_balancer_differential as balancer_twins
from tests.bpf import test_bridge_differential as bridge_twins
from tests.bpf.bridge_engine import Spliced
from tests.bpf.hellos import Hello, hello
from tests.fuzz.datapaths import VIP, balancer, bridge
from tests.fuzz.mutate import mutated
from tests.fuzz.packets import fragments, icmp_error

SMALL = 4000  # packets for each program in the suite
NOW_MS = balancer_twins.NOW_MS
ETHERNET = bytes(12) + b"\x08\0"

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _no_bound_on_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and data paths count them each for itself, by clocks of their own."""
    monkeypatch.setattr(guesses, "MAX_GUESSES", 1 << 30)


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """What a test generates from."""
    return Random(f"{request.config.getoption('seed')} {request.function.__name__}")


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """How many packets."""
    return request.config.getoption("fuzz") or SMALL * request.config.getoption("times")


def hellos(random: Random) -> bytes:
    """A ClientHello, its records of any length."""
    name = random.choice([b"a.example", b"Shop.Example.net", b"x" * 200, None])
    made = bytearray(hello(Hello(
        name, random.choice([0, 36, 1220]), random.choice([0, 32]), random.choice([1, 16]),
        random.randrange(8), random.randrange(8), random.choice([None, None, 3, 50, 300]))))
    if random.random() < 0.2:
        made[3:5] = random.choice([0, 1, 0x3FFF, 0x4000, 0x4001, 0xFFFF]).to_bytes(2, "big")
    return bytes(made[:1448])


def for_balancer(random: Random) -> Callable[[], bytes]:
    """What clients send: SYNs, first data, later segments, and errors about what they got."""
    ends = [balancer_twins.five_tuple(random) for _ in range(200)]
    known = {one: random.getrandbits(32) for one in ends}

    def make() -> bytes:
        one = random.choice(ends)
        isn = known[one]
        made = cookie.encode(balancer_twins.SECRETS, one, isn, cookie.epoch_at(NOW_MS),
                             Offer(1460, True, 7))
        stamps = options.emit(Options(timestamps=(5, random.choice(
            [NOW_MS & 0x3FFFFF, 1 << 24 | 5, 3 << 24, 0]))))
        layout = random.choice([stamps, stamps, b"", b"\1\1\5\x0a" + bytes(8)])
        kind = random.randrange(6)
        if kind == 0:
            known[one] = random.getrandbits(32)
            offer = options.emit(Options(1460, True, (5, 0), 7))
            return tcp.emit(one, known[one], 0, tcp.SYN, window=64240, option_octets=offer)
        if kind <= 3:
            payload = random.choice([hellos, balancer_twins.request])(random)
            return tcp.emit(one, isn + 1, made + 1, tcp.ACK | tcp.PSH, window=5,
                            option_octets=layout, payload=payload[:1448])
        packet = tcp.emit(one, isn + random.choice([1, 2, 500]), made + random.choice([1, 9000]),
                          random.choice([16, 16, 24, 17, 4, 20]), window=9, option_octets=layout,
                          payload=random.choice([b"", b"x" * 60]))
        if random.random() < 0.1:
            return random.choice(fragments(packet, 24))
        if random.random() < 0.1:
            back = one[4:8] + one[:4] + one[10:] + one[8:10]
            return icmp_error(3, one[:4], one[4:8], tcp.emit(back, 9, 9, 16)[:28])
        return packet

    return make


def fuzz(random: Random, count: int, make: Callable[[], bytes]) -> Iterator[bytes]:
    """So many packets; one in eight is sound, so that there are flows to disturb."""
    others = [make() for _ in range(200)]
    for number in range(count):
        packet = make()
        others[number % len(others)] = packet
        yield packet if number % 8 == 0 else mutated(random, packet, others)


def test_the_balancer_s_program_and_data_path_take_anything_alike(
    random: Random, count: int
) -> None:
    twins, alone = balancer_twins.Twins(), balancer()
    differences = []
    for packet in fuzz(random, count, for_balancer(random)):
        assert alone.on_packet(packet, NOW_MS).reason is not DropReason.INTERNAL_ERROR
        key = packet[12:24]
        if len(key) == 12:
            balancer_twins._agree(twins, key)
        found = twins.differ(packet)
        if found:
            differences.append((packet.hex(), found))

    twins.loaded.close()
    assert not differences[:3], len(differences)


def test_the_splicing_programs_and_data_path_take_anything_alike(
    random: Random, count: int
) -> None:
    spliced = Spliced(bridge_twins.CASE)
    alone = Bridge(bridge_config.read(Table("case.toml", bridge_twins.CASE["config"])),
                   Secrets(bridge_twins.SECRET), random=Random(1))
    talks = [bridge_twins.Talk(random, 1024 + number) for number in range(50)]
    for talk in talks:
        for packet in (talk.handoff(), talk.syn_ack()):
            for each in (spliced, alone):
                each.on_packet(packet, bridge_twins.NOW_MS)

    def make() -> bytes:
        number = random.randrange(len(talks))
        kind = random.randrange(16)
        if kind == 0:
            talks[number] = bridge_twins.Talk(random, random.randrange(1024, 65536))
            return talks[number].handoff()
        if kind == 1:
            return talks[number].syn_ack()
        return talks[number].segment()

    differences = []
    for packet in fuzz(random, count, make):
        found, expected = (each.on_packet(packet, bridge_twins.NOW_MS)
                           for each in (spliced, alone))
        if found != expected:
            differences.append((packet.hex(), found, expected))
        _agree(spliced, packet)

    spliced.close()
    assert not differences[:3], len(differences)


def _agree(spliced: Spliced, packet: bytes) -> None:
    """Let the programs know a flow's numbers, after a packet that only the data path has seen.

    On a host they do not; they then leave to it what does not fit theirs.
    """
    is_answer = packet[12:16] == bridge_twins.SERVER
    ends = packet[16:20] + packet[22:24] if is_answer else packet[12:16] + packet[20:22]
    (service,) = spliced.services.values()
    if len(ends) < 6:
        return
    key = service.key_of(ends[:4], ends[4:])
    entry, flow = spliced._programs.look_up(key), spliced.flows.get(key)
    if entry is None or flow is None or not flow.is_open or flow.client_isn != entry.client_isn:
        return
    entry.tell(flow)
    told = entry._replace(client_next=flow.client_next, server_next=flow.server_next,
                          client_acked=flow.client_acked)
    if told != entry:
        spliced._programs.write(key, told)


@pytest.mark.skipif(bool(features.missing_kfuncs(KFUNC)), reason=f"needs {KFUNC}")
def test_the_adopting_program_takes_anything(random: Random, count: int) -> None:
    """What goes up is as it came, and what is not for the bridge is left alone."""
    service = Service(name="web", dscp=3, vip=IPv4Address(HOST), port=80,
                      server=IPv4Address(HOST), server_port=80)
    address = IPv4Address("10.0.0.3")
    secrets = Secrets(bytes(range(16)))

    def make() -> bytes:
        client = bytes((10, 0, 0, 2)) if random.random() < 0.5 else random.randbytes(4)
        ports = struct.pack("!HH", random.choice([5000, random.randrange(65536)]), 80)
        flags, payload = random.choice([(16, b""), (24, b"GET /"), (17, b""), (4, b""), (2, b"")])
        stamps = options.emit(Options(timestamps=(5, random.choice([5, 1 << 24 | 667]))))
        return tcp.emit(client + address.packed + ports, random.getrandbits(32),
                        random.getrandbits(32), flags, option_octets=random.choice([b"", stamps]),
                        payload=payload, tos=3 << 2)

    with connection():
        adopt = Adopt(Config(services=(service,), address=address), [service])
        adopt.set_secrets(secrets)
        program = adopt.program("on_ingress")
        for packet in fuzz(random, count, make):
            if len(packet) < 20:
                continue
            run = program.test_run(ETHERNET + packet, SkBuff())

            assert run.retval in (TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT)
            if packet[16:20] != address.packed:
                assert (run.retval, run.data) == (TC_ACT_UNSPEC, ETHERNET + packet)


def test_data_paths_take_any_octets(random: Random, count: int) -> None:
    """Also what no program would let by."""
    paths = [balancer(), bridge()]
    make = for_balancer(random)
    for packet in fuzz(random, count, make):
        for path in paths:
            octets = bytearray(packet)
            if path is paths[1] and len(octets) >= 20:
                octets[1], octets[16:20] = 3 << 2, (VIP + 10).packed
            path.on_packet(bytes(octets), NOW_MS)

    assert not any(path.counters[DropReason.INTERNAL_ERROR] for path in paths)
