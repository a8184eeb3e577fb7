"""Where flows are kept: what holds in memory holds in a loaded program's map."""

import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from operator import attrgetter
from random import Random
from typing import NamedTuple

import pytest

from balancer import config
from balancer.datapath import Datapath
from balancer.flows import (
    DOUBTED,
    HALF_CLOSED,
    NEW,
    OPEN,
    RESET,
    TAKEN_OVER,
    BackendFlow,
    timeouts_ms,
)
from balancer.keys.request import KeySpec
from balancer.modes.split.mode import Split
from balancer.pool.pool import Backend
from balancer.services import Services
from common.bpf import BpfError, build
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.flow.memory import MemoryStore
from common.flow.store import SEEN_MS, FlowStore
from common.verdict import Event
from common.wire import tcp
from common.wire.tcp import ACK, PSH
from tests.bpf.loaded import shared

MAX_FLOWS = 50
NOW_MS = 1_700_000_000_000
TIMEOUTS_MS = timeouts_ms(config.Timeouts())
SECRETS = Secrets(bytes(16))
VIP = IPv4Address("192.168.33.10")
CONFIG = config.Config(max_flows=MAX_FLOWS, services=(config.Service(
    name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("http.path"), scheduler="rendezvous",
    backends=tuple(config.Backend(number, VIP + number) for number in (1, 2)),
),))


class Kept(NamedTuple):
    """A data path with its store."""

    datapath: Datapath
    flows: FlowStore[BackendFlow]
    backends: tuple[Backend, Backend]

    def made(self, number: int, *, age_ms: int = 0, state: int = OPEN, of: int = 0) -> BackendFlow:
        """A flow that was last seen `age_ms` ago."""
        flow = BackendFlow(key(number), self.backends[of], number, 0, NOW_MS - age_ms)
        flow.state = state
        return flow

    def found(self, number: int) -> BackendFlow:
        flow = self.flows.get(key(number))
        assert flow is not None
        return flow

    def keys(self) -> set[bytes]:
        return {flow.key for flow in self.flows}

    def expired(self, now_ms: int) -> set[bytes]:
        """A store may need several calls to see all flows."""
        if self.datapath.offload:
            self.datapath.offload.before(now_ms)
        return {flow.key for _ in range(MAX_FLOWS) for flow in self.flows.expire(now_ms)}


def key(number: int) -> bytes:
    return (10 << 24 | number).to_bytes(4) + VIP.packed + b"\x10\0\0\x50"


def in_memory() -> Iterator[Kept]:
    services = Services(CONFIG, Random(1))
    flows = MemoryStore[BackendFlow](MAX_FLOWS, TIMEOUTS_MS, owner=attrgetter("backend"))
    datapath = Datapath(CONFIG, SECRETS, random=Random(1), services=services, flows=flows)
    yield Kept(datapath, flows, tuple(services.backends()))


def in_map() -> Iterator[Kept]:
    from balancer.offload.offload import beside
    from balancer.offload.program import Program

    try:
        with shared():
            program = Program(CONFIG, SECRETS)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    datapath, offload = beside(program, CONFIG, SECRETS, random=Random(1))
    offload.before(NOW_MS)
    yield Kept(datapath, datapath.flows, tuple(datapath.services.backends()))
    program.close()


@pytest.fixture(params=[in_memory, pytest.param(in_map, marks=pytest.mark.root)])
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    yield from request.param()


def test_a_glance_from_another_thread_sees_the_flows_and_leaves_them(kept: Kept) -> None:
    for number in range(5):
        assert kept.flows.insert(kept.made(number, of=number % 2))
    seen: list[tuple[bytes, int]] = []

    looking = threading.Thread(target=lambda: seen.extend(
        (flow.key, flow.backend.id) for flow in kept.flows.glance()))
    looking.start()
    looking.join()

    assert sorted(seen) == [(key(number), 1 + number % 2) for number in range(5)]
    assert len(kept.flows) == 5


def test_a_flow_is_found_as_it_was_inserted(kept: Kept) -> None:
    flow = BackendFlow(key(7), kept.backends[1], 2**32 - 1, 2**31, NOW_MS - 5_000_000)
    flow.state, flow.seen_ms, flow.goes_up = HALF_CLOSED, NOW_MS - 3, True

    assert kept.flows.insert(flow)

    found = kept.found(7)
    for name in ("key", "backend", "client_isn", "ts_shift", "created_ms", "state", "seen_ms",
                 "goes_up", "has_timestamps", "syn_seen"):
        assert getattr(found, name) == getattr(flow, name), name
    assert kept.flows.get(key(8)) is None


