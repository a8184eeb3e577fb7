"""The balancer's program against its specification: tens of thousands of packets, octet by octet.

Others, and more of them: lab/run test tests/bpf -k differential --seed 7 --times 100

Either leaves a packet alone, or does just what the portable engine does, and enters the same flow.
"""

import ssl
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.datapath import Datapath
from balancer.flows import BackendFlow
from balancer.keys.request import KeySpec
from balancer.modes.split import takeover
from balancer.offload.flow_map import Entry
from balancer.offload.maps import CANDIDATES
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop
from common.bpf import BpfError, build
from common.bpf.objects import XDP_DROP, XDP_PASS, XDP_TX
from common.cluster.cookie import Secrets
from common.flow import guesses
from common.verdict import DropReason, Event
from common.wire import checksum, options, tcp
from common.wire.options import Options
from lab.handshakes import Handshake
from tests.bpf.loaded import shared

VIP = IPv4Address("192.168.33.10")
SECRETS = Secrets(bytes(range(16)), bytes(range(1, 17)))
NOW_MS = 1_700_000_010_000
KINDS = ("http.path", "http.target", "http.host", "http.host+path", "tls.sni", "source")
PIECES = (b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"/", b"/a", b"?q=1", b"?", b" ",
          b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"Host: ", b"hOsT:", b"Shop.Example",
          b":80", b"\r\n\r\n", b"X: y", b"\x7f", b"\x80", b"x" * 100, b"\t", b"[::1]")
ETHERNET = bytes(12) + b"\x08\x00"

pytestmark = pytest.mark.root


class Twins:
    """The program and the data path, with the same services."""

    def __init__(self, for_tests: bool = True) -> None:
        """for_tests: else by the clock, as on a host."""
        backends = tuple(
            config.Backend(number, IPv4Address("192.168.33.20") + number) for number in range(1, 8)
        )
        services = tuple(
            config.Service(name=kind, vip=VIP, port=1000 + number, dscp=number + 1,
                           key=KeySpec.parse(kind), backends=backends)
            for number, kind in enumerate(KINDS)
        )
        configured = config.Config(services=services, max_flows=100_000)
        try:
            with shared():
                self.loaded = Program(configured, SECRETS, for_tests=for_tests)
        except (BpfError, build.BuildError) as error:
            pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
        self.loaded.set_test_time(NOW_MS)
        for number in range(len(services)):
            for backend in backends:
                hop = NextHop(1, 65535, b"\2" * 6, b"\4" * 6)
                self.loaded.set_next_hop(number, backend.id, hop)
        self.run = self.loaded.object.program(PROGRAM_NAME).test_run
        self.datapath = Datapath(configured, SECRETS, random=Random(1))

    def differ(self, packet: bytes) -> str:
        """How the two differ about a packet; empty if they do not. Flows are as both agree."""
        run = self.run(ETHERNET + packet)
        if run.retval == XDP_PASS:
            return ""
        verdict = self.datapath.on_packet(packet, NOW_MS)
        reason = self.loaded.last_reason()
        if reason is not verdict.reason:
            return f"{reason}, not {verdict.reason}"
        if run.retval == XDP_DROP:
            return "sent nothing" if verdict.packets else ""
        if run.retval != XDP_TX:
            return f"returned {run.retval}"
        sent = run.data[len(ETHERNET):]
        if verdict.packets != (sent[:int.from_bytes(sent[2:4])],):
            return f"sent {sent.hex()}, not {[made.hex() for made in verdict.packets]}"
        return self._flows_differ(packet[12:24])

    def _flows_differ(self, key: bytes) -> str:
        octets, flow = self.loaded.flows.lookup(key), self.datapath.flows.get(key)
        expected = flow and (flow.client_isn, flow.ts_shift or flow.noted_seq, flow.backend.id,
                             flow.state, flow.created_ms, flow.has_timestamps, flow.syn_seen,
                             flow.is_repeated)
        found = None
        if octets:
            entry = Entry.unpack(octets, NOW_MS)
            found = (entry.client_isn, entry.number, entry.backend, entry.state, entry.created_ms,
                     entry.has_timestamps, entry.syn_seen, entry.is_repeated)
        return "" if found == expected else f"entered {found}, not {expected}"


