"""What the operator orders: drain, undrain, disable, enable, weight.

A backend's standing is changed in the loop, the tables that follow are reckoned off the packet
path, and an order is answered when flows are chosen for by them.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from balancer.control.find import backends_of, services_of
from balancer.control.kept import Kept, Name, name_of
from balancer.control.views import Shown
from balancer.pool.pool import Backend
from balancer.pool.share import Operator, Standing
from balancer.reckoner import Reckoner
from balancer.services import ServiceState
from common.control.api import in_loop
from common.control.forms import Asked, Handler, Refused
from common.control.inbox import Inbox

_SETTLED_S = 20.0
_MOST_WEIGHT = 65535
Change = Callable[[Standing, Mapping[str, Any]], Standing]
log = logging.getLogger(__name__)


class Done(NamedTuple):
    """What was ordered, of these backends. settled: when it holds for new flows."""

    backends: list[tuple[ServiceState, Backend]]
    standings: dict[Name, Standing]
    settled: "list[Future[None]]"


class Orders:
    """Carries orders out, and keeps them where that is wanted."""

    def __init__(self, inbox: Inbox, shown: Shown, reckoner: Reckoner, kept: Kept) -> None:
        self._inbox = inbox
        self._shown = shown
        self._reckoner = reckoner
        self._kept = kept
        self._writing = asyncio.Lock()

    def posts(self) -> dict[str, Handler]:
        """By name."""
        return {name: self._handler(name, change) for name, change in CHANGES.items()}

    def _handler(self, name: str, change: Change) -> Handler:
        async def handle(asked: Asked) -> Any:
            words = asked.words
            try:
                done = await in_loop(self._inbox, lambda: self._carry_out(name, change, words))
            except ValueError as error:
                raise Refused(400, str(error)) from None
            try:
                await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, done.settled)),
                                       _SETTLED_S)
            except TimeoutError:
                raise Refused(504, "it is done, but the tables are still being made") from None
            await self._keep(done, _is_true(words.get("keep")))
            return {"backends": await in_loop(self._inbox, lambda: self._show(done))}
        return handle

    def _carry_out(self, name: str, change: Change, words: Mapping[str, Any]) -> Done:
        """In the loop. Raises: ValueError."""
        services = services_of(self._shown.services, words.get("service"))
        found = backends_of(services, words.get("backend"))
        wanted = [(backend, change(backend.standing, words)) for _, backend in found]
        for backend, standing in wanted:
            backend.standing = standing
        for service, backend in found:
            log.info("backend %d of %s: the operator says %s", backend.id, service.config.name,
                     f"weight {words.get('weight')}" if name == "weight" else name)
        settled = [self._reckoner.reckon(service)
                   for service in dict.fromkeys(service for service, _ in found)]
        return Done(found, {name_of(service.config, backend.id): backend.standing
                            for service, backend in found}, settled)

    def _show(self, done: Done) -> list[dict[str, Any]]:
        which = {backend for _, backend in done.backends}
        services = dict.fromkeys(service for service, _ in done.backends)
        return [each for service in services for each in self._shown.backends(service, which)]

    async def _keep(self, done: Done, keep: bool) -> None:
        """Keep what is to be kept; what is taken back is kept no more in any case.

        Raises: Refused where that cannot be written.
        """
        async with self._writing:
            before = dict(self._kept.standings)
            for name, standing in done.standings.items():
                self._kept.note(name, standing if keep else _common(before.get(name), standing))
            if self._kept.standings == before:
                return
            try:
                await asyncio.to_thread(self._kept.write)
            except OSError as error:
                self._kept.standings = before
                raise Refused(500, f"it is done, but not kept for a restart: {error}") from None


def _common(kept: Standing | None, now: Standing) -> Standing:
    """Of what was kept, what still holds."""
    if kept is None:
        return Standing()
    return Standing(
        kept.operator if now.operator is not Operator.ENABLED else Operator.ENABLED,
        weight=kept.weight if now.weight is not None else None)


def _weighed(standing: Standing, words: Mapping[str, Any]) -> Standing:
    """Raises: ValueError."""
    wanted = str(words.get("weight", ""))
    if wanted == "default":
        return standing._replace(weight=None)
    if not (wanted.isdecimal() and wanted.isascii() and int(wanted) <= _MOST_WEIGHT):
        raise ValueError(f"weight: a whole number from 0 to {_MOST_WEIGHT}, or `default`: what the "
                         "configuration says")
    return standing._replace(weight=int(wanted))


def _stands(operator: Operator) -> Change:
    return lambda standing, _: standing._replace(operator=operator)


CHANGES: dict[str, Change] = {
    "drain": _stands(Operator.DRAINING), "undrain": _stands(Operator.ENABLED),
    "disable": _stands(Operator.DISABLED), "enable": _stands(Operator.ENABLED),
    "weight": _weighed,
}


def _is_true(word: object) -> bool:
    return word is True or str(word).lower() in ("true", "1", "yes")
