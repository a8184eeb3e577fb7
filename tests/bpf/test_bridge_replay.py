"""Handshakes that the splicing programs replay, against the portable data path's: the same SYN, and
the same flow after the server's answer.

Others, and more of them: lab/run test tests/bpf -k replay --seed 7 --times 20
"""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest
from pyroute2 import netns

from common.bpf.objects import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Run, SkBuff
from common.cluster.cookie import Offer, Secrets
from common.counters import new_counters
from common.verdict import DropReason, Event
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.seq import MASK
from common.wire.tcp import ACK, FIN, PSH, RST, SYN
from lab.handshakes import Handshake
from packetbridge.config import Config, Service, Timeouts
from packetbridge.datapath import Datapath
from packetbridge.offload.beside import Beside
from packetbridge.offload.splice import Entry, Splice, states
from tests.bpf.loaded import shared

VIP, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}") for host in (10, 20, 30))
SERVICE = Service(name="web", dscp=3, vip=VIP, port=80, server=SERVER, server_port=8080, wscale=9)
CONFIG = Config(services=(SERVICE,), address=BRIDGE, max_flows=1000,
                timeouts=Timeouts(idle_ms=60_000, closing_ms=10_000))
SECRETS = Secrets(bytes(range(16)), bytes(range(16, 32)))
ETHERNET = bytes(12) + b"\x08\x00"
TAG = 3 << 2


@pytest.fixture
def lo() -> Iterator[socket.socket]:
    """A host that has nothing but `lo`, and all that comes in there."""
    name = f"l3dsr-replay-{os.getpid()}"
    netns.create(name)
    netns.pushns(name)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as seen:
            seen.bind(("lo", 0x0800))
            seen.settimeout(5)
            yield seen
    finally:
        netns.popns()
        netns.remove(name)


@pytest.fixture
def programs(lo: socket.socket) -> Iterator[Splice]:
    with shared():
        made = Splice(CONFIG, [SERVICE], budgets=None)
    made.set_secrets(SECRETS)
    yield made
    made.close()


@pytest.fixture
def bounded(lo: socket.socket) -> Iterator[Splice]:
    """Programs that leave no more to the portable engine than on a host."""
    with shared():
        made = Splice(CONFIG, [SERVICE])
    made.set_secrets(SECRETS)
    yield made
    made.close()


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """What the test generates from."""
    return Random(f"{request.config.getoption('seed')} {request.function.__name__}")


class Client:
    """One that has shaken hands with the balancer just now."""

    def __init__(self, random: Random, port: int) -> None:
        self.random, self.now_ms = random, time.time_ns() // 1_000_000
        self.isn, self.server_isn = random.getrandbits(32), random.getrandbits(32)
        self.offer = Offer(random.choice([536, 1200, 1300, 1360, 1400, 1440, 1460, 8960]),
                           random.random() < 0.7, random.choice([None, 0, 7, 14]))
        self.has_timestamps = random.random() < 0.7
        self.address, self.port = bytes((10, *random.randbytes(3))), port.to_bytes(2)
        self.key = self.address + SERVER.packed + self.port + (8080).to_bytes(2)

    @property
    def handshake(self) -> Handshake:
        """Its own with the balancer."""
        ends = self.address + VIP.packed + self.port + b"\0\x50"
        return Handshake(SECRETS, ends, self.isn, self.now_ms, self.offer)

    @property
    def cookie_isn(self) -> int:
        return self.handshake.cookie_isn

    def handoff(self, payload: bytes, flags: int = ACK | PSH) -> bytes:
        """The first data. Its window is any."""
        echo = self.handshake.handed(BRIDGE.packed)
        stamps = Options(timestamps=(self.random.getrandbits(32), echo)
                         if self.has_timestamps else None)
        return tcp.emit(
            self.address + BRIDGE.packed + self.port + b"\0\x50", self.isn + 1,
            self.cookie_isn + 1, flags, window=self.random.getrandbits(16),
            option_octets=options.emit(stamps), payload=payload, tos=TAG | 1)

    def answer(self, flags: int = SYN | ACK, acked: int = 1) -> bytes:
        """The server's, which may offer less than the client."""
        random = self.random
        made = Options(
            1460, self.offer.sack and random.random() < 0.8,
            (random.getrandbits(32), 5) if self.has_timestamps and random.random() < 0.9 else None,
            None if self.offer.wscale is None else random.choice([None, 0, 3, 10, 15]),
        )
        return tcp.emit(SERVER.packed + self.address + struct.pack("!H", 8080) + self.port,
                        self.server_isn, self.isn + acked, flags, option_octets=options.emit(made))


