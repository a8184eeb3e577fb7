"""All checks of all services: when they are due, what they have found, and what follows for shares.

Pure: times, randomness and packets are given, packets are returned. Checks are spread over their
interval, and each takes a port and numbers of its own, which nobody can guess.
"""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from itertools import count, islice
from random import Random

from balancer import metrics
from balancer.health.exchange import Exchange
from balancer.health.padded import SENT_TIMES, Checked, PaddedChecks
from balancer.health.request import Outcome, Request, request_of
from balancer.health.state import Health
from balancer.health.suspicion import Suspicion
from balancer.paths import Paths
from balancer.pool.pool import Backend, State
from balancer.pool.share import RAMP_STEPS, state_of
from balancer.services import ServiceState
from common.cluster.cookie import Secrets
from common.counters import Sample
from common.doctor.report import Complaint
from common.engine.log import fields
from common.histogram import Histogram
from common.wire import Malformed
from common.wire.family import look
from common.wire.packet import TCP
from common.wire.tcp import Segment

_JITTER = 0.1
_FIRST_WITHIN_MS = 1000
_SYNC_MS = 1000
_LOOKS = 500  # at backends, at once: packets wait meanwhile
_SAY_EVERY_MS = 60_000  # that a backend is suspect: clients can bring it about
_FIRST_PORT, _PORTS = 1024, 64512
log = logging.getLogger(__name__)


class Target:
    """A backend that is checked.

    address: where it was when that began. due_ms: when something is to be done for it.
    passed, failed: how many checks; is_passing: the latest. said_ms: when it was last said that it
    is suspect. cause: what a doctor has found there.
    """

    __slots__ = ("address", "backend", "cause", "due_ms", "duration_ms", "durations", "exchange",
                 "expires_ms", "failed", "health", "is_passing", "passed", "request", "said_ms",
                 "service", "started_ms", "suspicion", "words")

    def __init__(self, service: ServiceState, backend: Backend, request: Request) -> None:
        self.service = service
        self.backend = backend
        self.address = backend.address
        self.request = request
        self.health = Health(service.config.check)
        self.suspicion = Suspicion(backend.handoffs, backend.unanswered)
        self.said_ms = float("-inf")
        self.exchange: Exchange | None = None
        self.due_ms = self.started_ms = self.expires_ms = self.duration_ms = 0.0
        self.durations = Histogram()
        self.passed = self.failed = 0
        self.is_passing = True
        self.words = ""
        self.cause: Complaint | None = None

    def __str__(self) -> str:
        return (f"backend {self.backend.id} of {self.service.config.name} "
                f"({IPv4Address(self.backend.address)})")


