"""What the program needs to choose by requests: keys, and the schedulers' tables.

Twin: balancer/offload/bpf/key.h, balancer/offload/bpf/schedule.h
"""

from collections.abc import Iterable
from enum import IntEnum
from sys import byteorder
from typing import Any, NamedTuple

from balancer.config import Service
from balancer.keys.request import KeySpec
from balancer.pool.schedule import (
    TABLE_SIZE,
    Maglev,
    Rendezvous,
    Scheduler,
    turns_of,
)
from balancer.pool.schedulers import HASHING
from balancer.pool.share import Share
from common.bpf.btf import Btf
from common.bpf.objects import Object

_KINDS = {"source": "KEY_SOURCE", "source+port": "KEY_SOURCE_AND_PORT", "payload": "KEY_PAYLOAD",
          "tls.sni": "KEY_SERVER_NAME", "http.path": "KEY_PATH", "http.target": "KEY_TARGET",
          "http.host": "KEY_HOST", "http.host+path": "KEY_HOST_AND_PATH",
          "http.header": "KEY_HEADER", "http.cookie": "KEY_COOKIE", "http.query": "KEY_QUERY"}
_MOST_TABLES = 128  # that are remembered, of 64 KiB each
_MAX_STEPS = 32  # with slots that are tried, at most
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz")


class Choice(NamedTuple):
    """How a service chooses. ids: its table; turns: how many of them are turns, not slots."""

    scheduler: IntEnum
    ids: bytes = b""
    turns: int = 0


class Prepared(NamedTuple):
    """A service as the program reads it."""

    table: bytes
    pool: bytes
    plan: bytes


def write(program_file: Object, services: Iterable[tuple[int, Prepared]]) -> None:
    """Let the program choose by these; each with its number. Raises: BpfError."""
    plans = program_file.map("plans")
    tables = program_file.map("tables")
    pools = program_file.map("pools")
    for number, prepared in services:
        tables.update(number, prepared.table)
        pools.update(number, prepared.pool)
        plans.update(number, prepared.plan)
    plans.close()
    pools.close()
    tables.close()


class Encoder:
    """Services as the program reads them."""

    def __init__(self, btf: Btf) -> None:
        self._table_len = btf.layout("ids").size
        self._kind = btf.enum("key_kind")
        self._scheduler = btf.enum("scheduler")
        self._plan, self._spec, self._name, self._pool = map(
            btf.layout, ("plan", "key_spec", "name", "pool"))
        self._tables: dict[tuple[str, tuple[tuple[int, int], ...]], bytes] = {}

    def prepare(self, service: Service, scheduler: Scheduler | None = None) -> Prepared:
        """All of a service. scheduler: the one over its backends, where there is one."""
        choice = self.choice(service, scheduler)
        return Prepared(choice.ids.ljust(self._table_len, b"\0"), self.pool(service),
                        self.plan(service, choice))

    def plan(self, service: Service, choice: Choice) -> bytes:
        """Everything but the table."""
        return self._plan.pack(self._plan(
            key=self._encode_spec(service.key), fallback=self._encode_spec(service.fallback),
            scheduler=choice.scheduler, turns=choice.turns))

    def pool(self, service: Service) -> bytes:
        """Its backends that have a weight, by id."""
        backends = sorted((each.id, each.weight) for each in service.backends if each.weight)
        octets = b"".join(id.to_bytes(2, byteorder) + weight.to_bytes(2, byteorder)
                          for id, weight in backends)
        room = self._pool.size - self._pool.offset("backends")
        return self._pool.pack(self._pool(
            count=len(backends), factor=service.hash_balance_factor or 0,
            total_weight=sum(weight for _, weight in backends),
            backends=octets.ljust(room, b"\0")))

    def choice(self, service: Service, scheduler: Scheduler | None = None) -> Choice:
        """Scheduler and table; none where the portable engine alone can choose."""
        kinds = self._scheduler
        if service.scheduler in HASHING:
            if service.hash_balance_factor is None:
                return Choice(kinds["SCHEDULER_HASHING"], self._table(service, scheduler))
            # from a slot on, Maglev's order is the table's; that of scores is not to be had there
            return Choice(kinds["SCHEDULER_BOUNDED"], self._table(service, scheduler),
                          _MAX_STEPS if service.scheduler == "maglev" else 1)
        if service.scheduler == "least-flows":
            return Choice(kinds["SCHEDULER_LEAST_FLOWS"])
        if service.scheduler in ("round-robin", "random"):
            kind = ("SCHEDULER_RANDOM" if service.scheduler == "random"
                    else "SCHEDULER_ROUND_ROBIN")
            turns = turns_of(service.backends, TABLE_SIZE)
            if turns:
                return Choice(kinds[kind], bytes(turns), len(turns))
        return Choice(kinds["SCHEDULER_NONE"])

    def _table(self, service: Service, scheduler: Scheduler | None) -> bytes:
        """A hashing scheduler's; made once for all services that have the same backends."""
        key = service.scheduler, tuple((each.id, each.weight) for each in service.backends)
        table = self._tables.pop(key, None)
        if table is None:
            hashing = scheduler
            if not isinstance(hashing, (Maglev, Rendezvous)):
                hashing = (Maglev if service.scheduler == "maglev" else Rendezvous)(
                    service.backends)
            if isinstance(hashing, Rendezvous):
                self._follow(hashing, service)
            table = bytes(list(hashing.table))
        self._tables[key] = table  # the latest is the last
        while len(self._tables) > _MOST_TABLES:
            self._tables.pop(next(iter(list(self._tables))), None)  # others do it in their threads
        return table

    def _follow(self, hashing: Rendezvous, service: Service) -> None:
        """Save the seconds that a table of scores takes where the latest like it is not far off."""
        ids = [each.id for each in service.backends]
        for (name, shares), table in reversed(list(self._tables.items())):
            if name == service.scheduler and [id for id, _ in shares] == ids:
                hashing.follow([Share(*each) for each in shares], table)
                return

    def _encode_spec(self, spec: KeySpec) -> bytes:
        """A key; one that the program has no room for is left to the portable engine."""
        header, name = _names_of(spec)
        kind = self._kind[_KINDS[spec.kind]]
        if max(len(header), len(name)) > self._name.offset("folds"):
            header, name, kind = b"", b"", self._kind["KEY_NONE"]
        return self._spec.pack(self._spec(
            kind=kind, length=spec.length, depth=spec.depth, max_len=spec.max_len,
            header=self._encode_name(header, ignores_case=True), name=self._encode_name(name)))

    def _encode_name(self, name: bytes, *, ignores_case: bool = False) -> Any:
        room = self._name.offset("folds")
        folds = bytes(0x20 * (ignores_case and octet in _LETTERS) for octet in name)
        return self._name(words=name.ljust(room, b"\0"), folds=folds.ljust(room, b"\0"),
                          masks=(b"\xff" * len(name)).ljust(room, b"\0"), len=len(name))


def _names_of(spec: KeySpec) -> tuple[bytes, bytes]:
    """The header, and the parameter in it or in the query, with what follows their names."""
    name = spec.name.encode()
    if spec.kind in ("http.host", "http.host+path"):
        return b"host:", b""
    if spec.kind == "http.header":
        return name.lower() + b":", b""
    if spec.kind == "http.cookie":
        return b"cookie:", name + b"="
    return b"", name + b"="
