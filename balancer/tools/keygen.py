"""The cluster's secret: made, and rotated, without a moment in which there is none."""

import os
import tempfile
from pathlib import Path

from common.cluster.secrets import Secrets, new_key
from common.settings import COMMAND_LINE, ConfigError, host

_DIRECTORY_MODE = 0o755


def rotate(path: Path) -> Secrets:
    """Put a new current key into the secret file; the old current one becomes the previous.

    The file is replaced at once, with mode 0600, and is on disk when this
    returns. A missing directory is made. Raises: ConfigError.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    previous = host.check_secret(COMMAND_LINE, str(path)).current if path.exists() else None
    made = Secrets(new_key(), previous)
    try:
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        _replace(path, made.emit())
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "FILE", str(path), f"a file that can be written ({error.strerror})"
        ) from None
    return made


def _replace(path: Path, text: str) -> None:
    """Replace `path` by a file with `text` that only its owner may read."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if path.exists():
            owner = path.stat()
            os.chown(draft, owner.st_uid, owner.st_gid)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
