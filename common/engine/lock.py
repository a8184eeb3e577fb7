"""Names that only one process of a network namespace has at a time.

A name is a file in a directory of root's, with a lock on it (flock(2)) that dies with its process,
however that ends. Nobody else may open the file, so nobody else can have the name; a name that any
user may take, as an abstract socket's, would let any user keep the programs from starting. The
namespace's number is part of the file's name. A later namespace may have the number again, and then
finds a file without a lock.
"""

import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from common.engine import netns

DIRECTORY = Path("/run/l3dsr/locks")
_TRIES, _PAUSE_S = 5, 0.01  # whoever asks whether a name is taken has it for a moment


class Taken(Exception):
    """Another process has the name. pid: which, as far as that can be seen."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"taken by process {pid or 'unknown'}")
        self.pid = pid


class Locks:
    """The names that this process has."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def take(self, name: str) -> None:
        """Raises: Taken; OSError where nobody can have a name."""
        check_directory(DIRECTORY, 0o700)
        path = _path(name)
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S)
            if self._try(path):
                return
        raise Taken(_pid_in(path))

    def release(self, names: Iterable[str] | None = None) -> None:
        """Let names go, by default all."""
        paths = list(self._files) if names is None else [_path(name) for name in names]
        for path in paths:
            descriptor = self._files.pop(path, None)
            if descriptor is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def _try(self, path: Path) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.fstat(descriptor).st_ino == path.stat().st_ino
        except OSError:
            is_there = False
        if not is_there:  # another process has it, or has just let it go
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._files[path] = descriptor
        return True


def is_taken(name: str) -> bool:
    """Whether some process has the name."""
    try:
        descriptor = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def pid_of(name: str) -> int | None:
    """The process that has the name, as far as that can be seen."""
    return _pid_in(_path(name))


def check_directory(directory: Path, mode: int) -> None:
    """Make a directory, unless it is there. Raises: PermissionError where others could write in it.
    """
    directory.mkdir(mode=mode, parents=True, exist_ok=True)
    found = directory.lstat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise PermissionError(f"{directory} is not this user's own")


def _path(name: str) -> Path:
    return DIRECTORY / f"{quote(name, safe='')}.{netns.inode()}"


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text()) or None
    except (OSError, ValueError):
        return None
