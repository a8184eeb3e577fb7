"""The backends of a service, their scheduler and their counters; they may change at any time.

A backend that is configured no more is `LEAVING`: it gets no new flows, keeps those that it has,
and goes when the last of them has gone, or when its time is over: then its flows are cut, and after
CUT_MS it is forgotten with those that have said nothing. Whoever needs a backend asks for it by its
id, which never changes.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from balancer import config
from balancer.pool.schedule import BackendLike, Scheduler
from balancer.pool.share import Policy, Share, Shares, Standing, shares_of
from common.encap import dscp
from common.histogram import Histogram

CUT_MS = 60_000

class State(Enum):
    """What becomes of a backend."""

    SERVING = "serving"
    LEAVING = "leaving"  # configured no more


class Backend:
    """A backend of a service, as the packet path needs it, with its counters.

    address: as on the wire. way: how the VIP's packets get there.
    service:  whose it is; nothing here looks into it.
    ts_start: its id, as timestamps carry it (balancer/modes/split/takeover.py).
    unanswered: handoffs that a client has repeated, having heard nothing.
    standing: what its share of new flows is by, besides its weight. is_cut: its flows are reset.
    first_acks: how long after their handoff clients first acknowledge something.
    until_ms: while it is leaving, how long it keeps them; None: nobody has said that yet.
    """

    __slots__ = ("address", "first_acks", "handoffs", "id", "is_cut", "octets", "packets",
                 "service", "standing", "state", "ts_start", "unanswered", "until_ms", "way",
                 "weight")

    def __init__(
        self, service: Any, backend: config.Backend, way: dscp.Way, id_shift: int
    ) -> None:
        self.service = service
        self.id = backend.id
        self.weight = backend.weight
        self.address = backend.address.packed
        self.way = way
        self.ts_start = backend.id << id_shift
        self.state = State.SERVING
        self.standing = Standing()
        self.is_cut = False
        self.until_ms: int | None = None
        self.handoffs = self.packets = self.octets = self.unanswered = 0
        self.first_acks = Histogram()

    def become(self, made: "Backend") -> None:
        """Be what the configuration says now; flows and counters stay."""
        if self.state is State.LEAVING:
            self.is_cut, self.until_ms = False, None
        self.weight, self.state = made.weight, made.state
        self.address, self.way = made.address, made.way

    @property
    def end(self) -> tuple[bytes, int]:
        """Where its packets go: address and DSCP."""
        return self.address, self.way.codepoint

    def leave(self) -> None:
        """Be configured no more."""
        self.weight, self.state = 0, State.LEAVING


class Changes(NamedTuple):
    """What an update has done to a pool. gone: those that nothing knows any more."""

    new: tuple[Backend, ...] = ()
    changed: tuple[Backend, ...] = ()
    leaving: tuple[Backend, ...] = ()
    gone: tuple[Backend, ...] = ()


class Pool:
    """The backends of a service. get: a backend by its id, or None.

    version: another one after each change of who is in it.
    """

    def __init__(
        self, backends: Sequence[config.Backend], make: Callable[[config.Backend], Backend],
        schedule: Callable[[Sequence[BackendLike]], Scheduler], policy: Policy,
    ) -> None:
        """make: what a configured backend becomes. schedule: the scheduler over some."""
        self._make = make
        self._schedule = schedule
        self._policy = policy
        self.version = 0
        self._set({backend.id: make(backend) for backend in backends})

    def __iter__(self) -> Iterator[Backend]:
        """All of them, also those that are leaving."""
        return iter(self._members.values())

    def pick(self, key: bytes, count: Callable[[Backend], int]) -> Backend | None:
        """The backend of a new flow; None where every backend has weight 0.

        count: how many flows a backend has.
        """
        members = self._members
        backend_id = self.scheduler.pick(key, lambda backend_id: count(members[backend_id]))
        return None if backend_id is None else members[backend_id]

    def choose_by(
        self, schedule: Callable[[Sequence[BackendLike]], Scheduler], policy: Policy
    ) -> None:
        """Another scheduler, or policy, from the next update on."""
        self._schedule, self._policy = schedule, policy

    def update(
        self, backends: Sequence[config.Backend], scheduler: Scheduler | None = None
    ) -> Changes:
        """Have these backends from now on, with these weights.

        scheduler: the one over them, where it is at hand: to make it takes its time.
        """
        members = dict(self._members)
        new, changed, leaving = [], [], []
        for backend in backends:
            made, member = self._make(backend), members.get(backend.id)
            if member is None:
                members[backend.id] = made
                new.append(made)
            elif (member.weight, member.end, member.state) != (made.weight, made.end, made.state):
                member.become(made)
                changed.append(member)
        wanted = {backend.id for backend in backends}
        for member in members.values():
            if member.id not in wanted and member.state is not State.LEAVING:
                member.leave()
                leaving.append(member)
        self._set(members, scheduler)
        return Changes(tuple(new), tuple(changed), tuple(leaving))

    def cut(self, now_ms: int, drain_ms: int) -> list[Backend]:
        """Those that are leaving and whose time is over now; their flows are reset.

        drain_ms: how long they have.
        """
        leaving = [member for member in self if member.state is State.LEAVING]
        over = []
        for member in leaving:
            if member.until_ms is None:
                member.until_ms = now_ms + drain_ms
            if now_ms >= member.until_ms and not member.is_cut:
                member.is_cut = True
                over.append(member)
        return over

    def release(self, count: Callable[[Backend], int], now_ms: int = 0) -> Changes:
        """Let those go that are leaving and have no flows any more, or have been cut for long.

        count: as for `pick`.
        """
        gone = [member for member in self if member.state is State.LEAVING and (
            not count(member)
            or (member.until_ms is not None and now_ms >= member.until_ms + CUT_MS))]
        if gone:
            self._members = {member.id: member for member in self if member not in gone}
            self.get = self._members.get
        return Changes(gone=tuple(gone))

    def shares(self) -> Shares:
        """What follows from the backends' standing; those that are leaving have no share."""
        return shares_of(self._serving, self._policy)

    @property
    def is_leaving(self) -> bool:
        """Whether a backend is."""
        return len(self._members) > len(self._serving)

    def _set(self, members: dict[int, Backend], scheduler: Scheduler | None = None) -> None:
        # a new dictionary each time: metrics are read in a thread of their own
        self._members = members
        self.get = members.get
        self._serving = [
            member for member in members.values() if member.state is State.SERVING]
        self.version += 1
        if scheduler is None:
            weights = self.shares().weights
            scheduler = self._schedule([Share(id, share) for id, share in weights.items()])
        self.scheduler = scheduler
