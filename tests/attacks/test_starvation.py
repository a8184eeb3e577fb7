"""Floods that would starve the portable engine, which long requests need: what goes up is bounded.

Counts, not times: how long a packet takes is `lab/run bench --attacks` to say.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.datapath import Datapath
from balancer.keys.request import KeySpec
from balancer.offload.flow_map import Entry
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop
from common.bpf import BpfError, build
from common.bpf.allowance import BUDGETS
from common.bpf.objects import XDP_DROP, XDP_PASS, XDP_TX
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.verdict import Action, DropReason, Reason
from common.wire import checksum, options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, SYN

VIP, OTHER = IPv4Address("192.168.33.10"), IPv4Address("192.168.33.11")
SECRETS = Secrets(bytes(range(16)))
ETHERNET = bytes(12) + b"\x08\x00"
STRANGER = "10.66.1.2"
FLOOD = 100_000  # packets: some 10 ms
CONFIG = config.Config(
    services=(config.Service(
        name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("http.host"),
        backends=(config.Backend(1, VIP + 10), config.Backend(2, VIP + 11)),
    ),), max_flows=1000,
)


class OnDuty:
    """A program whose budgets are whole, and what it counts from now on."""

    def __init__(self, loaded: Program) -> None:
        self._loaded = loaded
        self._before = loaded.reasons.totals()
        self.run = loaded.object.program(PROGRAM_NAME).test_run
        time.sleep(0.11)  # what others have used of them counts for a tenth of a second

    def counted(self) -> dict[Reason, int]:
        """Packets by reason, where there are any."""
        now = self._loaded.reasons.totals()
        return {reason: count - self._before[reason] for reason, count in now.items()
                if count != self._before[reason]}

    def flood(self, packet: bytes, count: int = FLOOD) -> tuple[int, float]:
        """Many of a packet. Returns: how many went up, and for how long they came, seconds."""
        before, start = sum(self.counted().values()), time.monotonic()
        self.run(ETHERNET + packet, repeat=count)
        elapsed_s = time.monotonic() - start
        return count - (sum(self.counted().values()) - before), elapsed_s


@pytest.fixture(scope="module")
def loaded() -> Iterator[Program]:
    """With one of two backends whose way is known."""
    try:
        made = Program(CONFIG, SECRETS)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    made.set_next_hop(0, 1, NextHop(1, 65535, b"\2" * 6, b"\4" * 6))
    yield made
    made.close()


@pytest.fixture
def program(loaded: Program) -> OnDuty:
    return OnDuty(loaded)


def _in_one_tenth(act: Callable[[], list[int]]) -> list[int]:
    """What it returns once all of it falls into one tenth of a second, whose budgets are whole."""
    for _ in range(50):
        time.sleep(0.1 - time.monotonic() % 0.1)
        tenth = time.monotonic_ns() // 10**8
        result = act()
        if time.monotonic_ns() // 10**8 == tenth:
            return result
    pytest.fail("never ended within a tenth of a second")


def _ends(source: str = STRANGER, sport: int = 4000, vip: IPv4Address = VIP) -> bytes:
    return socket.inet_aton(source) + vip.packed + struct.pack("!HH", sport, 80)


def _segment(ends: bytes, flags: int = ACK, ts: tuple[int, int] | None = None) -> bytes:
    stamps = options.emit(Options(timestamps=ts)) if ts else b""
    return tcp.emit(ends, 7, 9, flags, option_octets=stamps)


def _with_header(packet: bytes, off: int, octets: bytes) -> bytes:
    """Other octets in the IP header, whose checksum is made to fit."""
    changed = bytearray(packet)
    changed[off:off + len(octets)] = octets
    changed[10:12] = bytes(2)
    changed[10:12] = checksum.checksum(bytes(changed[:20])).to_bytes(2)
    return bytes(changed)


def _unfinished(vip: IPv4Address) -> bytes:
    """Its checksum field has the sum of the pseudo-header alone, which the kernel completes."""
    packet = bytearray(_segment(_ends(vip=vip)))
    total = checksum.pseudo_sum(bytes(packet[12:20]), 6, len(packet) - 20)
    packet[36:38] = (0xFFFF - checksum.checksum(b"", total)).to_bytes(2)
    return bytes(packet)


def _options(vip: IPv4Address) -> bytes:
    """An IP header with four octets of options."""
    packet = _segment(_ends(vip=vip))
    longer = packet[:20] + b"\1\1\1\0" + packet[20:]
    return b"\x46" + longer[1:2] + len(longer).to_bytes(2) + longer[4:]


def _odd(vip: IPv4Address) -> bytes:
    return tcp.emit(_ends(vip=vip), 7, 9, ACK, option_octets=b"\x08\x0a" + bytes(8) + b"\1\1")


def _icmp(vip: IPv4Address) -> bytes:
    quoted = _segment(_ends())[:28]
    packet = _segment(_ends(vip=vip))[:20] + b"\3\1" + bytes(6) + quoted
    return _with_header(_with_header(packet, 2, len(packet).to_bytes(2)), 9, b"\1")


# what it is, the class that it belongs to, and how it is made for an address
WAYS_UP = {
    "an ACK of no flow": ("UNKNOWN", lambda vip: _segment(_ends(vip=vip))),
    "odd TCP options": ("ODD", _odd),
    "an unfinished checksum": ("ODD", _unfinished),
    "a SYN with an unfinished checksum": ("ODD", lambda vip: _unfinished(vip)[:33] + b"\2"
                                          + _unfinished(vip)[34:]),
    "a fragment": ("IP", lambda vip: _with_header(_segment(_ends(vip=vip)), 6, b"\0\x10")),
    "a first fragment": ("IP", lambda vip: _with_header(_segment(_ends(vip=vip)), 6, b"\x20\0")),
    "IP options": ("IP", _options),
    "an ICMP error": ("ICMP", _icmp),
    "an echo of a backend that cannot be reached": (
        "TAKEOVER", lambda vip: _segment(_ends(vip=vip), ts=(5, 2 << 24 | 5000))),
}


@pytest.mark.root
@pytest.mark.parametrize("name", list(WAYS_UP))
def test_each_way_up_has_a_budget_of_its_own(program: OnDuty, name: str) -> None:
    way, make = WAYS_UP[name]

    passed, elapsed_s = program.flood(make(VIP))

    most = BUDGETS[f"UP_{way}"] / 10
    assert most * 0.9 <= passed <= most * (elapsed_s * 10 + 2)
    assert program.counted() == {DropReason[f"LIMITED_{way}"]: FLOOD - passed}


@pytest.mark.root
@pytest.mark.parametrize("name", list(WAYS_UP))
def test_while_the_portable_engine_is_busy_strangers_have_an_eighth(
    program: OnDuty, loaded: Program, name: str
) -> None:
    way, make = WAYS_UP[name]
    loaded.set_busy(True)
    try:
        passed, elapsed_s = program.flood(make(VIP))
    finally:
        loaded.set_busy(False)

    most = BUDGETS[f"UP_{way}"] // 10 // 8
    assert most <= passed <= most * (elapsed_s * 10 + 2)


@pytest.mark.root
@pytest.mark.parametrize("name", list(WAYS_UP))
def test_what_is_for_no_vip_passes_however_much_it_is(program: OnDuty, name: str) -> None:
    """The host's own traffic is none of ours, whatever it looks like."""
    _, make = WAYS_UP[name]

    passed, _ = program.flood(make(OTHER))

    assert passed == FLOOD
    assert program.counted() == {}


