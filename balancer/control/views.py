"""What can be seen of a balancer, as JSON says it (docs/api.md).

What belongs to the loop is read there, one service at a time, so that packets wait for one service
of 127 backends at most. Flows are only looked at, which any thread may.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import IPv4Address
from itertools import islice
from typing import Any

from balancer.control.find import is_called, services_of
from balancer.datapath import Datapath
from balancer.flows import STATES, BackendFlow
from balancer.health.monitor import Monitor
from balancer.pool.pool import Backend, State
from balancer.pool.share import state_of, weight_of
from balancer.services import ServiceState
from common.control.api import in_loop
from common.control.forms import Asked, Handler, Refused
from common.control.inbox import Inbox
from common.control.query import FlowQuery, client_of
from common.engine import clock
from common.histogram import Histogram


class Shown:
    """Describes a data path, and what checks have found. monitor: None where nothing is checked."""

    def __init__(
        self, datapath: Datapath, monitor: Monitor | None,
        counted_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        """counted_ms: of when the backends' counts are, by the engine's clock."""
        self.services = datapath.services
        self.flows = datapath.flows
        self._datapath = datapath
        self._monitor = monitor
        self._counted_ms = counted_ms

    async def facts(self, inbox: Inbox) -> dict[str, Any]:
        """The balancer's part of `status`."""
        services = await in_loop(inbox, lambda: list(self.services))
        states: Counter[str] = Counter()
        for service in services:
            states += await in_loop(inbox, partial(_states, service))
        return {
            "flows": len(self.flows), "max_flows": self._datapath.max_flows,
            "evicted_flows": self.flows.evicted, "services": len(services),
            "backends": dict(sorted(states.items())),
        }

    def service(self, service: ServiceState) -> dict[str, Any]:
        """A service."""
        config, backends = service.config, list(service.pool)
        return {
            "name": config.name, "vip": str(config.vip), "port": config.port, "dscp": config.dscp,
            "key": str(config.key), "scheduler": config.scheduler, "mss": service.mss,
            "flows": sum(map(self.flows.count, backends)),
            "handoffs": sum(backend.handoffs for backend in backends),
            "packets": sum(backend.packets for backend in backends),
            "bytes": sum(backend.octets for backend in backends),
            "backends": dict(sorted(_states(service).items())),
        }

    def round_trips(self, service: ServiceState) -> Histogram:
        """How long handshakes of a service's clients took."""
        offload = self._datapath.offload
        return offload.handshakes(service) if offload else service.handshakes

    def backends(
        self, service: ServiceState, which: Collection[Backend] | None = None
    ) -> list[dict[str, Any]]:
        """Backends of a service, by default all."""
        weights = service.pool.shares().weights
        total = sum(weights.values())
        return [self._backend(service, backend, weights.get(backend.id, 0) / (total or 1))
                for backend in service.pool if which is None or backend in which]

    def _backend(self, service: ServiceState, backend: Backend, share: float) -> dict[str, Any]:
        return {
            "service": service.config.name, "id": backend.id,
            "address": str(IPv4Address(backend.address)), "state": _state(backend),
            "operator": backend.standing.operator.value, "weight": weight_of(backend),
            "configured_weight": backend.weight,
            "share": round(share, 6),
            "flows": self.flows.count(backend), "handoffs": backend.handoffs,
            "unanswered": backend.unanswered,
            "packets": backend.packets, "bytes": backend.octets, "check": self._check(backend),
        }

    def _check(self, backend: Backend) -> dict[str, Any] | None:
        target = self._monitor.target_of(backend) if self._monitor else None
        if target is None:
            return None
        since_ms, cause = target.health.since_ms, target.cause
        return {
            "up": target.health.is_up, "says": target.words,
            "cause": cause and cause.sentence, "remedy": cause and cause.remedy,
            "since_seconds": None if since_ms is None
            else round(time.monotonic() - since_ms / 1000, 1),
            "seconds": round(target.duration_ms / 1000, 6),
            "passed": target.passed, "failed": target.failed,
        }

    def flow(self, flow: BackendFlow, now_ms: int) -> dict[str, Any]:
        """A flow."""
        return {
            "client": client_of(flow.key),
            "service": flow.backend.service.config.name, "backend": flow.backend.id,
            "state": STATES[flow.state], "timestamps": flow.has_timestamps,
            "age_seconds": max(now_ms - flow.created_ms, 0) // 1000,
            "idle_seconds": max(now_ms - flow.seen_ms, 0) // 1000,
        }

    def counted_s(self) -> float:
        """Of when counts are."""
        return self._counted_ms() / 1000


def gets(inbox: Inbox, shown: Shown) -> dict[str, Handler]:
    """What is asked for, by name."""
    async def by_service(asked: Asked, show: Callable[[ServiceState], Any]) -> list[Any]:
        def find() -> list[ServiceState]:
            return services_of(shown.services, asked.query.get("service"))

        try:
            services = await in_loop(inbox, find)
        except ValueError as error:
            raise Refused(404, str(error)) from None
        return [await in_loop(inbox, partial(show, each)) for each in services]

    async def services(asked: Asked) -> Mapping[str, Any]:
        return {"seconds": shown.counted_s(), "services": await by_service(asked, shown.service)}

    async def backends(asked: Asked) -> Mapping[str, Any]:
        seconds, name = shown.counted_s(), asked.query.get("backend")
        found = [each for part in await by_service(asked, shown.backends) for each in part]
        return {"seconds": seconds, "backends": [
            each for each in found if name in (None, str(each["id"]), each["address"])]}

    async def health(asked: Asked) -> Mapping[str, Any]:
        found = (await backends(asked))["backends"]
        return {"backends": [
            {**{key: each[key] for key in ("service", "id", "address", "state")}, **each["check"]}
            for each in found if each["check"]]}

    async def flows(asked: Asked) -> Mapping[str, Any]:
        services = {each["name"] for each in await by_service(asked, shown.service)}
        return await asyncio.to_thread(_look, shown, FlowQuery(asked.query), services,
                                       asked.query.get("backend"))

    return {"services": services, "backends": backends, "health": health, "flows": flows}


def _look(
    shown: Shown, wants: FlowQuery, services: Collection[str], backend: str | None
) -> Mapping[str, Any]:
    """Look the table through, in any thread. services, backend: whose flows are meant."""
    now_ms = clock.now_ms()
    meant = (flow for flow in shown.flows.glance()
             if wants.is_meant(flow.key) and flow.backend.service.config.name in services
             and (backend is None or is_called(flow.backend, backend)))
    found = list(islice(meant, wants.limit + 1))
    return {"total": len(shown.flows), "more": len(found) > wants.limit,
            "flows": [shown.flow(flow, now_ms) for flow in found[:wants.limit]]}


def _states(service: ServiceState) -> Counter[str]:
    """How many backends are in which state."""
    return Counter(map(_state, service.pool))


def _state(backend: Backend) -> str:
    return state_of(backend.standing, backend.state is State.LEAVING).value

