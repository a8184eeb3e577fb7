"""First payloads of clients that chose their backend, and of sources that never saw a SYN-ACK."""

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import pytest

from balancer import config as balancer_config
from balancer.datapath import Datapath as Balancer
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop
from common.bpf import BpfError, build, features
from common.bpf.objects import TC_ACT_REDIRECT, XDP_DROP, XDP_PASS, XDP_TX, SkBuff
from common.cluster.cookie import Secrets
from common.cluster.secrets import load_secrets
from common.flow import guesses
from common.verdict import DropReason, Event
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH
from lab.handshakes import Handshake
from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath as Bridge
from packetbridge.offload.adopt import KFUNC
from packetbridge.offload.splice import Splice
from tests.lab.netns import inside

ATTEMPTS = 40
PATIENCE_S = 20
STRANGER = "192.168.33.77"
ETHERNET = bytes(12) + b"\x08\x00"

pytestmark = pytest.mark.root


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".encode()


def _first(
    made: Handshake, tsecr: int | None, payload: bytes, dst: bytes, tos: int = 0, ack: int = 0
) -> bytes:
    """A first payload. dst: where to, if not to the VIP. tsecr: None without timestamps."""
    ends = made.five_tuple
    stamps = b"" if tsecr is None else options.emit(Options(timestamps=(5, tsecr)))
    return tcp.emit(ends[:4] + dst + ends[8:], made.client_isn + 1,
                    ack or made.cookie_isn + 1, ACK | PSH, window=502, option_octets=stamps,
                    payload=payload, tos=tos)


# --- on the wire ---