def test_a_flow_without_timestamps_is_found_as_it_was_inserted(kept: Kept) -> None:
    flow = BackendFlow(key(7), kept.backends[1], 1, 0, NOW_MS, has_timestamps=False)
    flow.note_syn(2**32 - 1)

    kept.flows.insert(flow)

    found = kept.found(7)
    assert (found.has_timestamps, found.syn_seen, found.noted_seq) == (False, True, 2**32 - 1)


@pytest.mark.parametrize("state", [NEW, TAKEN_OVER])
@pytest.mark.parametrize("least", [OPEN, DOUBTED])
def test_flows_that_have_shown_nothing_go_before_any_other(
    kept: Kept, state: int, least: int
) -> None:
    """Idle ones stay, and closing ones, however many come."""
    for number in range(MAX_FLOWS):
        kept.flows.insert(kept.made(number, age_ms=1000, state=OPEN if number < 40 else
                                    DOUBTED if number < 45 else state))

    for number in range(100, 150):
        kept.flows.insert(kept.made(number, state=NEW), least=least)

    assert {key(number) for number in range(45)} <= kept.keys()


def test_a_flow_that_is_taken_over_puts_out_no_other(kept: Kept) -> None:
    for number in range(MAX_FLOWS):
        kept.flows.insert(kept.made(number, age_ms=1000, state=NEW if number else TAKEN_OVER))

    taken = [kept.flows.insert(kept.made(number, state=TAKEN_OVER), least=TAKEN_OVER)
             for number in (100, 101)]

    assert taken == [True, True]
    assert {key(number) for number in range(1, MAX_FLOWS)} | {key(101)} == kept.keys()


def test_what_was_changed_in_a_flow_counts_once_it_is_told(kept: Kept) -> None:
    kept.flows.insert(kept.made(1))
    flow = kept.found(1)

    flow.ts_shift, flow.goes_up = 9, True
    kept.flows.update(flow)

    found = kept.found(1)
    assert (found.ts_shift, found.goes_up, found.client_isn) == (9, True, 1)


def test_a_flow_of_the_same_ends_takes_the_others_place(kept: Kept) -> None:
    kept.flows.insert(kept.made(1))
    changed = kept.made(1, state=HALF_CLOSED, of=1)
    changed.client_isn = 77

    assert kept.flows.insert(changed)

    assert (kept.found(1).client_isn, kept.found(1).state) == (77, HALF_CLOSED)
    assert len(kept.flows) == 1
    assert [kept.flows.count(backend) for backend in kept.backends] == [0, 1]


def test_a_flow_that_was_taken_out_is_gone(kept: Kept) -> None:
    for number in range(3):
        kept.flows.insert(kept.made(number))

    kept.flows.remove(kept.found(1))

    assert kept.flows.get(key(1)) is None
    assert kept.keys() == {key(0), key(2)}
    assert len(kept.flows) == kept.flows.count(kept.backends[0]) == 2


def test_a_flow_is_as_idle_as_its_last_packet_to_a_second(kept: Kept) -> None:
    kept.flows.insert(kept.made(1, age_ms=SEEN_MS - 1))
    kept.flows.insert(kept.made(2, age_ms=SEEN_MS))

    for number in (1, 2):
        kept.flows.touch(kept.found(number), NOW_MS)

    assert [kept.found(number).seen_ms for number in (1, 2)] == [NOW_MS - SEEN_MS + 1, NOW_MS]


def test_idle_flows_leave_by_the_timeout_of_their_state(kept: Kept) -> None:
    for number in range(30):
        kept.flows.insert(kept.made(number, of=number % 2))
    for number in range(10):
        kept.flows.move(kept.found(number), HALF_CLOSED, NOW_MS)
    for number in range(10, 15):
        kept.flows.move(kept.found(number), RESET, NOW_MS)

    early = kept.expired(NOW_MS + TIMEOUTS_MS[RESET])
    later = kept.expired(NOW_MS + TIMEOUTS_MS[HALF_CLOSED])

    assert early == {key(number) for number in range(10, 15)}
    assert later == {key(number) for number in range(10)}
    assert kept.keys() == {key(number) for number in range(15, 30)}
    assert [kept.flows.count(backend) for backend in kept.backends] == [7, 8]


