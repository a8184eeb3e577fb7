"""The flow table that the balancer's program and its daemon share."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from balancer import config, fast
from balancer.datapath import ServiceState
from balancer.fast_maps import FLOW, MapFlows
from balancer.flows import HALF_CLOSED, OPEN, Backend, BackendFlow
from balancer.request import KeySpec
from common.bpf import BpfError, build
from common.cookie import Secrets

pytestmark = pytest.mark.root

MAX_FLOWS = 50
NOW_MS = 1_700_000_000_000
TIMEOUTS_MS = (900_000, 120_000, 10_000)


class Table:
    """The flow table of a loaded program, and one backend."""

    def __init__(self) -> None:
        service = config.Service(
            name="web", vip=IPv4Address("192.168.33.10"), port=80, dscp=3,
            key=KeySpec.parse("http.path"),
            backends=(config.Backend(1, IPv4Address("192.168.33.20")),),
        )
        configured = config.Config(services=(service,), max_flows=MAX_FLOWS)
        try:
            self.program = fast.Program(configured, Secrets(bytes(16)))
        except (BpfError, build.BuildError) as error:
            pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
        self.backend: Backend = ServiceState(service, 24, None).backends[1]  # type: ignore[arg-type]
        self.removed: list[bytes] = []
        self.flows = MapFlows(
            self.program.flows, TIMEOUTS_MS, {(0, 1): self.backend}, lambda backend: 0,
            lambda flow: self.removed.append(flow.key),
        )
        self.flows.now_ms = NOW_MS

    def insert(
        self, number: int, *, age_ms: int = 0, state: int = OPEN, spare: bool = False
    ) -> bool:
        """A flow that was last seen `age_ms` ago. Returns: whether there was room."""
        flow = BackendFlow(key(number), self.backend, number, 0, NOW_MS - age_ms)
        flow.state = state
        return self.flows.insert(flow, spares_open=spare)

    def walk(self, now_ms: int) -> None:
        """Through the whole table."""
        for _ in range(MAX_FLOWS):
            self.flows.expire(now_ms)

    def keys(self) -> set[bytes]:
        return set(self.program.flows.keys())


def key(number: int) -> bytes:
    return number.to_bytes(4) + bytes((192, 168, 33, 10)) + b"\x10\0\0\x50"


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.program.close()


def test_a_full_table_lets_those_go_that_are_closest_to_their_end(table: Table) -> None:
    for number in range(MAX_FLOWS - 1):
        table.insert(number, age_ms=number)
    table.insert(99, state=HALF_CLOSED)

    assert table.insert(100)

    assert set(table.removed) == {key(number) for number in (99, 48, 47, 46, 45)}
    assert table.flows.evicted == 5
    assert table.flows.get(key(100)) is not None


def test_a_flood_puts_out_no_open_flow(table: Table) -> None:
    for number in range(MAX_FLOWS):
        table.insert(number, age_ms=number)

    taken = [table.insert(number, spare=True) for number in range(100, 110)]

    assert not any(taken)
    assert table.keys() == {key(number) for number in range(MAX_FLOWS)}


def test_a_flood_puts_out_flows_that_are_closing(table: Table) -> None:
    for number in range(MAX_FLOWS):
        table.insert(number, state=HALF_CLOSED if number < 3 else OPEN)

    taken = [table.insert(number, spare=True) for number in range(100, 110)]

    assert taken == [True] * 3 + [False] * 7
    assert set(table.removed) == {key(number) for number in range(3)}


def test_idle_flows_leave_and_the_others_are_counted(table: Table) -> None:
    for number in range(MAX_FLOWS):
        table.insert(number, state=HALF_CLOSED if number < 20 else OPEN)

    table.walk(NOW_MS + TIMEOUTS_MS[HALF_CLOSED])

    assert set(table.removed) == {key(number) for number in range(20)}
    assert len(table.flows) == table.backend.flows == 30


def test_what_the_program_has_entered_is_counted(table: Table) -> None:
    for number in range(7):
        table.program.flows.update(key(number), FLOW.pack(NOW_MS, NOW_MS, 7, 0, 0, 1, OPEN, 0))

    table.walk(NOW_MS)

    assert len(table.flows) == table.backend.flows == 7


def test_a_flow_that_has_lived_on_since_it_was_met_stays(table: Table) -> None:
    table.insert(1, age_ms=TIMEOUTS_MS[OPEN])
    seen = BackendFlow(key(1), table.backend, 1, 0, NOW_MS - TIMEOUTS_MS[OPEN])
    table.program.flows.update(key(1), FLOW.pack(NOW_MS, NOW_MS, 1, 0, 0, 1, OPEN, 0))

    assert not table.flows._has_gone(seen)

    assert table.keys() == {key(1)}


def test_flows_of_a_backend_that_is_configured_no_more_leave(table: Table) -> None:
    table.program.flows.update(key(1), FLOW.pack(NOW_MS, NOW_MS, 7, 0, 0, 9, OPEN, 0))

    assert table.flows.get(key(1)) is None
    table.walk(NOW_MS)

    assert not table.keys()
