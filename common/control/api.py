"""What can be asked of either program.

An answer is made where it may take its time: what belongs to the loop is read there by small calls
(common/control/inbox.py), the rest in the thread that serves.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from common import __version__
from common.control import PREFIX
from common.control.events import Events
from common.control.forms import Asked, Content, Handler, Refused
from common.control.inbox import Inbox
from common.counters import Counters, Sample

_LOOP_S = 3.0  # how long the loop may take to answer
R = TypeVar("R")


Background = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Views:
    """What a program shows and does, besides what both do.

    facts: its part of `status`. gets, posts: by name in the path. live: what events tell of.
    pages: by path. background: what goes on beside, until it is cancelled.
    """

    inbox: Inbox
    facts: Callable[[], Awaitable[Mapping[str, Any]]]
    gets: Mapping[str, Handler] = field(default_factory=dict)
    posts: Mapping[str, Handler] = field(default_factory=dict)
    live: Sequence[str] = ("status", "services", "reasons")
    pages: Mapping[str, Handler] = field(default_factory=dict)
    background: Sequence[Background] = ()


class Engine(Protocol):
    """What is needed of an engine. state: `starting`, `ready` or `stopping`; line: what it said
    when it was ready.
    """

    counters: Counters
    state: str
    line: str

    def samples(self) -> list[Sample]: ...


async def in_loop(inbox: Inbox, function: Callable[[], R]) -> R:
    """What a function returns that is called in the loop. Raises: Refused where that is stuck."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(inbox.call(function)), _LOOP_S)
    except TimeoutError:
        raise Refused(503, f"the program has handled no packets for {_LOOP_S:g} s") from None


class Common:
    """What either program says of itself."""

    def __init__(
        self, program: str, engine: Engine, views: Views, has_token: bool = False
    ) -> None:
        """has_token: whether orders are taken at the metrics' address."""
        self._program = program
        self._has_token = has_token
        self._engine = engine
        self._views = views
        self._started_s = time.monotonic()
        self._named: dict[str, Handler] = {
            "status": self.status, "reasons": self.reasons, **views.gets}
        events = Events({name: self._named[name] for name in views.live})
        self._named["events"] = events.stream

    def gets(self) -> dict[str, Handler]:
        """By path: what changes nothing."""
        return {"/healthz": self.health, **self._views.pages,
                **{PREFIX + name: each for name, each in self._named.items()}}

    def posts(self) -> dict[str, Handler]:
        """By path: what changes something."""
        return {PREFIX + name: each for name, each in self._views.posts.items()}

    async def status(self, _: Asked) -> Mapping[str, Any]:
        """What runs here, and since when."""
        facts = await self._views.facts()
        return {
            "program": self._program, "version": __version__, "pid": os.getpid(),
            "state": self._engine.state, "ready": self._engine.line,
            "uptime_seconds": round(time.monotonic() - self._started_s, 1),
            "has_token": self._has_token, **facts,
        }

    async def reasons(self, _: Asked) -> Mapping[str, int]:
        """Packets by outcome."""
        counters = self._engine.counters
        return await in_loop(self._views.inbox, lambda: {
            reason.value: count for reason, count in counters.items()})

    async def health(self, _: Asked) -> Content:
        """Whether packets are handled."""
        why = "" if self._engine.state == "ready" else self._engine.state
        if not why:
            try:
                await in_loop(self._views.inbox, lambda: None)
            except Refused as refused:
                why = str(refused)
        return Content(f"not ready: {why}\n".encode(), status=503) if why else Content(b"ready\n")
