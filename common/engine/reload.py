"""Another configuration, while packets flow.

A file is read, judged and made into tables in a thread. What is wrong with it changes nothing. What
is right takes effect in this order: rules for what is new, so that its packets come here; the data
path, in one turn of the loop; addresses for what is new. What is configured no more leaves the host
when its flows have gone.

It happens on SIGHUP, when somebody asks for it (`Reloader.reload`), and when a file that is watched
has changed. Editors write a file in parts or put another in its place, so it is read when two
looks, a second apart, have seen the same.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pyroute2.netlink.exceptions import NetlinkError

from common.counters import Sample
from common.engine import claims
from common.engine.claims import Claim
from common.engine.firewall import FirewallError
from common.engine.host import Host
from common.engine.instances import Notes, Outcome
from common.engine.lock import Locks
from common.engine.secrets import SecretReader
from common.engine.signals import notify
from common.engine.sources import Source
from common.engine.worker import Worker
from common.metrics import RELOADS
from common.settings import ConfigError

LOOK_S = 1.0
_READY_S = 1.0  # so long at most, ways to what is new may take to be found
_READY_PAUSE_S = 0.005
_HALF = "the new configuration is in use, but not all that it needs on this host is there"
log = logging.getLogger(__name__)

Signature = dict[str, tuple[int, int, int]]  # of files, by path


class Refused(Exception):
    """Nothing was changed. lines: why."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class Change(Protocol):
    """A configuration that has been read, and can be taken.

    lines: what it changes. claims: what it needs alone. secret_file: with the keys from now on.
    released: once it is served, names of locks that are not needed any more.
    """

    lines: tuple[str, ...]
    claims: Sequence[Claim]
    released: Sequence[str]
    file: str
    secret_file: str

    def begin(self) -> None:
        """In the loop: look for the ways to what is new."""

    @property
    def is_ready(self) -> bool:
        """Whether they are known."""

    def before(self, host: Host) -> None:
        """In a thread: what must be there before it is served. Raises: as Host's methods."""

    def apply(self) -> None:
        """In the loop: serve it. Must not raise."""

    def after(self, host: Host) -> None:
        """In a thread: what makes packets come. Raises: as Host's methods."""


class Live(Protocol):
    """What a program has that can change."""

    def read(self, whole: bool) -> Change:
        """In a thread: read the configuration. whole: or only the files that it names.

        Raises: ConfigError, Refused.
        """

    def watched(self) -> tuple[Sequence[str], Sequence[str]]:
        """Files to look at each second: that of the configuration, and those that it names."""

    def emit(self) -> str:
        """What is configured now, as TOML."""

    def tidy(self) -> "Tidying | None":
        """In the loop: what has left since the last time."""


class Tidying(Protocol):
    """What is to be undone on the host. locks: names that are not needed any more."""

    locks: Sequence[str]

    def on_host(self, host: Host) -> None:
        """In a thread."""


