"""The host's clock is set: by NTP after a boot, by hand, by who controls the time server.

Idle times are of a clock that nobody sets; unix time makes the epochs of cookies, and no more.
"""

import time
from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.offload.offload import beside
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop, Route
from common.bpf import BpfError, build
from common.bpf.objects import XDP_TX
from common.cluster import cookie
from common.engine import clock
from common.engine.loop import Engine
from common.verdict import Event
from common.wire import tcp
from common.wire.tcp import ACK, PSH, SYN
from tests.bpf.loaded import shared
from tests.fuzz.datapaths import REQUEST, SECRETS, VIP, balancer, bridge, cookie_of, ends

SET_S = [901, -901, 1_000_000]  # more than any idle time-out, and back
UP_MS = 5_000_000  # since the boot
UNIX_MS = 1_700_000_000_000
PORT = 40000
HOP = NextHop(1, 1500, b"\2" * 6, b"\4" * 6)


def first_segment(now_ms: int, port: int = PORT) -> bytes:
    """The request after a handshake, at a unix time."""
    return tcp.emit(ends(port), 8, cookie_of(port, 7, now_ms) + 1, ACK | PSH, payload=REQUEST)


@pytest.mark.parametrize("set_s", SET_S)
def test_a_clock_that_is_set_empties_no_table_of_the_balancer(set_s: int) -> None:
    datapath = balancer()
    datapath.clock_offset_ms = UNIX_MS - UP_MS
    assert datapath.on_packet(first_segment(UNIX_MS), UP_MS).reason is Event.HANDOFF

    datapath.clock_offset_ms += 1000 * set_s
    datapath.on_tick(UP_MS + 100)

    goes_on = tcp.emit(ends(PORT), 8 + len(REQUEST), 77, ACK)
    assert datapath.on_packet(goes_on, UP_MS + 200).reason is Event.FORWARDED


@pytest.mark.parametrize("set_s", SET_S)
def test_cookies_follow_a_clock_that_is_set(set_s: int) -> None:
    datapath = balancer()
    datapath.clock_offset_ms = UNIX_MS - UP_MS + 1000 * set_s
    syn = tcp.emit(ends(PORT), 7, 0, SYN)
    (syn_ack,) = datapath.on_packet(syn, UP_MS).packets

    made = int.from_bytes(syn_ack[24:28], "big")
    assert cookie.check(SECRETS, ends(PORT), 7, made, UNIX_MS + 1000 * set_s) is not None
    first = first_segment(UNIX_MS + 1000 * set_s)
    assert datapath.on_packet(first, UP_MS + 1).reason is Event.HANDOFF


@pytest.mark.parametrize("set_s", SET_S)
def test_a_clock_that_is_set_empties_no_table_of_a_bridge(set_s: int) -> None:
    (handoff,) = balancer().on_packet(first_segment(UNIX_MS), UNIX_MS).packets
    datapath = bridge(IPv4Address(handoff[16:20]))
    datapath.clock_offset_ms = UNIX_MS - UP_MS
    assert datapath.on_packet(handoff, UP_MS).reason is Event.REPLAYED

    datapath.clock_offset_ms += 1000 * set_s
    datapath.on_tick(UP_MS + 100)

    assert len(datapath.flows) == 1


@pytest.mark.parametrize("set_s", SET_S)
def test_the_engine_keeps_its_time_when_the_clock_is_set(
    set_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_ms, offset_ms = clock.now_ms(), clock.offset_ms()
    real_ns = time.time_ns

    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + set_s * 10**9)

    assert 0 <= clock.now_ms() - before_ms < 10_000
    assert abs(clock.offset_ms() - offset_ms - 1000 * set_s) < 1000


@pytest.mark.parametrize("set_s", SET_S)
def test_the_engine_tells_its_data_path_of_a_clock_that_was_set(
    set_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    datapath = balancer()
    engine = Engine.__new__(Engine)  # without a queue
    engine._datapath = datapath
    engine.keep_time()
    before_ms = datapath.clock_offset_ms
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + set_s * 10**9)

    engine.keep_time()

    assert abs(datapath.clock_offset_ms - before_ms - 1000 * set_s) < 1000


@pytest.mark.root
@pytest.mark.parametrize("set_s", SET_S)
def test_a_clock_that_is_set_empties_no_table_of_the_program(
    set_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = config.Service(name="web", vip=VIP, port=80, dscp=3,
                             backends=(config.Backend(1, VIP + 11),))
    configured = config.Config(services=(service,), max_flows=1000)
    try:
        with shared():
            program = Program(configured, SECRETS)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    datapath, offload = beside(program, configured, SECRETS, random=Random(1))
    datapath.paths.set_routes({address: Route(b"", 1500, HOP) for address in datapath.paths})
    offload.tell_paths(datapath.paths)
    offload.is_live = True
    run = program.object.program(PROGRAM_NAME).test_run
    ethernet = bytes(12) + b"\x08\0"
    real_ns = time.time_ns

    def hand_over(port: int) -> int:
        return run(ethernet + first_segment(time.time_ns() // 10**6, port)).retval

    assert hand_over(PORT) == XDP_TX
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + set_s * 10**9)
    datapath.clock_offset_ms = clock.offset_ms()
    datapath.on_tick(clock.now_ms() + 1100)

    goes_on = tcp.emit(ends(PORT), 8 + len(REQUEST), 77, ACK)
    assert run(ethernet + goes_on).retval == XDP_TX
    assert datapath.on_packet(goes_on, clock.now_ms()).reason is Event.FORWARDED
    assert hand_over(PORT + 1) == XDP_TX
    assert len(datapath.flows) == 2
    program.close()
