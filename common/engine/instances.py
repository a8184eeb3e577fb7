"""The daemons that run in this network namespace: what they have been configured to do, and what
became of the last reload. Both stand in files of root's, so that other commands can see them.
"""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import private_file
from common.engine import lock, netns
from common.engine.host import RUN

DIRECTORY = RUN / "running"
_PAUSE_S = 0.05


class Outcome(NamedTuple):
    """What became of a reload. lines: what has changed, or why nothing has."""

    ok: bool
    lines: tuple[str, ...] = ()


class Notes:
    """What a daemon says of itself. owner: as host.Host.owner_name."""

    def __init__(self, owner: str) -> None:
        self._config, self._outcome = _paths(owner)

    def write_config(self, text: str) -> None:
        """The configuration that runs now, as TOML."""
        _write(self._config, text)

    def write_outcome(self, asked_ns: int, outcome: Outcome) -> None:
        """asked_ns: when the files were read, by time.monotonic_ns()."""
        _write(self._outcome, json.dumps({"asked_ns": asked_ns, **outcome._asdict()}))

    def remove(self) -> None:
        """Nothing runs any more."""
        for path in (self._config, self._outcome):
            path.unlink(missing_ok=True)


class Instance(NamedTuple):
    """A daemon that runs. config: the file with its configuration."""

    owner: str
    config: Path

    def reload(self, timeout_s: float) -> Outcome:
        """Have it read its configuration again, and wait for what comes of it."""
        sent_ns, deadline_s = time.monotonic_ns(), time.monotonic() + timeout_s
        pid = lock.pid_of(self.owner)
        if pid is None:
            return Outcome(False, (f"{self.owner} has just ended",))
        os.kill(pid, signal.SIGHUP)
        _, path = _paths(self.owner)
        while time.monotonic() < deadline_s:
            found = _read(path)
            if found.get("asked_ns", 0) >= sent_ns:
                return Outcome(found["ok"], tuple(found["lines"]))
            if not lock.is_taken(self.owner):
                return Outcome(False, (f"{self.owner} has ended",))
            time.sleep(_PAUSE_S)
        return Outcome(False, (f"no answer for {timeout_s:g} s; its log may say more",))


def running(program: str, queue: int | None = None) -> list[Instance]:
    """Those of a program. queue: the one with that number. Raises: PermissionError."""
    names = f"{program}-{'*' if queue is None else queue}.{netns.inode()}.toml"
    owners = {path.name.partition(".")[0]: path for path in sorted(DIRECTORY.glob(names))}
    if DIRECTORY.exists() and not os.access(DIRECTORY, os.R_OK | os.X_OK):
        raise PermissionError(f"{DIRECTORY} is root's")
    return [Instance(owner, path) for owner, path in owners.items() if lock.is_taken(owner)]


def _paths(owner: str) -> Sequence[Path]:
    name = f"{owner}.{netns.inode()}"
    return DIRECTORY / f"{name}.toml", DIRECTORY / f"{name}.json"


def _write(path: Path, text: str) -> None:
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_file.replace(path, text)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found
