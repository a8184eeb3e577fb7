"""The adopting program by test runs: what it changes, and what it leaves to the portable engine."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from random import Random

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet, Raw

from common.bpf import features
from common.bpf.objects import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Run, SkBuff
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.counters import new_counters
from common.verdict import DropReason, Event
from lab.programs import CLIENT, HOST, connection
from packetbridge.config import Config, Service
from packetbridge.offload.adopt import KFUNC, Adopt

BRIDGE, VIP, DSCP = "10.0.0.3", HOST, 3
TAG = DSCP << 2
SECRETS = Secrets(bytes(range(16)), bytes(range(16, 32)))
SERVICE = Service(name="web", dscp=DSCP, vip=IPv4Address(VIP), port=80, server=IPv4Address(HOST),
                  server_port=80)
ETHERNET = bytes(12) + b"\x08\x00"

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and bool(features.missing_kfuncs(KFUNC)), reason=f"needs {KFUNC}"
)
Runs = Callable[[Packet | bytes], Run]


@pytest.fixture(scope="module")
def adopt() -> Iterator[Adopt]:
    """The program, in a host that has one connection: from CLIENT:5000 to VIP:80."""
    with connection():
        made = Adopt(Config(services=(SERVICE,), address=IPv4Address(BRIDGE)), [SERVICE])
        made.set_secrets(SECRETS)
        yield made


@pytest.fixture
def run(adopt: Adopt) -> Runs:
    program = adopt.program("on_ingress")
    return lambda packet: program.test_run(ETHERNET + bytes(packet), SkBuff())


def segment(*, dst: str = BRIDGE, tos: int = TAG | 1, ttl: int = 60, sport: int = 5000,
            dport: int = 80, flags: str = "A", payload: bytes = b"", **fields: object) -> Packet:
    """A client's, as a balancer sends it."""
    ip = {name: fields.pop(name) for name in ("frag", "options") if name in fields}
    made = IP(src=CLIENT, dst=dst, tos=tos, ttl=ttl, id=7, flags="DF", **ip) / TCP(
        sport=sport, dport=dport, flags=flags, seq=1000, ack=2000, **fields)
    return made / Raw(payload) if payload else made


def left_alone(ran: Run, packet: Packet | bytes) -> bool:
    return ran.retval == TC_ACT_UNSPEC and ran.data[len(ETHERNET):] == bytes(packet)


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA"])
def test_a_segment_of_a_connection_gets_the_vip_and_loses_its_tag(run: Runs, flags: str) -> None:
    packet = segment(flags=flags)

    ran = run(packet)

    assert ran.retval == TC_ACT_UNSPEC
    assert ran.data[len(ETHERNET):] == bytes(segment(dst=VIP, tos=1, ttl=59, flags=flags))


@pytest.mark.parametrize("echo", [(1 << 24) + 667, (127 << 24) + 0xFFFFFF])
def test_an_echo_of_the_servers_clock_is_the_stacks_without_a_look(run: Runs, echo: int) -> None:
    """Whether the connection is still there is the stack's to say, as it is without a balancer."""
    options = {"options": [("NOP", None), ("NOP", None), ("Timestamp", (9, echo))]}
    packet = segment(sport=6000) / b""
    packet[TCP].options = options["options"]
    expected = segment(sport=6000, dst=VIP, tos=1, ttl=59)
    expected[TCP].options = options["options"]

    ran = run(packet)

    assert ran.data[len(ETHERNET):] == bytes(expected)


@pytest.mark.parametrize("echo", [0, 5, (1 << 24) + 1, (1 << 24) + 666])
def test_an_echo_of_the_first_round_trips_is_looked_up(run: Runs, echo: int) -> None:
    packet = segment(sport=6000)
    packet[TCP].options = [("NOP", None), ("NOP", None), ("Timestamp", (9, echo))]

    assert left_alone(run(packet), packet)


@pytest.mark.parametrize("packet", [
    segment(flags="S"),
    segment(ttl=1),
    segment(dport=81),
    segment(tos=1),
    segment(tos=TAG + 4),
    segment(dst=VIP),
    segment(frag=3),
    segment(flags="S", payload=b"fast open"),
    IP(src=CLIENT, dst=BRIDGE, tos=TAG, options=b"\x01\x01\x01\x01") / TCP(dport=80, flags="A"),
    IP(src=CLIENT, dst=BRIDGE, tos=TAG, len=39) / TCP(sport=5000, dport=80, flags="A"),
    IP(src=CLIENT, dst=BRIDGE, tos=TAG, len=0) / TCP(sport=5000, dport=80, flags="A"),
    segment(dataofs=4),
    segment(dataofs=15),
    IP(src=CLIENT, dst=BRIDGE, tos=TAG, proto=17) / bytes(40),
    IP(src=CLIENT, dst=BRIDGE, tos=TAG) / ICMP(),
], ids=["SYN", "time is up", "other port", "no tag", "other tag", "other address", "fragment",
        "SYN with data", "IP options", "too short", "no length", "data offset small",
        "data offset large", "UDP", "echo request"])
