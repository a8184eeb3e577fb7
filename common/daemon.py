"""A daemon's life: locks, queue, changes to the host, packets, and everything put back.

Nothing on the host is changed before all that can be refused has been looked at.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from common.engine import Datapath, Engine, Sender, clock_ms
from common.firewall import FirewallError
from common.host import Host
from common.lock import Locks, Taken
from common.queue import QueueError
from common.service import Signals
from common.settings import ConfigError, check_secret

log = logging.getLogger(__name__)


class Config(Protocol):
    """What a daemon's life needs of a configuration."""

    @property
    def file(self) -> str: ...
    @property
    def secret_file(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def metrics(self) -> tuple[str, int] | None: ...


class Claim(NamedTuple):
    """Something that one instance on a host may have: the name of its lock, and how to say so."""

    lock: str
    key: str
    value: object
    expected: str


def serve(
    program: str, config: Config, datapath: Datapath, sender: Sender, claims: Sequence[Claim],
    change: Callable[[Host], str], last_words: Callable[[int], list[bytes]] = lambda now_ms: [],
) -> int:
    """Run a data path until SIGTERM or SIGINT. Returns: the exit code.

    change:     makes the changes to the host, and returns the line to log when they are made.
    last_words: packets to send before they are undone; now_ms: unix time in ms.
    Raises: ConfigError, before anything on the host is changed.
    """
    signals = Signals()
    host, locks = Host(program, config.queue), Locks()
    own = Claim(host.owner_name, "queue", config.queue, "a queue number of its own")
    try:
        for claim in (*claims, own):
            _lock(program, config.file, claim, locks)
        engine = _make_engine(config, datapath, sender, signals)
        if config.metrics:
            from common import metrics  # most of the program's memory, where nobody asks for them

            metrics.serve(program, engine, config.file, *config.metrics)
        return _run(host, engine, change, last_words)
    finally:
        locks.release()


def _run(
    host: Host, engine: Engine, change: Callable[[Host], str],
    last_words: Callable[[int], list[bytes]],
) -> int:
    try:
        host.recover()
        engine.run(change(host))
        engine.send_all(last_words(clock_ms()))
    except (FirewallError, NetlinkError, OSError) as error:
        log.error("%s", error)
        return 1
    finally:
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


def _make_engine(
    config: Config, datapath: Datapath, sender: Sender, signals: Signals
) -> Engine:
    def reload() -> None:
        try:
            datapath.secrets = check_secret(config.file, config.secret_file)
        except ConfigError as error:
            log.error("the secrets stay as they were: %s", error)
        else:
            log.info("the secrets of %s are in use", config.secret_file)

    try:
        return Engine(datapath, config.queue, sender, signals, reload)
    except QueueError as error:
        raise ConfigError(
            config.file, "queue", config.queue, f"the number of a queue that is free: {error}"
        ) from None
