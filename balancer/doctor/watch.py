"""The doctor within the balancer: it looks at what checks and clients cast doubt on, and says why.

Bridges are looked at in threads, some at a time, off the packet path. Of those that checks find
well, a question now and then tells what no check does: a clock that drifts, a path that is narrow,
connections that are not adopted. Handoffs are only tried where something is wrong.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from itertools import islice
from random import Random
from typing import NamedTuple

from balancer.config import Config
from balancer.datapath import Datapath
from balancer.doctor import local
from balancer.doctor.agenda import Agenda
from balancer.doctor.diagnose import of_bridge, of_host
from balancer.doctor.examine import Examiner, Member, Way, way_of
from balancer.doctor.findings import Asker, OfBridge
from balancer.flows import BackendFlow
from balancer.health.monitor import Monitor
from balancer.pool.pool import Backend, State
from common.cluster import probe
from common.cluster.secrets import Secrets
from common.doctor.ask import Silence
from common.doctor.host import may_be_killed
from common.doctor.report import Complaint, Severity
from common.doctor.said import Said
from common.engine.log import fields
from common.engine.queue import RawSender
from common.engine.sources import Source
from common.engine.worker import Worker
from common.wire import five_tuple

AT_A_TIME = 8  # bridges
SUSPECTED_S = 10.0  # clients can bring it about: so seldom, for one bridge
_FAILING, _OTHERS = 2, 4  # services of a bridge that a look is at: a failing one may take a second
_SYNC_S = 1.0
_MOST_FLOWS = 20_000  # that are looked through for a client that gets no answer
_HOST = b""  # this host's place among the bridges
_LEVELS = {Severity.NOTE: logging.INFO, Severity.WARNING: logging.WARNING,
           Severity.ERROR: logging.WARNING}
log = logging.getLogger(__name__)


class Looked(NamedTuple):
    """What came of a look. found: causes, for each backend that was looked at, or for the host."""

    address: bytes
    found: Mapping[Hashable, tuple[Complaint, ...]]

    @property
    def is_ill(self) -> bool:
        """Whether anything is wrong that handoffs were tried for."""
        return any(complaint.severity is not Severity.NOTE
                   for complaints in self.found.values() for complaint in complaints)


class DoctorWatch:
    """Looks at the bridges of a data path, and at this host.

    interface: where clients' packets come in.
    """

    def __init__(
        self, datapath: Datapath, monitor: Monitor, random: Random,
        running: Callable[[], Config], why_portable: str,
    ) -> None:
        """running: the configuration that runs. why_portable: what speaks against the fast engine;
        empty: it runs.

        Raises: OSError.
        """
        config = running()
        self.interface = config.interface
        self._datapath, self._monitor, self._running = datapath, monitor, running
        self._why_portable = why_portable
        self._sender = RawSender(config.mark)
        self._agenda, self._said = Agenda(random), Said()
        self._members: dict[bytes, list[Backend]] = {}
        self._known: tuple[object, ...] = ()
        self._paths_version, self._mtus = -1, dict[bytes, int]()
        self._suspected: dict[bytes, float] = {}  # until when no other suspicion of it counts
        self._is_suspected: set[bytes] = set()
        self._looks = self._at_work = 0
        self._sync_s = 0.0
        self._is_closed = False
        self._worker: Worker[Looked] = Worker("asking bridges", self._on_looked, AT_A_TIME)
        monitor.on_doubt = self.doubt

    @property
    def sources(self) -> list[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    def close(self) -> None:
        """Look no more. Those looks that go on end with the program."""
        self._is_closed = True
        self._worker.close()

    def doubt(self, backend: Backend, is_suspect: bool) -> None:
        """A check has found something else than before, or clients hear nothing (is_suspect)."""
        address, now_s = backend.address, time.monotonic()
        if is_suspect:
            if now_s < self._suspected.get(address, 0.0):
                return
            self._suspected[address] = now_s + SUSPECTED_S
            self._is_suspected.add(address)
        self._agenda.doubt(address, now_s)

    # --- as sources.Source ---

    @property
    def deadline_s(self) -> float | None:
        """As sources.Source."""
        due_s = self._agenda.due_s if self._at_work < AT_A_TIME else float("inf")
        return min(self._sync_s, due_s)

    def fileno(self) -> int:
        """As sources.Source; there is none."""
        return -1

    def on_ready(self) -> None:
        """As sources.Source; there is nothing to read."""

    def on_deadline(self) -> None:
        """Have the threads look at what is due."""
        now_s = time.monotonic()
        self._sync(now_s)
        while self._at_work < AT_A_TIME:
            address = self._agenda.take(now_s)
            if address is None:
                break
            self._at_work += 1
            self._worker.start(partial(self._done, address, self._look(address)))

    def _sync(self, now_s: float) -> None:
        """Follow what has changed."""
        self._sync_s = now_s + _SYNC_S
        self._follow_backends(now_s)
        self._follow_paths(now_s)

    def _follow_backends(self, now_s: float) -> None:
        known = (self._running().probe_port, *(
            (service, service.pool.version) for service in self._datapath.services))
        if known == self._known:
            return
        self._known = known
        before = {backend for backends in self._members.values() for backend in backends}
        self._members = {}
        if self._running().probe_port:
            for backend in self._datapath.services.backends():
                if backend.state is State.SERVING:
                    self._members.setdefault(backend.address, []).append(backend)
        now = {backend for backends in self._members.values() for backend in backends}
        for backend in before - now:
            self._said.note(backend, (), now_s)
        for address in self._agenda.follow([_HOST, *self._members], now_s):
            self._suspected.pop(address, None)
            self._is_suspected.discard(address)

    def _follow_paths(self, now_s: float) -> None:
        """A path that is of another width is worth a look."""
        paths = self._datapath.paths
        if paths.version == self._paths_version:
            return
        self._paths_version = paths.version
        before, self._mtus = self._mtus, {address: paths[address].mtu for address in paths}
        for address, mtu in self._mtus.items():
            if before.get(address, mtu) != mtu:
                self._agenda.doubt(address, now_s)

    def _look(self, address: bytes) -> Callable[[], Mapping[Hashable, tuple[Complaint, ...]]]:
        """What a thread is to do for an address. What belongs to the loop is read here."""
        config, secrets = self._running(), self._datapath.secrets
        config = replace(config, interface=self.interface)
        if address == _HOST:
            return partial(_look_at_host, config, secrets, self._why_portable)
        is_suspect = address in self._is_suspected
        self._is_suspected.discard(address)
        members = self._choose(self._members[address], is_suspect)
        flows = self._datapath.flows.glance if is_suspect else None
        return partial(_look_at_bridge, Examiner(config.probe_port, secrets, self._sender),
                       probe.key_ids(secrets), address, way_of(self._datapath.paths[address]),
                       members, flows)

    def _choose(self, backends: list[Backend], is_suspect: bool) -> list[Member]:
        """Some of a bridge's, others each time."""
        self._looks += 1
        first = self._looks * _FAILING % len(backends)
        failing: list[Member] = []
        others: list[Member] = []
        for backend in (*backends[first:], *backends[:first]):
            target = self._monitor.target_of(backend)
            member = Member(backend.service, backend)
            if target and not target.is_passing:
                failing.append(member)
            elif is_suspect:
                others.append(member)
            else:
                others.append(member._replace(is_quiet=True))
        most = _FAILING if is_suspect or failing else _OTHERS
        return [*failing[:_FAILING], *others][:most]

    # --- what was found ---

    def _on_looked(self, looked: Looked) -> None:
        self._at_work -= 1
        now_s = time.monotonic()
        for whom, complaints in looked.found.items():
            news = self._said.note(whom, complaints, now_s)
            self._say(news.begun, news.ended)
            target = self._monitor.target_of(whom) if isinstance(whom, Backend) else None
            if target:
                target.cause = max(complaints, key=lambda each: each.severity, default=None)
        self._agenda.done(looked.address, now_s, looked.is_ill)

    def _say(self, begun: Iterable[Complaint], ended: Iterable[Complaint]) -> None:
        for each in begun:
            log.log(_LEVELS[each.severity], "doctor: %s; remedy: %s", each.sentence, each.remedy,
                    extra=fields(event="cause", severity=each.severity.name.lower(),
                                 sentence=each.sentence, remedy=each.remedy))
        for each in ended:
            log.info("doctor: no longer so: %s", each.sentence,
                     extra=fields(event="cause_ended", sentence=each.sentence))

    # --- in a thread ---

    def _done(
        self, address: bytes, look: Callable[[], Mapping[Hashable, tuple[Complaint, ...]]]
    ) -> Looked:
        try:
            return Looked(address, look())
        except OSError as error:  # the interface has gone, or there are no descriptors
            log.debug("the doctor cannot look: %s", error)
        except Exception:
            if not self._is_closed:  # an interpreter that ends has no threads to give
                log.exception("the doctor cannot look")
        return Looked(address, {})