@pytest.mark.root
@pytest.mark.parametrize("protocol, dport", [(1, 0), (17, 53), (6, 22)])
def test_a_vips_other_traffic_is_the_hosts_own(
    program: OnDuty, protocol: int, dport: int
) -> None:
    """Echo requests, UDP, and ports that no service has."""
    packet = bytearray(_segment(_ends()))
    packet[22:24] = dport.to_bytes(2)
    if protocol == 1:
        packet[20] = 8

    passed, _ = program.flood(_with_header(bytes(packet), 9, bytes([protocol])))

    assert passed == FLOOD


@pytest.mark.root
@pytest.mark.parametrize("flags", [SYN, ACK])
@pytest.mark.parametrize("source", ["240.0.0.1", "255.255.255.255", "127.0.0.1", "0.1.2.3",
                                    "224.0.0.5", str(VIP)])
def test_what_must_not_be_answered_goes_no_further(
    program: OnDuty, source: str, flags: int
) -> None:
    """Nor by its echo alone, on either engine."""
    now_ms = time.time_ns() // 1_000_000
    portable = Datapath(CONFIG, SECRETS, random=Random(1))
    run = program.run

    for ts in (None, (5, 1 << 24 | 5000)):
        packet = _segment(_ends(source), flags, ts=ts)
        assert run(ETHERNET + packet).retval == XDP_DROP
        verdict = portable.on_packet(packet, now_ms)
        assert (verdict.action, verdict.reason) == (Action.DROP, DropReason.BAD_SOURCE)

    assert program.counted() == {DropReason.BAD_SOURCE: 2}


