"""The shares that follow from what has changed, reckoned in a thread: tables take their time, and
packets do not wait for them.
"""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from balancer.datapath import Datapath
from balancer.services import Plan, ServiceState
from common.engine.worker import Worker

_SWITCH_S = 0.0005  # for how long one thread may keep others from running
log = logging.getLogger(__name__)


class Reckoned(NamedTuple):
    """A plan for a service; None: our bug, and logged."""

    service: ServiceState
    plan: Plan | None


class Reckoner(Worker[Reckoned]):
    """Lets a data path choose by the standing that its backends have; a source of the loop."""

    def __init__(self, datapath: Datapath) -> None:
        super().__init__("reckoning shares", self._on_reckoned)
        self._datapath = datapath
        self._reckoning: set[ServiceState] = set()
        self._changed: set[ServiceState] = set()
        self._waiting: dict[ServiceState, list[Future[None]]] = {}
        # whoever has a packet must not wait for the thread that makes a table
        sys.setswitchinterval(_SWITCH_S)

    def reckon(self, service: ServiceState) -> "Future[None]":
        """A backend's standing is another one. Returns: when flows are chosen for by it."""
        future: Future[None] = Future()
        self._waiting.setdefault(service, []).append(future)
        self._changed.add(service)
        self._begin(service)
        return future

    def _begin(self, service: ServiceState) -> None:
        """Of one service once at a time."""
        if service in self._reckoning or service not in self._changed:
            return
        self._changed.discard(service)
        self._reckoning.add(service)
        self.start(partial(_reckon, service, self._datapath.plan(service)))

    def _on_reckoned(self, reckoned: Reckoned) -> None:
        service = reckoned.service
        self._reckoning.discard(service)
        if reckoned.plan and not self._datapath.follow(service, reckoned.plan):
            self._changed.add(service)  # its backends are others now
        if service in self._changed:
            self._begin(service)
            return
        for future in self._waiting.pop(service, ()):
            if future.set_running_or_notify_cancel():
                future.set_result(None)


def _reckon(service: ServiceState, make: Callable[[], Plan]) -> Reckoned:
    try:
        return Reckoned(service, make())
    except Exception:
        log.exception("the shares of %s stay as they were", service.config.name)
        return Reckoned(service, None)
