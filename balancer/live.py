"""Another configuration for a balancer that runs: made into tables in a thread, taken in the loop.

Services are known by their endpoints and backends by their ids; what is the same stays as it is,
with its flows, its counters and what checks have found. Schedulers' tables, which take their time,
are ready when the data path changes, and so are the ways to new backends.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import NamedTuple

from balancer import config
from balancer.backends_file import BackendsFiles
from balancer.config import Config
from balancer.datapath import Datapath
from balancer.health.watch import HealthWatch
from balancer.offload.maps import MAX_SERVICES
from balancer.plan import plan_of
from balancer.pool.pool import Backend
from balancer.pool.schedule import Scheduler
from balancer.routes import RouteWatch
from balancer.rules import rules
from balancer.services import ServiceState
from balancer.vips import Probe, VipWatch
from common.engine.claims import Claim
from common.engine.host import Host
from common.engine.reload import Refused
from common.settings import COMMAND_LINE
from common.settings.emit import emit
from common.settings.host import check_secret
from common.settings.plan import Change as Difference

log = logging.getLogger(__name__)


class Made(NamedTuple):
    """A service as it shall be. state: of one that is new."""

    service: config.Service
    state: ServiceState | None
    scheduler: Scheduler
    prepared: object


def claim_of(vip: str) -> Claim:
    """What keeps others from having a VIP."""
    return Claim(f"vip/{vip}", "vip", vip, "a VIP of its own")


class LiveBalancer:
    """As reload.Live.

    running: the configuration that runs. configured: the same without what files of backends say.
    on_host: the services whose packets come here: those that drain, too.
    """

    def __init__(
        self, running: Config, configured: Config, load: Callable[[], Config],
        files: BackendsFiles, datapath: Datapath, watch: RouteWatch, health: HealthWatch,
        conflicts: VipWatch, stand: Callable[[Iterable[Backend]], Sequence[ServiceState]],
    ) -> None:
        """load: the configuration, as it is written now.

        stand: lets backends that are new stand as the operator has kept them; returns whose some
               are.
        """
        self.running, self.configured = running, configured
        self.datapath, self.watch, self.health = datapath, watch, health
        self.conflicts, self.stand = conflicts, stand
        self.on_host = running.services
        self._load, self._files = load, files
        self._said: set[str] = set()  # of these files

    def read(self, whole: bool) -> "Change":
        """As reload.Live."""
        configured = self._load() if whole else self.configured
        loaded, faults = self._files.resolve(configured, self.running)
        self.say(faults)
        loaded = replace(loaded, hash_seed=self.running.hash_seed)
        check_secret(loaded.file, loaded.secret_file)
        plan = plan_of(self.running, loaded)
        refused = [change for change in plan.restarts if not self._can_change(change)]
        if refused:
            raise Refused(tuple(map(str, refused)))
        self._check_room(loaded)
        return Change(self, loaded, configured, plan.lines,
                      [self._make(each) for each in loaded.services])

    def say(self, faults: Sequence[str]) -> None:
        """Say once what is wrong in files of backends."""
        for fault in faults:
            if fault not in self._said:
                log.warning("%s", fault)
        self._said = set(faults)

    def watched(self) -> tuple[Sequence[str], Sequence[str]]:
        """As reload.Live."""
        is_watched = self.running.watch and self.running.file != COMMAND_LINE
        return [self.running.file] if is_watched else [], [
            service.backends_file for service in self.running.services if service.backends_file]

    def emit(self) -> str:
        """As reload.Live."""
        return emit(self.running)

    def tidy(self) -> "Tidying | None":
        """As reload.Live."""
        left = tuple(each for each in self.on_host
                     if self.datapath.services.get(each.endpoint) is None)
        if not left:
            return None
        self.on_host = tuple(each for each in self.on_host if each not in left)
        self.health.follow(())
        self.follow_vips()
        return Tidying(replace(self.running, services=self.on_host), _vips(left))

    def follow_vips(self) -> None:
        """Watch over those that are here now, unless others have them, too."""
        self.conflicts.follow(() if self.running.vip_shared else
                              {service.vip for service in self.on_host})

    def _can_change(self, difference: Difference) -> bool:
        """Whether what takes a restart with programs does not take one here."""
        is_size = (difference.where, difference.key) == ("", "max_flows")
        return is_size and self.datapath.offload is None

    def _check_room(self, loaded: Config) -> None:
        ends = {service.endpoint for service in loaded.services}
        ends |= {service.config.endpoint for service in self.datapath.services}
        if len(ends) > MAX_SERVICES:
            raise Refused((f"{len(ends)} services, with those whose flows go on, are more than "
                           f"{MAX_SERVICES}: wait until these have left",))

    def _make(self, service: config.Service) -> Made | None:
        """What is new of a service; None: nothing."""
        services, offload = self.datapath.services, self.datapath.offload
        state = services.get(service.endpoint)
        made = None
        if state is None:
            made = state = services.make(service, -1)
            shared, scheduler = state.shared(), state.pool.scheduler
        elif state.config == service and not state.is_leaving:
            return None
        else:
            shared, scheduler = state.forecast(service)
        return Made(service, made, scheduler,
                    offload.prepare(shared, scheduler) if offload else None)


class Change:
    """As reload.Change."""

    def __init__(
        self, live: LiveBalancer, loaded: Config, configured: Config, lines: tuple[str, ...],
        made: Sequence[Made | None],
    ) -> None:
        self.lines = lines
        self.file, self.secret_file = loaded.file, loaded.secret_file
        self.released: Sequence[str] = ()  # as long as something leaves, it is needed
        self._live, self._datapath, self._loaded = live, live.datapath, loaded
        self._configured = configured
        self._made = [each for each in made if each is not None]
        # what goes on for a while has its packets, too
        ends = {service.endpoint for service in loaded.services}
        self._on_host = (*loaded.services,
                         *(each for each in live.on_host if each.endpoint not in ends))
        self._vips = [vip for vip in _vips(loaded.services) if vip not in _vips(live.on_host)]
        self.claims: Sequence[Claim] = [claim_of(vip) for vip in self._vips]

    def begin(self) -> None:
        """As reload.Change."""
        for address in self._addresses():
            self._datapath.paths.add(address)
        self._live.watch.soon()

    @property
    def is_ready(self) -> bool:
        """As reload.Change."""
        paths, is_fast = self._datapath.paths, self._datapath.offload is not None
        return all(paths.is_known(address, to_hop=is_fast) for address in self._addresses())

    def before(self, host: Host) -> None:
        """As reload.Change."""
        loaded = self._loaded
        Probe(loaded.interface, () if loaded.vip_shared else map(IPv4Address, self._vips)).check(
            loaded.file)
        running = replace(loaded, services=self._live.on_host)
        wanted = rules(replace(self._loaded, services=self._on_host))
        if set(wanted) != set(rules(running)):
            host.install_rules(wanted)

    def apply(self) -> None:
        """As reload.Change."""
        self.begin()  # again: a backend that has gone since takes paths along that none has yet
        services = self._datapath.services
        before = set(services.backends())
        for made in self._made:
            state = services.get(made.service.endpoint)
            if state is not None:
                self._datapath.change(state, made.service, made.scheduler, made.prepared)
            else:  # it is new, or it has left just now
                state = made.state or services.make(made.service, -1)
                self._datapath.add(state, made.prepared)
        ends = {service.endpoint for service in self._loaded.services}
        for state in services:
            if state.config.endpoint not in ends and not state.is_leaving:
                self._datapath.drain(state)
        self._datapath.configure(self._loaded)
        changed = [state for each in self._made
                   if (state := services.get(each.service.endpoint))]
        new = [backend for backend in services.backends() if backend not in before]
        self._live.health.follow([*changed, *self._live.stand(new)])
        self._live.running, self._live.on_host = self._loaded, self._on_host
        self._live.configured = self._configured
        self._live.follow_vips()

    def after(self, host: Host) -> None:
        """As reload.Change."""
        for vip in self._vips:
            host.add_address(self._loaded.interface, vip)

    def _addresses(self) -> set[bytes]:
        return {backend.address.packed for each in self._made for backend in each.service.backends}


class Tidying:
    """As reload.Tidying. left: VIPs; those that the configuration still has stay."""

    def __init__(self, running: Config, left: Sequence[str]) -> None:
        self._running = running
        self._vips = [vip for vip in left if vip not in _vips(running.services)]
        self.locks: Sequence[str] = [claim_of(vip).lock for vip in self._vips]

    def on_host(self, host: Host) -> None:
        """As reload.Tidying. Without its address, no more packets come for the host to answer."""
        for vip in self._vips:
            host.remove_address(self._running.interface, vip)
        host.install_rules(rules(self._running))


def _vips(services: Sequence[config.Service]) -> list[str]:
    return list(dict.fromkeys(str(service.vip) for service in services))