def test_what_is_not_for_the_stack_goes_up_as_it_is(run: Runs, packet: Packet) -> None:
    assert left_alone(run(packet), packet)


def test_an_error_about_the_stacks_own_packet_reaches_it(run: Runs) -> None:
    def error(dst: str, tos: int, ttl: int, to_port: int) -> Packet:
        quoted = IP(src=VIP, dst=CLIENT, id=9) / TCP(sport=80, dport=to_port, seq=5)
        return IP(src="10.9.9.9", dst=dst, tos=tos, ttl=ttl) / ICMP(
            type=3, code=4, nexthopmtu=1300) / bytes(quoted)[:28]

    known, unknown = run(error(BRIDGE, TAG, 60, 5000)), run(error(BRIDGE, TAG, 60, 6000))

    assert known.data[len(ETHERNET):] == bytes(error(VIP, 0, 59, 5000))
    assert left_alone(unknown, error(BRIDGE, TAG, 60, 6000))


def test_data_of_no_connection_waits_for_those_before_it_once(run: Runs) -> None:
    packet = segment(sport=6000, payload=b"second segment")

    ran = run(packet)

    assert ran.retval == TC_ACT_REDIRECT
    assert ran.data[len(ETHERNET):] == bytes(packet)


def test_cookies_hold_as_they_do_in_python(adopt: Adopt, run: Runs) -> None:
    """A handoff whose cookie holds goes up at once: outside ingress, the kernel refuses it."""
    random = Random(1)

    for number in range(300):
        now_ms = time.time_ns() // 1_000_000
        epoch = cookie.epoch_at(now_ms)
        sport, client_isn = 10_000 + number, random.getrandbits(32)
        key = random.choice([*SECRETS, bytes(16)])
        offer = Offer(random.choice(cookie.MSS_IPV4), random.random() < 0.5,
                      random.choice([None, *range(15)]))
        five_tuple = (socket.inet_aton(CLIENT) + socket.inet_aton(VIP)
                      + sport.to_bytes(2, "big") + b"\0\x50")
        made = cookie.encode(Secrets(key), five_tuple, client_isn,
                             epoch + random.randint(-3, 3), offer)
        packet = segment(sport=sport, payload=b"GET")
        packet[TCP].seq = client_isn + 1 & 0xFFFFFFFF
        packet[TCP].ack = made + 1 & 0xFFFFFFFF

        ran = run(packet)

        then_ms = time.time_ns() // 1_000_000
        if cookie.epochs_at(then_ms) != cookie.epochs_at(now_ms):
            continue  # it may have been checked in either
        holds = cookie.check(SECRETS, five_tuple, client_isn, made, now_ms) is not None
        assert ran.retval == (TC_ACT_UNSPEC if holds else TC_ACT_REDIRECT), number


def handoff(sport: int, payload: bytes) -> Packet:
    """A segment whose cookie holds."""
    five_tuple = (socket.inet_aton(CLIENT) + socket.inet_aton(VIP) + sport.to_bytes(2, "big")
                  + b"\0\x50")
    made = cookie.encode(SECRETS, five_tuple, 999, _epoch(), Offer(1460, True, 7))
    packet = segment(sport=sport, payload=payload)
    packet[TCP].ack = made + 1 & 0xFFFFFFFF
    return packet


def test_a_flow_that_the_listener_refuses_is_the_portable_engines(run: Runs) -> None:
    first, second = handoff(7000, b"GET"), segment(sport=7000, payload=b"more")

    ran = run(first), run(second)

    assert left_alone(ran[0], first)
    assert left_alone(ran[1], second)


def test_a_segment_without_payload_opens_nothing(run: Runs) -> None:
    first, second = handoff(7001, b""), segment(sport=7001, payload=b"more")

    ran = run(first), run(second)

    assert left_alone(ran[0], first)
    assert ran[1].retval == TC_ACT_REDIRECT  # no listener has been asked


def _epoch() -> int:
    return cookie.epoch_at(time.time_ns() // 1_000_000)


def test_a_flood_of_unknown_packets_is_kept_from_the_portable_engine(
    adopt: Adopt, run: Runs
) -> None:
    packet = segment(sport=6001)
    counters = new_counters()
    adopt.on_tick(counters)
    before = counters[DropReason.LIMITED_UNKNOWN]

    flood = adopt.program("on_ingress").test_run(ETHERNET + bytes(packet), SkBuff(), 100_000)
    adopt.on_tick(counters)

    assert flood.retval == TC_ACT_SHOT
    assert 50_000 < counters[DropReason.LIMITED_UNKNOWN] - before < 100_000
    assert run(segment()).data[len(ETHERNET):] == bytes(segment(dst=VIP, tos=1, ttl=59))
    assert counters[Event.TO_SERVER] > 0
