"""Which backend a key gets, how evenly, and what moves when a backend leaves."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import mmh3
import pytest

from balancer.pool import schedule
from balancer.pool.schedule import (
    TABLE_SIZE,
    BoundedLoad,
    LeastFlows,
    Maglev,
    Rendezvous,
    RoundRobin,
    hash_key,
    make_scheduler,
    moved_share,
    turns_of,
)
from balancer.pool.schedulers import SCHEDULERS


class Backend(NamedTuple):
    id: int
    weight: int = 1


def equal(count: int) -> list[Backend]:
    return [Backend(number) for number in range(1, count + 1)]


def weighted(*weights: int) -> list[Backend]:
    return [Backend(index + 1, weight) for index, weight in enumerate(weights)]


KEYS = [f"/page/{number}.html".encode() for number in range(4000)]
# Keys as short as an address are hashed in one block: they must spread as well.
ADDRESSES = [bytes((10, 0, number >> 8, number & 255)) for number in range(4000)]


def shares(scheduler: schedule.Scheduler, keys: Sequence[bytes] = KEYS) -> dict[int | None, float]:
    counts = Counter(scheduler.pick(key) for key in keys)
    return {backend_id: count / len(keys) for backend_id, count in counts.items()}


# --- the hash ---

@pytest.mark.parametrize("key, expected", [
    (b"", 0),
    (b"test", 0xBA6BD213),
    (b"Hello, world!", 0xC0363E43),
    (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723),
])
def test_the_hash_is_murmur3_of_32_bits_with_seed_0(key: bytes, expected: int) -> None:
    assert hash_key(key) == expected


def test_the_slot_can_be_had_without_a_division() -> None:
    """As the eBPF engine has it."""
    for number in (0, 1, 65535, 65536, 65537, 0x1FFFF, 0xFFFF0000, 0xFFFFFFFF, 0xBA6BD213):
        slot = (number & 0xFFFF) - (number >> 16)

        assert slot + (TABLE_SIZE if slot < 0 else 0) == number % TABLE_SIZE


# --- Maglev ---

def table_of_the_paper(ids: Sequence[int]) -> list[int]:
    """Eisenbud et al., §3.4, pseudocode 1, with the permutations written out."""
    permutations = []
    for backend_id in ids:
        name = b"backend %d" % backend_id
        offset = mmh3.hash(name, 1, signed=False) % TABLE_SIZE
        skip = mmh3.hash(name, 2, signed=False) % (TABLE_SIZE - 1) + 1
        permutations.append([(offset + j * skip) % TABLE_SIZE for j in range(TABLE_SIZE)])
    entry = [-1] * TABLE_SIZE
    remaining = [iter(permutation) for permutation in permutations]
    filled = 0
    while True:
        for index, candidates in enumerate(remaining):
            entry[next(slot for slot in candidates if entry[slot] < 0)] = ids[index]
            filled += 1
            if filled == TABLE_SIZE:
                return entry


@pytest.mark.parametrize("ids", [(1,), (1, 2), (3, 50, 127)])
def test_the_table_is_that_of_the_paper(ids: tuple[int, ...]) -> None:
    assert list(Maglev([Backend(backend_id) for backend_id in ids]).table) == \
        table_of_the_paper(ids)


PINNED_MAGLEV = [3, 3, 3, 3, 3, 1, 1, 2, 2, 3, 1, 3]
PINNED_RENDEZVOUS = [3, 3, 3, 3, 1, 3, 3, 3, 1, 3, 2, 1]  # by slots since programs choose, too


def test_no_release_moves_a_key() -> None:
    """Balancers of different versions serve one cluster: these choices stay for ever."""
    maglev, rendezvous = Maglev(weighted(1, 2, 3)), Rendezvous(weighted(1, 2, 3))

    assert [maglev.pick(key) for key in KEYS[:12]] == PINNED_MAGLEV
    assert [rendezvous.pick(key) for key in KEYS[:12]] == PINNED_RENDEZVOUS



@pytest.mark.parametrize("hashing", [Maglev, Rendezvous])
def test_the_order_of_the_list_does_not_matter(hashing: type[Maglev | Rendezvous]) -> None:
    backends = weighted(1, 3, 2, 0, 5)
    shuffled = hashing([backends[index] for index in (3, 1, 4, 0, 2)])
    listed = hashing(backends)

    assert [listed.pick(key) for key in KEYS] == [shuffled.pick(key) for key in KEYS]


@pytest.mark.parametrize("count", [2, 3, 10, 127])
def test_the_slots_are_spread_evenly(count: int) -> None:
    slots = Counter(Maglev(equal(count)).table)

    assert len(slots) == count
    assert max(slots.values()) - min(slots.values()) <= 1


def test_the_slots_follow_the_weights() -> None:
    slots = Counter(Maglev(weighted(1, 2, 5)).table)

    assert [slots[backend_id] / TABLE_SIZE for backend_id in (1, 2, 3)] == \
        pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.001)


@pytest.mark.parametrize("count, leaving_id, bound", [
    (2, 1, 0), (3, 2, 0.001), (5, 5, 0.002), (10, 1, 0.004), (11, 11, 0.013), (32, 7, 0.006),
    (127, 1, 0.008), (127, 64, 0.008), (127, 127, 0.008),
])
def test_hardly_any_other_key_moves_when_a_backend_leaves(
    count: int, leaving_id: int, bound: float
) -> None:
    assert moved_share(equal(count), leaving_id) <= bound


def test_hardly_any_other_key_moves_when_a_heavy_backend_leaves() -> None:
    assert moved_share(weighted(1, 1, 1, 10), 4) < 0.001


def test_the_share_that_moves_is_that_of_the_keys() -> None:
    backends = equal(11)
    before, after = Maglev(backends), Maglev(backends[:-1])
    keys = [b"%d" % number for number in range(50_000)]
    stayed = [key for key in keys if before.pick(key) != 11]
    moved = sum(before.pick(key) != after.pick(key) for key in stayed) / len(stayed)

    assert moved == pytest.approx(moved_share(backends, 11), abs=0.002)


def test_the_largest_table_is_built_within_a_second() -> None:
    begun = time.process_time()

    Maglev(equal(127))

    assert time.process_time() - begun < 1


# --- rendezvous ---

@pytest.mark.parametrize("keys", [KEYS, ADDRESSES])
@pytest.mark.parametrize("hashing", [Maglev, Rendezvous])
def test_keys_follow_the_weights(
    hashing: type[Maglev | Rendezvous], keys: Sequence[bytes]
) -> None:
    found = shares(hashing(weighted(1, 2, 5)), keys)

    assert [found[backend_id] for backend_id in (1, 2, 3)] == \
        pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)


def test_rendezvous_moves_only_the_keys_of_the_backend_that_leaves() -> None:
    backends = weighted(1, 2, 3, 4)
    before, after = Rendezvous(backends), Rendezvous(backends[1:])

    assert all(after.pick(key) == before.pick(key) for key in KEYS if before.pick(key) != 1)


def test_rendezvous_picks_the_first_of_its_order() -> None:
    rendezvous = Rendezvous(weighted(1, 2, 3, 0))

    for key in KEYS[:200]:
        assert rendezvous.pick(key) == next(rendezvous.order(key))


def test_rendezvous_has_a_table_of_its_choices() -> None:
    rendezvous = Rendezvous(weighted(1, 2, 3, 0))

    assert len(rendezvous.table) == TABLE_SIZE
    assert [rendezvous.table[hash_key(key) % TABLE_SIZE] for key in KEYS[:200]] == \
        [rendezvous.pick(key) for key in KEYS[:200]]
    assert not Rendezvous(weighted(0)).table


# --- turns ---

@pytest.mark.parametrize("weights", [(1,), (2, 2), (1, 2, 3), (5, 0, 10), (7, 1, 1), (4, 6)])
def test_turns_are_a_round_of_round_robins(weights: tuple[int, ...]) -> None:
    backends = weighted(*weights)
    turn = RoundRobin(backends)
    turns = turns_of(backends, TABLE_SIZE)

    assert turns * 3 == [turn.pick(b"") for _ in range(3 * len(turns))]
    assert len(turns) == sum(weights) // math.gcd(*weights)


def test_there_are_no_turns_beyond_the_limit() -> None:
    assert len(turns_of(weighted(2, 3), 5)) == 5
    assert turns_of(weighted(2, 3), 4) == []
    assert turns_of(weighted(0), 4) == []


# --- bounded load ---

@pytest.mark.parametrize("factor", [100, 125, 200])
@pytest.mark.parametrize("name", schedule.HASHING)
def test_no_backend_gets_more_than_its_bounded_share(name: str, factor: int) -> None:
    weights = {1: 1, 2: 2, 3: 5}
    flows = Counter[int]()
    scheduler = make_scheduler(
        name, weighted(1, 2, 5), hash_balance_factor=factor, random=Random(0))
    for number in range(2000):
        chosen = scheduler.pick(b"/hot" if number % 4 else KEYS[number], flows.__getitem__)
        assert chosen is not None
        flows[chosen] += 1
        bound = -(-factor * weights[chosen] * flows.total() // (100 * 8))  # rounded up

        assert flows[chosen] <= bound


@pytest.mark.parametrize("name", schedule.HASHING)
def test_below_the_bound_every_key_keeps_its_backend(name: str) -> None:
    plain = make_scheduler(name, equal(5), random=Random(0))
    bounded = make_scheduler(
        name, equal(5), hash_balance_factor=150, random=Random(0))

    even = dict.fromkeys(range(1, 6), 1000).__getitem__
    assert [bounded.pick(key, even) for key in KEYS] == [plain.pick(key) for key in KEYS]


@pytest.mark.parametrize("hashing", [Maglev, Rendezvous])
def test_a_full_backends_keys_go_on_in_their_own_order(
    hashing: type[Maglev | Rendezvous]
) -> None:
    scheduler = hashing(equal(5))
    bounded = BoundedLoad(scheduler, equal(5), 100)
    followers = set()
    for key in KEYS[:200]:
        order = list(scheduler.order(key))

        assert sorted(order) == [1, 2, 3, 4, 5]
        assert bounded.pick(key, {**dict.fromkeys(order, 0), order[0]: 10}.__getitem__) == order[1]
        if order[0] == 1:
            followers.add(order[1])

    assert followers == {2, 3, 4, 5}  # what is too much is spread, not pushed on to one


def test_a_share_that_is_a_whole_number_is_not_rounded_up() -> None:
    """110 % of 1/11 of 10 flows is 1: who has one flow is passed over."""
    flows = dict.fromkeys(range(1, 12), 1)
    del flows[11], flows[10]
    bounded = BoundedLoad(Rendezvous(equal(11)), equal(11), 110)

    picks = {bounded.pick(key, lambda backend_id: flows.get(backend_id, 0)) for key in KEYS[:500]}
    assert picks == {10, 11}


def test_a_weight_too_small_for_a_slot_still_counts_when_the_others_are_full() -> None:
    backends = weighted(65535, 65535, 65535, 1)
    bounded = BoundedLoad(Maglev(backends), backends, 100)

    assert 4 not in Maglev(backends).table
    assert bounded.pick(b"/", lambda backend_id: 65535 if backend_id < 4 else 0) == 4


# --- the others ---

def test_round_robin_spreads_the_heavy_ones_turns() -> None:
    round_robin = RoundRobin(weighted(5, 1, 1))

    assert [round_robin.pick(b"") for _ in range(14)] == [1, 1, 2, 1, 3, 1, 1] * 2


def test_random_follows_the_weights_and_its_own_source() -> None:
    def picks() -> list[int | None]:
        scheduler = make_scheduler("random", weighted(1, 3, 0), random=Random(7))
        return [scheduler.pick(b"") for _ in range(4000)]

    assert picks() == picks()
    assert Counter(picks())[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(picks()) == {1, 2}


def test_least_flows_goes_by_flows_for_each_weight() -> None:
    flows = {1: 0, 2: 0, 3: 0}
    scheduler = LeastFlows(weighted(1, 2, 1))
    for _ in range(400):
        chosen = scheduler.pick(b"", flows.__getitem__)
        assert chosen is not None
        flows[chosen] += 1

    assert flows == {1: 100, 2: 200, 3: 100}


def test_least_flows_takes_the_lowest_id_among_equals() -> None:
    assert LeastFlows([Backend(9), Backend(4)]).pick(b"", lambda backend_id: 0) == 4


@pytest.mark.parametrize("factor", [None, 150])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_backend_of_weight_0_gets_no_new_flows(name: str, factor: int | None) -> None:
    def made(backends: Sequence[Backend]) -> schedule.Scheduler:
        return make_scheduler(name, backends, hash_balance_factor=factor, random=Random(1))

    assert {made(weighted(0, 1, 0)).pick(key) for key in KEYS[:50]} == {2}
    assert made(weighted(0, 0)).pick(b"/") is None
    assert made([]).pick(b"/") is None
    assert made(weighted(0)).explain(b"/").backend_id is None


def test_a_scheduler_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="one of maglev, rendezvous"):
        make_scheduler("magic", equal(2), random=Random(0))


# --- explain ---

@pytest.mark.parametrize("name", schedule.HASHING)
def test_the_runner_up_is_who_gets_the_key_if_the_backend_leaves(name: str) -> None:
    backends = equal(4)
    scheduler = make_scheduler(name, backends, random=Random(0))
    for key in KEYS[:20]:
        told = scheduler.explain(key)
        rest = [backend for backend in backends if backend.id != told.backend_id]

        assert told.key_hash == hash_key(key)
        assert told.slot == hash_key(key) % TABLE_SIZE
        assert told.backend_id == scheduler.pick(key)
        assert told.runner_up_id == make_scheduler(name, rest, random=Random(0)).pick(key)


def test_the_last_backend_has_no_runner_up() -> None:
    assert Maglev(equal(1)).explain(b"/")[2:] == (1, None)
    assert Rendezvous(equal(1)).explain(b"/")[2:] == (1, None)


@pytest.mark.parametrize("name", ["round-robin", "random", "least-flows"])
def test_without_a_key_there_is_nothing_to_explain(name: str) -> None:
    assert make_scheduler(name, equal(2), random=Random(0)).explain(b"/") == (None,) * 4


@pytest.mark.parametrize("before, after", [
    ({1: 1, 2: 1, 3: 2, 4: 1}, {1: 1, 2: 0, 3: 2, 4: 1}),
    ({1: 1, 2: 0, 3: 2, 4: 1}, {1: 1, 2: 1, 3: 2, 4: 1}),
    ({1: 1, 2: 1, 3: 2, 4: 1}, {1: 16, 2: 3, 3: 32, 4: 16}),  # a ramp
    ({1: 16, 2: 3, 3: 32, 4: 16}, {1: 16, 2: 9, 3: 32, 4: 16}),
    ({1: 1, 2: 1, 3: 1}, {4: 1, 5: 1}),  # too far off
    ({1: 0}, {1: 1, 2: 1}),
    ({1: 1, 2: 1}, {1: 0, 2: 0}),
])
def test_a_table_that_follows_another_is_as_one_made_anew(
    before: dict[int, int], after: dict[int, int]
) -> None:
    shares, wanted = ([Backend(*each) for each in some.items()] for some in (before, after))
    new = Rendezvous(wanted)

    new.follow(shares, Rendezvous(shares).table)

    assert new.table == Rendezvous(wanted).table


def test_a_table_that_follows_another_is_made_of_few_scores(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Rendezvous(equal(8)), Rendezvous(equal(8)[1:])
    table, scored, score = old.table, Counter[int](), Rendezvous._score

    def counted(name: bytes, backend: Backend) -> float:
        scored[backend.id] += 1
        return score(name, backend)

    monkeypatch.setattr(Rendezvous, "_score", staticmethod(counted))
    new.follow(equal(8), table)

    assert set(new.table) == set(range(2, 9))
    assert scored.total() == 7 * table.count(1)
