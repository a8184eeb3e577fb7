"""Handoffs that nobody answers: counted once each, by what their clients say."""

from collections.abc import Sequence

import pytest
from test_pool import NOW_MS, SECRETS, backend, balancer, ends

from balancer.datapath import Datapath
from common.cluster import cookie, stamps
from common.cluster.cookie import Offer
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH

ISN = 7
PAYLOAD = b"GET / HTTP/1.1\r\n\r\n"
SERVERS = 1 << 24 | 500  # a TSecr that names backend 1

# A client's packets, and whether its handoff counts as unanswered then.
# 1: the first payload; n: named, the same with the server's echo; a: an ACK; d: more data; f: FIN.
STORIES = {
    "1": 0, "11": 1, "1111": 1, "1a1": 0, "1d1": 0, "11a1": 1, "1n": 0, "1n1": 1, "1f1": 0,
}


def packets(story: str, number: int, has_timestamps: bool, now_ms: int) -> list[bytes]:
    """The packets of one client."""
    found = cookie.handshake_hash(SECRETS.current, ends(number), ISN, cookie.epoch_at(now_ms))
    cookie_isn = cookie.of_hash(found, ends(number), Offer(1460, True, 7))

    def made(off: int, flags: int, payload: bytes = b"", named: bool = False) -> bytes:
        echo = SERVERS if named else stamps.t0(found, now_ms)
        option_octets = options.emit(Options(timestamps=(5, echo))) if has_timestamps else b""
        return tcp.emit(ends(number), ISN + 1 + off, cookie_isn + 1, flags, payload=payload,
                        option_octets=option_octets)

    last = len(PAYLOAD)
    kinds = {"1": made(0, ACK | PSH, PAYLOAD), "n": made(0, ACK | PSH, PAYLOAD, named=True),
             "a": made(last, ACK, named=True), "d": made(last, ACK, b"more"),
             "f": made(last, ACK | FIN)}
    return [kinds[each] for each in story]


def give(datapath: Datapath, made: Sequence[bytes]) -> None:
    for packet in made:
        datapath.on_packet(packet, NOW_MS)


@pytest.mark.parametrize(("story", "has_timestamps"), [
    (story, has_timestamps) for story in STORIES for has_timestamps in (True, False)
    if has_timestamps or "n" not in story])
def test_a_handoff_is_unanswered_if_nothing_but_it_comes_again(
    story: str, has_timestamps: bool
) -> None:
    expected = STORIES[story]
    datapath = balancer(backend(1))
    (one,) = datapath.services.backends()

    for number in range(3):
        give(datapath, packets(story, number, has_timestamps, NOW_MS))

    assert (one.handoffs, one.unanswered) == (3, 3 * expected)
    assert any(sample.name == "backend_unanswered" and sample.value == 3 * expected
               for sample in datapath.samples())


def test_a_new_connection_on_the_same_ports_counts_anew() -> None:
    datapath = balancer(backend(1))
    (one,) = datapath.services.backends()
    give(datapath, packets("11", 1, True, NOW_MS))
    later_ms = NOW_MS + 64_000  # of another epoch, so its cookie is another one
    datapath.on_packet(packets("1", 1, True, later_ms)[0], later_ms)

    assert one.unanswered == 1


def test_a_handoff_that_is_repeated_for_its_client_counts_as_well() -> None:
    """Its client was told that its request had arrived, and repeats nothing."""
    datapath = balancer(backend(1))
    (one,) = datapath.services.backends()
    found = cookie.handshake_hash(SECRETS.current, ends(1), ISN, cookie.epoch_at(NOW_MS))
    seq, ack = ISN + 1, cookie.of_hash(found, ends(1), Offer(1460, True, 7)) + 1
    half = tcp.emit(ends(1), seq, ack, ACK | PSH, payload=PAYLOAD[:4])
    give(datapath, [half, half])  # waits for an acknowledgement, and gets one
    give(datapath, [tcp.emit(ends(1), seq + 4, ack, ACK | PSH, payload=PAYLOAD[4:])])
    assert (one.handoffs, one.unanswered) == (1, 0)

    for step in range(1, 40):
        datapath.on_tick(NOW_MS + step * 100)

    assert one.unanswered == 1
