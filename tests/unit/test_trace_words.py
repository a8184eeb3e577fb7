"""`balancer trace` without a balancer: what is asked for, what is told, and how it is shown."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random

import pytest

from balancer import cli, config
from balancer.datapath import Datapath
from balancer.keys.request import KeySpec
from balancer.trace import messages, server
from balancer.trace.client import Trace
from balancer.trace.decisions import Decisions, Shown
from balancer.trace.messages import Decision, Request, ServiceWords, Welcome
from balancer.trace.portable import Telling
from balancer.trace.server import TraceServer
from common import __version__
from common.cluster.cookie import Secrets
from common.engine import clock
from common.engine.observation import Observation
from common.verdict import DROP, HELD, DropReason, Event, Verdict, send
from common.wire import tcp
from common.wire.tcp import ACK, PSH, SYN
from lab.handshakes import Handshake

VIP, BRIDGE = "192.0.2.10", IPv4Address("192.0.2.20")
SECRETS = Secrets(bytes(range(16)))
CONFIG = config.Config(services=(config.Service(
    name="web", vip=IPv4Address(VIP), port=80, key=KeySpec.parse("http.path"),
    backends=(config.Backend(2, BRIDGE),)),))
WORDS = ServiceWords("web", VIP, 80, "http.path", "source", {"2": str(BRIDGE)})
ALL = frozenset(messages.REASONS.values())
GET = b"GET /shop/1 HTTP/1.1\r\nHost: h\r\n\r\n"
NOW_MS = 1_700_000_010_000


def ends(sport: int = 5000, source: str = "198.51.100.7") -> bytes:
    return (IPv4Address(source).packed + IPv4Address(VIP).packed + struct.pack("!HH", sport, 80))


def packet(flags: int = ACK, payload: bytes = b"", sport: int = 5000,
           source: str = "198.51.100.7") -> bytes:
    return tcp.emit(ends(sport, source), 8, 9, flags, payload=payload)


SYN_ANSWERED = Decision(10, Event.SYN_ANSWERED, 0, packet(SYN))
HANDSHAKE = Decision(11, DropReason.HANDSHAKE_ACK, 0, packet())
HANDOFF = Decision(12, Event.HANDOFF, 2, packet(PSH | ACK, GET))
FORWARDED = Decision(13, Event.FORWARDED, 2, packet())


def shown(key: str | None, *decisions: Decision) -> list[Shown]:
    made = Decisions([WORDS], key, NOW_MS * 1_000_000)
    return [each for decision in decisions for each in made.take(decision)]


# --- how it is shown ---


def test_what_came_later_is_shown_when_it_is_known() -> None:
    made = Decisions([], None, 0)
    before, = made.take(HANDOFF)
    made.learn([WORDS])
    after, = made.take(HANDOFF)

    assert [each.service for each in (before, after)] == ["", "web"]


def test_a_line_says_all_that_there_is() -> None:
    lines = [each.line() for each in shown(None, SYN_ANSWERED, HANDSHAKE, HANDOFF, FORWARDED)]

    words = [line.split()[1:] for line in lines]
    flow = ["198.51.100.7:5000", "→", f"{VIP}:80"]
    backend = ["2", f"({BRIDGE})", "/shop/1"]
    assert words == [
        [*flow, "S", "0", "syn_answered", "-", "-"],
        [*flow, "A", "0", "handshake_ack", "-", "-"],
        [*flow, "PA", str(len(GET)), "handoff", *backend],
        [*flow, "A", "0", "forwarded", *backend],
    ]
    assert len({line.index("→") for line in lines}) == 1


def test_json_has_the_same() -> None:
    handoff, dropped = shown(None, HANDOFF, HANDSHAKE)

    assert handoff.as_json() == {
        "time": (NOW_MS * 1_000_000 + 12) / 10**9, "client": "198.51.100.7:5000",
        "vip": f"{VIP}:80", "service": "web", "flags": "PA", "length": len(GET),
        "reason": "handoff", "dropped": False, "key": "/shop/1", "backend": 2,
        "backend_address": str(BRIDGE),
    }
    assert (dropped.as_json()["dropped"], dropped.as_json()["backend"]) == (True, None)


def test_a_comment_is_a_sentence() -> None:
    handoff, = shown(None, HANDOFF)
    dropped, = shown(None, HANDSHAKE)

    assert handoff.sentence() == f"handoff, to backend 2 ({BRIDGE}), key /shop/1"
    assert dropped.sentence() == "dropped: handshake_ack"


def test_the_key_is_of_what_was_held_where_the_first_payload_came_in_pieces() -> None:
    pieces = HANDOFF._replace(packet=packet(PSH | ACK, GET[8:]), payload=GET)

    assert [each.key for each in shown(None, pieces)] == ["/shop/1"]


def test_a_key_that_goes_on_beyond_what_was_seen_says_so() -> None:
    cut = HANDOFF._replace(packet=HANDOFF.packet[:40 + 9])

    assert [each.key for each in shown(None, cut)] == ["/shop…"]


def test_a_key_cannot_write_on_the_terminal() -> None:
    words = ServiceWords("web", VIP, 80, "payload:9", "source", {})
    evil = Decision(1, Event.HANDOFF, 2, packet(PSH | ACK, b"\x1b[2J\r\nab\x9b"))

    each, = Decisions([words], None, 0).take(evil)

    assert each.key.isprintable()
    assert each.line().isprintable()


@pytest.mark.parametrize("octets", [b"", b"\x45", b"\x60" * 40, packet()[:25], bytes(60)], ids=len)
def test_whatever_octets_there_are_they_are_shown(octets: bytes) -> None:
    each, = shown(None, Decision(1, DropReason.MALFORMED_IP, 0, octets))

    assert "malformed_ip" in each.line()


# --- which are shown ---


def test_a_pattern_takes_whole_flows_of_its_keys_from_their_beginning() -> None:
    other = [each._replace(packet=packet(PSH | ACK, b"GET /x HTTP/1.1\r\n\r\n", 5001))
             for each in (HANDOFF, FORWARDED)]

    found = shown("/shop/*", SYN_ANSWERED, HANDSHAKE, *other, HANDOFF, FORWARDED)

    assert [each.decision for each in found] == [SYN_ANSWERED, HANDSHAKE, HANDOFF, FORWARDED]


def test_a_pattern_takes_no_flow_whose_key_was_not_seen() -> None:
    assert not shown("*", SYN_ANSWERED, FORWARDED, Decision(14, Event.NOT_OURS, 0, b""))


def test_a_flow_that_begins_anew_has_no_key_yet() -> None:
    found = shown(None, HANDOFF, SYN_ANSWERED, HANDSHAKE)

    assert [each.key for each in found] == ["/shop/1", "", ""]


def test_keys_and_waiting_packets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.trace.decisions.MOST_FLOWS", 100)
    made = Decisions([WORDS], "/none", 0)
    for sport in range(1, 1000):
        made.take(SYN_ANSWERED._replace(packet=packet(SYN, sport=sport)))
        made.take(HANDOFF._replace(packet=packet(PSH | ACK, GET, sport + 5000)))
    for _ in range(1000):
        made.take(HANDSHAKE)

    assert (len(made._keys), len(made._waiting)) == (100, 100)
    assert max(map(len, made._waiting.values())) == 32


# --- what the portable engine tells ---


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


def told(far: socket.socket) -> list[Decision]:
    found = []
    try:
        while message := far.recv(messages.MOST_OCTETS):
            found.append(Decision.parse(message[1:]))
    except BlockingIOError:
        pass
    return found


def telling(wire: tuple[socket.socket, socket.socket], **wish: object) -> tuple[Telling, Datapath]:
    request = Request(**{"client": IPv4Network("0.0.0.0/0"), "reasons": ALL, "rate": 1000,
                         "version": ""} | wish)  # type: ignore[arg-type]
    datapath = Datapath(CONFIG, SECRETS, random=Random(1))
    return Telling(request, datapath.services, wire[0]), datapath


def test_a_handoff_tells_its_backend_and_what_was_held(
    wire: tuple[socket.socket, socket.socket]
) -> None:
    teller, datapath = telling(wire)
    made = Handshake(SECRETS, ends(), 7, NOW_MS)
    datapath.clock_offset_ms = 0
    for piece, off in ((GET[:9], 0), (GET[9:], 9)):
        arrived = tcp.emit(ends(), 8 + off, made.cookie_isn + 1, PSH | ACK, payload=piece)
        teller.on_verdict(arrived, datapath.on_packet(arrived, NOW_MS))

    first, second = told(wire[1])
    assert (first.reason, first.backend, first.payload) == (Event.HELD, 0, b"")
    assert (second.reason, second.backend, second.payload) == (Event.HANDOFF, 2, GET)
    assert second.packet == arrived


def test_a_service_that_came_later_is_told_of_with_its_backend(
    wire: tuple[socket.socket, socket.socket]
) -> None:
    teller, datapath = telling(wire)
    later = datapath.services.make(
        replace(CONFIG.services[0], name="later", port=81, dscp=9), 1)
    datapath.add(later)
    to_it = ends()[:-2] + struct.pack("!H", 81)
    made = Handshake(SECRETS, to_it, 7, NOW_MS)
    arrived = tcp.emit(to_it, 8, made.cookie_isn + 1, PSH | ACK, payload=GET)
    teller.on_verdict(arrived, datapath.on_packet(arrived, NOW_MS))

    assert [(each.reason, each.backend) for each in told(wire[1])] == [(Event.HANDOFF, 2)]


def test_only_what_is_asked_for_is_told(wire: tuple[socket.socket, socket.socket]) -> None:
    teller, _ = telling(wire, client=IPv4Network("198.51.100.0/24"),
                        reasons=frozenset({Event.HELD}))

    teller.on_verdict(packet(), HELD)
    teller.on_verdict(packet(), DROP[DropReason.HANDSHAKE_ACK])
    teller.on_verdict(packet(source="203.0.113.1"), HELD)
    teller.on_verdict(b"", HELD)

    assert [each.packet for each in told(wire[1])] == [packet()]


def test_no_more_than_the_rate_is_told_and_the_rest_is_counted(
    wire: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, _ = telling(wire, rate=50)
    monkeypatch.setattr(clock, "now_ns", lambda: 1)
    for _ in range(12):
        teller.on_verdict(packet(), HELD)
    monkeypatch.setattr(clock, "now_ns", lambda: 100_000_001)
    teller.on_verdict(packet(), HELD)

    assert (len(told(wire[1])), teller.lost) == (6, 7)


def test_who_does_not_read_loses_decisions_and_blocks_nobody(
    wire: tuple[socket.socket, socket.socket]
) -> None:
    teller, _ = telling(wire, rate=100_000)
    for _ in range(2000):
        teller.on_verdict(packet(), HELD)

    assert len(told(wire[1])) + teller.lost == 2000
    assert teller.lost > 0


# --- the balancer's end ---


class Traced:
    """A balancer's end, in a directory of its own, and what its engine does with a packet."""

    def __init__(self) -> None:
        self.observation = Observation()
        datapath = Datapath(CONFIG, SECRETS, random=Random(1))
        self.datapath = datapath
        self.server = TraceServer(33, datapath, self.observation, None)
        self.server.open()

    def connect(self, version: str = __version__) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.settimeout(5)
        made.connect(str(messages.path_of(33)))
        self.server.on_ready()
        try:
            made.send(Request(IPv4Network("0.0.0.0/0"), ALL, 1000, version).pack())
        except BrokenPipeError:
            pass  # it was refused before
        self.server.on_ready()
        return made

    def is_observed(self) -> bool:
        def on_packet(octets: bytes, now_ms: int) -> Verdict:
            return send(Event.FORWARDED)

        return self.observation.observed(on_packet) is not on_packet


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    monkeypatch.setattr(messages, "_DIRECTORY", tmp_path)
    made = Traced()
    yield made
    made.server.close()