def _look_at_host(
    config: Config, secrets: Secrets, why_portable: str
) -> Mapping[Hashable, tuple[Complaint, ...]]:
    """Raises: OSError."""
    found = local.of_running(config, secrets, why_portable, asks_clock=not may_be_killed())
    if why_portable:
        found = found._replace(xdp="")  # it is another's
    elif not found.xdp:
        return {}  # it has been detached: the guard attaches it again
    return {_HOST: tuple(of_host(found))}


def _look_at_bridge(
    examiner: Examiner, keys: tuple[bytes, ...], address: bytes, way: Way, members: list[Member],
    flows: Callable[[], Iterator[BackendFlow]] | None,
) -> Mapping[Hashable, tuple[Complaint, ...]]:
    """flows: to find a client in who gets no answer. Raises: OSError."""
    client = _unanswered(flows(), address) if flows else None
    bridge = examiner.examine(address, way, members, client)
    asker = Asker(keys, str(IPv4Address(client)) if client else "")
    return dict(zip((member.backend for member in members), _causes(bridge, asker), strict=True))


def _unanswered(flows: Iterator[BackendFlow], address: bytes) -> bytes | None:
    """The address of a client who has repeated its first payload to a bridge."""
    return next((five_tuple.split(flow.key).src for flow in islice(flows, _MOST_FLOWS)
                 if flow.is_repeated and flow.backend.address == address), None)


def _causes(bridge: OfBridge, asker: Asker) -> Iterator[tuple[Complaint, ...]]:
    """For each of the services. Of a silent bridge all of them tell whether it is there."""
    for service in bridge.services:
        whole = bridge if isinstance(bridge.plain.reply, Silence) else bridge._replace(
            services=(service,))
        yield tuple(of_bridge(whole, asker))
