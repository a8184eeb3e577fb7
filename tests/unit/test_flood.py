"""A flood of new flows: it is noticed, and evicts no open flow."""

from balancer.modes.split.flood import Flood
from common.flow.memory import MemoryStore
from common.flow.store import Flow
from common.verdict import DropReason, Event
from common.wire import tcp
from common.wire.tcp import ACK, PSH, RST
from tests.fuzz import datapaths
from tests.fuzz.datapaths import MAX_FLOWS, START_MS

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_counter_that_grows_faster_than_the_rate_is_a_flood():
    flood = Flood(100)

    states = []
    for second, count in enumerate([0, 100, 200, 350, 500, 900, 950, 1000, 1100]):
        flood.watch(count, START_MS + second * 1000)
        states.append(flood.is_on)

    assert states == [False, False, False, False, True, True, True, True, False]


def test_a_clock_that_was_set_back_does_not_stop_the_watch():
    flood = Flood(100)
    flood.watch(0, START_MS)

    flood.watch(10_000, START_MS - 100_000)

    assert flood.is_on


def test_only_open_flows_are_spared():
    table = MemoryStore[Flow](2, (1000, 1000))
    table.insert(Flow(b"open", 0, 0))
    table.insert(Flow(b"closing", 1, 0))

    taken = [table.insert(Flow(b"new", 0, 0), least=1),
             table.insert(Flow(b"newer", 0, 0), least=1)]

    assert taken == [True, False]
    assert {flow.key for flow in table} == {b"open", b"new"}


def test_more_new_flows_than_the_rate_are_reset_when_all_are_open():
    datapath = datapaths.balancer(new_flow_rate=MAX_FLOWS // 2)

    def hand_over(port: int, now_ms: int):
        cookie_isn = datapaths.cookie_of(port, 7, START_MS)
        return datapath.on_packet(tcp.emit(
            datapaths.ends(port), 8, cookie_isn + 1, ACK | PSH, payload=REQUEST), now_ms)

    datapath.on_tick(START_MS)
    for port in range(3 * MAX_FLOWS):
        hand_over(2000 + port, START_MS)
        datapath.on_packet(tcp.emit(datapaths.ends(2000 + port), 50, 9000, ACK), START_MS)
    open_ones = {flow.key for flow in datapath.flows}
    datapath.on_tick(START_MS + 2000)
    late = hand_over(9000, START_MS + 2000)

    assert late.reason is DropReason.TABLE_FULL
    assert tcp.checked(late.packets[0]).flags & RST
    assert {flow.key for flow in datapath.flows} == open_ones
    datapath.on_tick(START_MS + 4000)
    assert hand_over(9001, START_MS + 4000).reason is Event.HANDOFF
