"""A daemon's life: locks, queue, changes to the host, packets, and everything put back.

Nothing on the host is changed before all that can be refused has been looked at.
"""

import logging
import resource
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from common.control import start
from common.control.api import Views
from common.engine import clock, secrets
from common.engine.firewall import FirewallError
from common.engine.host import Change, Host
from common.engine.lock import DIRECTORY, Locks, Taken
from common.engine.loop import Datapath, Engine, Sender
from common.engine.queue import QueueError
from common.engine.secrets import SecretReader
from common.engine.signals import Signals
from common.engine.sources import Source
from common.settings import ConfigError

log = logging.getLogger(__name__)


class Config(secrets.Config, Protocol):
    """What a daemon's life needs of a configuration."""

    @property
    def queue(self) -> int: ...
    @property
    def metrics(self) -> tuple[str, int] | None: ...
    @property
    def control(self) -> bool | str: ...
    @property
    def token_file(self) -> str | None: ...


class Claim(NamedTuple):
    """Something that one instance on a host may have: the name of its lock, and how to say so."""

    lock: str
    key: str
    value: object
    expected: str


class Lasting(Protocol):
    """What goes on handling packets when this process has ended."""

    def keeps(self, change: Change) -> bool:
        """Whether it needs this change to the host."""

    def detach(self) -> None:
        """End it, as far as that can be done; what cannot is logged."""


def serve(
    program: str, config: Config, datapath: Datapath, sender: Sender, claims: Sequence[Claim],
    change: Callable[[Host], str], last_words: Callable[[int], list[bytes]] = lambda now_ms: [],
    lasting: Lasting | None = None, sources: Sequence[Source] = (), *, views: Views,
) -> int:
    """Run a data path until it is asked to stop (service.Signals). Returns: the exit code.

    change:     makes the changes to the host, and returns the line to log when they are made.
    last_words: packets to send before they are undone; now_ms: of the engine's clock.
    lasting:    what SIGUSR2 leaves in place, with the changes, so that a restart is not noticed.
    sources:    what happens besides packets.
    views:      what is answered besides what every program answers.
    Raises: ConfigError, before anything on the host is changed.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory has the secret in it
    signals = Signals()
    host, locks = Host(program, config.queue), Locks()
    answers: start.Answers | None = None
    own = Claim(host.owner_name, "queue", config.queue, "a queue number of its own")
    try:
        for claim in (*claims, own):
            _lock(program, config.file, claim, locks)
        engine = _make_engine(config, datapath, sender, signals, [*sources, views.inbox])
        answers = start.Answers(program, config, engine, views)
        return _run(host, engine, signals, change, last_words, lasting)
    finally:
        if answers:
            answers.close()
        locks.release()


def undo(program: str, config: Config, lasting: Lasting) -> int:
    """End what outlived an instance, and undo its changes. Returns: the exit code.

    Raises: ConfigError while the instance runs.
    """
    host, locks = Host(program, config.queue), Locks()
    _lock(program, config.file, Claim(host.owner_name, "queue", config.queue,
                                      "that of an instance that has ended"), locks)
    try:
        lasting.detach()
        host.recover()
        host.undo()
        start.forget(program, config)
    except (FirewallError, NetlinkError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    finally:
        locks.release()
    return 0


def _run(
    host: Host, engine: Engine, signals: Signals, change: Callable[[Host], str],
    last_words: Callable[[int], list[bytes]], lasting: Lasting | None,
) -> int:
    stays = False
    try:
        host.recover(lasting.keeps if lasting else lambda change: False)
        engine.run(change(host))
        stays = lasting is not None and signals.hands_over
        if lasting and not stays:
            lasting.detach()
        engine.send_all(last_words(clock.now_ms()))
    except (FirewallError, NetlinkError, OSError) as error:
        log.error("%s", error)
        return 1
    finally:
        if stays:
            log.info("connections continue without this process; `%s detach` stops that",
                     host.program)
        else:
            if lasting:
                lasting.detach()
            host.undo()
        engine.close()  # after the rules: while they stand, the queue must be there, or drop
    return 0


def _lock(program: str, file: str, claim: Claim, locks: Locks) -> None:
    try:
        locks.take(claim.lock)
    except Taken as taken:
        which = f"another {program}" + (f" (pid {taken.pid})" if taken.pid else "")
        raise ConfigError(
            file, claim.key, claim.value, f"{claim.expected}: {which} has it; stop that one first"
        ) from None
    except OSError as error:
        raise ConfigError(
            file, claim.key, claim.value, f"the right to lock it in {DIRECTORY} ({error})"
        ) from None


def _make_engine(
    config: Config, datapath: Datapath, sender: Sender, signals: Signals,
    sources: Sequence[Source],
) -> Engine:
    reader = SecretReader(config, datapath)
    try:
        return Engine(datapath, config.queue, sender, signals, reader.read,
                      [reader, *sources])
    except QueueError as error:
        raise ConfigError(
            config.file, "queue", config.queue, f"the number of a queue that is free: {error}"
        ) from None