def test_the_socket_is_its_owners_alone(traced: Traced) -> None:
    assert messages.path_of(33).stat().st_mode & 0o777 == 0o600


def test_verdicts_are_told_while_somebody_traces_and_cost_nothing_else(traced: Traced) -> None:
    before = traced.is_observed()
    connection = traced.connect()
    welcome = connection.recv(messages.MOST_OCTETS)
    during = traced.is_observed()

    traced.observation.observed(lambda octets, now_ms: HELD)(packet(), 0)
    decision = Decision.parse(connection.recv(messages.MOST_OCTETS)[1:])
    connection.close()
    traced.server.on_ready()

    assert Welcome.parse(welcome[1:]).services == [WORDS]
    assert (decision.reason, decision.packet) == (Event.HELD, packet())
    assert (before, during, traced.is_observed()) == (False, True, False)


def test_who_traces_hears_of_services_that_have_become_others(traced: Traced) -> None:
    with traced.connect() as connection:
        connection.recv(messages.MOST_OCTETS)
        trace = Trace(connection, Welcome([WORDS], {}), None)
        connection.setblocking(False)
        for name in ("web", "shop"):
            (service,) = traced.datapath.services
            traced.datapath.change(service, replace(service.config, name=name),
                                   service.pool.scheduler)
            connection.send(messages.PING)
            traced.server.on_ready()
            before = trace.welcome
            trace.wait(5)

    assert before.services == [WORDS]  # `web` is what it was
    assert trace.welcome.services == [replace(WORDS, name="shop")]