@pytest.mark.root
def test_a_packet_at_the_end_of_its_life_goes_no_further(program: OnDuty) -> None:
    packet = _with_header(_segment(_ends()), 8, b"\1")

    passed, _ = program.flood(packet)

    assert passed == 0
    assert program.counted() == {DropReason.TTL_EXPIRED: FLOOD}


@pytest.mark.root
def test_budgets_are_the_hosts_however_many_processors_there_are(program: OnDuty) -> None:
    processors = os.sched_getaffinity(0)
    packet, passed = _segment(_ends()), 0
    start = time.monotonic()
    try:
        for processor in processors:
            os.sched_setaffinity(0, {processor})
            passed += program.flood(packet)[0]
    finally:
        os.sched_setaffinity(0, processors)

    most = BUDGETS["UP_UNKNOWN"] / 10
    assert passed <= most * ((time.monotonic() - start) * 10 + 2)


@pytest.mark.root
def test_a_budget_is_given_anew_ten_times_a_second(program: OnDuty) -> None:
    """By the clock, whatever the kernel's tick is."""
    packet, passed = _segment(_ends()), 0
    start = time.monotonic()

    while time.monotonic() < start + 1:
        passed += program.flood(packet)[0]

    elapsed_s, most = time.monotonic() - start, BUDGETS["UP_UNKNOWN"]
    assert most * (elapsed_s - 0.3) <= passed <= most * (elapsed_s + 0.2)


@pytest.mark.root
def test_the_rest_of_a_long_request_does_not_share_with_strangers(program: OnDuty) -> None:
    """What comes behind a first payload is known by it, before the portable engine has seen it."""
    run, ports = program.run, itertools.count(4000)
    stranger = ETHERNET + _segment(_ends("10.66.8.8"))
    guess = tcp.emit(_ends("10.66.7.7"), 7, 9, ACK | PSH, payload=b"guess")

    def attempt() -> list[int]:
        sport = next(ports)
        first = _first(STRANGER, sport)
        rest = ETHERNET + _rest(STRANGER, sport, first)
        program.flood(_segment(_ends("10.66.9.9")), 5000)
        verdicts = [run(packet).retval
                    for packet in (stranger, rest, ETHERNET + first, rest, stranger)]
        program.flood(guess, 5000)
        return [*verdicts, run(rest).retval]

    verdicts = _in_one_tenth(attempt)

    assert verdicts[:2] == [XDP_DROP, XDP_DROP]  # nothing vouches for the rest yet
    assert verdicts[2:5] == [XDP_PASS, XDP_PASS, XDP_DROP]
    assert verdicts[5] == XDP_PASS
    assert run(ETHERNET + _segment(_ends(), SYN)).retval == XDP_TX


