"""Mutated packets on the wire, to the balancer and straight to a bridge, beside real requests.

For longer, and with every kind of pair: lab/run fuzz --minutes 10
"""

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from random import Random

import pytest
from netns import inside
from traffic import PATIENCE_S, Pair, backends_of, resident_octets

from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.cluster.secrets import load_secrets
from common.wire import options, tcp
from common.wire.options import Options
from lab.node import Node, wait_until
from lab.topology import CLIENT, DSCP, VIP
from tests.fuzz.mutate import mutated

BURST, PAUSE_S = 50, 0.002
MEMORY_OCTETS = 256 << 20
REQUEST = b"GET /%d HTTP/1.1\r\nHost: fuzz\r\n\r\n"


def mac_of(node: Node) -> bytes:
    return bytes.fromhex(node.run(["cat", "/sys/class/net/eth1/address"]).strip().replace(":", ""))


def packet(random: Random, secrets: Secrets, bridge: IPv4Address | None) -> bytes:
    """What a client might send, or the balancer in its name. bridge: where to, or to the VIP."""
    destination = bridge or IPv4Address(VIP)
    source = IPv4Address(CLIENT).packed
    sport = struct.pack("!H", random.randrange(1024, 1200))
    isn = random.choice([7, random.getrandbits(32)])
    epoch = cookie.epoch_at(time.time_ns() // 1_000_000)
    made = cookie.encode(secrets, source + IPv4Address(VIP).packed + sport + b"\0\x50", isn, epoch,
                         Offer(1460, True, 7))
    stamps = options.emit(Options(timestamps=(5, random.choice([0, 5, 1 << 24 | 5, 2 << 24]))))
    layout = random.choice([b"", stamps])
    kind = random.randrange(5)
    flags, payload, on = random.choice([
        (tcp.ACK | tcp.PSH, REQUEST % random.randrange(99), 1), (tcp.ACK, b"", 1),
        (tcp.ACK | tcp.PSH, (REQUEST % 7)[:9], 1), (tcp.ACK | tcp.PSH, (REQUEST % 7)[9:], 10),
        (tcp.ACK | tcp.FIN, b"", 50), (tcp.RST, b"", 1),
    ])
    if kind == 0:
        flags, payload, on = tcp.SYN, b"", 0
        layout = options.emit(Options(1460, True, (5, 0), 7))
    return tcp.emit(source + destination.packed + sport + b"\0\x50", isn + on & 0xFFFFFFFF,
                    made + 1 & 0xFFFFFFFF, flags, window=64240, option_octets=layout,
                    payload=payload, tos=DSCP << 2 if bridge else 0)


def send(pair: Pair, random: Random, seconds: float) -> int:
    """Returns: how many packets."""
    lab, count = pair.lab, 0
    secrets = load_secrets(lab.secret_file)
    own = mac_of(lab.client)
    ways = [(None, mac_of(lab.balancer)),
            (IPv4Address(lab.backend1.address), mac_of(lab.backend1))]
    with inside(lab.client):
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind(("eth1", 0))
    deadline_s = time.monotonic() + seconds
    others = [packet(random, secrets, ways[number % 2][0]) for number in range(100)]
    while time.monotonic() < deadline_s:
        for _ in range(BURST):
            bridge, mac = random.choice(ways)
            made = packet(random, secrets, bridge)
            others[count % len(others)] = made
            if random.random() < 0.9:
                made = mutated(random, made, others)
            try:
                link.send(mac + own + b"\x08\0" + made)
            except OSError:
                pass  # the wire's buffer is full
            count += 1
        time.sleep(PAUSE_S)
    link.close()
    return count


def internal_errors(pair: Pair) -> list[float]:
    return [
        process.metrics().get(f'l3dsr_{name}_packets_total{{reason="internal_error"}}', 0)
        for name, process in (("balancer", pair.balancer),
                              *(("packetbridge", bridge) for bridge in pair.bridges))
    ]


def test_mutated_packets_harm_nothing(pair: Pair, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("fuzz_s")
    random = Random(request.config.getoption("seed"))
    paths = [f"/beside/{number}" for number in range(10)]
    expected = backends_of(pair.lab, paths)
    before = [resident_octets(each) for each in (pair.balancer, *pair.bridges)]

    with ThreadPoolExecutor(1) as pool:
        fuzzing = pool.submit(send, pair, random, seconds)
        while not fuzzing.done():
            assert backends_of(pair.lab, paths) == expected
        count = fuzzing.result()

    assert count > 300 * seconds
    assert internal_errors(pair) == [0] * (1 + len(pair.bridges))
    assert backends_of(pair.lab, paths) == expected
    after = [resident_octets(each) for each in (pair.balancer, *pair.bridges)]
    assert all(now < then + MEMORY_OCTETS for now, then in zip(after, before, strict=True))
    wait_until(lambda: pair.flows()[0] < 300, PATIENCE_S, "the balancer's flows end")
