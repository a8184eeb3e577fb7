"""The flow table that the balancer's program and its daemon share."""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from random import Random

import pytest

from balancer import config
from balancer.flows import DOUBTED, HALF_CLOSED, OPEN, BackendFlow, timeouts_ms
from balancer.keys.request import KeySpec
from balancer.offload.flow_map import CROWDED, ENTERED, TABLE_FULL, Entry, FlowMap, key_of
from balancer.offload.flow_store import MapStore
from balancer.offload.maps import place_of
from balancer.offload.program import Program
from balancer.services import Services
from common.bpf import BpfError, build
from common.bpf.objects import Object
from common.cluster.cookie import Secrets
from tests.bpf.loaded import shared

pytestmark = pytest.mark.root

MAX_FLOWS = 50
NOW_MS = 1_700_000_000_000
TIMEOUTS_MS = timeouts_ms(config.Timeouts())
BUCKETS = 4
COUNTS = 1024  # buckets' room for the counts of backends' flows
# Without settings every flow has been idle for too long, so each may go for another.
CHURN = """
#include "balancer/offload/bpf/flows.h"

char LICENSE[] SEC("license") = "GPL";

static long step(__u32 index, __u32 *written)
{
	__u32 number = bpf_get_prandom_u32() % 64 + 1;
	struct flow made = {
		.ends.saddr = number, .client_isn = number * 7, .number = number * 11,
		.tag.backend = 1,
	};
	struct table *table = get_table();

	if (enter_flow(&made, hash_of(&made.ends, 0), 1000, IDLE) == ENTERED)
		(*written)++;
	if (table && index % 3 == 0)
		remove_from(table, &made.ends, 0);
	return 0;
}

SEC("syscall")
int churn(void *ctx)
{
	__u32 written = 0;

	bpf_loop(200000, step, &written, 0);
	return written;
}
"""


class Table:
    """The flow table of a loaded program, and one backend."""

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        service = config.Service(
            name="web", vip=IPv4Address("192.168.33.10"), port=80, dscp=3,
            key=KeySpec.parse("http.path"),
            backends=(config.Backend(1, IPv4Address("192.168.33.20")),),
        )
        configured = config.Config(services=(service,), max_flows=max_flows)
        try:
            with shared():
                self.program = Program(configured, Secrets(bytes(16)))
        except (BpfError, build.BuildError) as error:
            pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
        services = Services(configured, Random(1))
        (self.backend,) = services.backends()
        self.flows = MapStore(self.program.flows, TIMEOUTS_MS, services.find)
        self.flows.now_ms = NOW_MS

    def insert(
        self, number: int, *, age_ms: int = 0, state: int = OPEN, spare: bool = False
    ) -> bool:
        """A flow that was last seen `age_ms` ago. Returns: whether there was room."""
        flow = BackendFlow(key(number), self.backend, number, 0, NOW_MS - age_ms)
        flow.state = state
        return self.flows.insert(flow, least=DOUBTED if spare else OPEN)

    def walk(self, now_ms: int) -> None:
        """Through the whole table."""
        for _ in range(MAX_FLOWS):
            self.flows.expire(now_ms)

    def keys(self) -> set[bytes]:
        return {key_of(flow) for chunk in self.program.flows.chunks() for flow in chunk}

    def enter(
        self, number: int, *, backend: int = 1, state: int = OPEN, now_ms: int = NOW_MS
    ) -> int:
        """As the program does."""
        entry = Entry(key(number), number, 0, now_ms, now_ms, 0, backend, state)
        return self.program.flows.enter(entry.pack(), now_ms)

    def fill(self) -> int:
        """Enter flows until one finds no place. Returns: its number."""
        return next(number for number in count(1) if self.enter(number) != ENTERED)


def key(number: int) -> bytes:
    return number.to_bytes(4) + bytes((192, 168, 33, 10)) + b"\x10\0\0\x50"


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.program.close()


