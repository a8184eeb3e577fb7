"""A first data segment that somebody has seen, and sends again when its connection has ended."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.bpf import features
from common.wire import tcp
from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab
from packetbridge.offload.adopt import KFUNC
from tests.lab.netns import inside

PATIENCE_S = 30
QUICK = "[timeouts]\nclosing = 1\nreset = 1\n"
DST = slice(16, 20)
_ALL = 3  # ETH_P_ALL: before the programs

pytestmark = pytest.mark.root


class Network:
    """A pair before one server. bridge, lab: of it."""

    def __init__(self, lab: Lab) -> None:
        path = lab.directory / "quick.toml"
        path.write_text(QUICK)
        self.lab = lab
        self.bridge: Process = lab.start_bridge(lab.backend1, "--config", str(path))
        lab.start_balancer()

    def counted(self, reason: str) -> int:
        """Packets at the bridge by what became of them."""
        name = f'l3dsr_packetbridge_packets_total{{reason="{reason}"}}'
        return int(self.bridge.metrics().get(name, 0))

    def send(self, packet: bytes) -> None:
        """From the client's host, whatever its source."""
        with inside(self.lab.client), \
                socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (socket.inet_ntoa(packet[DST]), 0))


@pytest.fixture(params=["portable", "splice", "adopt"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One backend; no server is running."""
    if request.param == "adopt" and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")
    with Lab(backends=1, pair=request.param) as lab:
        yield Network(lab)


class Tap:
    """What comes in on a host's interface."""

    def __init__(self, network: Network) -> None:
        with inside(network.lab.backend1):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
            self._socket.bind(("eth1", _ALL))
        self._socket.settimeout(PATIENCE_S)

    def first_segment(self) -> bytes:
        """The next one with a tag and a payload."""
        while True:
            packet = self._socket.recv(65536)
            if (packet[0], packet[1] >> 2, packet[9]) == (0x45, DSCP, 6) \
                    and tcp.checked(packet).payload_len:
                self._socket.close()
                return packet


def requests(network: Network, path: str) -> int:
    """How often nginx has been asked for it."""
    log = Path(network.lab.directory / "nginx-backend1-80" / "access.log")
    return log.read_text().count(f" {path} ")


def test_it_is_executed_once(network: Network) -> None:
    """With `adopt`, it was executed again as soon as the client had closed."""
    lab = network.lab
    lab.start_nginx(lab.backend1)
    tap = Tap(network)
    with inside(lab.client), socket.create_connection((VIP, 80), PATIENCE_S) as client:
        client.sendall(b"GET /once HTTP/1.1\r\nHost: x\r\n\r\n")
        first = tap.first_segment()
        assert client.recv(4096)

    def is_dropped() -> bool:  # while something knows of the connection, that has it and goes on
        time.sleep(2.5)
        network.send(first)
        time.sleep(0.7)
        return requests(network, "/once") > 1 or network.counted("cookie_spent") >= 1

    wait_until(is_dropped, PATIENCE_S, "its cookie is spent")
    lab.client.curl(f"http://{VIP}/after")

    assert requests(network, "/once") == 1
    assert requests(network, "/after") == 1
    wait_until(lambda: network.counted("opened") == 2, PATIENCE_S, "both are counted")


def test_what_a_full_queue_refuses_is_served_when_it_comes_again(network: Network) -> None:
    """More clients than the server's accept queue has room for; nobody's cookie is lost by that."""
    lab, count = network.lab, 8
    with inside(lab.backend1):
        server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((lab.backend1.server, 80))
    server.listen(1)
    clients = []
    for number in range(count):
        with inside(lab.client):
            clients.append(socket.create_connection((VIP, 80), PATIENCE_S))
        clients[-1].sendall(b"GET /%d HTTP/1.0\r\n\r\n" % number)
    time.sleep(1)

    def serve() -> None:
        for _ in range(count):
            connection, _ = server.accept()
            connection.sendall(connection.recv(4096))
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        answers = [client.recv(4096) for client in clients]
        served.result(PATIENCE_S)

    assert answers == [b"GET /%d HTTP/1.0\r\n\r\n" % number for number in range(count)]
    assert network.counted("cookie_spent") == 0


def test_a_connection_that_has_not_ended_is_none_the_worse(network: Network) -> None:
    """Its first segment again, as after a lost ACK, and as long as it lasts."""
    lab = network.lab
    lab.start_nginx(lab.backend1)
    tap = Tap(network)
    with inside(lab.client), socket.create_connection((VIP, 80), PATIENCE_S) as client:
        for number in range(3):
            client.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
            if not number:
                first = tap.first_segment()
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            network.send(first)

    assert network.counted("cookie_spent") == 0
    assert [requests(network, f"/{number}") for number in range(3)] == [1, 1, 1]