class Reloader:
    """A source of the loop; see the module."""

    def __init__(
        self, program: str, host: Host, locks: Locks, live: Live, secrets: SecretReader
    ) -> None:
        self._program = program
        self._host, self._locks, self._live, self._secrets = host, locks, live, secrets
        self._notes = Notes(host.owner_name)
        self._worker: Worker[Callable[[], None]] = Worker("reloading", lambda done: done())
        self._counts = {"taken": 0, "refused": 0}
        self._told: list[Callable[[Outcome], None]] = []  # of the reload that is under way
        self._waiting: list[Callable[[Outcome], None]] = []  # for the next one
        self._is_busy = self._is_asked = self._is_looking = False
        self._asked_ns = 0
        self._change: Change | None = None
        self._ready_until_s = 0.0
        self._taken = self._seen = _signature(self._paths())
        self._next_look_s = time.monotonic() + LOOK_S
        self.deadline_s: float | None = self._next_look_s

    @property
    def sources(self) -> Sequence[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    def reload(self, on_done: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Read the configuration and take it. To be called in the loop's thread, as is `on_done`.

        While one is under way, another begins after it.
        """
        self._waiting.append(on_done)
        self._is_asked = True
        self._begin(whole=True)

    def begin(self) -> None:
        """The daemon is ready: say what it has been configured to do."""
        self._notes.write_config(self._live.emit())

    def close(self) -> None:
        """The daemon ends; whatever is not done by now is not done."""
        self._worker.close()
        self._notes.remove()

    def samples(self) -> list[Sample]:
        """What there is to be seen."""
        return [RELOADS.at(count, result) for result, count in self._counts.items()]

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return -1

    def on_ready(self) -> None:
        """As sources.Source; there is nothing to read."""

    def on_deadline(self) -> None:
        """Look whether ways are known, or at the files."""
        now_s = time.monotonic()
        if self._change is not None and (self._change.is_ready or now_s >= self._ready_until_s):
            self._serve(self._change)
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_S
            self._tidy()
            paths = self._paths()
            if paths and not self._is_looking:
                self._is_looking = True
                self._worker.start(lambda: _calling(self._on_looked, _signature(paths)))
        self._plan()

    def _plan(self) -> None:
        soon_s = time.monotonic() + _READY_PAUSE_S
        self.deadline_s = (self._next_look_s if self._change is None
                           else min(self._next_look_s, soon_s))

    # --- files ---

    def _paths(self) -> list[str]:
        configured, named = self._live.watched()
        return [*configured, *named]

    def _on_looked(self, seen: Signature) -> None:
        self._is_looking = False
        changed = {path for path in seen if seen[path] != self._taken.get(path)}
        is_calm, self._seen = seen == self._seen, seen
        if changed and is_calm and not self._is_busy:
            self._begin(whole=bool(changed & set(self._live.watched()[0])))

    # --- step by step ---

    def _begin(self, whole: bool) -> None:
        if self._is_busy:
            return
        self._is_busy, self._is_asked = True, False
        self._told, self._waiting = self._waiting, []
        self._asked_ns = time.monotonic_ns()
        notify(f"RELOADING=1\nMONOTONIC_USEC={self._asked_ns // 1000}\nSTATUS=reading the "
               "configuration", waits=False)
        self._worker.start(lambda: self._read(whole))

    def _read(self, whole: bool) -> Callable[[], None]:
        """In the thread."""
        taken = _signature(self._paths())

        def on_read() -> None:
            self._taken = taken

        try:
            change = self._live.read(whole)
        except Exception as error:
            return _all(on_read, self._refusing(error))
        return _all(on_read, lambda: self._take(change))

    def _take(self, change: Change) -> None:
        change.begin()
        self._worker.start(lambda: self._prepare_host(change))

    def _prepare_host(self, change: Change) -> Callable[[], None]:
        """In the thread."""
        taken: list[str] = []
        try:
            for claim in change.claims:  # which another may have just for a moment
                claims.take(self._program, change.file, claim, self._locks)
                taken.append(claim.lock)
            change.before(self._host)
        except Exception as error:
            self._locks.release(taken)
            return self._refusing(error)
        return lambda: self._wait_for_ways(change)

    def _wait_for_ways(self, change: Change) -> None:
        self._change, self._ready_until_s = change, time.monotonic() + _READY_S
        self._plan()
        if change.is_ready:
            self._serve(change)

    def _serve(self, change: Change) -> None:
        self._change = None
        self._plan()
        try:
            change.apply()
        except Exception as error:  # our bug: what has changed by then stays
            self._refusing(error)()
            return
        self._secrets.read(change.file, change.secret_file)
        self._worker.start(lambda: self._finish_host(change))

    def _finish_host(self, change: Change) -> Callable[[], None]:
        """In the thread."""
        try:
            try:
                change.after(self._host)
            finally:  # not before: who has the lock of an address takes it for its own
                self._locks.release(change.released)
            self._notes.write_config(self._live.emit())
            named = _signature(self._paths())  # some of them since just now
        except Exception as error:
            outcome = Outcome(False, tuple(f"{_HALF}: {fault}" for fault in _faults(error)))
            return lambda: self._end(outcome, is_kept=False)
        return lambda: self._finish(change, named)

    def _finish(self, change: Change, named: Signature) -> None:
        self._taken = named | self._taken
        self._end(Outcome(True, change.lines))

    def _refusing(self, error: Exception) -> Callable[[], None]:
        faults = _faults(error)
        return lambda: self._end(Outcome(False, faults))

    def _end(self, outcome: Outcome, is_kept: bool = True) -> None:
        """is_kept: where it is not ok, whether what ran before goes on."""
        self._is_busy = False
        self._counts["taken" if outcome.ok else "refused"] += 1
        if outcome.ok:
            log.info("the configuration was read: %s", "; ".join(outcome.lines) or "as it was")
            status = "ready"
        else:
            kept = "the configuration and the secrets in use are kept: " if is_kept else ""
            for line in outcome.lines:
                log.error("%s%s", kept, line)
            status = kept + "; ".join(outcome.lines)
        try:
            self._notes.write_outcome(self._asked_ns, outcome)
        except OSError as error:  # who asked by the socket, and who asks next, is answered
            log.error("what became of the reload cannot be written down: %s", error)
        notify(f"READY=1\nSTATUS={status}", waits=False)
        for tell in self._told:
            tell(outcome)
        if self._is_asked:
            self._begin(whole=True)

    def _tidy(self) -> None:
        tidying = None if self._is_busy else self._live.tidy()
        if tidying is None:
            return
        self._worker.start(lambda: self._tidy_host(tidying))

    def _tidy_host(self, tidying: Tidying) -> Callable[[], None]:
        """In the thread."""
        try:
            tidying.on_host(self._host)
        except Exception as error:
            log.error("what has left stays on this host: %s", "; ".join(_faults(error)))
        self._locks.release(tidying.locks)
        return lambda: None


def _all(*acts: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        for each in acts:
            each()
    return act


def _calling(act: Callable[[Signature], None], seen: Signature) -> Callable[[], None]:
    return lambda: act(seen)


def _faults(error: Exception) -> tuple[str, ...]:
    """Why, a line each. What is no fault of the configuration's, or the host's, is ours."""
    if isinstance(error, ConfigError):
        return tuple(str(fault).splitlines()[0] for fault in error.faults)
    if isinstance(error, Refused):
        return error.lines
    if not isinstance(error, (FirewallError, NetlinkError, OSError)):
        log.error("a reload failed", exc_info=error)
    return (str(error) or type(error).__name__,)


def _signature(paths: Sequence[str]) -> Signature:
    """What tells that files have changed, or are not there any more."""
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found[path] = 0, 0, 0
        else:
            found[path] = status.st_ino, status.st_size, status.st_mtime_ns
    return found
