"""What a mark does on a server's host: the ground that the bridge stands on."""

import socket
from collections.abc import Iterator

import pytest
from netns import inside, tcp_packet

from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.queue import PacketQueue, RawSender
from lab.topology import CLIENT, Lab, server_address

NUMBER, MARK = 8, 0x332
SERVER, PORT, CLOSED_PORT = server_address(1), 8000, 8001
SYN, RST, ACK = 2, 4, 16


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A backend on which marked packets of SERVER are queued on their way out."""
    with Lab(backends=1) as network:
        with inside(network.backend1):
            host = Host("test", NUMBER)
            for name in ("tcp_fwmark_accept", "fwmark_reflect"):
                host.set_sysctl(f"net/ipv4/{name}", "1")
            host.install_rules([
                Rule("output", NUMBER, source=SERVER, protocol="tcp", mark=MARK),
                Rule("output", None, mark=MARK),
                Rule("prerouting", None, "lo", mark=MARK),
            ])
        yield network
        with inside(network.backend1):
            host.undo()


@pytest.fixture
def queued(lab: Lab) -> Iterator[tuple[PacketQueue, list[bytes]]]:
    seen: list[bytes] = []
    with inside(lab.backend1):
        queue = PacketQueue(NUMBER, lambda packet: bool(seen.append(packet)))
    yield queue, seen
    queue.close()


@pytest.fixture
def listener(lab: Lab) -> Iterator[socket.socket]:
    with inside(lab.backend1):
        made = socket.create_server((SERVER, PORT))
    made.settimeout(2)
    yield made
    made.close()


def replay(lab: Lab, mark: int, port: int) -> bytes:
    """A SYN with a client's address, sent on the server's own host."""
    packet = tcp_packet(CLIENT, SERVER, port, SYN, sport=4000 + mark % 100, seq=77)
    with inside(lab.backend1):
        sender = RawSender(mark)
    assert sender.send(packet) == 0
    assert sender.failures == 0
    sender.close()
    return packet


def test_the_answer_to_a_marked_syn_is_queued(lab: Lab, queued, listener) -> None:
    queue, seen = queued

    syn = replay(lab, MARK, PORT)
    queue.drain()

    (answer,) = seen
    assert (answer[12:16], answer[16:20]) == (syn[16:20], syn[12:16])
    assert answer[33] == SYN | ACK
    assert int.from_bytes(answer[28:32]) == 78


def test_all_that_a_marked_connection_says_is_queued(lab: Lab, queued, listener) -> None:
    queue, seen = queued
    replay(lab, MARK, PORT)
    queue.drain()
    (answer,) = seen
    server_isn = int.from_bytes(answer[24:28])
    with inside(lab.backend1):
        sender = RawSender(MARK)
    sender.send(tcp_packet(CLIENT, SERVER, PORT, ACK, sport=4000 + MARK % 100, seq=78,
                           ack=server_isn + 1, payload=b"request"))
    connection, (address, _) = listener.accept()

    request = connection.recv(100)
    connection.send(b"reply")
    queue.drain()
    connection.close()
    sender.close()

    assert (address, request) == (CLIENT, b"request")
    assert any(packet.endswith(b"reply") for packet in seen)


def test_the_refusal_of_a_marked_syn_is_queued(lab: Lab, queued) -> None:
    queue, seen = queued

    replay(lab, MARK, CLOSED_PORT)
    queue.drain()

    (answer,) = seen
    assert answer[33] & RST


def test_direct_connections_are_never_queued(lab: Lab, queued, listener) -> None:
    queue, seen = queued
    with inside(lab.client):
        client = socket.create_connection((SERVER, PORT), timeout=2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((SERVER, CLOSED_PORT), timeout=2)
    connection, _ = listener.accept()
    client.send(b"request")
    connection.send(connection.recv(100) + b" answered")

    answer = client.recv(100)
    queue.drain()
    client.close()
    connection.close()

    assert answer == b"request answered"
    assert seen == []


def test_another_mark_is_not_queued(lab: Lab, queued, listener) -> None:
    queue, seen = queued

    replay(lab, MARK + 1, PORT)
    queue.drain()

    assert seen == []