def test_a_welcome_to_as_many_services_as_there_can_be_is_read(
    wire: tuple[socket.socket, socket.socket]
) -> None:
    backends = {str(number): f"192.168.100.{number}" for number in range(1, 128)}
    words = [replace(WORDS, name=f"service-{port}", port=port, backends=backends)
             for port in range(60000, 60064)]
    wire[0].send(Welcome(words, {}).pack())
    trace = Trace(wire[1], Welcome([], {}), None)

    trace.wait(5)

    assert trace.welcome.services == words


def test_one_process_traces_at_a_time(traced: Traced) -> None:
    with traced.connect() as first, traced.connect() as second:
        assert first.recv(messages.MOST_OCTETS)[:1] == messages.WELCOME
        assert b"traces already" in second.recv(messages.MOST_OCTETS)


def test_a_process_of_another_release_is_refused(traced: Traced) -> None:
    with traced.connect("0.0") as connection:
        assert b"and this is 0.0; restart" in connection.recv(messages.MOST_OCTETS)
    assert not traced.is_observed()


@pytest.mark.parametrize("octets", [b"?", b"{}", b"[1]", b'{"client": 1, "reasons": 2}'])
def test_what_is_no_request_is_refused(traced: Traced, octets: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(messages.path_of(33)))
        traced.server.on_ready()
        connection.send(octets)
        traced.server.on_ready()

        assert connection.recv(messages.MOST_OCTETS)[:1] == messages.REFUSAL


