"""The packet queue and the raw sender, on real queues and real links."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from netns import inside, received, udp_packet, udp_socket

from common.engine import queue
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.queue import COPY_LEN, PacketQueue, QueueError, RawSender, is_truncated
from lab.topology import BALANCER, CLIENT, Lab

NUMBER, PORT = 5, 4000
HEADERS_LEN = 28


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Hosts whose links carry jumbo frames; datagrams to PORT are queued at the balancer."""
    with Lab(backends=1, mtu=9000) as network:
        with inside(network.balancer):
            host = Host("test", NUMBER)
            host.install_rules([Rule("prerouting", NUMBER, protocol="udp", dport=PORT)])
        yield network
        with inside(network.balancer):
            host.undo()


@pytest.fixture
def open_queue(lab: Lab) -> Iterator[Callable[[Callable[[bytes], bool]], PacketQueue]]:
    opened = []

    def make(handler: Callable[[bytes], bool]) -> PacketQueue:
        with inside(lab.balancer):
            opened.append(PacketQueue(NUMBER, handler))
        return opened[-1]

    yield make
    for made in opened:
        made.close()


@pytest.fixture
def client(lab: Lab) -> Iterator[socket.socket]:
    with udp_socket(lab.client) as made:
        made.connect((BALANCER, PORT))
        made.send(b"so that ARP is done")
        yield made


@pytest.fixture
def server(lab: Lab) -> Iterator[socket.socket]:
    with udp_socket(lab.balancer, port=PORT) as made:
        yield made


def test_accepted_packets_go_on_and_all_others_are_dropped(lab, open_queue, client, server) -> None:
    seen = []

    def accept_every_third(packet: bytes) -> bool:
        seen.append(packet[HEADERS_LEN:])
        return int(packet[HEADERS_LEN:]) % 3 == 0

    opened = open_queue(accept_every_third)
    sent = [b"%d" % number for number in range(200)]
    for payload in sent:
        client.send(payload)

    opened.drain()

    assert seen == sent
    assert received(server) == sent[::3]
    with inside(lab.balancer):
        assert queue._row(NUMBER)[2] == "0"  # none waits


def test_a_packet_longer_than_the_queue_copies_is_seen_to_be(open_queue, client) -> None:
    seen = []
    opened = open_queue(lambda packet: bool(seen.append((len(packet), is_truncated(packet)))))
    for length in (1000, COPY_LEN - HEADERS_LEN, COPY_LEN - HEADERS_LEN + 1, 8000):
        client.send(bytes(length))

    opened.drain()

    assert seen == [
        (1028, False), (COPY_LEN, False), (COPY_LEN, True), (COPY_LEN, True)
    ]


def test_a_queue_has_one_reader_and_says_who_it_is(open_queue) -> None:
    open_queue(lambda packet: False)

    with pytest.raises(QueueError, match=r"the program with netlink port \d+ has it"):
        open_queue(lambda packet: False)


def test_a_closed_queue_can_be_opened_again(lab, client, server) -> None:
    with inside(lab.balancer):
        PacketQueue(NUMBER, lambda packet: True).close()
        opened = PacketQueue(NUMBER, lambda packet: True)
    client.send(b"again")

    opened.drain()
    opened.close()

    assert received(server) == [b"again"]


def test_packets_of_a_queue_without_a_reader_are_dropped(client, server) -> None:
    client.send(b"nobody listens")

    assert received(server) == []


def test_drain_returns_when_it_is_told_to_leave(open_queue, client) -> None:
    seen = []

    def handle(packet: bytes) -> bool:
        seen.append(packet)
        if len(seen) == 5:
            opened.leave()
        return False

    opened = open_queue(handle)
    for _ in range(12):
        client.send(b"x")

    opened.drain()
    first = len(seen)
    opened.drain()

    assert (first, len(seen)) == (5, 12)