def portable() -> Datapath:
    return Datapath(CONFIG, SECRETS, random=Random(1))


def way_in(programs: Splice, packet: bytes) -> Run:
    return programs.program("on_ingress").test_run(ETHERNET + packet, SkBuff())


def way_out(programs: Splice, packet: bytes) -> Run:
    return programs.program("on_egress").test_run(ETHERNET + packet, SkBuff(mark=CONFIG.mark))


def counted(programs: Splice, reason: Event | DropReason) -> int:
    counters = new_counters()
    programs.on_tick(counters)
    return counters[reason]


def test_handshakes_are_replayed_alike(
    programs: Splice, lo: socket.socket, random: Random, request: pytest.FixtureRequest
) -> None:
    for number in range(300 * request.config.getoption("times")):
        client, alone = Client(random, 1024 + number % 60_000), portable()
        packet = client.handoff(random.randbytes(random.choice([20, 21, 99, 511, 1400, 1448])))

        ran = way_in(programs, packet)
        (syn,) = alone.on_packet(packet, client.now_ms).packets

        assert (ran.retval, ran.data) == (TC_ACT_REDIRECT, ETHERNET + packet)
        captured = lo.recv(65536)[len(ETHERNET):]
        assert captured[:len(syn)] == syn, "the stack cuts off what lies behind its length"
        waiting = programs.look_up(client.key)
        assert waiting is not None
        assert waiting.state == states().REPLAYING

        answer = client.answer()
        ran = way_out(programs, answer)
        alone.on_packet(answer, client.now_ms)

        assert ran.retval == TC_ACT_SHOT
        (flow,) = alone.flows
        found = programs.look_up(client.key)
        assert found is not None
        assert found._replace(has_timestamps=False) == Entry.of(flow, found.seen_s)

        expected = alone.on_packet(packet, client.now_ms).packets  # as it comes in once more
        assert way_in(programs, packet).data[len(ETHERNET):] == expected[0]


def test_a_damaged_handoff_is_dropped(programs: Splice, random: Random) -> None:
    for length in (20, 491, 492, 493, 1400):
        client = Client(random, 5000)
        packet = bytearray(client.handoff(bytes(length)))
        packet[-1 - random.randrange(length)] ^= 1

        ran = way_in(programs, bytes(packet))

        assert ran.retval == TC_ACT_SHOT
        assert portable().on_packet(bytes(packet), client.now_ms).reason is DropReason.BAD_CHECKSUM
        assert programs.look_up(client.key) is None
    assert counted(programs, DropReason.BAD_CHECKSUM) == 5


def test_a_handoff_whose_checksum_is_left_to_the_card_is_none_the_worse(
    programs: Splice, random: Random
) -> None:
    client = Client(random, 5000)
    packet = bytearray(client.handoff(bytes(99)))
    pseudo = packet[12:20] + bytes((0, 6)) + (len(packet) - 20).to_bytes(2)
    total = sum(struct.unpack("!6H", pseudo))
    packet[36:38] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2)

    assert way_in(programs, bytes(packet)).retval == TC_ACT_REDIRECT


@pytest.mark.parametrize(("payload", "flags", "why"), [
    (b"", ACK, "nothing that opens a flow"),
    (bytes(99), ACK | FIN, "the client has said all"),
    (bytes(99), ACK | RST, "a reset"),
    (bytes(99), PSH, "no ACK"),
    (b"x", ACK, "shorter than the SYN"),
])
def test_what_is_unusual_goes_up(
    programs: Splice, random: Random, payload: bytes, flags: int, why: str
) -> None:
    client = Client(random, 5000)
    client.has_timestamps, client.offer = False, Offer(1460, True, 7)
    packet = client.handoff(payload, flags)

    ran = way_in(programs, packet)

    assert (ran.retval, ran.data) == (TC_ACT_UNSPEC, ETHERNET + packet), why


def test_a_cookie_that_is_not_ours_opens_nothing(programs: Splice, random: Random) -> None:
    client = Client(random, 5000)
    packet = bytearray(client.handoff(bytes(99)))
    packet[28] ^= 1  # of the acknowledgment number

    assert way_in(programs, bytes(packet)).retval == TC_ACT_UNSPEC
    assert programs.look_up(client.key) is None


