"""Choosing a backend for a key.

Tables are built from the backends' stable ids, never from the order of a list:
the same backends give the same choices, on every balancer and after every
reload. A key's slot, which Maglev and rendezvous choose by, is its hash
(balancer/pool/hashing.py) modulo 65537.

When one of N backends leaves, Maglev moves that backend's keys and a small share
of the others' keys, which `moved_share` measures. With equal weights that is
nothing for N = 2, about 0.3 % for 10, 0.4 % for 32 and 0.6 % for 127 (ids 1..N,
medians over who leaves); the greatest seen, 1.2 %, is that of id 11 out of 11.
Rendezvous moves no other key at all.

Source: Eisenbud et al., "Maglev", NSDI 2016, §3.4; Thaler and Ravishankar,
        "Using name-based mappings to increase hit rates", 1998 (rendezvous);
        Mirrokni et al., "Consistent hashing with bounded loads", 2018.
Twin:   balancer/offload/bpf/schedule.h reads `table` and `turns_of`.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from random import Random as Randomness
from typing import NamedTuple, Protocol

import mmh3

from balancer.pool.hashing import Hash, hash_by, hash_key
from balancer.pool.schedulers import HASHING, SCHEDULERS

TABLE_SIZE = 65537
_OFFSET_SEED, _SKIP_SEED = 1, 2

Load = Callable[[int], int]


def _no_load(backend_id: int) -> int:
    return 0


class BackendLike(Protocol):
    """What a scheduler needs of a backend. weight 0: no new flows."""

    @property
    def id(self) -> int: ...
    @property
    def weight(self) -> int: ...


class Explanation(NamedTuple):
    """How a key finds its backend; ids are None where there is none.

    key_hash, slot: None where the scheduler uses none.
    runner_up_id:   the choice if that backend left.
    """

    key_hash: int | None
    slot: int | None
    backend_id: int | None
    runner_up_id: int | None


class Scheduler(Protocol):
    """Picks a backend id for a key; None when every backend has weight 0.

    load: how many flows a backend of that id has now.
    """

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None: ...
    def explain(self, key: bytes) -> Explanation: ...


class Maglev:
    """A table of backend ids, as even as the weights ask, that hardly changes with its backends.

    hash_of: keys. table: TABLE_SIZE ids, or empty without a backend.
    """

    def __init__(self, backends: Sequence[BackendLike], hash_of: Hash = hash_key) -> None:
        self._backends = _eligible(backends)
        self._hash_of = hash_of
        self.table = _fill_table(self._backends)

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """The id in the key's slot."""
        return self.table[self._hash_of(key) % TABLE_SIZE] if self.table else None

    def order(self, key: bytes) -> Iterator[int]:
        """Every backend once, in the order in which this key would try them."""
        if not self.table:
            return
        slot = self._hash_of(key) % TABLE_SIZE
        seen: set[int] = set()
        for step in range(TABLE_SIZE):
            backend_id = self.table[(slot + step) % TABLE_SIZE]
            if backend_id not in seen:
                seen.add(backend_id)
                yield backend_id
            if len(seen) == len(self._backends):
                return
        # A weight too small beside the others' for a slot still counts when those are full.
        yield from (backend.id for backend in self._backends if backend.id not in seen)

    def explain(self, key: bytes) -> Explanation:
        """Hash, slot, backend, and the choice of the table without that backend."""
        key_hash = self._hash_of(key)
        chosen = self.pick(key)
        rest = Maglev([backend for backend in self._backends if backend.id != chosen],
                      self._hash_of)
        return Explanation(key_hash, key_hash % TABLE_SIZE, chosen, rest.pick(key))


