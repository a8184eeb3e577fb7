"""Where an instance's control socket is, and what is kept for its next start.

An instance is known by its program and, where that is not the usual one, its queue; and by the name
of its network namespace, if that has one.
"""

import dataclasses
import os
import socket
import stat
from pathlib import Path
from typing import Any

from common.engine import netns
from common.engine.lock import check_directory
from common.settings import ConfigError

RUN = Path("/run/l3dsr")
MODE = 0o660
_BACKLOG = 128


def instance_of(program: str, config: Any) -> str:
    """The name of an instance in files' names. config: a dataclass."""
    usual = next(each.default for each in dataclasses.fields(config) if each.name == "queue")
    return instance(program, config.queue, usual)


def instance(program: str, queue: int, usual: Any) -> str:
    """The same, such as `balancer` where the queue is the usual one."""
    name = program if queue == usual else f"{program}-{queue}"
    namespace = netns.name()
    return f"{name}@{namespace}" if namespace else name


def socket_path(name: str) -> Path:
    """Where its control socket is, unless the configuration says otherwise."""
    return RUN / f"{name}.sock"


def kept_path(name: str, directory: str) -> Path:
    """Where is written what is to survive a restart. directory: the configured one."""
    return Path(directory) / f"{name}.json"


def listen(path: Path, file: str, value: object) -> socket.socket:
    """Listen on a control socket, in place of one that a killed daemon has left.

    file, value: of the setting, for messages. Raises: ConfigError.
    """
    try:
        if path.parent == RUN:
            check_directory(RUN, 0o755)
        elif path.parent.stat().st_mode & stat.S_IWOTH:
            raise PermissionError(f"anybody may write in {path.parent}")
        clear(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.bind(str(path))
        os.chmod(path, MODE)  # nobody can connect before `listen`
    except OSError as error:
        raise ConfigError(file, "control", value, "false, or a path where a socket can be made "
                          f"({path}: {error.strerror or error})") from None
    made.listen(_BACKLOG)
    return made


def clear(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises: OSError where there is something else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError("it is there, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, and has much to do
    raise FileExistsError("another process listens there")