@pytest.fixture(scope="module")
def many_guesses() -> Iterator[None]:
    """Time stands still, and half of what comes are guesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guesses, "MAX_GUESSES", 1 << 30)
        yield


@pytest.fixture(scope="module")
def twins(many_guesses: None) -> Iterator[Twins]:
    made = Twins()
    yield made
    made.loaded.close()


@pytest.fixture
def fresh(many_guesses: None) -> Iterator[Twins]:
    """Twins that no other test has given anything."""
    made = Twins()
    yield made
    made.loaded.close()


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """What a test generates from."""
    return Random(f"{request.config.getoption('seed')} {request.function.__name__}")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How often what the suite generates."""
    return request.config.getoption("times")


def client_hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def request(random: Random) -> bytes:
    """A request, mostly sound."""
    target = b"/" + bytes(random.choices(b"abc/%?&=.~\xc3", k=random.choice([3, 30, 200, 900])))
    method = random.choice([b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"PUT "])
    host = random.choice([b"a.b", b"Shop.Example.net", b"h:8080", b"[::1]:80", b"", b"a b",
                          b"x" * random.randrange(1, 200)])
    lines = [b"X-%d: %s" % (number, b"v" * random.randrange(60))
             for number in range(random.randrange(8))]
    name = random.choice([b"Host: ", b"host:", b"HOST:   ", b"Hosts: "])
    lines.insert(random.randrange(len(lines) + 1), name + host)
    end = random.choice([b"\r\n", b"\r\n", b"\r\n", b"\n"])
    line = method + target + b" HTTP/1.%d" % random.randrange(3)
    return end.join([line, *lines, b"", b""])


def payload(random: Random, hellos: list[bytes]) -> bytes:
    kind = random.random()
    if kind < 0.4:
        made = request(random)
    elif kind < 0.6:
        made = random.choice(hellos)
    else:
        made = b"".join(random.choices(PIECES, k=random.randrange(14)))
    spoilt = bytearray(made[:1448])
    if spoilt and random.random() < 0.3:
        spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    if random.random() < 0.1:
        del spoilt[random.randrange(len(spoilt) + 1):]
    return bytes(spoilt)


def five_tuple(random: Random) -> bytes:
    source = IPv4Address(random.randrange(0x0B00_0000, 0x7E00_0000))
    ports = struct.pack("!HH", random.randrange(1024, 65536), 1000 + random.randrange(len(KINDS)))
    return source.packed + VIP.packed + ports


def handshake(random: Random, ends: bytes, isn: int) -> Handshake:
    """One that is over, under a key that is known or not."""
    secrets = random.choice([SECRETS, Secrets(SECRETS[1]), Secrets(bytes(16))])
    epochs = random.choice([-2, -1, 0, 0, 0, 1, 2])
    return Handshake(secrets, ends, isn, NOW_MS + epochs * 64_000 - random.choice([0, 30, 500]))


def test_first_payloads_choose_alike(twins: Twins, random: Random, times: int) -> None:
    hellos = [client_hello(name) for name in ("a.example", "Very.Long.example.net", None,
                                              "x" * 60 + ".org")]
    differences = []
    for _ in range(15_000 * times):
        ends, isn = five_tuple(random), random.randrange(2**32)
        made = handshake(random, ends, isn)
        echo = random.choice([made.t0] * 12 + [made.t0 ^ 1 << random.randrange(32), 1 << 24 | 5, 0])
        stamps = options.emit(Options(timestamps=(5, echo))) if random.random() < 0.7 else b""
        octets = payload(random, hellos)
        packet = tcp.emit(ends, isn + 1, made.cookie_isn + 1, 24, window=5,
                          option_octets=stamps, payload=octets, tos=random.randrange(256))

        differences += [(octets, found)] if (found := twins.differ(packet)) else []

    assert not differences
    assert twins.datapath.counters[Event.HANDOFF] > 1500  # so many were decided by the program


