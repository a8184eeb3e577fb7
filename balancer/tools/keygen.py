"""The cluster's secret: made, and rotated, without a moment in which there is none."""

import os
import time
from pathlib import Path

from common import private_file
from common.cluster.secrets import KEEP_S, SecretFile, Secrets, new_key
from common.settings import COMMAND_LINE, ConfigError, host

LEAST_KEEP_S = 192  # three epochs: the longest handshake (common/cluster/cookie.py)
_DIRECTORY_MODE = 0o755


def rotate(path: Path, *, keep_s: int = KEEP_S, adds_seed: bool = False) -> SecretFile:
    """Put a new current key into the secret file; the old current one becomes the previous.

    keep_s: how long that is accepted. adds_seed: also to a file that has none; a new one has one.

    The file is replaced at once, with mode 0600, and is on disk when this
    returns. A missing directory is made. Raises: ConfigError.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    old = host.check_secret(COMMAND_LINE, str(path)) if path.exists() else None
    if old is None:
        made = SecretFile(Secrets(new_key()), seed=new_key())
    else:
        seed = old.seed or (new_key() if adds_seed else b"")
        made = SecretFile(Secrets(new_key(), old.keys.current), int(time.time()) + keep_s, seed)
    try:
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        private_file.replace(path, made.emit())
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "FILE", str(path), f"a file that can be written ({error.strerror})"
        ) from None
    return made
