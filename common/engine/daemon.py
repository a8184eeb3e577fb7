"""A daemon's life: locks, queue, changes to the host, packets, and everything put back.

Nothing on the host is changed before all that can be refused has been looked at.
"""

import asyncio
import logging
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from common.control import start
from common.control.api import Views, in_loop
from common.control.forms import Asked, Handler, Refused
from common.control.inbox import Inbox
from common.counters import Sample
from common.engine import claims, clock, secrets
from common.engine.claims import Claim
from common.engine.firewall import FirewallError
from common.engine.guarding import Guarded, HostGuard
from common.engine.host import Change, Host
from common.engine.instances import Notes, Outcome
from common.engine.lifetime import Lifetime
from common.engine.lock import Locks
from common.engine.loop import Datapath, Engine, Sender
from common.engine.observation import Observation
from common.engine.queue import QueueError
from common.engine.reload import Live, Reloader
from common.engine.secrets import SecretReader
from common.engine.signals import Signals
from common.engine.sources import Source
from common.settings import ConfigError

log = logging.getLogger(__name__)


class Config(secrets.Config, start.Config, Protocol):
    """What a daemon's life needs of a configuration."""

    @property
    def lifetime_ms(self) -> int | None: ...


class Lasting(Protocol):
    """What goes on handling packets when this process has ended."""

    def keeps(self, change: Change) -> bool:
        """Whether it needs this change to the host."""

    def detach(self) -> None:
        """End it, as far as that can be done; what cannot is logged."""


def serve(
    program: str, config: Config, datapath: Datapath, sender: Sender, needed: Sequence[Claim],
    change: Callable[[Host], str], live: Live, *,
    last_words: Callable[[int], list[bytes]] = lambda now_ms: [],
    lasting: Lasting | None = None, sources: Sequence[Source] = (), views: Views,
    guarded: Guarded, observation: Observation | None = None,
) -> int:
    """Run a data path until it is asked to stop (service.Signals). Returns: the exit code.

    change:     makes the changes to the host, and returns the line to log when they are made.
    live:       what can change while it runs.
    last_words: packets to send before they are undone; now_ms: of the engine's clock.
    lasting:    what SIGUSR2 leaves in place, with the changes, so that a restart is not noticed.
    sources:    what happens besides packets. guarded: what is watched besides the changes.
    views:      what is answered besides what every program answers.
    observation: who sees the verdicts.
    Raises: ConfigError, before anything on the host is changed.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory has the secret in it
    signals = Signals()
    host, locks = Host(program, config.queue), Locks()
    answers: start.Answers | None = None
    own = Claim(host.owner_name, "queue", config.queue, "a queue number of its own")
    try:
        for claim in (*needed, own):
            claims.take(program, config.file, claim, locks)
        guard = HostGuard(host, guarded)
        reader = SecretReader(config, datapath)
        reloader = Reloader(program, host, locks, live, reader)
        ends = [Lifetime(config.lifetime_ms, signals)] if config.lifetime_ms else []
        engine = _make_engine(
            config, datapath, sender, signals, reloader,
            [reader, *ends, *sources, views.inbox, *guard.sources],
            [reloader.samples, guarded.repairs.samples], observation)
        views = replace(views, posts={
            **views.posts, "reload": _on_reload(views.inbox, reloader)})
        answers = start.Answers(program, config, engine, views)
        return _run(host, engine, guard, signals, change, last_words, lasting, reloader)
    finally:
        if answers:
            answers.close()
        locks.release()


def undo(program: str, config: Config, lasting: Lasting) -> int:
    """End what outlived an instance, and undo its changes. Returns: the exit code.

    Raises: ConfigError while the instance runs.
    """
    host, locks = Host(program, config.queue), Locks()
    claims.take(program, config.file, Claim(host.owner_name, "queue", config.queue,
                                            "that of an instance that has ended"), locks)
    try:
        lasting.detach()
        host.recover()
        host.undo()
        Notes(host.owner_name).remove()
        start.forget(program, config)
    except (FirewallError, NetlinkError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    finally:
        locks.release()
    return 0


def _run(
    host: Host, engine: Engine, guard: HostGuard, signals: Signals, change: Callable[[Host], str],
    last_words: Callable[[int], list[bytes]], lasting: Lasting | None, reloader: Reloader,
) -> int:
    stays = False
    try:
        host.recover(lasting.keeps if lasting else lambda change: False)
        ready = change(host)
        reloader.begin()
        try:
            guard.begin()
            engine.run(ready)
        finally:
            guard.end()
        stays = lasting is not None and signals.hands_over
        if lasting and not stays:
            lasting.detach()
        engine.send_all(last_words(clock.now_ms()))
    except (FirewallError, NetlinkError, OSError) as error:
        log.error("%s", error)
        return 1
    finally:
        reloader.close()
        if stays:
            host.leave()
            log.info("connections continue without this process; `%s detach` stops that",
                     host.program)
        else:
            if lasting:
                lasting.detach()
            host.undo()
        engine.close()  # after the rules: while they stand, the queue must be there, or drop
    return 0


def _on_reload(inbox: Inbox, reloader: Reloader) -> Handler:
    """What answers who asks for a reload: with what has changed, or why nothing has."""
    def begin() -> "Future[Outcome]":
        future: Future[Outcome] = Future()

        def tell(outcome: Outcome) -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(outcome)

        reloader.reload(tell)
        return future

    async def handle(_: Asked) -> Mapping[str, Any]:
        outcome = await asyncio.wrap_future(await in_loop(inbox, begin))
        if not outcome.ok:
            raise Refused(409, "; ".join(outcome.lines))
        return {"changed": list(outcome.lines)}

    return handle


def _make_engine(
    config: Config, datapath: Datapath, sender: Sender, signals: Signals, reloader: Reloader,
    sources: Sequence[Source], observers: Sequence[Callable[[], list[Sample]]],
    observation: Observation | None,
) -> Engine:
    try:
        return Engine(datapath, config.queue, sender, signals, reloader.reload,
                      [*reloader.sources, *sources], observers, observation)
    except QueueError as error:
        raise ConfigError(
            config.file, "queue", config.queue, f"the number of a queue that is free: {error}"
        ) from None
