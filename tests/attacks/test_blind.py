"""Packets of a stranger that sees none of ours: they end no connection, and move none."""

import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import pytest

from common.bpf import features
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST
from lab.node import wait_until
from lab.topology import CLIENT, VIP, Lab
from packetbridge.offload.adopt import KFUNC
from tests.lab.netns import inside

PORTS = range(30_000, 32_000)  # which of these clients have is not known
UNUSED = iter(random.Random(1).sample(PORTS, len(PORTS)))
CLIENTS = 40
PATIENCE_S = 10
# Whatever a stranger has brought to its end leaves within seconds; what is idle stays.
QUICK = {
    "balancer": "takeover_rate = 200\n[timeouts]\nidle = 100\nhalf_closed = 1\nreset = 1\n",
    "packetbridge": "[timeouts]\nidle = 100\nclosing = 1\nreset = 1\n",
}
LONG_ENOUGH_S = 4

pytestmark = pytest.mark.root


@pytest.fixture(params=["portable", "splice", "adopt"], scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The pair with two backends."""
    if request.param == "adopt" and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")
    with Lab(pair=request.param) as made:
        for program, text in QUICK.items():
            (made.directory / f"{program}.toml").write_text(text)
        for backend in made.backends:
            made.start_nginx(backend)
        made.start_bridges("--config", str(made.directory / "packetbridge.toml"))
        made.start_balancer("--config", str(made.directory / "balancer.toml"))
        yield made


class Connections:
    """Kept connections of the client's, each with one answer so far."""

    def __init__(self, lab: Lab, stack: ExitStack, timestamps: bool) -> None:
        lab.client.run(["sysctl", "-qw", f"net.ipv4.tcp_timestamps={int(timestamps)}"])
        self.sockets = []
        for port in islice(UNUSED, CLIENTS):
            with inside(lab.client):
                made = stack.enter_context(socket.socket())
            made.settimeout(PATIENCE_S)
            made.bind((CLIENT, port))
            made.connect((VIP, 80))
            self.sockets.append(made)
        self.first = [ask(each, number) for number, each in enumerate(self.sockets)]
        assert None not in self.first

    def lost(self) -> int:
        """How many are not answered any more by the server that they had."""
        answers = [ask(each, number) for number, each in enumerate(self.sockets)]
        return sum(first != now for first, now in zip(self.first, answers, strict=True))


def ask(connection: socket.socket, number: int) -> bytes | None:
    """Who answers on a connection: backend, URL, and the client's address; None if nobody does."""
    try:
        connection.sendall(b"GET /%d HTTP/1.1\r\nHost: lab\r\n\r\n" % number)
        answer = connection.recv(1 << 16)  # it fits into a segment
    except OSError:
        return None
    return answer.rpartition(b"\r\n\r\n")[2]


def sweep(lab: Lab, flags: int, named: int = 0, payload: bytes = b"") -> None:
    """A packet for each port, with numbers out of thin air. named: the backend that it echoes."""
    draw = random.Random(2)
    with inside(lab.client), \
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for port in PORTS:
            ends = (socket.inet_aton(CLIENT) + socket.inet_aton(VIP) + port.to_bytes(2)
                    + (80).to_bytes(2))
            stamps = options.emit(Options(timestamps=(5, named << 24 | 9))) if named else b""
            raw.sendto(tcp.emit(
                ends, draw.getrandbits(32), draw.getrandbits(32) if flags & ACK else 0, flags,
                window=502, option_octets=stamps, payload=payload,
            ), (VIP, 0))
            if port % 50 == 0:
                time.sleep(0.01)  # so that none is lost on its way


def arrived(lab: Lab) -> None:
    """Wait until the balancer has had the whole sweep."""
    def settled() -> bool:
        before = lab.balancer.octets("rx")
        time.sleep(0.2)
        return lab.balancer.octets("rx") - before < 2000
    wait_until(settled, PATIENCE_S, "the packets arrive")


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "bare"])
def test_a_sweep_of_ends_ends_nothing(lab: Lab, timestamps: bool) -> None:
    with ExitStack() as stack:
        connections = Connections(lab, stack, timestamps)

        for flags in (RST, RST | ACK, FIN | ACK):
            sweep(lab, flags)
        arrived(lab)
        time.sleep(LONG_ENOUGH_S)

        assert connections.lost() == 0


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "bare"])
@pytest.mark.parametrize("payload", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["ACK", "data"])
def test_a_sweep_of_echoes_moves_nothing(lab: Lab, payload: bytes, timestamps: bool) -> None:
    """Not even one for each backend, while little is taken over by its echo alone."""
    with ExitStack() as stack:
        connections = Connections(lab, stack, timestamps)

        for named in (1, 2):
            sweep(lab, ACK | PSH * bool(payload), named, payload)
        arrived(lab)

        assert connections.lost() == 0
