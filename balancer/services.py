"""The services of a configuration, as the packet path finds them: by endpoint, or by number."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import NamedTuple

from balancer import config
from balancer.modes.split import takeover
from balancer.pool.pool import Backend, Changes, Pool
from balancer.pool.schedule import Scheduler, make_scheduler
from balancer.pool.share import Policy, Shares
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
        vip = service.vip.packed
        self.schedule = partial(
            make_scheduler, service.scheduler, hash_balance_factor=service.hash_balance_factor,
            hash_seed=hash_seed, random=random)
        check = service.check
        self.pool = Pool(
            service.backends,
            lambda backend: Backend(
                self, backend, dscp.Way(vip, backend.address.packed, service.dscp), id_shift),
            self.schedule, Policy(check.all_down == "use all", check.on_down == "reset"),
        )

    def shared(self, shares: Shares | None = None) -> config.Service:
        """The service as schedulers see it: with shares, by default those of now, for weights."""
        weights = (shares or self.pool.shares()).weights
        return replace(self.config, backends=tuple(
            replace(backend, weight=weights[backend.id]) for backend in self.config.backends))

    def update(self, backends: Sequence[config.Backend]) -> Changes:
        """Have these backends from now on."""
        self.config = replace(self.config, backends=tuple(backends))
        return self.pool.update(backends)


class Services:
    """All services."""

    def __init__(
        self, configured: config.Config, random: Random,
        numbers: Mapping[Endpoint, int] | None = None,
    ) -> None:
        """numbers: of the services, where something else knows them by number, too."""
        id_shift = takeover.id_shift(configured.id_bits)
        self._by_key = {
            service.endpoint.packed: ServiceState(
                service, place if numbers is None else numbers[service.endpoint], id_shift, random,
                configured.hash_seed)
            for place, service in enumerate(configured.services)
        }
        self._by_number = {service.number: service for service in self}
        self.vips = {service.vip.packed for service in configured.services}

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