@pytest.mark.parametrize("bit", range(10, 24))
def test_a_handoff_that_is_not_for_this_bridge_opens_nothing(
    programs: Splice, random: Random, bit: int
) -> None:
    client = Client(random, 5000)
    client.has_timestamps = True
    packet = bytearray(client.handoff(bytes(99)))
    packet[51 - bit // 8] ^= 1 << bit % 8  # of TSecr

    assert way_in(programs, bytes(packet)).retval == TC_ACT_SHOT
    assert programs.look_up(client.key) is None
    assert counted(programs, DropReason.BAD_ECHO) == 1


def test_guesses_without_timestamps_are_bounded(programs: Splice, random: Random) -> None:
    client = Client(random, 5000)
    client.has_timestamps = False
    packet = bytearray(client.handoff(bytes(99)))
    packet[28] ^= 1

    first = way_in(programs, bytes(packet)).retval
    flood = programs.program("on_ingress").test_run(ETHERNET + packet, SkBuff(), 100_000).retval
    client.has_timestamps = True
    stamped = way_in(programs, client.handoff(bytes(99))).retval

    assert (first, flood, stamped) == (TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT)
    assert 50_000 < counted(programs, DropReason.GUESSES_LIMITED) < 100_000


@pytest.mark.parametrize(("flags", "acked", "retval", "counts"), [
    (ACK, 77, TC_ACT_REDIRECT, 0), (RST | ACK, 1, TC_ACT_SHOT, 1), (SYN | ACK, 2, TC_ACT_SHOT, 1),
], ids=["an old connection's, which has to be ended", "refused", "another's"])
def test_another_answer_opens_nothing_and_does_not_reach_the_client(
    programs: Splice, random: Random, flags: int, acked: int, retval: int, counts: int
) -> None:
    client = Client(random, 5000)
    way_in(programs, client.handoff(bytes(99)))

    ran = way_out(programs, client.answer(flags, acked))

    assert ran.retval == retval
    waiting = programs.look_up(client.key)
    assert waiting is not None
    assert waiting.state == states().REPLAYING
    assert counted(programs, DropReason.REPLAY_PENDING) == counts


def test_a_handoff_that_comes_twice_is_asked_for_twice_and_noted_once(
    programs: Splice, lo: socket.socket, random: Random
) -> None:
    """Its flow may become open at any time; a copy must not make it wait again."""
    client = Client(random, 5000)
    packet = client.handoff(bytes(99))
    way_in(programs, packet)
    waiting = programs.look_up(client.key)
    assert waiting is not None
    noted = waiting._replace(server_next=waiting.server_next + 1 & MASK)
    programs.write(client.key, noted)

    assert way_in(programs, packet).retval == TC_ACT_REDIRECT

    assert programs.look_up(client.key) == noted
    assert counted(programs, Event.REPLAYED) == 2


def test_what_the_portable_engine_has_already_is_not_waited_for(
    programs: Splice, random: Random
) -> None:
    """Where the map was full, the flow is known up there alone; then its handoff comes again."""
    client, engine = Client(random, 5000), portable()
    packet = client.handoff(bytes(99))
    engine.on_packet(packet, client.now_ms)
    engine.on_packet(client.answer(), client.now_ms)
    engine.offload = Beside(CONFIG, engine, [programs])
    way_in(programs, packet)

    engine.on_packet(packet, client.now_ms)

    found = programs.look_up(client.key)
    assert found is not None
    assert found.state == states().OPEN
    reply = tcp.emit(SERVER.packed + client.address + struct.pack("!H", 8080) + client.port,
                     client.server_isn + 1, client.isn + 100, ACK, payload=b"x")
    assert way_out(programs, reply).retval == TC_ACT_UNSPEC


def restored(programs: Splice, key: bytes, entry: Entry) -> Entry | None:
    """What is left of a flow after a restart of the daemon."""
    programs.write(key, entry)
    made = portable()
    Beside(CONFIG, made, [programs]).restore()
    return programs.look_up(key)


@pytest.mark.parametrize(("state", "stays"), [("OPEN", True), ("REPLAYING", True),
                                              ("PORTABLE", False)])
def test_a_restart_takes_nothing_from_handshakes_that_are_being_replayed(
    programs: Splice, random: Random, state: str, stays: bool
) -> None:
    """They go on meanwhile: by the time that an entry is looked at, its flow may be open."""
    client = Client(random, 5000)
    entry = Entry(0, 0, 1, 1, VIP.packed, b"\0\x50", 3, 7, 7, 0, states()[state], False,
                  5, 5, 5, programs.now_s(), 0, 0)

    assert restored(programs, client.key, entry) == (entry if stays else None)


def test_no_flow_is_idle_because_nobody_has_told_the_time(
    programs: Splice, random: Random
) -> None:
    """What programs note while there is no daemon is the time of its death."""
    client = Client(random, 5000)
    entry = Entry(0, 0, 1, 1, VIP.packed, b"\0\x50", 3, 7, 7, 0, states().OPEN, False,
                  5, 5, 5, programs.now_s() - 3600 & MASK, 0, 0)

    assert restored(programs, client.key, entry) == entry


def test_a_segment_that_overtakes_waits_behind_the_handoff(
    programs: Splice, random: Random
) -> None:
    client = Client(random, 5000)
    first = client.handoff(bytes(1000))
    way_in(programs, first)
    second = tcp.emit(client.address + BRIDGE.packed + client.port + b"\0\x50", client.isn + 1001,
                      client.cookie_isn + 1, ACK, payload=bytes(700), tos=TAG)

    ran = way_in(programs, second)

    assert (ran.retval, ran.data) == (TC_ACT_REDIRECT, ETHERNET + second)


def test_what_the_portable_engine_has_goes_up(programs: Splice, random: Random) -> None:
    client, alone = Client(random, 5000), portable()
    packet = client.handoff(bytes(99))
    alone.on_packet(packet, client.now_ms)
    programs.insert(next(iter(alone.flows)))

    assert way_in(programs, packet).retval == TC_ACT_UNSPEC
    assert way_out(programs, client.answer()).retval == TC_ACT_REDIRECT


def test_a_client_that_begins_anew_takes_its_port_over(programs: Splice, random: Random) -> None:
    client = Client(random, 5000)
    way_in(programs, client.handoff(bytes(99)))
    way_out(programs, client.answer())
    again = Client(random, 5000)
    again.address, again.key = client.address, client.key

    way_in(programs, again.handoff(bytes(99)))
    way_out(programs, again.answer())

    found = programs.look_up(client.key)
    assert found is not None
    assert (found.client_isn, found.cookie_isn) == (again.isn, again.cookie_isn)
    assert found.state == states().OPEN


ENDED, WAS_RESET = (5, 10), (16, 0)


@pytest.mark.parametrize(("state", "ending", "idle_s", "stays"), [
    ("OPEN", (0, 0), 55, True), ("OPEN", (0, 0), 65, False),
    ("OPEN", (1, 0), 55, True), ("OPEN", (5, 2), 55, True),
    ("OPEN", ENDED, 8, True), ("OPEN", ENDED, 15, False),
    ("OPEN", WAS_RESET, 8, True), ("OPEN", WAS_RESET, 15, False),
    ("REPLAYING", (0, 0), 1, True), ("REPLAYING", (0, 0), 9, False),
    ("PORTABLE", (0, 0), 1000, True),
])
def test_time_takes_flows_that_have_ended_or_gone_silent(
    programs: Splice, state: str, ending: tuple[int, int], idle_s: int, stays: bool
) -> None:
    key = bytes(range(12))
    programs.write(key, Entry(0, 0, 1, 1, VIP.packed, b"\0\x50", 3, 7, 7, 0,
                              states()[state], False,
                              5, 5, 5, programs.now_s() - idle_s & MASK, *ending))

    programs.sweep()

    assert (programs.look_up(key) is not None) == stays
    assert programs.count == stays


def test_the_next_connection_s_first_ack_keeps_no_flow_that_has_ended(programs: Splice) -> None:
    """Its numbers lie close behind those of the one before. If its client goes away at once, the
    old flow must not wait for an end that it has had."""
    client, port = bytes((10, 0, 0, 9)), (5000).to_bytes(2)
    key = client + SERVER.packed + port + (8080).to_bytes(2)
    programs.write(key, Entry(0, 0, 1, 1, VIP.packed, b"\0\x50", 3, 7, 7, 0, states().OPEN, False,
                              100, 200, 100, programs.now_s(), *ENDED))

    way_in(programs, tcp.emit(client + BRIDGE.packed + port + b"\0\x50", 1_000_000, 77, ACK,
                              tos=TAG))

    entry = programs.look_up(key)
    assert entry is not None
    assert (entry.client_next, entry.client_ending, entry.server_ending) == (100, *ENDED)


def test_a_full_map_makes_room_by_those_that_have_ended_first(
    programs: Splice, random: Random
) -> None:
    def flow(number: int, idle_s: int, *ending: int) -> tuple[bytes, Entry]:
        return number.to_bytes(12), Entry(
            0, 0, 1, 1, VIP.packed, b"\0\x50", 3, 7, 7, 0, states().OPEN, False, 5, 5, 5,
            programs.now_s() - idle_s & MASK, *ending)

    for number in range(CONFIG.max_flows):
        programs.write(*flow(number, 5, *(ENDED if number % 4 == 0 else (0, 0))))
    client, alone = Client(random, 5000), portable()
    alone.on_packet(client.handoff(bytes(99)), client.now_ms)

    assert programs.insert(next(iter(alone.flows)))

    assert programs.look_up(client.key) is not None
    assert programs.evicted == CONFIG.max_flows // 4
    assert programs.look_up((1).to_bytes(12)) is not None


# --- once and no more ---


def opened(programs: Splice, client: Client) -> bytes:
    """A connection's first segment, when it is over and forgotten."""
    packet = client.handoff(bytes(99))
    way_in(programs, packet)
    way_out(programs, client.answer())
    programs.forget(client.key)
    return packet


def test_a_first_segment_that_comes_when_all_is_over_opens_nothing(
    programs: Splice, random: Random
) -> None:
    packets = [opened(programs, Client(random, 5000 + number)) for number in range(50)]

    assert {way_in(programs, packet).retval for packet in packets} == {TC_ACT_SHOT}
    assert counted(programs, DropReason.COOKIE_SPENT) == 50
    assert way_in(programs, Client(random, 5000).handoff(bytes(99))).retval == TC_ACT_REDIRECT


def test_a_first_segment_that_the_server_did_not_take_may_come_again(
    programs: Splice, random: Random
) -> None:
    client = Client(random, 5000)
    packet = client.handoff(bytes(99))
    way_in(programs, packet)
    way_out(programs, client.answer(RST | ACK))
    programs.forget(client.key)

    assert way_in(programs, packet).retval == TC_ACT_REDIRECT


def test_both_engines_know_what_either_has_opened(programs: Splice, random: Random) -> None:
    engine = portable()
    engine.offload = Beside(CONFIG, engine, [programs])
    theirs, own = Client(random, 5000), Client(random, 5001)
    packets = [opened(programs, theirs), own.handoff(bytes(99))]
    engine.on_packet(packets[1], own.now_ms)
    engine.on_packet(own.answer(), own.now_ms)
    for flow in engine.flows:
        engine.flows.remove(flow)

    assert [engine.on_packet(packet, own.now_ms).reason for packet in packets] == [
        DropReason.COOKIE_SPENT] * 2
    assert [way_in(programs, packet).retval for packet in packets] == [TC_ACT_SHOT] * 2


def test_an_older_first_segment_does_not_take_a_newer_ones_place(
    programs: Splice, random: Random
) -> None:
    older, newer = Client(random, 5000), Client(random, 5000)
    newer.address, newer.key = older.address, older.key
    packet = opened(programs, older)
    way_in(programs, newer.handoff(bytes(99)))
    way_out(programs, newer.answer())

    assert way_in(programs, packet).retval == TC_ACT_SHOT

    found = programs.look_up(newer.key)
    assert found is not None
    assert found.client_isn == newer.isn


@pytest.mark.parametrize("payload", [b"", bytes(99)], ids=["ACKs", "forged handoffs"])
def test_a_flood_of_what_nothing_vouches_for_is_kept_from_the_portable_engine(
    bounded: Splice, random: Random, payload: bytes
) -> None:
    client = Client(random, 5000)
    client.has_timestamps = True
    packet = bytearray(client.handoff(payload, ACK))
    packet[28] ^= 1  # of the acknowledgment number

    bounded.program("on_ingress").test_run(ETHERNET + bytes(packet), SkBuff(), 100_000)

    assert 50_000 < counted(bounded, DropReason.LIMITED_UNKNOWN) < 100_000
    assert way_in(bounded, Client(random, 5001).handoff(bytes(99))).retval == TC_ACT_REDIRECT


def test_an_open_flows_odd_numbers_are_bounded_too(bounded: Splice, random: Random) -> None:
    """Whoever has one connection could else send what he likes."""
    client = Client(random, 5000)
    way_in(bounded, client.handoff(bytes(99)))
    way_out(bounded, client.answer())
    packet = bytearray(client.handoff(bytes(99)))
    packet[24] ^= 0x40  # of the sequence number

    bounded.program("on_ingress").test_run(ETHERNET + bytes(packet), SkBuff(), 100_000)

    assert 0 < counted(bounded, DropReason.LIMITED_FLOW) < 100_000