def test_handoffs_that_nobody_answers_are_counted_alike(
    twins: Twins, random: Random, times: int
) -> None:
    """Once each, if nothing but the first payload has come since, and echoes no server."""
    before = unanswered(twins)
    differences = []
    for _ in range(3000 * times):
        ends, isn = five_tuple(random), random.randrange(2**32)
        made = Handshake(SECRETS, ends, isn, NOW_MS)
        is_bare = random.random() < 0.3
        for story in range(random.randrange(2, 6)):
            off, flags = random.choice([(0, 24)] * 6 + [(18, 16), (18, 17), (0, 28), (18, 24)])
            echo = random.choice([made.t0] * 9 + [random.randrange(1, 8) << 24 | 500])
            packet = tcp.emit(
                ends, isn + 1 + off * bool(story), made.cookie_isn + 1, flags if story else 24,
                option_octets=b"" if is_bare else options.emit(Options(timestamps=(5, echo))),
                payload=b"" if off and flags < 24 else b"GET / HTTP/1.1\r\n\r\n")

            differences += [(packet, found)] if (found := twins.differ(packet)) else []

    programs, specifications = (now - then for now, then in zip(
        unanswered(twins), before, strict=True))
    assert not differences
    assert programs == specifications > 300


def unanswered(twins: Twins) -> tuple[int, int]:
    """As the program counts, and as the data path does."""
    backends = list(twins.datapath.services.backends())
    return (sum(twins.loaded.traffic_of(each.service.number, each.id)["unanswered"]
                for each in backends), sum(each.unanswered for each in backends))


def test_syns_are_answered_alike(twins: Twins, random: Random, times: int) -> None:
    layouts = (b"\x02\x04\x05\xb4", b"\x04\x02", b"\x08\x0a" + bytes(8), b"\x03\x03\x0f", b"\x01",
               b"\x00", b"\x22\x02", b"\x03\x02", b"\x05\x01", b"\x02\x04\x00\x10", b"\xff")
    differences = []
    for _ in range(10_000 * times):
        octets = b"".join(random.choices(layouts, k=random.randrange(9)))[:40]
        octets += bytes(-len(octets) % 4)
        packet = tcp.emit(five_tuple(random), random.randrange(2**32), 0, 2,
                          window=random.randrange(65536), option_octets=octets,
                          payload=bytes(random.choice([0, 0, 10, 600])), tos=random.randrange(256))

        differences += [(octets, found)] if (found := twins.differ(packet)) else []

    assert not differences
    # all but those whose checksum looks unfinished
    assert twins.datapath.counters[Event.SYN_ANSWERED] > 9_990 * times


