"""Padded checks: how long the packets are that arrive, found without anybody's word."""

import logging
import ssl
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest
from test_health_monitor import CHECK, OWN, Answer, Network, refuses, serves

from balancer.health.request import LEAST_PADDING, request_of
from balancer.health.settings import Check
from balancer.health.width import EVERY_MS, PLATEAUS, SURE_AFTER, Width, ladder
from balancer.paths import LEARNT_MS
from common.wire.tcp import Segment

VIP = IPv4Address("192.168.33.10")
ROUTE_MTU = 1500


def carries(mtu: int, loss: float = 0, seed: int = 1) -> Answer:
    """A path on which what is longer vanishes, and some of the rest."""
    random = Random(seed)

    def answer(network: Network, segment: Segment) -> list[bytes]:
        is_lost = len(segment.octets) > mtu or random.random() < loss
        return [] if is_lost else serves(network, segment)

    return answer


def network(answer: Answer, check: Check = CHECK) -> Network:
    made = Network(check, backends=1, b1=answer)
    made.routes(OWN, ROUTE_MTU)
    return made


def path_mtu(made: Network) -> int:
    (address,) = made.datapath.paths
    return made.datapath.paths[address].mtu


@pytest.mark.parametrize("mtu", [1499, 1480, 1450, 1400, 1300, 900])
def test_a_black_hole_is_found_within_some_checks_and_the_mss_fits(
    mtu: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = network(carries(mtu))
    with caplog.at_level(logging.WARNING):
        made.run(15_000)
    made.datapath.fit_mss()

    expected = max(each for each in PLATEAUS if each <= mtu)
    assert path_mtu(made) == expected
    assert made.service.mss == expected - 40
    assert made.states() == [True]  # they say nothing of health
    assert made.counts(1)[1] == 0
    assert f"longer than {expected} bytes vanish" in caplog.text


def test_a_path_that_carries_all_is_tried_now_and_then() -> None:
    made = network(carries(ROUTE_MTU))
    made.run(3 * EVERY_MS)

    lengths = [len(each.octets) for each in made.handoffs]
    assert lengths.count(ROUTE_MTU) in (3, 4)
    assert path_mtu(made) == ROUTE_MTU
    assert made.counts(1)[0] > 80  # besides the usual ones


@pytest.mark.parametrize("seed", range(8))
def test_loss_is_not_taken_for_it(seed: int) -> None:
    made = network(carries(ROUTE_MTU, loss=0.2, seed=seed))
    made.run(10 * EVERY_MS)

    assert path_mtu(made) == ROUTE_MTU


def test_nor_is_a_backend_that_answers_nothing() -> None:
    made = network(carries(ROUTE_MTU))
    made.run(1500)
    made.answers[1] = carries(0)
    made.run(2 * EVERY_MS)

    assert made.states() == [False]
    assert path_mtu(made) == ROUTE_MTU


def test_a_server_that_refuses_has_got_it() -> None:
    def refuses_long(made: Network, segment: Segment) -> list[bytes]:
        return (refuses if len(segment.octets) > 1000 else serves)(made, segment)

    made = network(refuses_long)
    made.run(15_000)

    assert path_mtu(made) == ROUTE_MTU
    assert made.counts(1)[1] == 0


def test_what_was_found_holds_while_it_is_so_and_no_longer() -> None:
    made = network(carries(1400))
    made.run(15_000)
    (address,) = made.datapath.paths
    path = made.datapath.paths[address]
    made.paths_ms += LEARNT_MS
    assert path.is_outdated(made.paths_ms)
    made.run(2 * EVERY_MS)

    assert not path.is_outdated(made.paths_ms)  # it was learnt once more
    made.answers[1] = carries(ROUTE_MTU)
    made.run(2 * EVERY_MS)
    assert path_mtu(made) == ROUTE_MTU
    made.answers[1] = carries(1300)
    made.run(2 * EVERY_MS)
    assert path_mtu(made) == 1300
    made.answers[1] = carries(1200)
    made.run(2 * EVERY_MS)
    assert path_mtu(made) == 1200


def test_it_is_looked_after_however_rare_checks_are() -> None:
    made = network(carries(1400), Check(kind="http", interval_ms=3_600_000, timeout_ms=300))
    made.run(15_000)
    assert path_mtu(made) == 1400
    made.paths_ms += LEARNT_MS
    made.run(EVERY_MS + 3000)

    (address,) = made.datapath.paths
    assert not made.datapath.paths[address].is_outdated(made.paths_ms)


def test_every_width_is_found_whatever_the_order() -> None:
    lengths = ladder(300, ROUTE_MTU)
    for mtu in range(301, ROUTE_MTU + 1):
        width, found = Width(lengths), None
        tries = 0
        while found is None:
            tries += 1
            found = width.note(width.length <= mtu, 0)
        assert found == max((each for each in lengths if each <= mtu), default=0)
        assert tries <= SURE_AFTER + 2 * 5


def test_no_more_is_sent_than_the_service_lets_clients_send() -> None:
    made = network(carries(ROUTE_MTU))
    made.routes(OWN, 9000)
    made.run(3000)

    assert max(len(each.octets) for each in made.handoffs) == 1500  # the default MSS and headers


def lengths_of(octets: bytes) -> Iterator[int]:
    yield from range(len(octets) + LEAST_PADDING, len(octets) + 150)
    yield from (1448, 2000, 3000, 3008)


def test_a_request_is_padded_to_the_octet_by_short_lines() -> None:
    request = request_of(Check(kind="http", path="/health"), VIP)
    assert request

    for length in lengths_of(request.octets):
        made = request.padded(length)
        assert made is not None
        assert len(made) == length
        head, end, rest = made.partition(b"\r\n\r\n")
        assert (end, rest) == (b"\r\n\r\n", b"")
        lines = (head + b"\r\n").split(b"\r\n")
        assert max(map(len, lines)) < 1024
        assert made.startswith(request.octets[:-2])
        assert all(line.startswith(b"X-Padding: ") for line in
                   made.removeprefix(request.octets[:-2]).split(b"\r\n") if line)
    assert request.padded(len(request.octets) + 1) is None


def test_a_client_hello_is_padded_so_that_a_server_goes_on() -> None:
    request = request_of(Check(kind="tls", name="www.example.org"), VIP)
    assert request
    names: list[str | None] = []
    for length in lengths_of(request.octets):
        made = request.padded(length)
        assert made is not None
        assert len(made) == length
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = lambda _, name, __: names.append(name)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(made)
        with pytest.raises(ssl.SSLError, match=r"(?i)no.(shared|suitable)"):
            server.do_handshake()  # it has no certificate, and has read all

    assert set(names) == {"www.example.org"}


def test_words_of_an_unknown_protocol_are_sent_as_they_are() -> None:
    request = request_of(Check(kind="payload", send="PING", expect="PONG"), VIP)

    assert request
    assert request.padded(1000) is None