class Rendezvous:
    """The backend with the highest score for the key's slot; only a leaving backend's keys move.

    Slots are Maglev's, so that programs choose by either's table alike.
    """

    def __init__(self, backends: Sequence[BackendLike], hash_of: Hash = hash_key) -> None:
        self._backends = _eligible(backends)
        self._hash_of = hash_of

    @cached_property
    def table(self) -> array:
        """TABLE_SIZE ids, or none without a backend. Each takes some 0.3 µs for each backend."""
        slots = range(TABLE_SIZE) if self._backends else ()
        return array("H", (self._best(slot) for slot in slots))

    def follow(self, before: Sequence[BackendLike], table: Sequence[int]) -> None:
        """Have the table made of another one, that of `before`: fast where few shares differ."""
        differ = _differing(_eligible(before), self._backends)
        if not self._backends or not table or len(differ) > len(self._backends) // 2:
            return
        rivals = [backend for backend in self._backends if backend.id in differ]
        weights = {backend.id: backend for backend in self._backends}
        self.table = array("H", (
            self._best(slot) if chosen in differ
            else self._best(slot, [weights[chosen], *rivals]) if rivals else chosen
            for slot, chosen in enumerate(table)))

    def order(self, key: bytes) -> Iterator[int]:
        """Every backend once, from the highest score down."""
        name = _slot_name(self._hash_of(key) % TABLE_SIZE)
        scored = ((self._score(name, backend), backend.id) for backend in self._backends)
        return (backend_id for _, backend_id in sorted(scored, reverse=True))

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """The id with the highest score."""
        return self._best(self._hash_of(key) % TABLE_SIZE) if self._backends else None

    def explain(self, key: bytes) -> Explanation:
        """Hash, slot, backend and the second in score."""
        key_hash = self._hash_of(key)
        order = self.order(key)
        return Explanation(key_hash, key_hash % TABLE_SIZE, next(order, None), next(order, None))

    def _best(self, slot: int, among: Sequence[BackendLike] | None = None) -> int:
        name = _slot_name(slot)
        return max((self._score(name, backend), backend.id)
                   for backend in among or self._backends)[1]

    @staticmethod
    def _score(name: bytes, backend: BackendLike) -> float:
        """weight / −ln(u), u uniform in (0, 1) from slot and id: shares follow the weights."""
        uniform = (mmh3.hash(name, backend.id, signed=False) + 0.5) / 2**32
        return backend.weight / -math.log(uniform)


class BoundedLoad:
    """A hashing scheduler that passes over a backend that has its share of the flows.

    The share is ceil(factor / 100 * weight / total weight * (flows + 1)). Over all backends
    that is more than there are flows, so one always has room. Flows that a backend of
    weight 0 still has are not counted.

    factor: percent of the fair share, at least 100 (HAProxy's `hash-balance-factor`).
    """

    def __init__(
        self, hashing: Maglev | Rendezvous, backends: Sequence[BackendLike], factor: int
    ) -> None:
        self._hashing = hashing
        self._weights = {backend.id: backend.weight for backend in _eligible(backends)}
        self._total_weight = sum(self._weights.values())
        self._factor = factor

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """The first backend in the key's own order that has room for one more flow."""
        loads = {backend_id: load(backend_id) for backend_id in self._weights}
        flows = sum(loads.values()) + 1
        for backend_id in self._hashing.order(key):
            share = self._factor * flows * self._weights[backend_id]
            if loads[backend_id] < _ceil_div(share, 100 * self._total_weight):
                return backend_id
        return None

    def explain(self, key: bytes) -> Explanation:
        """As the hashing scheduler, which decides while no backend is above its share."""
        return self._hashing.explain(key)


class RoundRobin:
    """Each in turn, heavier ones more often and evenly spread (nginx's smooth weighting)."""

    def __init__(self, backends: Sequence[BackendLike]) -> None:
        self._backends = _eligible(backends)
        self._credit = {backend.id: 0 for backend in self._backends}
        self._total = sum(backend.weight for backend in self._backends)

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """The next id, whatever the key."""
        if not self._backends:
            return None
        for backend in self._backends:
            self._credit[backend.id] += backend.weight
        chosen = max(self._backends, key=lambda backend: self._credit[backend.id])
        self._credit[chosen.id] -= self._total
        return chosen.id

    def explain(self, key: bytes) -> Explanation:
        """No key decides here."""
        return Explanation(None, None, None, None)


class Random:
    """Any backend, by weight."""

    def __init__(self, backends: Sequence[BackendLike], random: Randomness) -> None:
        self._ids = [backend.id for backend in _eligible(backends)]
        self._weights = [backend.weight for backend in _eligible(backends)]
        self._random = random

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """A random id, whatever the key."""
        return self._random.choices(self._ids, self._weights)[0] if self._ids else None

    def explain(self, key: bytes) -> Explanation:
        """No key decides here."""
        return Explanation(None, None, None, None)


