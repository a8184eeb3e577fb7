"""The backends of a service, their scheduler and their counters; they may change at any time.

A backend that is configured no more is `LEAVING`: it gets no new flows, keeps those that it has,
and goes when the last of them has gone. Whoever needs a backend asks for it by its id, which never
changes.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from balancer import config
from balancer.pool.schedule import BackendLike, Scheduler
from balancer.pool.share import Policy, Share, Shares, Standing, shares_of
from common.encap import Way
from common.histogram import Histogram


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
    """

    __slots__ = ("address", "first_acks", "handoffs", "id", "is_cut", "octets", "packets",
                 "service", "standing", "state", "ts_start", "unanswered", "way", "weight")

    def __init__(
        self, service: Any, backend: config.Backend, way: Way, id_shift: int
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
        self.handoffs = self.packets = self.octets = self.unanswered = 0
        self.first_acks = Histogram()

    def become(self, made: "Backend") -> None:
        """Be what the configuration says now; flows and counters stay."""
        self.weight, self.state = made.weight, made.state
        self.address, self.way = made.address, made.way

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

    def update(self, backends: Sequence[config.Backend]) -> Changes:
        """Have these backends from now on, with these weights."""
        members = dict(self._members)
        new, changed, leaving = [], [], []
        for backend in backends:
            made, member = self._make(backend), members.get(backend.id)
            if member is None:
                members[backend.id] = made
                new.append(made)
            elif (member.weight, member.address, member.state) != (
                made.weight, made.address, made.state
            ):
                member.become(made)
                changed.append(member)
        wanted = {backend.id for backend in backends}
        for member in members.values():
            if member.id not in wanted and member.state is not State.LEAVING:
                member.leave()
                leaving.append(member)
        self._set(members)
        return Changes(tuple(new), tuple(changed), tuple(leaving))

    def release(self, count: Callable[[Backend], int]) -> Changes:
        """Let those go that are leaving and have no flows any more. count: as for `pick`."""
        gone = [member for member in self if member.state is State.LEAVING and not count(member)]
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

    def _set(self, members: dict[int, Backend]) -> None:
        # a new dictionary each time: metrics are read in a thread of their own
        self._members = members
        self.get = members.get
        self._serving = [
            member for member in members.values() if member.state is State.SERVING]
        self.version += 1
        weights = self.shares().weights
        self.scheduler = self._schedule([Share(id, share) for id, share in weights.items()])
