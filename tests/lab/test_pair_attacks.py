"""Floods and forgeries beside real traffic."""

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from netns import inside, tcp_packet
from traffic import (
    ADOPTS,
    PATIENCE_S,
    Pair,
    backends_of,
    connect,
    one_answer,
    request,
    resident_octets,
    sockets,
    start_quick,
)

from common.cluster import cookie
from common.cluster.cookie import Offer
from common.cluster.secrets import load_secrets
from lab.node import Node, wait_until
from lab.topology import CLIENT, DSCP, VIP, Lab

FLOOD = 25_000
BURST, PAUSE_S = 100, 0.008  # about as much as one core answers
FAR_NET = "10.66"
SYN, PSH_ACK = 2, 24
STRANGER = "192.168.33.77"
MEMORY_OCTETS = 8 << 20  # addresses at hand are bounded; a flow for each SYN would take 10 MB


def _raw_socket(node: Node) -> socket.socket:
    with inside(node):
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def _flood(client: Node, packets: list[bytes]) -> None:
    with _raw_socket(client) as raw:
        for start in range(0, len(packets), BURST):
            for packet in packets[start:start + BURST]:
                raw.sendto(packet, (VIP, 0))
            time.sleep(PAUSE_S)


def _syns(number: int) -> list[bytes]:
    """SYNs from random addresses behind the client."""
    draw = random.Random(number)
    return [
        tcp_packet(f"{FAR_NET}.{draw.randrange(256)}.{draw.randrange(1, 255)}", VIP, 80, SYN,
                   sport=draw.randrange(1024, 65536), seq=draw.randrange(1 << 32))
        for _ in range(number)
    ]


@pytest.mark.slow
def test_a_syn_flood_costs_no_memory_and_no_request() -> None:
    with Lab() as lab:
        pair = start_quick(lab)
        lab.balancer.run(["ip", "route", "add", f"{FAR_NET}.0.0/16", "via", CLIENT])
        paths = [f"/beside/{number}" for number in range(10)]
        expected = backends_of(lab, paths)
        _flood(lab.client, _syns(1000))
        packets = _syns(FLOOD)
        before, served = resident_octets(pair.balancer), len(paths)
        most = 0.0

        with ThreadPoolExecutor(1) as pool:
            flood = pool.submit(_flood, lab.client, packets)
            while not flood.done():
                assert backends_of(lab, paths) == expected
                served += len(paths)
                most = max(most, pair.flows()[0])
            flood.result()

        answered = pair.balancer.metrics()['l3dsr_balancer_packets_total{reason="syn_answered"}']
        assert answered > FLOOD / 2
        assert most <= served
        assert resident_octets(pair.balancer) < before + MEMORY_OCTETS
        pair.wait_until_empty()


# --- forged handoffs ---


def _handoff(lab: Lab, port: int, source: str = STRANGER, flip: int = 0) -> bytes:
    """The first data segment of a connection through the VIP. flip: bits of its cookie."""
    client_isn = 1_000_000 + port
    five_tuple = (socket.inet_aton(source) + socket.inet_aton(VIP)
                  + port.to_bytes(2) + (80).to_bytes(2))
    epoch = cookie.epoch_at(time.time_ns() // 1_000_000)
    made = cookie.encode(load_secrets(lab.secret_file), five_tuple, client_isn, epoch,
                         Offer(1460, True, 7))
    return tcp_packet(source, lab.backend1.address, 80, PSH_ACK, sport=port, seq=client_isn + 1,
                      ack=(made ^ flip) + 1, payload=request("/forged"), tos=DSCP << 2)


def _reasons(pair: Pair) -> dict[str, float]:
    found = pair.bridges[0].metrics()
    return {name: value for name, value in found.items()
            if name.startswith("l3dsr_packetbridge_packets_total{") and value}


def _wait_for_packets(pair: Pair, reason: str, number: int) -> None:
    name = f'l3dsr_packetbridge_packets_total{{reason="{reason}"}}'
    wait_until(lambda: _reasons(pair).get(name, 0) == number, PATIENCE_S, f"{number} {reason}")


def _access_log(lab: Lab) -> str:
    return Path(lab.directory / "nginx-backend1-80" / "access.log").read_text()


@pytest.fixture
def alone():
    """The pair before one nginx, seen by nobody before; a stranger is a neighbour."""
    with Lab(backends=1) as network:
        network.backend1.run(["ip", "neigh", "add", STRANGER, "dev", "eth1",
                              "lladdr", "02:00:00:00:00:77"])
        yield start_quick(network, bridge="replay = 2\n")


def test_a_handoff_with_one_wrong_bit_in_its_cookie_opens_nothing(alone: Pair) -> None:
    lab = alone.lab
    forged = [_handoff(lab, 5000 + bit, flip=1 << bit) for bit in range(8, 32)]
    with _raw_socket(lab.client) as raw:
        for packet in forged:
            raw.sendto(packet, (lab.backend1.address, 0))
        _wait_for_packets(alone, "unknown_flow", len(forged))
        seen, opened = list(_reasons(alone)), sockets(lab.backend1)

        raw.sendto(_handoff(lab, 5000), (lab.backend1.address, 0))  # with the right one it does
        _wait_for_packets(alone, "opened", 1)

    assert seen == ['l3dsr_packetbridge_packets_total{reason="unknown_flow"}']
    assert opened == []
    wait_until(lambda: "/forged" in _access_log(lab), PATIENCE_S, "the server has read it")
    assert len(_access_log(lab).splitlines()) == 1


def test_direct_connections_are_not_even_looked_at(alone: Pair) -> None:
    lab = alone.lab
    url = f"http://{lab.backend1.server}/direct/[1-50]"

    with _raw_socket(lab.client) as raw:
        raw.sendto(_handoff(lab, 5000, flip=1 << 8), (lab.backend1.address, 0))
        _wait_for_packets(alone, "unknown_flow", 1)
        before = _reasons(alone)
        answers = [lab.client.curl(url, *flags).splitlines()
                   for flags in ((), ("-H", "Connection: close"))]

    assert [len(each) for each in answers] == [50, 50]
    assert all(f" {CLIENT}:" in line for each in answers for line in each)
    assert _reasons(alone) == before


def test_a_handoff_from_the_ports_of_a_direct_connection_leaves_that_one_alone(
    alone: Pair
) -> None:
    lab = alone.lab
    with connect(lab.client, 6000, address=lab.backend1.server) as direct:
        direct.sendall(request("/direct/1"))
        first = one_answer(direct).split()
        with connect(lab.client, 6000) as through_vip:
            through_vip.sendall(request("/through"))
            if ADOPTS:  # towards the VIP, it is another connection
                assert one_answer(through_vip).split()[1] == b"/through"
            else:  # the server cannot tell them apart
                with pytest.raises(ConnectionResetError):
                    through_vip.recv(1)

        direct.sendall(request("/direct/2"))
        second = one_answer(direct).split()

    assert (first[1], second[1]) == (b"/direct/1", b"/direct/2")
    assert first[2] == second[2] == f"{CLIENT}:6000".encode()
    alone.wait_until_empty()
    wait_until(lambda: not [line for line in sockets(lab.backend1) if "ESTAB" in line],
               PATIENCE_S, "the server has closed")