@pytest.mark.parametrize("flags, payload", [(2, b""), (24, b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")],
                         ids=["SYN", "first payload"])
def test_a_segment_with_an_unfinished_checksum_goes_up(
    twins: Twins, random: Random, flags: int, payload: bytes
) -> None:
    """Of the pseudo-header alone, as a sender on the same machine leaves it."""
    ends, isn = five_tuple(random), 7
    packet = bytearray(tcp.emit(ends, isn, handshake(random, ends, isn - 1).cookie_isn + 1, flags,
                                payload=payload))
    packet[36:38] = checksum.word_sum(
        packet[12:20] + struct.pack("!HH", 6, len(packet) - 20)).to_bytes(2)

    assert twins.run(ETHERNET + packet).retval == XDP_PASS


@pytest.mark.parametrize("tag", [b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"],
                         ids=["802.1Q", "802.1ad"])
def test_a_tagged_frame_is_left_to_the_vlans_own_interface(
    twins: Twins, random: Random, tag: bytes
) -> None:
    syn = tcp.emit(five_tuple(random), 7, 0, 2)

    assert twins.run(ETHERNET + syn).retval == XDP_TX
    assert twins.run(ETHERNET[:12] + tag + ETHERNET[12:] + syn).retval == XDP_PASS


def test_a_request_in_two_segments_does_not_follow_an_older_flow_on_its_ports(
    twins: Twins, random: Random
) -> None:
    """Its first segment goes up, and so does the second, which may come before that is held."""
    ends = five_tuple(random)[:10] + struct.pack("!H", 1000)

    def segment(isn: int, payload: bytes, off: int = 0) -> bytes:
        made = Handshake(SECRETS, ends, isn, NOW_MS).cookie_isn
        return ETHERNET + tcp.emit(ends, isn + 1 + off, made + 1, 24, payload=payload)

    older = twins.run(segment(7, b"GET /a HTTP/1.1\r\n\r\n"))
    later = twins.run(segment(7, b"x", 400))
    twins.run(ETHERNET + tcp.emit(ends, 70_000, 0, 2))
    first = twins.run(segment(70_000, b"GET /very/"))
    second = twins.run(segment(70_000, b"long HTTP/1.1\r\n\r\n", 10))

    assert (older.retval, later.retval) == (XDP_TX, XDP_TX)
    assert (first.retval, second.retval) == (XDP_PASS, XDP_PASS)


def test_a_flood_of_unknown_packets_is_kept_from_the_portable_engine(
    random: Random
) -> None:
    packet = tcp.emit(five_tuple(random), 7, 7, 16)
    program = Twins(for_tests=False)

    alone = program.run(ETHERNET + packet)
    flood = program.run(ETHERNET + packet, repeat=100_000)

    assert (alone.retval, flood.retval) == (XDP_PASS, XDP_DROP)
    assert 50_000 < program.loaded.reasons.totals()[DropReason.LIMITED_UNKNOWN] < 100_000
    program.loaded.close()


def test_in_service_nothing_is_noted_for_tests(random: Random) -> None:
    """Whether this is a test is read-only to the verifier, which prunes what is for tests alone."""
    syn = tcp.emit(five_tuple(random), 7, 0, 2)
    in_test, in_service = Twins(), Twins(for_tests=False)

    for each in (in_test, in_service):
        assert each.run(ETHERNET + syn).retval == XDP_TX

    assert in_test.loaded.last_reason() is Event.SYN_ANSWERED
    assert in_service.loaded.last_reason() is Event.NOT_OURS
    assert in_service.loaded.object.variable("in_test")[0] == ".rodata"
    for each in (in_test, in_service):
        each.loaded.close()


def test_whole_lives_of_flows_are_alike(fresh: Twins, random: Random, times: int) -> None:
    """Few clients, so that ports are used again, echoes go stale and resets meet flows."""
    twins, ends = fresh, apart(fresh, random, 40)
    differences = []
    for _ in range(30_000 * times):
        one, isn = random.choice(ends), random.choice([7, 2**32 - 3])
        made = Handshake(SECRETS, one, isn, NOW_MS)
        base, t0 = made.cookie_isn, made.t0
        echo = random.choice([t0, t0, t0 ^ 1 << 15, 1 << 24 | 5, 3 << 24, 9 << 24, 200 << 24, 0])
        stamps = options.emit(Options(timestamps=(5, echo)))
        layout = random.choice([stamps, stamps, stamps, b"", b"\x01\x01\x05\x0a" + bytes(8)])
        packet = tcp.emit(
            one, isn + random.choice([1, 1, 2, 500]), base + random.choice([1, 1, 2, 9000]),
            random.choice([16, 24, 16, 24, 17, 4, 20, 0]), window=9, option_octets=layout,
            payload=random.choice([b"", b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", b"x"]),
        )
        if twins.run(ETHERNET + packet).retval == XDP_PASS:
            _agree(twins, one)
            continue
        _agree(twins, one)

        differences += [(packet, found)] if (found := twins.differ(packet)) else []

    assert not differences
    assert twins.datapath.counters[Event.FORWARDED] > 500
    assert twins.datapath.counters[Event.TAKEOVER] > 100
    assert twins.datapath.counters[DropReason.HANDSHAKE_ACK] > 100


def apart(twins: Twins, random: Random, count: int) -> list[bytes]:
    """Five-tuples that share no place where takeovers are noted.

    Each engine's places are its own, by chance: flows that meet in one would not in the other.
    """
    found: list[bytes] = []
    by_program, by_python = set(), set()
    while len(found) < count:
        ends = five_tuple(random)
        places = twins.loaded.flows._hash(ends) % (CANDIDATES // 2), hash(
            ends) % takeover._CANDIDATES >> 1
        if places[0] not in by_program and places[1] not in by_python:
            found.append(ends)
            by_program.add(places[0])
            by_python.add(places[1])
    return found


def _agree(twins: Twins, key: bytes) -> None:
    """Give the data path the flow that the program has, after what only the latter has seen."""
    octets, flow = twins.loaded.flows.lookup(key), twins.datapath.flows.get(key)
    if flow is not None:
        twins.datapath.flows.remove(flow)
    if octets is None:
        return
    entry = Entry.unpack(octets, NOW_MS)
    service = list(twins.datapath.services)[entry.service]
    backend = service.pool.get(entry.backend)
    made = BackendFlow(key, backend, entry.client_isn, 0, entry.created_ms, entry.has_timestamps)
    setattr(made, "ts_shift" if entry.has_timestamps else "noted_seq", entry.number)
    made.syn_seen, made.is_repeated = entry.syn_seen, entry.is_repeated
    twins.datapath.flows.insert(made)
    twins.datapath.flows.move(made, entry.state, NOW_MS)