class Monitor:
    """Checks backends. Times are monotonic, in ms, besides `unix_ms`.

    changed: services whose backends' standing is another one; whoever acts on it clears it.
    on_doubt: told of a backend of which a check says something else than before, or, if the second
              argument is true, whose clients hear nothing.
    """

    def __init__(
        self, services: Iterable[ServiceState], secrets: Callable[[], Secrets],
        paths: Paths, clock_ms: Callable[[], int], random: Random,
    ) -> None:
        """clock_ms: the time as paths have it."""
        self.changed: set[ServiceState] = set()
        self.on_doubt: Callable[[Backend, bool], None] = lambda *_: None
        self._secrets = secrets
        self._paths = paths
        self._padded = PaddedChecks(paths, clock_ms, self._exchange)
        self._random = random
        self._requests: dict[ServiceState, Request] = {}
        self._versions: dict[ServiceState, int] = {}
        self._targets: dict[Backend, Target] = {}
        self._due: list[tuple[float, int, Target]] = []
        self._order = count()
        self._running: dict[bytes, Target] = {}  # by the five-tuple of the answer
        self._ramping: set[Target] = set()
        self._sync_ms = 0.0
        self._looks: Iterator[Target] = iter(())
        self.follow(services)

    def follow(self, services: Iterable[ServiceState]) -> None:
        """Check these from now on, as they are configured now. What is known of backends stays."""
        self._requests = {
            service: request for service in services
            if (request := request_of(service.config.check, service.config.vip))}
        self._versions = dict.fromkeys(self._requests, -1)
        self._sync_ms = 0.0
        for target in list(self._targets.values()):
            request = self._requests.get(target.service)
            if request is None:
                self._leave(target)
            else:
                target.request, target.health.check = request, target.service.config.check

    @property
    def vips(self) -> set[bytes]:
        """Where answers come from."""
        return {service.config.vip.packed for service in self._requests}

    @property
    def due_ms(self) -> float:
        """When `on_time` has something to do."""
        return min(self._due[0][0] if self._due else self._sync_ms, self._sync_ms,
                   self._padded.due_ms)

    def on_time(self, now_ms: float, unix_ms: int, limit: int = 32) -> list[bytes]:
        """Begin, repeat and give up what is due, not too much at once. Returns: packets to send."""
        if now_ms >= self._sync_ms:
            self._sync(now_ms)
        packets: list[bytes] = []
        while self._due and self._due[0][0] <= now_ms and limit:
            due_ms, _, target = heapq.heappop(self._due)
            if target.due_ms == due_ms and self._targets.get(target.backend) is target:
                packets += self._on_due(target, now_ms, unix_ms)
                limit -= 1
        padded, silent = self._padded.on_time(now_ms, unix_ms)
        for backend in silent:
            self._check_now(self._targets[backend], now_ms)
        return packets + padded

    def on_packet(self, octets: bytes, now_ms: float) -> list[bytes]:
        """Look whether a packet answers a check. Returns: packets to send."""
        packet = look(octets)
        try:
            segment = Segment(packet) if packet.protocol == TCP else None
        except Malformed:
            return []
        if segment is None:
            return []
        target = self._running.get(segment.five_tuple)
        if target is None or target.exchange is None:
            return self._padded.on_segment(segment, now_ms)
        outcome, answer = target.exchange.on_segment(segment)
        if outcome:
            self._end(target, outcome, now_ms)
        return [answer] if answer else []

    def target_of(self, backend: Backend) -> Target | None:
        """What is known of a backend that is checked."""
        return self._targets.get(backend)

    def samples(self) -> list[Sample]:
        """What there is to be seen."""
        samples = []
        targets = list(self._targets.values())
        shares = {service: service.pool.shares().weights
                  for service in {target.service for target in targets}}
        for target in targets:
            backend, service = target.backend, target.service
            labels = metrics.labels_of(backend)
            state = state_of(backend.standing, backend.state is State.LEAVING)
            share = shares[service].get(backend.id, 0)
            samples += [
                metrics.BACKEND_UP.at(target.health.is_up, *labels),
                metrics.BACKEND_STATE.at(1, *labels, state.value),
                metrics.BACKEND_SHARE.at(
                    share and share / sum(shares[service].values()), *labels),
                metrics.BACKEND_CHECKS.at(target.passed, *labels, "passed"),
                metrics.BACKEND_CHECKS.at(target.failed, *labels, "failed"),
                metrics.BACKEND_CHECK_DURATION.of(target.durations, *labels, step=2),
                metrics.BACKEND_LAST_CHECK.at(target.duration_ms / 1000, *labels),
            ]
        return samples

    # --- who is checked ---

    def _sync(self, now_ms: float) -> None:
        """Check those that the configuration has now, and let ramps go on."""
        self._sync_ms = now_ms + min(_SYNC_MS, _SYNC_MS * _LOOKS / max(len(self._targets), 1))
        for service, request in self._requests.items():
            if self._versions[service] != service.pool.version:
                self._versions[service] = service.pool.version
                self._follow(service, request, now_ms)
        for target in list(self._ramping):
            self._stand(target, now_ms)
        self._look(now_ms)

    def _look(self, now_ms: float) -> None:
        """Look at what clients say of the next few; of each once a second."""
        looked = list(islice(self._looks, _LOOKS))
        if len(looked) < _LOOKS:
            self._looks = iter(list(self._targets.values()))
        for target in looked:
            backend = target.backend
            if target.suspicion.look(backend.handoffs, backend.unanswered) and target.health.is_up:
                self._suspect(target, now_ms)

    def _follow(self, service: ServiceState, request: Request, now_ms: float) -> None:
        serving = {each for each in service.pool if each.state is State.SERVING}
        for backend, target in list(self._targets.items()):
            if target.service is service and (
                    backend not in serving or target.address != backend.address):
                self._leave(target)
        within_ms = min(service.config.check.interval_ms, _FIRST_WITHIN_MS)
        for backend in serving - self._targets.keys():
            target = self._targets[backend] = Target(service, backend, request)
            self._plan(target, now_ms + self._random.random() * within_ms)

    def _leave(self, target: Target) -> None:
        """Check a backend no more; nothing speaks against it from now on."""
        self._forget(target)
        self._padded.forget(target)
        self._ramping.discard(target)
        del self._targets[target.backend]
        standing = target.backend.standing._replace(is_up=True, steps=RAMP_STEPS)
        if standing != target.backend.standing:
            target.backend.standing = standing
            self.changed.add(target.service)

    def _suspect(self, target: Target, now_ms: float) -> None:
        """Clients do not hear from it: check it at once, unless that is under way."""
        if now_ms - target.said_ms >= _SAY_EVERY_MS:
            target.said_ms = now_ms
            log.warning("%s is suspect: most clients repeat their first payload, without an answer "
                        "to it; it is checked at once", target)
        self.on_doubt(target.backend, True)
        self._check_now(target, now_ms)

    def _check_now(self, target: Target, now_ms: float) -> None:
        if target.exchange is None:
            self._plan(target, now_ms)

    # --- a check ---

    def _on_due(self, target: Target, now_ms: float, unix_ms: int) -> list[bytes]:
        exchange, check = target.exchange, target.service.config.check
        if exchange is None:
            return self._begin(target, now_ms, unix_ms)
        if now_ms >= target.expires_ms:
            self._end(target, exchange.on_timeout(check.timeout_ms), now_ms)
            return [exchange.reset()]
        self._plan(target, min(now_ms + check.timeout_ms / SENT_TIMES, target.expires_ms))
        return [] if exchange.is_seen else [exchange.handoff]

    def _begin(self, target: Target, now_ms: float, unix_ms: int) -> list[bytes]:
        check = target.service.config.check
        target.started_ms = now_ms
        exchange = self._exchange(target, target.request, unix_ms)
        if exchange is None:
            self._end(target, Outcome(False, "cannot be reached: there is no route"), now_ms)
            return []
        if exchange.key in self._running:  # another one has these ports: in a moment
            self._plan(target, now_ms + 1)
            return []
        target.exchange = exchange
        self._running[exchange.key] = target
        target.expires_ms = now_ms + check.timeout_ms
        self._plan(target, now_ms + check.timeout_ms / SENT_TIMES)
        return [exchange.handoff]

    def _exchange(self, target: Checked, request: Request, unix_ms: int) -> Exchange | None:
        """A check with ports and numbers of its own; None where there is no way."""
        source = self._paths[target.backend.address].own_address
        if not source:
            return None
        numbers = self._random.getrandbits(64)
        return Exchange(
            target.service, target.backend, request, self._secrets(), source=source,
            sport=_FIRST_PORT + (numbers >> 32) % _PORTS, client_isn=numbers & 0xFFFFFFFF,
            now_ms=unix_ms)

    def _end(self, target: Target, outcome: Outcome, now_ms: float) -> None:
        """A check has ended; plan the next one."""
        self._forget(target)
        is_news = outcome.is_passed is not target.is_passing or (
            not outcome.is_passed and outcome.words != target.words)
        target.is_passing, target.words = outcome
        if outcome.is_passed:
            target.passed += 1
            target.duration_ms = now_ms - target.started_ms
            target.durations.note(target.duration_ms)
        else:
            target.failed += 1
        since_ms, health = target.health.since_ms, target.health
        if health.note(outcome.is_passed, now_ms):
            self._say(target, outcome, now_ms, since_ms)
            self._stand(target, now_ms)
        if is_news:
            self.on_doubt(target.backend, False)
        self._padded.note_short(target, outcome.is_passed, now_ms)
        interval_ms = target.service.config.check.interval_ms / (2 if health.in_doubt else 1)
        due_ms = target.started_ms + interval_ms * (1 + _JITTER * (self._random.random() - 0.5))
        self._plan(target, max(due_ms, now_ms + 1))

    def _stand(self, target: Target, now_ms: float) -> None:
        """Let the backend's standing be what its health says now."""
        health, backend = target.health, target.backend
        steps = health.steps(now_ms)
        standing = backend.standing._replace(is_up=health.is_up, steps=steps)
        if steps < RAMP_STEPS:
            self._ramping.add(target)
        else:
            self._ramping.discard(target)
        if standing != backend.standing:
            backend.standing = standing
            self.changed.add(target.service)

    def _say(
        self, target: Target, outcome: Outcome, now_ms: float, since_ms: float | None
    ) -> None:
        service, backend, address = metrics.labels_of(target.backend)
        found = {"service": service, "backend": backend, "address": address, "seen": outcome.words}
        if target.health.is_up:
            log.info("%s is up again, after %.0f s: it %s", target,
                     (now_ms - (since_ms or now_ms)) / 1000, outcome.words,
                     extra=fields(event="backend_up", **found))
            return
        log.warning("%s is down: it %s", target, outcome.words,
                    extra=fields(event="backend_down", **found))
        if not any(each.health.is_up for each in self._targets.values()
                   if each.service is target.service):
            log.error("all backends of %s are down; %s", service,
                      "new flows are given to all of them"
                      if target.service.config.check.all_down == "use all"
                      else "clients are reset", extra=fields(event="service_down", service=service))

    def _forget(self, target: Target) -> None:
        if target.exchange:
            self._running.pop(target.exchange.key, None)
            target.exchange = None

    def _plan(self, target: Target, due_ms: float) -> None:
        target.due_ms = due_ms
        heapq.heappush(self._due, (due_ms, next(self._order), target))
