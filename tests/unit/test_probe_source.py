"""The bridge's end of probes on a real socket, and a doctor's."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from common.cluster import probe
from common.cluster.probe import Answer, Listener, OtherSecret, OtherTime, Served, Sighting
from common.cluster.secrets import Secrets
from common.doctor.ask import Asker, Silence
from common.engine.sources import Sources
from packetbridge.probes.source import ProbeSource

KEY, OTHER = bytes(range(16)), bytes(range(16, 32))
SERVICES = [Served(number, 7, bytes(4), 80, bytes(4), 80, False, False, Listener.UNSEEN,
                   reason="x" * 60) for number in range(1, 64)]
PATIENCE_S = 20


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def answering(secrets: Secrets = Secrets(KEY)) -> Iterator[int]:  # noqa: B008
    """A bridge that answers at the port."""
    known = SimpleNamespace(services=lambda: SERVICES, watched=lambda watch: Sighting(5),
                            tap=SimpleNamespace(deadline_s=None, expire=lambda now_s: None))
    port, ends = free_port(), threading.Event()
    source = ProbeSource(IPv4Address("127.0.0.1"), port, known, lambda: secrets)  # type: ignore[arg-type]
    source.open()
    sources = Sources(source.sources, lambda source: pytest.fail("a source raised"))

    def loop() -> None:
        while not ends.is_set():
            sources.wait(0.05)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield port
    finally:
        ends.set()
        thread.join()


def test_tos_and_ttl_are_said_as_they_arrived_and_all_services() -> None:
    with answering() as port:
        asker = Asker("127.0.0.1", port, KEY)

        replied = asker.ask(tos=3 << 2)
        reply = replied.reply
        assert isinstance(reply, Answer)
        services = asker.services(reply)

    assert (reply.tos, reply.ttl) == (3 << 2, 64)
    assert services == tuple(SERVICES)
    assert abs(replied.ahead_ms) < 1000


def test_another_secret_is_said_to_be_one() -> None:
    with answering(Secrets(OTHER)) as port:
        reply = Asker("127.0.0.1", port, KEY).ask().reply

    assert isinstance(reply, OtherSecret)
    assert reply.keys == (probe.key_id(OTHER),)


def test_another_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asker_thread, real_ns = threading.get_ident(), time.time_ns

    def time_ns() -> int:  # the bridge's thread is 200 s ahead
        return real_ns() + (0 if threading.get_ident() == asker_thread else 200 * 10**9)

    monkeypatch.setattr(time, "time_ns", time_ns)
    with answering() as port:
        replied = Asker("127.0.0.1", port, KEY).ask()

    assert isinstance(replied.reply, OtherTime)
    assert round(replied.ahead_ms / 1000) == 200


def test_a_port_where_nobody_listens_is_told_from_no_way_there() -> None:
    refused = Asker("127.0.0.1", free_port(), KEY).ask().reply
    no_way = Asker("127.0.0.1", 9, KEY, own="192.0.2.77").ask().reply

    assert isinstance(refused, Silence)
    assert (refused.words, refused.is_local) == ("Connection refused (ECONNREFUSED)", False)
    assert isinstance(no_way, Silence)
    assert no_way.is_local
    assert "EADDRNOTAVAIL" in no_way.words


def test_of_a_flood_little_is_read_and_then_questions_are_answered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forged = probe.emit_question(
        probe.Question(probe.key_id(KEY), bytes(16), time.time_ns() // 1_000_000), OTHER)
    read = 0
    parse = probe.parse_question

    def counted(octets: bytes) -> probe.Question | None:
        nonlocal read
        read += 1
        return parse(octets)

    monkeypatch.setattr(probe, "parse_question", counted)
    with answering() as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
        flooder.connect(("127.0.0.1", port))
        begun_s = time.monotonic()
        sent = 0
        while sent < 20_000 or read < 64:
            flooder.send(forged)
            sent += 1
            assert time.monotonic() < begun_s + PATIENCE_S
        read_of_flood = read
        slices = (time.monotonic() - begun_s) / 0.1 + 2
        while not isinstance(Asker("127.0.0.1", port, KEY).ask().reply, Answer):
            assert time.monotonic() < begun_s + 2 * PATIENCE_S

    assert read_of_flood <= 64 * slices


def test_a_port_that_another_program_has_is_said_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        known = SimpleNamespace(services=list, watched=None)
        source = ProbeSource(IPv4Address("127.0.0.1"), other.getsockname()[1], known,  # type: ignore[arg-type]
                             lambda: Secrets(KEY))
        source.open()

    (said,) = caplog.messages
    assert said.startswith("doctors get no answer: UDP port ")
    assert "give probe_port another number" in said


def test_what_is_no_question_by_its_length_is_not_even_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "parse_question", lambda octets: pytest.fail("it is read"))
    with answering() as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", port))
        for length in (0, 1, 511, 513, 1400):
            made.send(bytes(length))
        time.sleep(0.1)