def size_narrow(program_file: Object, max_flows: int) -> None:
    program_file.set_max_entries("flows", BUCKETS + 1 + COUNTS)
    program_file.set_variable("bucket_mask", BUCKETS - 1)
    program_file.set_variable("max_flows", max_flows)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """With fewer places than flows are allowed."""
    monkeypatch.setattr(FlowMap, "size", size_narrow)
    made = Table()
    yield made
    made.program.close()


def test_a_full_table_lets_those_go_that_are_closest_to_their_end(table: Table) -> None:
    for number in range(MAX_FLOWS - 1):
        table.insert(number, age_ms=number)
    table.insert(99, state=HALF_CLOSED)
    before = table.keys()

    assert table.insert(100)
    first = before - table.keys()
    assert table.insert(101)

    assert first == {key(99)}
    assert before - table.keys() == {key(number) for number in (99, 48, 47, 46, 45, 44)}
    assert table.flows.evicted == 6
    assert table.flows.get(key(100)) is not None


def test_what_the_program_has_entered_is_counted(table: Table) -> None:
    for number in range(7):
        table.enter(number)

    assert len(table.flows) == table.flows.count(table.backend) == 7


def test_a_flow_that_has_lived_on_since_it_was_met_stays(table: Table) -> None:
    table.insert(1, age_ms=TIMEOUTS_MS[OPEN])
    seen = BackendFlow(key(1), table.backend, 1, 0, NOW_MS - TIMEOUTS_MS[OPEN])
    table.enter(1)

    assert not table.flows._has_gone(seen)

    assert table.keys() == {key(1)}