@pytest.mark.root
def test_who_leaves_many_long_requests_unfinished_has_a_small_budget(program: OnDuty) -> None:
    """Others have all of theirs, and so has the same network when its requests come to an end."""
    start = time.monotonic()
    begun = [program.run(ETHERNET + _first(f"10.77.1.{number % 250 + 1}", 1000 + number)).retval
             for number in range(2000)]
    tenths = (time.monotonic() - start) * 10 + 2
    other = program.run(ETHERNET + _first("10.78.1.1", 1000)).retval

    assert set(begun[:250]) == {XDP_PASS}
    assert begun.count(XDP_PASS) <= 256 + tenths * BUDGETS["UP_UNFINISHED"] / 10
    assert program.counted() == {
        DropReason.LIMITED_UNFINISHED: begun.count(XDP_DROP)}
    assert other == XDP_PASS


@pytest.mark.root
def test_requests_that_end_leave_no_debt(program: OnDuty, loaded: Program) -> None:
    for number in range(600):
        packet = _first(f"10.79.1.{number % 250 + 1}", 1000 + number)
        now_ms = time.time_ns() // 1_000_000
        assert program.run(ETHERNET + packet).retval == XDP_PASS
        entry = Entry(packet[12:24], 6, 0, now_ms, now_ms, 0, 1, 0)
        loaded.flows.enter(entry.pack(), now_ms)
        loaded.flows.delete(packet[12:24])

    assert program.counted() == {}


def _first(source: str, sport: int) -> bytes:
    """A first payload, of a request that takes more."""
    ends = _ends(source, sport)
    made = cookie.encode(SECRETS, ends, 6, cookie.epoch_at(time.time_ns() // 1_000_000),
                         Offer(1460, True, 7))
    return tcp.emit(ends, 7, made + 1, ACK | PSH, payload=b"GET / HTTP/1.1\r\n")


def _rest(source: str, sport: int, first: bytes) -> bytes:
    """What comes behind a first payload, of which it is not the end."""
    return tcp.emit(_ends(source, sport), 23, int.from_bytes(first[28:32]), ACK | PSH,
                    payload=b"Host: a")


@pytest.mark.root
def test_a_network_leaves_a_part_of_what_real_flows_have_to_others(program: OnDuty) -> None:
    """It may have what nobody else wants, but for a quarter, of which others have an eighth."""
    greedy, other = ("10.80.1.1", 1000), ("10.81.1.1", 1000)
    most = BUDGETS["UP_HELD"] // 10
    rests = []
    for ends in (greedy, other):
        first = _first(*ends)
        assert program.run(ETHERNET + first).retval == XDP_PASS
        rests.append(_rest(*ends, first))

    passed = _in_one_tenth(
        lambda: [program.flood(rests[number], 20_000)[0] for number in (0, 1, 0)])

    assert passed == [most * 3 // 4, most // 8, 0]


@pytest.mark.root
def test_what_is_behind_a_first_payload_that_was_dropped_is_a_strangers(program: OnDuty) -> None:
    """Else who leaves requests unfinished would have the budget of those that are held."""
    verdicts = {}
    for number in range(2000):
        ends = f"10.82.1.{number % 250 + 1}", 1000 + number
        first = _first(*ends)
        verdicts[program.run(ETHERNET + first).retval] = _rest(*ends, first)
    before = program.counted()

    program.flood(verdicts[XDP_DROP])
    behind_dropped = set(program.counted()) - set(before)
    program.flood(verdicts[XDP_PASS])

    assert DropReason.GUESSES_LIMITED in behind_dropped
    assert DropReason.LIMITED_HELD not in behind_dropped
    assert DropReason.LIMITED_HELD in program.counted()


@pytest.mark.root
def test_the_portable_engine_being_busy_takes_nothing_from_real_flows(
    program: OnDuty, loaded: Program
) -> None:
    first = _first("10.83.1.1", 1000)
    loaded.set_busy(True)
    try:
        passed, _ = program.flood(first)
    finally:
        loaded.set_busy(False)

    assert passed >= BUDGETS["UP_FIRST"] // 10 * 3 // 4
