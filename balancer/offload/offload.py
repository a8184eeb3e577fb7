"""The program at XDP as the data path sees it: what decides beside it, on the same flows.

The program answers SYNs, forwards flows and hands over requests that it can read within one
segment; all else it leaves alone, and the portable engine's rules bring it to the data path, whose
flow store is the program's table.
"""

import logging
from random import Random

from balancer import config
from balancer.config import Config
from balancer.datapath import Datapath
from balancer.flows import timeouts_ms
from balancer.offload import devices
from balancer.offload.flow_store import MapStore
from balancer.offload.held_marks import HeldMarks
from balancer.offload.program import Program
from balancer.offload.requests import Prepared
from balancer.paths import UNKNOWN, NextHop, Paths
from balancer.pool.pool import Backend, Changes
from balancer.pool.schedule import Scheduler
from balancer.services import Plan, Services, ServiceState
from common.bpf.links import Mode
from common.cluster.cookie import Secrets
from common.counters import Counters
from common.engine.pressure import Pressure
from common.histogram import Histogram

REFRESH_MS = 1000
log = logging.getLogger(__name__)


class ProgramOffload:
    """As datapath.Offload. is_live: whether the program has packets, whose counts are added.

    counted_ms: when that was done last.
    """

    def __init__(self, program: Program, services: Services, flows: MapStore) -> None:
        self.program = program
        self.marks = HeldMarks(program.marks, program.held_count)
        self.is_live = False
        self._services = services
        self._flows = flows
        self._mode = Mode.GENERIC
        self.pressure = Pressure()
        self._lossy: set[str] = set()  # interfaces of which it has been said
        self._paths_told = -1
        self._numbers_free_at: int | None = 2  # walks: see on_tick
        self._next_refresh_ms = self.counted_ms = 0
        self._counted: dict[Backend, dict[str, int]] = {}

    def before(self, now_ms: int) -> None:
        """As datapath.Offload."""
        self._flows.now_ms = now_ms

    def on_tick(self, counters: Counters, paths: Paths, now_ms: int) -> None:
        """As datapath.Offload."""
        self.tell_paths(paths)
        if not self.is_live:
            return
        self.program.set_busy(self.pressure.is_high(now_ms))
        if not 0 <= self._next_refresh_ms - now_ms <= REFRESH_MS:
            self._next_refresh_ms = now_ms + REFRESH_MS
            self.program.keep_time(now_ms)
            self.add_counts(counters)
            self.counted_ms = now_ms
        if self._numbers_free_at is not None and self._flows.walks >= self._numbers_free_at:
            # one of the walks was whole since the service left, so it has met all its flows
            self._numbers_free_at = None
            self.program.release_numbers()

    def apply(
        self, service: ServiceState, changes: Changes, paths: Paths, prepared: object = None
    ) -> None:
        """As datapath.Offload. What is chosen has its way before it is."""
        for backend in (*changes.new, *changes.changed):
            self._tell_backend(service, backend, paths)
        for backend in changes.new:  # another one may have had its number
            self._counted[backend] = self.program.traffic_of(service.number, backend.id)
            self.program.durations.forget(service.number, backend.id)
        if prepared is not None:
            assert isinstance(prepared, Prepared)
            self.program.choose_by(service.number, prepared)
        elif changes.new or changes.changed or changes.leaving:
            self.program.set_scheduler(service.number, service.shared())
        for backend in changes.gone:
            self.program.remove_backend(service.number, backend.id)
            self._counted.pop(backend, None)
        self._paths_told = -1

    def add(self, service: ServiceState, paths: Paths, prepared: object) -> None:
        """As datapath.Offload."""
        service.number = self.program.number(
            [*(each.config.endpoint for each in self._services), service.config.endpoint],
            service.config.endpoint)
        self.program.durations.begin(service.number)
        self.apply(service, Changes(new=tuple(service.pool)), paths, prepared)
        self.program.set_mss(service.number, service.config, service.mss)

    def remove(self, service: ServiceState) -> None:
        """As datapath.Offload."""
        is_last = service.config.vip.packed not in self._services.vips
        self.program.remove_service(service.config, is_last)
        self._numbers_free_at = self._flows.walks + 2

    def cut(self, service: ServiceState, backend: Backend) -> None:
        """As datapath.Offload."""
        self.program.cut(service.number, backend.id, backend.is_cut)

    def configure(self, config: Config) -> None:
        """As datapath.Offload."""
        self.program.configure(config)

    def prepare(self, service: config.Service, scheduler: Scheduler) -> object:
        """As datapath.Offload."""
        return self.program.prepare(service, scheduler)

    def follow(self, service: ServiceState, plan: Plan) -> None:
        """As datapath.Offload."""
        assert isinstance(plan.prepared, Prepared)
        self.program.choose_by(service.number, plan.prepared)
        for backend in service.pool:
            self.program.cut(service.number, backend.id, backend.is_cut)

    def set_secrets(self, secrets: Secrets) -> None:
        """As datapath.Offload."""
        self.program.set_secrets(secrets)

    def handshakes(self, service: ServiceState) -> Histogram:
        """As datapath.Offload."""
        return self.program.durations.handshakes(service.number, service.handshakes)

    def first_acks(self, backend: Backend) -> Histogram:
        """As datapath.Offload."""
        return self.program.durations.first_acks(
            backend.service.number, backend.id, backend.first_acks)

    def tell_paths(self, paths: Paths) -> None:
        """Tell the program the ways to the backends, and what follows, if they have changed."""
        if self._paths_told == paths.version:
            return
        for backend in self._services.backends():
            self.program.set_next_hop(
                backend.service.number, backend.id, self._hop(backend, paths))
        for service in self._services:
            self.program.set_mss(service.number, service.config, service.mss)
        self._paths_told = paths.version

    def attach(self, config: Config, paths: Paths) -> Mode:
        """Let the program have the packets. Returns: how. Raises: BpfError."""
        routes = [paths[address].route for address in paths]
        wanted = devices.wanted_mode(config.xdp, config.interface, routes)
        self._mode = wanted or Mode.NATIVE  # until it is known, nothing goes where it may vanish
        self.tell_paths(paths)
        self._mode = self.program.attach(wanted)
        self.is_live = True
        self._paths_told = -1
        self.tell_paths(paths)
        return self._mode

    def _tell_backend(self, service: ServiceState, backend: Backend, paths: Paths) -> None:
        address, dscp = backend.end
        self.program.set_backend(
            service.number, backend.id, address, dscp, self._hop(backend, paths))
        self.program.cut(service.number, backend.id, backend.is_cut)

    def _hop(self, backend: Backend, paths: Paths) -> NextHop:
        """How the program may reach a backend."""
        path = paths[backend.address]
        if self._mode is not Mode.NATIVE or not devices.loses_frames(path.route):
            return path.hop
        if self.is_live:
            self._say_lossy(path.route.device)
        return UNKNOWN

    def _say_lossy(self, device: str) -> None:
        """Say once that packets by an interface take the slow way."""
        if device not in self._lossy:
            self._lossy.add(device)
            log.warning("%s takes no frames that are redirected to it, so packets by it go through "
                        "the portable engine; xdp = \"generic\" is faster here", device)

    def add_counts(self, counters: Counters) -> None:
        """As datapath.Offload."""
        self.program.reasons.add_to(counters)
        for backend in self._services.backends():
            totals = self.program.traffic_of(backend.service.number, backend.id)
            before = self._counted.get(backend, {})
            for name, total in totals.items():
                setattr(backend, name, getattr(backend, name) + total - before.get(name, 0))
            self._counted[backend] = totals


def beside(
    program: Program, config: Config, secrets: Secrets, *, random: Random
) -> tuple[Datapath, ProgramOffload]:
    """A data path on a program's flows, and what tells the program of its decisions."""
    services = Services(config, random, program.numbers)
    flows = MapStore(program.flows, timeouts_ms(config.timeouts), services.find)
    offload = ProgramOffload(program, services, flows)
    return Datapath(config, secrets, random=random, services=services, flows=flows,
                    offload=offload), offload