def test_a_walk_makes_nothing_of_the_flows_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times a second the daemon is at it, and whatever else has the processor waits."""
    table = Table(5000)
    for number in range(3000):
        table.enter(number)
    table.insert(5000, age_ms=TIMEOUTS_MS[OPEN])
    made: list[bytes] = []
    make = MapStore._flow
    monkeypatch.setattr(MapStore, "_flow", lambda store, octets: made.append(octets) or make(
        store, octets))

    gone = []
    while not table.flows.walks:
        gone += table.flows.expire(NOW_MS)

    assert [flow.client_isn for flow in gone] == [5000]
    assert {key_of(octets) for octets in made} == {key(5000)}
    table.program.close()


def test_flows_of_a_backend_that_is_configured_no_more_leave(table: Table) -> None:
    table.enter(1, backend=9)

    assert table.flows.get(key(1)) is None
    table.walk(NOW_MS)

    assert not table.keys()


def test_an_entry_is_found_as_it_was_entered(table: Table) -> None:
    entry = Entry(key(7), 2**32 - 1, 2**31, NOW_MS - 5_000_000_000, NOW_MS + 3, 63, 127, OPEN, True,
                  False, True)

    table.program.flows.enter(entry.pack(), NOW_MS)

    found = table.program.flows.lookup(key(7))
    assert found is not None
    assert Entry.unpack(found, NOW_MS) == entry
    assert table.program.flows.lookup(key(8)) is None


def test_a_flow_that_is_entered_again_is_changed(table: Table) -> None:
    table.enter(1)
    changed = Entry(key(1), 9, 9, NOW_MS, NOW_MS, 0, 1, HALF_CLOSED)

    assert table.program.flows.enter(changed.pack(), NOW_MS) == ENTERED

    assert [flow for chunk in table.program.flows.chunks() for flow in chunk] == [changed.pack()]
    assert len(table.program.flows) == 1


def test_a_table_holds_as_many_flows_as_it_is_to(table: Table) -> None:
    results = [table.enter(number) for number in range(MAX_FLOWS + 5)]

    assert results == [ENTERED] * MAX_FLOWS + [TABLE_FULL] * 5
    assert table.program.flows.delete(key(3))
    assert not table.program.flows.delete(key(3))
    assert table.enter(99) == ENTERED


def test_hardly_any_flow_finds_its_places_taken() -> None:
    table = Table(max_flows=2048)

    results = [table.enter(number) for number in range(2048)]

    assert results.count(CROWDED) <= 20
    assert table.keys() == {key(number) for number, result in enumerate(results) if not result}
    table.program.close()


def test_where_all_places_are_taken_the_one_closest_to_its_end_goes(narrow: Table) -> None:
    number = narrow.fill()
    before = narrow.keys()

    assert not narrow.insert(number, spare=True)
    assert narrow.keys() == before
    assert narrow.insert(number)

    assert len(before - narrow.keys()) == 1
    assert narrow.keys() - before == {key(number)}
    assert (narrow.flows.evicted, len(narrow.program.flows)) == (1, len(before))


def test_where_all_places_are_taken_a_closing_flow_goes_first(narrow: Table) -> None:
    number = narrow.fill()
    for other in range(2, number):
        narrow.enter(other, state=HALF_CLOSED)

    assert narrow.insert(number, spare=True)

    gone = {key(other) for other in range(1, number)} - narrow.keys()
    assert len(gone) == 1
    assert key(1) not in gone


def test_a_flow_in_anothers_place_is_counted_for_its_own_backend(narrow: Table) -> None:
    number = narrow.fill()
    before = len(narrow.program.flows)

    entered = narrow.enter(number, backend=2, now_ms=NOW_MS + TIMEOUTS_MS[OPEN])

    assert entered == ENTERED
    counts = [narrow.program.flows.count(place_of(0, backend)) for backend in (1, 2)]
    assert counts == [before - 1, 1]


def test_where_all_places_are_taken_idle_flows_need_no_daemon_to_go(narrow: Table) -> None:
    number = narrow.fill()

    assert narrow.enter(number, now_ms=NOW_MS + TIMEOUTS_MS[OPEN] - 1) == CROWDED
    assert narrow.enter(number, now_ms=NOW_MS + TIMEOUTS_MS[OPEN]) == ENTERED


def test_flows_move_to_a_table_of_another_size(table: Table) -> None:
    larger = Table(max_flows=100_000)
    for number in range(MAX_FLOWS):
        table.enter(number)
    older = Entry(key(3), 1234, 0, NOW_MS, NOW_MS, 0, 1, HALF_CLOSED).pack()
    larger.program.flows.enter(older, NOW_MS)

    for replace in (False, True):
        old = table.program.object.map("flows")
        larger.program.flows.take_over(old, replace)
        old.close()

        assert larger.keys() == table.keys()
        assert (larger.program.flows.lookup(key(3)) == older) is not replace
    larger.program.close()


def test_writers_on_several_processors_spoil_no_entry(
    compiled: Callable[[str], Path]
) -> None:
    """All write into the same few places, and each flow's fields must tell of one writer."""
    with Object(compiled(CHURN)) as program_file:
        size_narrow(program_file, 1000)
        program_file.load()
        churn, table = program_file.program("churn"), program_file.map("flows")
        with ThreadPoolExecutor(4) as pool:
            written = list(pool.map(lambda _: churn.call(ctypes.create_string_buffer(8)), range(8)))
        flow, header = (program_file.btf.layout(name) for name in ("flow", "table"))
        buckets = [table.value.pack(bucket) for _, bucket in table.items()]
        flows = [bucket[place:place + flow.size] for bucket in buckets[:BUCKETS]
                 for place in range(0, len(bucket), flow.size)]
        counted = header.unpack(buckets[BUCKETS]).count
        table.close()

    assert min(written) > 10_000  # a place that stays claimed would soon let none in
    entries = [Entry.unpack(octets, NOW_MS) for octets in flows]
    there = [entry for entry in entries if entry.backend or entry.service]
    assert counted == len(there) > 0
    assert {entry.backend for entry in there} == {1}  # no place is left claimed
    for entry in there:
        number = int.from_bytes(entry.key[:4], "little")
        assert entry.key[4:] == bytes(8)
        assert (entry.client_isn, entry.number) == (number * 7, number * 11)