class LeastFlows:
    """The backend with the fewest flows for its weight; the lowest id among equals."""

    def __init__(self, backends: Sequence[BackendLike]) -> None:
        self._backends = _eligible(backends)

    def pick(self, key: bytes, load: Load = _no_load, /) -> int | None:
        """The least loaded id, whatever the key."""
        return min(
            self._backends,
            key=lambda backend: ((load(backend.id) + 1) / backend.weight, backend.id),
            default=_NOBODY,
        ).id

    def explain(self, key: bytes) -> Explanation:
        """No key decides here."""
        return Explanation(None, None, None, None)


class _Nobody(NamedTuple):
    id: int | None = None
    weight: int = 0


_NOBODY = _Nobody()


def make_scheduler(
    name: str, backends: Sequence[BackendLike], *, hash_balance_factor: int | None = None,
    hash_seed: bytes = b"", random: Randomness,
) -> Scheduler:
    """The scheduler called `name`. hash_seed: of keys' hashes, if the cluster has one.

    Raises: ValueError if there is no such scheduler.
    """
    if name in HASHING:
        kind = Maglev if name == "maglev" else Rendezvous
        hashing = kind(backends, hash_by(hash_seed))
        if hash_balance_factor is None:
            return hashing
        return BoundedLoad(hashing, backends, hash_balance_factor)
    if name == "round-robin":
        return RoundRobin(backends)
    if name == "random":
        return Random(backends, random)
    if name == "least-flows":
        return LeastFlows(backends)
    raise ValueError(f"one of {', '.join(SCHEDULERS)}, not {name!r}")


def turns_of(backends: Sequence[BackendLike], limit: int) -> list[int]:
    """A whole round of RoundRobin's, after which it begins anew; [] if that exceeds `limit` turns.

    Each backend has as many turns in it as its weight, over the weights' common divisor.
    """
    eligible = _eligible(backends)
    total = sum(backend.weight for backend in eligible)
    if not total or total // (divisor := math.gcd(*(each.weight for each in eligible))) > limit:
        return []
    turn = RoundRobin(eligible)
    return [turn.pick(b"") or 0 for _ in range(total // divisor)]


def moved_share(backends: Sequence[BackendLike], leaving_id: int) -> float:
    """The share of the other backends' Maglev slots that move when one backend leaves.

    backends: at least one with a weight besides the one that leaves.
    """
    before = Maglev(backends).table
    after = Maglev([backend for backend in backends if backend.id != leaving_id]).table
    others = [(old, new) for old, new in zip(before, after, strict=True) if old != leaving_id]
    return sum(old != new for old, new in others) / len(others)


def _differing(before: Sequence[BackendLike], after: Sequence[BackendLike]) -> set[int]:
    """The ids of those whose weight, beside most of the others', is another one."""
    weights = {backend.id: backend.weight for backend in before}
    ratios = {each.id: Fraction(each.weight, weights[each.id])
              for each in after if each.id in weights}
    usual = Counter(ratios.values()).most_common(1)
    same = {id for id, ratio in ratios.items() if ratio == usual[0][0]}
    return (weights.keys() | {backend.id for backend in after}) - same


def _slot_name(slot: int) -> bytes:
    return slot.to_bytes(4, "big")


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _eligible(backends: Sequence[BackendLike]) -> list[BackendLike]:
    return sorted((b for b in backends if b.weight), key=lambda backend: backend.id)


def _fill_table(backends: Sequence[BackendLike]) -> array:
    """Maglev's population: in turns, each backend takes the next free slot of its permutation.

    In every round a backend has weight / (greatest weight) turns, carried over.
    """
    if not backends:
        return array("H")
    table = array("H", bytes(2 * TABLE_SIZE))  # ids are 1 and above, so 0 is a free slot
    names = [f"backend {backend.id}".encode() for backend in backends]
    positions = [mmh3.hash(name, _OFFSET_SEED, signed=False) % TABLE_SIZE for name in names]
    skips = [mmh3.hash(name, _SKIP_SEED, signed=False) % (TABLE_SIZE - 1) + 1 for name in names]
    turns = [0] * len(backends)
    heaviest = max(backend.weight for backend in backends)
    free = TABLE_SIZE
    while True:
        for index, backend in enumerate(backends):
            turns[index] += backend.weight
            if turns[index] < heaviest:
                continue
            turns[index] -= heaviest
            position, skip = positions[index], skips[index]
            while table[position]:
                position = (position + skip) % TABLE_SIZE
            table[position] = backend.id
            positions[index] = (position + skip) % TABLE_SIZE
            free -= 1
            if not free:
                return table
