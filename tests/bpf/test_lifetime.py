"""The kill switch of the programs: when their time is over, all packets are the host's."""

import time
from ipaddress import IPv4Address
from typing import Any

import pytest

from balancer import config as balancer_config
from balancer.offload.program import PROGRAM_NAME, Program
from common.bpf import features
from common.bpf.objects import TC_ACT_SHOT, TC_ACT_UNSPEC, SkBuff
from common.cluster.cookie import Secrets
from common.wire import options, tcp
from common.wire.checksum import checksum
from common.wire.five_tuple import join
from common.wire.options import Options
from common.wire.tcp import ACK, SYN
from lab.handshakes import Handshake
from lab.programs import connection
from packetbridge import config as bridge_config
from packetbridge.offload.adopt import KFUNC, Adopt
from packetbridge.offload.splice import Splice

ETHERNET = bytes(12) + b"\x08\x00"
XDP_PASS, XDP_TX = 2, 3
CLIENT, VIP, BRIDGE = (bytes([10, 0, 0, last]) for last in (1, 2, 3))
HOUR_MS = 3_600_000
SECRETS = Secrets(bytes(16))
PORTS = b"\x13\x88", b"\0\x50"


@pytest.mark.parametrize("lifetime_ms, verdict", [
    (None, XDP_TX), (HOUR_MS, XDP_TX), (1, XDP_PASS),
])
def test_the_balancer_answers_no_syn_when_its_time_is_over(
    lifetime_ms: int | None, verdict: int
) -> None:
    service = balancer_config.Service(
        name="web", vip=IPv4Address(VIP), port=80,
        backends=(balancer_config.Backend(1, IPv4Address(BRIDGE)),))
    program = Program(
        balancer_config.Config(services=(service,), max_flows=1000, lifetime_ms=lifetime_ms),
        SECRETS)

    run = program.object.program(PROGRAM_NAME).test_run(
        ETHERNET + tcp.emit(join(CLIENT, VIP, *PORTS), 1, 0, SYN))
    program.close()

    assert run.retval == verdict


@pytest.mark.parametrize("kind", [Adopt, Splice])
@pytest.mark.parametrize("lifetime_ms, verdict", [
    (None, TC_ACT_SHOT), (HOUR_MS, TC_ACT_SHOT), (1, TC_ACT_UNSPEC),
])
def test_a_bridge_drops_nothing_when_its_time_is_over(
    kind: Any, lifetime_ms: int | None, verdict: int
) -> None:
    """A handoff for another bridge: the cookie is right, what its echo proves is not."""
    if kind is Adopt and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")
    service = bridge_config.Service(
        name="web", dscp=3, vip=IPv4Address(VIP), port=80, server=IPv4Address(VIP), server_port=80)
    configured = bridge_config.Config(
        services=(service,), address=IPv4Address(BRIDGE), max_flows=1000, lifetime_ms=lifetime_ms)
    made = Handshake(SECRETS, join(CLIENT, VIP, *PORTS), 7, time.time_ns() // 1_000_000)
    packet = bytearray(tcp.emit(
        join(CLIENT, BRIDGE, *PORTS), 8, made.cookie_isn + 1, ACK, payload=b"x",
        option_octets=options.emit(Options(timestamps=(5, made.t0)))))
    packet[1] = 3 << 2
    packet[10:12] = bytes(2)
    packet[10:12] = checksum(packet[:20]).to_bytes(2)
    with connection():
        part = kind(configured, [service])
        part.set_secrets(SECRETS)
        run = part.program("on_ingress").test_run(ETHERNET + bytes(packet), SkBuff())

    assert run.retval == verdict
