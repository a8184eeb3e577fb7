"""The program measures handshakes and first acknowledgements as the portable engine does."""

from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.keys.request import KeySpec
from balancer.offload.offload import beside
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop, Route
from common.bpf import BpfError, build
from common.bpf.objects import XDP_TX
from common.cluster.cookie import Offer, Secrets
from common.histogram import Histogram
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH
from lab.handshakes import Handshake
from tests.bpf.loaded import shared

pytestmark = pytest.mark.root

VIP = IPv4Address("192.168.33.10")
SECRETS = Secrets(bytes(16))
ETHERNET = bytes(12) + b"\x08\0"
REQUEST = b"GET /%d HTTP/1.1\r\n\r\n"
NOW_MS = 1_700_000_010_000
HOP = NextHop(1, 1500, b"\2" * 6, b"\4" * 6)
DURATIONS_MS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1023)


def test_both_engines_measure_the_same() -> None:
    backends = tuple(config.Backend(number, VIP + 10 + number) for number in (1, 2))
    service = config.Service(name="web", vip=VIP, port=80, dscp=3,
                             key=KeySpec.parse("http.path"), backends=backends)
    configured = config.Config(services=(service,), max_flows=1000)
    try:
        with shared():
            program = Program(configured, SECRETS, for_tests=True)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    datapath, offload = beside(program, configured, SECRETS, random=Random(1))
    paths = datapath.paths
    paths.set_routes({address: Route(b"", 1500, HOP) for address in paths})
    offload.tell_paths(paths)
    run = program.object.program(PROGRAM_NAME).test_run
    (state,) = datapath.services
    expected = {None: Histogram(), 1: Histogram(), 2: Histogram()}  # None: of handshakes

    for number, duration_ms in enumerate(DURATIONS_MS):
        ends = bytes((10, 1, 0, 1)) + VIP.packed + (40_000 + number).to_bytes(2) + b"\0\x50"
        made = Handshake(SECRETS, ends, 7, NOW_MS, Offer(1460, True, 7))
        stamps = options.emit(Options(timestamps=(5, made.t0)))
        payload = REQUEST % number
        program.set_test_time(NOW_MS + duration_ms)
        handed = run(ETHERNET + tcp.emit(ends, 8, made.cookie_isn + 1, PSH | ACK,
                                         option_octets=stamps, payload=payload))
        program.set_test_time(NOW_MS + duration_ms + 8 * duration_ms)
        for _ in range(2):  # the second is one of many
            run(ETHERNET + tcp.emit(ends, 8 + len(payload), made.cookie_isn + 9, ACK,
                                    option_octets=stamps))
        assert handed.retval == XDP_TX
        expected[None].note(duration_ms)
        expected[handed.data[14 + 19] - 20].note(8 * duration_ms)

    found = {None: offload.handshakes(state),
             **{each.id: offload.first_acks(each) for each in state.pool}}
    assert {key: (each.counts, each.sum_ms) for key, each in found.items()} == {
        key: (each.counts, each.sum_ms) for key, each in expected.items()}
    assert all(sum(each.counts) for each in found.values())

    for flow in list(datapath.flows):
        datapath.flows.remove(flow)
    datapath.update(state, backends[:1])
    datapath.on_tick(NOW_MS)  # it has gone, since it has no flows
    datapath.update(state, backends)  # another one has its id

    first, second = state.pool
    assert offload.first_acks(first).counts == found[1].counts
    assert sum(offload.first_acks(second).counts) == 0

    datapath.drain(state)
    datapath.on_tick(NOW_MS)  # it has gone as well
    later = datapath.services.make(service, -1)
    datapath.add(later, offload.prepare(later.shared(), later.pool.scheduler))

    assert later.number == state.number
    assert sum(offload.handshakes(later).counts) == 0
    program.close()