class Network:
    """The pair with two backends, of which the second has weight 0."""

    def __init__(self, lab: Lab, balancer: Process, bridges: list[Process]) -> None:
        self.lab, self.balancer, self.bridges = lab, balancer, bridges
        self._secrets = load_secrets(lab.secret_file)

    def handshake(self, number: int) -> Handshake:
        """One that has been shaken just now."""
        ends = (socket.inet_aton(STRANGER) + socket.inet_aton(VIP)
                + (20_000 + number).to_bytes(2) + b"\0\x50")
        return Handshake(self._secrets, ends, 1_000_000 + number, time.time_ns() // 1_000_000)

    def send(self, packet: bytes) -> None:
        with inside(self.lab.client), \
                socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def counted(self, process: Process, program: str, *reasons: str) -> int:
        found = process.metrics()
        return sum(int(found.get(f'l3dsr_{program}_packets_total{{reason="{reason}"}}', 0))
                   for reason in reasons)

    def served(self, number: int) -> int:
        """How many of these requests a backend's server has seen."""
        log = Path(self.lab.directory / f"nginx-backend{number}-80" / "access.log")
        return sum("/forged" in line for line in log.read_text().splitlines())


@pytest.fixture(params=["portable", "splice", "adopt"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param == "adopt" and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")
    with Lab(pair=request.param) as lab:
        bridges = []
        for node in (lab.balancer, *lab.backends):
            node.run(["ip", "neigh", "replace", STRANGER, "dev", "eth1",
                      "lladdr", "02:00:00:00:00:77"])
        for backend in lab.backends:
            lab.start_nginx(backend)
            bridges.append(lab.start_bridge(backend))
        backends = [word for backend, weight in zip(lab.backends, (1, 0), strict=True)
                    for word in ("--backend", f"{backend.address},id={backend.number},"
                                              f"weight={weight}")]
        balancer = lab.start_balancer(*backends, defaults=False)
        yield Network(lab, balancer, bridges)


def test_a_client_does_not_choose_its_backend(network: Network) -> None:
    """Its handshake is real; what it echoes names a backend that takes no new connections."""
    vip = socket.inet_aton(VIP)
    for number in range(ATTEMPTS):
        network.send(_first(network.handshake(number), (2 << 24) + 5, _request("/forged"), vip))
        network.send(_first(network.handshake(number), (2 << 24) + 20_000, _request("/forged"),
                            vip))
    wait_until(lambda: network.counted(
        network.balancer, "balancer", "bad_echo", "unknown_flow") >= 2 * ATTEMPTS,
        PATIENCE_S, "the balancer has dropped them")
    honest = network.handshake(ATTEMPTS)
    network.send(_first(honest, honest.t0, _request("/forged"), vip))

    wait_until(lambda: network.served(1) == 1, PATIENCE_S, "an honest client is served")
    assert network.served(2) == 0
    assert network.counted(network.balancer, "balancer", "takeover") == 0


def test_a_handoff_is_for_one_bridge_alone(network: Network) -> None:
    """Sent to bridges past the balancer: with good cookies, and one proof of two."""
    own, other = (socket.inet_aton(backend.address) for backend in network.lab.backends)
    for number in range(ATTEMPTS):
        made = network.handshake(number)
        for tsecr in (made.handed(own), made.t0, 1 << 24 | 5):
            network.send(_first(made, tsecr, _request("/forged"), other, DSCP << 2))
    wait_until(lambda: network.counted(network.bridges[1], "packetbridge", "bad_echo")
               == 3 * ATTEMPTS, PATIENCE_S, "the other bridge has dropped them")
    made = network.handshake(ATTEMPTS)
    network.send(_first(made, made.handed(own), _request("/forged"), own, DSCP << 2))

    wait_until(lambda: network.served(1) == 1, PATIENCE_S, "the one that it is for serves it")
    assert network.served(2) == 0


# --- guesses ---

SECRETS = Secrets(bytes(range(16)))
VIP_ADDRESS, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}") for host in (10, 20, 30))
CLIENT = IPv4Address("10.66.1.2").packed
BALANCER_CONFIG = balancer_config.Config(services=(balancer_config.Service(
    name="web", vip=VIP_ADDRESS, port=80, dscp=3,
    backends=(balancer_config.Backend(1, BRIDGE),)),), max_flows=1000)
BRIDGE_CONFIG = bridge_config.Config(services=(bridge_config.Service(
    name="web", dscp=3, vip=VIP_ADDRESS, port=80, server=SERVER, server_port=8080),),
    address=BRIDGE, max_flows=10_000)
Opens = Callable[[bytes], bool]


def _balancer_alone(now_ms: int) -> Opens:
    datapath = Balancer(BALANCER_CONFIG, SECRETS, random=Random(1))
    return lambda packet: datapath.on_packet(packet, now_ms).reason is Event.HANDOFF


def _bridge_alone(now_ms: int) -> Opens:
    datapath = Bridge(BRIDGE_CONFIG, SECRETS, random=Random(1))
    return lambda packet: datapath.on_packet(packet, now_ms).reason is Event.REPLAYED


def _balancers_program(now_ms: int) -> Opens:
    loaded = _loaded(lambda: Program(BALANCER_CONFIG, SECRETS, for_tests=True))
    loaded.set_test_time(now_ms)
    loaded.set_next_hop(0, 1, NextHop(1, 65535, b"\2" * 6, b"\4" * 6))
    run = loaded.object.program(PROGRAM_NAME).test_run
    return lambda packet: run(ETHERNET + packet).retval == XDP_TX


def _bridges_program(now_ms: int) -> Opens:
    del now_ms  # it has a clock of its own
    loaded = _loaded(lambda: Splice(BRIDGE_CONFIG, BRIDGE_CONFIG.services))
    loaded.set_secrets(SECRETS)
    run = loaded.program("on_ingress").test_run
    return lambda packet: run(ETHERNET + packet, SkBuff()).retval == TC_ACT_REDIRECT


def _loaded(load: Callable[[], object]) -> object:
    try:
        return load()
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")


def _handshake(number: int, now_ms: int) -> Handshake:
    ends = CLIENT + VIP_ADDRESS.packed + (1024 + number).to_bytes(2) + b"\0\x50"
    return Handshake(SECRETS, ends, 7, now_ms)


@pytest.mark.parametrize("opens, is_bridge", [
    (_balancer_alone, False), (_balancers_program, False), (_bridge_alone, True),
    (_bridges_program, True),
], ids=["balancer", "balancer's program", "bridge", "bridge's program"])
def test_of_all_guesses_at_both_macs_one_opens(
    opens: Callable[[int], Opens], is_bridge: bool
) -> None:
    """Shortened to 6 bits each, 1 of 4,096 does. So of 38 bits 1 of 2^38 will, for each epoch and
    key that is accepted: at 300,000 guesses a second, one in 4.7 days, and in 2.4 while there is a
    previous key (epochs are 2.25 on average).
    """
    now_ms = time.time_ns() // 1_000_000
    made, check = _handshake(0, now_ms), opens(now_ms)
    dst = BRIDGE.packed if is_bridge else VIP_ADDRESS.packed
    right = made.handed(BRIDGE.packed) if is_bridge else made.t0
    opened = []
    for of_cookie in range(64):
        for of_echo in range(64):
            wrong = _first(made, right ^ of_echo << 10, _request("/"), dst, 3 << 2,
                           (made.cookie_isn ^ of_cookie << 8) + 1)
            if (of_cookie, of_echo) != (0, 0) and check(wrong):
                opened.append((of_cookie, of_echo))

    assert opened == []
    assert check(_first(made, right, _request("/"), dst, 3 << 2))


def test_what_remains_is_rarer_than_was_promised() -> None:
    """docs/security.md: a day between two that are forged with timestamps, at 300,000 guesses a
    second; ten minutes between two without, at any rate."""
    epochs, keys = (2 * 48 + 3 * 16) / 64, 2
    stamped_s = 2**38 / (epochs * keys) / 300_000
    engines = 2  # programs and data path, each with an allowance
    bare_s = 2**24 / (epochs * keys) / (
        engines * guesses.MAX_GUESSES * 1000 / guesses.GUESS_PERIOD_MS)

    assert stamped_s > 2 * 86_400
    assert bare_s > 600


@pytest.mark.parametrize("is_bridge", [False, True], ids=["balancer", "bridge"])
def test_guesses_without_timestamps_are_bounded(is_bridge: bool) -> None:
    """30,000 a second for a second: 2,500 of them are looked at, in tenths."""
    dst = BRIDGE.packed if is_bridge else VIP_ADDRESS.packed
    now_ms = time.time_ns() // 100_000_000 * 100
    datapath: Balancer | Bridge = (
        Bridge(BRIDGE_CONFIG, SECRETS, random=Random(1)) if is_bridge
        else Balancer(BALANCER_CONFIG, SECRETS, random=Random(1)))
    made = _handshake(0, now_ms)
    for number in range(30_000):
        ack = made.cookie_isn + 1 + (1 + number << 8)
        datapath.on_packet(_first(made, None, b"x", dst, 3 << 2, ack), now_ms + number // 30)

    limited = datapath.counters[DropReason.GUESSES_LIMITED]
    assert 30_000 - limited == 10 * guesses.MAX_GUESSES
    assert not datapath.flows


def test_the_balancers_program_bounds_guesses() -> None:
    """At its own clock, and without a word to the portable engine."""
    loaded = _loaded(lambda: Program(BALANCER_CONFIG, SECRETS))
    loaded.set_next_hop(0, 1, NextHop(1, 65535, b"\2" * 6, b"\4" * 6))
    run = loaded.object.program(PROGRAM_NAME).test_run
    made = _handshake(0, time.time_ns() // 1_000_000)
    guess = _first(made, None, b"x", VIP_ADDRESS.packed, ack=made.cookie_isn + 0x101)

    alone = run(ETHERNET + guess).retval
    flood = run(ETHERNET + guess, repeat=100_000).retval
    stamped = _first(made, made.t0, _request("/"), VIP_ADDRESS.packed)

    assert (alone, flood) == (XDP_PASS, XDP_DROP)
    assert loaded.reasons.totals()[DropReason.GUESSES_LIMITED] > 50_000
    assert run(ETHERNET + stamped).retval not in (XDP_PASS, XDP_DROP)
    loaded.close()
