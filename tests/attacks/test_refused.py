"""Handoffs of a balancer that has another clock or another secret: the bridge says so."""

import socket
import sys
import time
from collections.abc import Iterator

import pytest

from common.bpf import features
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.cluster.secrets import load_secrets
from lab.node import METRICS_PORT, Process, wait_until
from lab.topology import CLIENT, DSCP, PAIRS, VIP, Lab
from packetbridge.offload.adopt import KFUNC
from tests.lab.netns import inside, tcp_packet

PATIENCE_S = 30
# The packetbridge, which is sure of what it says after a second.
SURE = """
import sys
from packetbridge import cli
from packetbridge.modes import diagnosis
diagnosis.SURE_AFTER_MS = 1000
sys.exit(cli.main(sys.argv[1:]))
"""
ACK, PSH = 16, 8

pytestmark = pytest.mark.root


@pytest.fixture(params=["portable", "splice", "adopt"])
def bridge(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Process]]:
    """A bridge alone."""
    if request.param == "adopt" and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")
    with Lab(backends=1, pair=request.param) as lab:
        backend = lab.backend1
        yield lab, backend.start("packetbridge", [
            sys.executable, "-c", SURE, "--interface", "eth1", "--secret-file",
            str(lab.secret_file), "--metrics", f"127.0.0.1:{METRICS_PORT}",
            "--vip", f"{DSCP}={VIP}:80", "--server", f"{backend.server}:80",
            *PAIRS[request.param]["packetbridge"],
        ]).wait_for("ready")


def send(lab: Lab, secrets: Secrets, ahead_s: int, ports: range) -> None:
    """First segments of clients whose balancer is like that, 20 a second."""
    with inside(lab.client), \
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for port in ports:
            ends = (socket.inet_aton(CLIENT) + socket.inet_aton(VIP) + port.to_bytes(2)
                    + (80).to_bytes(2))
            epoch = cookie.epoch_at(int(time.time() + ahead_s) * 1000)
            made = cookie.encode(secrets, ends, port, epoch, Offer(1460, True, 7))
            raw.sendto(tcp_packet(CLIENT, lab.backend1.address, 80, PSH | ACK, sport=port,
                                  seq=port + 1, ack=made + 1, payload=b"GET / HTTP/1.0\r\n\r\n",
                                  tos=DSCP << 2), (lab.backend1.address, 0))
            time.sleep(0.05)


def test_a_clock_that_is_ahead_is_told_of(bridge: tuple[Lab, Process]) -> None:
    lab, process = bridge

    send(lab, load_secrets(lab.secret_file), 300, range(5000, 5020))

    wait_until(lambda: "the clock of the balancer is about" in process.log(), PATIENCE_S, "told")
    assert "ahead of this host's" in process.log()
    assert abs(process.metrics()["l3dsr_packetbridge_balancer_clock_ahead_seconds"] - 300) <= 33


def test_another_secret_is_told_of(bridge: tuple[Lab, Process]) -> None:
    lab, process = bridge

    for start in range(5000, 5300, 10):
        send(lab, Secrets(bytes(16)), 0, range(start, start + 10))
        if "another secret" in process.log():
            break

    assert "the balancer has another secret, or they are forged" in process.log()
    assert "the clock of the balancer" not in process.log()