def test_a_full_queue_drops_packets_and_counts_them(lab, monkeypatch, client) -> None:
    monkeypatch.setattr(queue, "_MAX_QUEUED", 50)
    seen = []
    with inside(lab.balancer):
        opened = PacketQueue(NUMBER, lambda packet: bool(seen.append(packet)))
    for _ in range(80):
        client.send(b"x")

    opened.drain()

    with inside(lab.balancer):
        losses = opened.losses()
    opened.close()
    assert (len(seen), losses) == (50, (30, 0))


def test_a_full_socket_loses_packets_but_not_the_program(lab, monkeypatch, client) -> None:
    monkeypatch.setattr(queue, "_SOCKET_OCTETS", 4096)
    seen = []
    with inside(lab.balancer):
        opened = PacketQueue(NUMBER, lambda packet: bool(seen.append(packet)))
    for _ in range(300):
        client.send(b"x")

    opened.drain()

    with inside(lab.balancer):
        lost = opened.losses().socket_full
    handled = len(seen)
    client.send(b"y")
    opened.drain()
    opened.close()
    assert 0 < lost < 300
    assert (handled + lost, len(seen)) == (300, handled + 1)


def test_an_exception_of_the_handler_leaves_no_packet_behind(lab, client) -> None:
    with inside(lab.balancer):
        opened = PacketQueue(NUMBER, lambda packet: bool(1 // (packet[HEADERS_LEN] - ord("b"))))
    for payload in (b"a", b"b"):
        client.send(payload)

    with pytest.raises(ZeroDivisionError):
        opened.drain()

    opened.close()
    with inside(lab.balancer):
        assert queue._row(NUMBER) == []


# --- the sender ---


@pytest.fixture
def sender(lab: Lab) -> Iterator[RawSender]:
    with inside(lab.balancer):
        made = RawSender(mark=9)
    yield made
    made.close()


def test_a_packet_leaves_whatever_its_source_is(lab, sender) -> None:
    with inside(lab.client):
        link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    link.bind(("eth1", 0x0800))
    link.settimeout(2)
    packet = udp_packet("203.0.113.5", CLIENT, 9, b"from afar")

    result = sender.send(packet)
    arrived = link.recv(2048)
    link.close()

    assert (result, sender.failures) == (0, 0)
    assert (arrived[:10], arrived[12:]) == (packet[:10], packet[12:])  # all but the checksum


def test_what_exceeds_the_mtu_is_answered_with_it(lab, sender) -> None:
    lab.balancer.run(["ip", "route", "add", "198.51.100.0/24", "via", CLIENT, "mtu", "1400"])

    with inside(lab.balancer):
        link = sender.send(udp_packet(BALANCER, CLIENT, 9, bytes(9000)))
        path = sender.send(udp_packet(BALANCER, "198.51.100.1", 9, bytes(1400)))
        fits = sender.send(udp_packet(BALANCER, "198.51.100.1", 9, bytes(1372)))

    assert (link, path, fits) == (9000, 1400, 0)
    assert sender.failures == 0


def test_what_cannot_be_sent_is_counted(lab, sender) -> None:
    unroutable = sender.send(udp_packet(BALANCER, "203.0.113.9", 9, b"no route"))
    broken = sender.send(b"no packet")

    assert (unroutable, broken, sender.failures) == (0, 0, 2)


def test_what_a_link_that_is_down_refuses_is_counted(lab, sender) -> None:
    lab.balancer.run(["ip", "link", "set", "eth1", "down"])

    result = sender.send(udp_packet(BALANCER, CLIENT, 9, b"x"))

    lab.balancer.run(["ip", "link", "set", "eth1", "up"])
    assert (result, sender.failures) == (0, 1)


def test_many_destinations_do_not_fill_memory(sender, monkeypatch) -> None:
    monkeypatch.setattr(queue, "_MAX_CACHED", 10)

    for number in range(35):
        sender.send(udp_packet(BALANCER, f"192.168.33.{100 + number}", 9, os.urandom(4)))

    assert len(sender._addresses) <= 10
