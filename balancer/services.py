"""The services of a configuration, as the packet path finds them: by endpoint, or by number."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from random import Random
from typing import NamedTuple

from balancer import config
from balancer.modes.split import takeover
from balancer.pool.pool import Backend, Changes, Pool
from balancer.pool.schedule import BackendLike, Scheduler, make_scheduler
from balancer.pool.share import Policy, Share, Shares, Standing, shares_of
from common.cluster.service import Endpoint
from common.encap import dscp
from common.flow.guesses import Guesses
from common.histogram import Histogram


class Plan(NamedTuple):
    """How flows of a service are to be chosen for, reckoned in advance.

    version: the pool's that it was made for. prepared: what the offload has made of it.
    """

    version: int
    shares: Shares
    scheduler: Scheduler
    prepared: object = None


class ServiceState:
    """A service with its pool.

    number: by which a program's flows name it. mss: what fits the paths to its backends.
    guesses: at handshakes of its clients. handshakes: how long theirs took, by timestamps.
    is_leaving: configured no more; its flows go on for a while.
    """

    def __init__(
        self, service: config.Service, number: int, id_shift: int, random: Random,
        hash_seed: bytes = b"",
    ) -> None:
        self.config = service
        self.mss = service.mss
        self.number = number
        self.guesses = Guesses()
        self.handshakes = Histogram()
        self.is_leaving = False
        self._id_shift = id_shift
        self._hash_seed, self._random = hash_seed, random
        self.schedule = self._schedule_of(service)
        self.pool = Pool(service.backends, self._make, self.schedule, _policy_of(service))

    def shared(self, shares: Shares | None = None) -> config.Service:
        """The service as schedulers see it: with shares, by default those of now, for weights."""
        return _with_shares(self.config, (shares or self.pool.shares()).weights)

    def update(self, backends: Sequence[config.Backend]) -> Changes:
        """Have these backends from now on."""
        self.config = replace(self.config, backends=tuple(backends))
        return self.pool.update(backends)

    def forecast(self, service: config.Service) -> tuple[config.Service, Scheduler]:
        """What `become` would make of it: as schedulers see it, and the scheduler; in any thread.

        That takes its time. Backends keep the standing that they have.
        """
        standings = {member.id: member.standing for member in self.pool}
        weights = shares_of(
            [_Member(each.id, each.weight, standings.get(each.id, Standing()))
             for each in service.backends], _policy_of(service)).weights
        scheduler = self._schedule_of(service)(
            [Share(id, share) for id, share in weights.items()])
        return _with_shares(service, weights), scheduler

    def become(self, service: config.Service, scheduler: Scheduler) -> Changes:
        """Be configured like this from now on. scheduler: as `forecast` has made it."""
        self.config, self.is_leaving = service, False
        self.schedule = self._schedule_of(service)
        self.pool.choose_by(self.schedule, _policy_of(service))
        return self.pool.update(service.backends, scheduler)

    def leave(self) -> Changes:
        """Be configured no more."""
        self.is_leaving = True
        return self.update(())

    def _schedule_of(
        self, service: config.Service
    ) -> Callable[[Sequence[BackendLike]], Scheduler]:
        return partial(
            make_scheduler, service.scheduler, hash_balance_factor=service.hash_balance_factor,
            hash_seed=self._hash_seed, random=self._random)

    def _make(self, backend: config.Backend) -> Backend:
        way = dscp.Way(self.config.vip.packed, backend.address.packed, self.config.dscp)
        return Backend(self, backend, way, self._id_shift)


class Services:
    """All services."""

    def __init__(
        self, configured: config.Config, random: Random,
        numbers: Mapping[Endpoint, int] | None = None,
    ) -> None:
        """numbers: of the services, where something else knows them by number, too."""
        id_shift = takeover.id_shift(configured.id_bits)
        self.make = partial(
            ServiceState, id_shift=id_shift, random=random, hash_seed=configured.hash_seed)
        self._by_key = {
            service.endpoint.packed: self.make(
                service, place if numbers is None else numbers[service.endpoint])
            for place, service in enumerate(configured.services)
        }
        self._index()

    def add(self, service: ServiceState) -> None:
        """Have one more. Its number is its own."""
        self._by_key = {**self._by_key, service.config.endpoint.packed: service}
        self._index()

    def remove(self, service: ServiceState) -> None:
        """Know a service no more."""
        self._by_key = {key: each for key, each in self._by_key.items() if each is not service}
        self._index()

    def get(self, endpoint: Endpoint) -> ServiceState | None:
        """The service at an endpoint."""
        return self._by_key.get(endpoint.packed)

    @property
    def free_number(self) -> int:
        """The least number that no service has."""
        return next(number for number in count() if number not in self._by_number)

    def _index(self) -> None:
        self._by_number = {service.number: service for service in self}
        self.vips = {service.config.vip.packed for service in self}

    def __iter__(self) -> Iterator[ServiceState]:
        return iter(self._by_key.values())

    def items(self) -> Iterable[tuple[bytes, ServiceState]]:
        """Each with its endpoint's key (common/cluster/service.py)."""
        return self._by_key.items()

    def find(self, number: int, backend_id: int) -> Backend | None:
        """A backend by its service's number and its id."""
        service = self._by_number.get(number)
        return service.pool.get(backend_id) if service else None

    def backends(self) -> Iterator[Backend]:
        """The backends of all services."""
        for service in self:
            yield from service.pool


class _Member(NamedTuple):
    """A backend that is to be. As share.Member."""

    id: int
    weight: int
    standing: Standing


def _policy_of(service: config.Service) -> Policy:
    check = service.check
    return Policy(check.all_down == "use all", check.on_down == "reset")


def _with_shares(service: config.Service, weights: Mapping[int, int]) -> config.Service:
    """A service as schedulers see it: with shares for weights."""
    return replace(service, backends=tuple(
        replace(backend, weight=weights[backend.id]) for backend in service.backends))