def test_a_process_of_which_nothing_is_heard_is_taken_for_dead(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced.connect() as connection:
        begun_s = traced.server.deadline_s
        monkeypatch.setattr(server.time, "monotonic", lambda: begun_s)
        connection.send(messages.PING)
        traced.server.on_ready()
        renewed_s = traced.server.deadline_s
        still = traced.is_observed()
        traced.server.on_deadline()

        assert begun_s is not None
        assert renewed_s == begun_s + messages.LEASE_MS / 1000
        assert (still, traced.is_observed(), traced.server.deadline_s) == (True, False, None)


def test_a_fault_in_telling_ends_the_trace_and_not_the_packet(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Telling, "on_verdict", lambda *_: 1 / 0)
    with traced.connect():
        on_packet = traced.observation.observed(lambda octets, now_ms: HELD)

        assert on_packet(packet(), 0) is HELD
        assert not traced.is_observed()


# --- the command ---


@pytest.mark.parametrize("words, complaint", [
    (["--client", "h"], "--client = 'h': expected an IPv4 address or network, as 192.0.2.0/24"),
    (["--reason", "x"], "--reason = 'x': expected one of not_ours, syn_answered,"),
    (["--rate", "0"], "--rate = 0: expected 1 to 100000"),
    (["--count", "0"], "--count = 0: expected 1 to"),
    (["--pcap", "/no/such/file"], "--pcap = '/no/such/file': expected a file that can be written"),
    (["--queue", "70000"], "queue = 70000: expected"),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_cannot_be_asked_for_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["trace", *words])

    assert code == 2
    assert complaint in capsys.readouterr().err


def test_without_a_balancer_there_is_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "_DIRECTORY", tmp_path)

    assert cli.main(["trace", "--queue", "7"]) == 1
    assert capsys.readouterr().err == "balancer: trace: no balancer runs here with queue 7\n"