def test_a_full_store_lets_the_one_closest_to_its_end_go_first(kept: Kept) -> None:
    for number in range(MAX_FLOWS - 1):
        kept.flows.insert(kept.made(number, age_ms=number, of=1))
    kept.flows.insert(kept.made(99, state=HALF_CLOSED))
    before = kept.keys()

    assert kept.flows.insert(kept.made(100))

    gone = before - kept.keys()
    assert key(99) in gone
    assert kept.flows.evicted == len(gone)
    assert [kept.flows.count(backend) for backend in kept.backends] == [1, MAX_FLOWS - len(gone)]


def test_a_flood_puts_out_no_open_flow(kept: Kept) -> None:
    for number in range(MAX_FLOWS):
        kept.flows.insert(kept.made(number, age_ms=number))

    taken = [kept.flows.insert(kept.made(number), least=DOUBTED) for number in range(100, 110)]

    assert not any(taken)
    assert kept.keys() == {key(number) for number in range(MAX_FLOWS)}
    assert kept.flows.evicted == 0


def test_a_flood_puts_out_flows_that_are_closing(kept: Kept) -> None:
    for number in range(MAX_FLOWS):
        kept.flows.insert(kept.made(number, state=HALF_CLOSED if number < 3 else OPEN))

    taken = [kept.flows.insert(kept.made(number), least=DOUBTED) for number in range(100, 110)]

    assert taken == [True] * 3 + [False] * 7
    assert {key(number) for number in range(3)} & kept.keys() == set()


def test_a_handoff_that_was_settled_never_comes_back(kept: Kept) -> None:
    """A client that had to be acknowledged is answered, and others' packets follow."""
    split = kept.datapath.modes["split"]
    assert isinstance(split, Split)
    request = b"GET /a/long/path HTTP/1.1\r\n\r\n"
    cookie_isn = cookie.encode(SECRETS, key(1), 7, cookie.epoch_at(NOW_MS), Offer(1460, True, 7))

    def give(number: int, seq: int, ack: int, payload: bytes = b"") -> Event:
        packet = tcp.emit(key(number), seq, ack, ACK | PSH, window=502, payload=payload)
        return kept.datapath.on_packet(packet, NOW_MS).reason

    for start in range(9):  # octet by octet, until it must be acknowledged
        give(1, 8 + start, cookie_isn + 1, request[start:start + 1])
    assert give(1, 17, cookie_isn + 1, request[9:]) is Event.HANDOFF
    repeated = split.deliveries.octets
    assert repeated > 0
    assert kept.found(1).goes_up
    assert give(1, 8 + len(request), cookie_isn + 500) is Event.FORWARDED
    for number in (2, 1, 3, 1):  # nobody's, and the flow's own again and again
        give(number, 8 + len(request), cookie_isn + 500)

    assert split.deliveries.octets == 0
    assert not kept.found(1).goes_up



@pytest.mark.root
def test_a_first_payload_that_goes_up_costs_one_call_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.bpf import libbpf

    making = in_map()
    kept = next(making)
    calls: list[str] = []
    real = libbpf.libbpf()

    class Counting:
        def __getattr__(self, name: str) -> object:
            calls.append(name)
            return getattr(real, name)

    def first(number: int) -> bytes:
        ends, epoch = key(number), cookie.epoch_at(NOW_MS)
        cookie_isn = cookie.encode(SECRETS, ends, 7, epoch, Offer(1460, True, 7))
        return tcp.emit(ends, 8, cookie_isn + 1, ACK | PSH, payload=b"GET / HTTP/1.1\r\n\r\n")

    kept.datapath.on_packet(first(2), NOW_MS)  # what is read but once has been
    for module in ("common.bpf.maps", "common.bpf.objects"):
        monkeypatch.setattr(f"{module}.libbpf", Counting)
    packet = first(1)

    opened = kept.datapath.on_packet(packet, NOW_MS).reason, len(calls)
    again = kept.datapath.on_packet(packet, NOW_MS).reason, len(calls)
    once_more = kept.datapath.on_packet(packet, NOW_MS).reason, len(calls)

    assert opened == (Event.HANDOFF, 1), calls
    assert again == (Event.FORWARDED, 2)  # it is noted as repeated
    assert once_more == (Event.FORWARDED, 2)  # what is merely looked up costs none
    next(making, None)
