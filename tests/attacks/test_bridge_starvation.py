"""Floods past a bridge's programs: what goes up to the portable engine is bounded in each class."""

import socket
import struct
import time
from ipaddress import IPv4Address

import pytest

from common.bpf import BpfError, build, features
from common.bpf.allowance import BRIDGE_BUDGETS
from common.bpf.objects import TC_ACT_SHOT, TC_ACT_UNSPEC, SkBuff
from common.cluster.cookie import Secrets
from common.counters import new_counters
from common.verdict import DropReason, Reason
from common.wire import tcp
from common.wire.tcp import ACK, RST, SYN
from lab.floods import as_icmp_error, with_header, with_ip_options
from packetbridge.config import Config, Service
from packetbridge.offload.adopt import KFUNC, Adopt
from packetbridge.offload.splice import Splice

VIP, BRIDGE = IPv4Address("192.168.33.10"), IPv4Address("192.168.33.20")
SERVICE = Service(name="web", dscp=3, vip=VIP, port=80, server=BRIDGE + 10, server_port=80)
CONFIG = Config(services=(SERVICE,), address=BRIDGE, max_flows=1000)
ETHERNET = bytes(12) + b"\x08\x00"
FLOOD = 50_000  # packets: some 10 ms

pytestmark = pytest.mark.root


class OnDuty:
    """A mode's program, and what it counts from now on."""

    def __init__(self, programs: Adopt | Splice) -> None:
        self._programs = programs
        self._program = programs.program("on_ingress")
        self._before = self._totals()
        time.sleep(0.11)  # what others have used of the budgets counts for a tenth of a second

    def _totals(self) -> dict[Reason, int]:
        counters = new_counters()
        self._programs.add_counts(counters)
        return dict(counters)

    def flood(self, packet: bytes) -> tuple[int, float, dict[Reason, int]]:
        """Many of a packet. Returns: what became of the last, for how long they came, seconds, and
        what was counted."""
        start = time.monotonic()
        run = self._program.test_run(ETHERNET + packet, SkBuff(), FLOOD)
        elapsed_s = time.monotonic() - start
        return run.retval, elapsed_s, {
            reason: count for reason, count in self._totals().items() if count}


@pytest.fixture(scope="module", params=[Adopt, Splice])
def programs(request: pytest.FixtureRequest) -> Adopt | Splice:
    try:
        if request.param is Adopt and features.missing_kfuncs(KFUNC):
            pytest.skip(f"needs {KFUNC}")
        made = request.param(CONFIG, [SERVICE])
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    made.set_secrets(Secrets(bytes(16)))
    return made


@pytest.fixture
def bridge(programs: Adopt | Splice) -> OnDuty:
    return OnDuty(programs)


def _segment(
    flags: int = ACK, dport: int = 80, address: IPv4Address = BRIDGE, tos: int = 3 << 2,
    source: str = "10.66.1.2",
) -> bytes:
    ends = socket.inet_aton(source) + address.packed + struct.pack("!HH", 4000, dport)
    return tcp.emit(ends, 7, 9, flags, tos=tos)


WAYS_UP = {
    "an ACK of no flow": ("UNKNOWN", _segment()),
    "a SYN, which no balancer sends": ("ODD", _segment(SYN)),
    "a packet at the end of its life": ("ODD", with_header(_segment(), 8, b"\1")),
    "a header that lies": ("ODD", _segment()[:32] + b"\x40" + _segment()[33:]),
    "a fragment": ("IP", with_header(_segment(), 6, b"\0\x10")),
    "a first fragment": ("IP", with_header(_segment(), 6, b"\x20\0")),
    "IP options": ("IP", with_ip_options(_segment())),
    "an ICMP error": ("ICMP", as_icmp_error(_segment())),
    "a short ICMP error": ("ICMP", with_header(as_icmp_error(_segment())[:28], 2, b"\0\x1c")),
}
PASSING = {
    "another port": _segment(dport=22),
    "no tag": _segment(tos=0),
    "another address": _segment(address=BRIDGE + 1),
    "an echo request": with_header(_segment()[:20] + b"\x08" + _segment()[21:], 9, b"\1"),
    "a datagram": with_header(_segment(), 9, b"\x11"),
}


@pytest.mark.parametrize("name", list(WAYS_UP))
def test_each_way_up_has_a_budget_of_its_own(bridge: OnDuty, name: str) -> None:
    way, packet = WAYS_UP[name]

    last, elapsed_s, counted = bridge.flood(packet)

    most = BRIDGE_BUDGETS[f"UP_{way}"] / 10
    reason = DropReason[f"LIMITED_{way}"]
    assert set(counted) == {reason}
    assert most * 0.9 <= FLOOD - counted[reason] <= most * (elapsed_s * 10 + 2)
    assert last == TC_ACT_SHOT


@pytest.mark.parametrize("name", list(PASSING))
def test_the_hosts_own_traffic_passes_however_much_it_is(bridge: OnDuty, name: str) -> None:
    last, _, counted = bridge.flood(PASSING[name])

    assert (last, counted) == (TC_ACT_UNSPEC, {})


def test_a_reset_of_no_flow_has_a_budget_too(bridge: OnDuty) -> None:
    _, _, counted = bridge.flood(_segment(RST))

    assert sum(counted.values()) > FLOOD * 0.9
