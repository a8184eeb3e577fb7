"""What a daemon answers by HTTP: all at its control socket; at the metrics' address what changes
nothing, and orders that have the token.
"""

import socket
from pathlib import Path
from typing import Any, Protocol

from common.control import place, token
from common.control.api import Common, Engine, Views
from common.control.server import End, Server

_CONTROL_TIME_S = 30.0  # a table of a million flows can be looked through


class Config(Protocol):
    """What is needed of a configuration, which is a dataclass."""

    @property
    def file(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def metrics(self) -> tuple[str, int] | None: ...
    @property
    def control(self) -> bool | str: ...
    @property
    def token_file(self) -> str | None: ...


class Answers:
    """All that is answered, from its making on until it is closed."""

    def __init__(self, program: str, config: Config, engine: Engine, views: Views) -> None:
        """Raises: ConfigError."""
        common = Common(program, engine, views, config.token_file is not None)
        gets, posts = common.gets(), common.posts()
        self._path: Path | None = None
        listeners: list[socket.socket] = []
        ends = []
        try:
            if config.control:
                self._path = path_of(program, config)
                listeners.append(place.listen(self._path, config.file, config.control))
                ends.append(End(listeners[-1], gets, posts, _CONTROL_TIME_S))
            if config.metrics:
                # most of the program's memory, where nobody asks for them
                from common.engine import metrics

                secret = token.read(config.file, config.token_file) if config.token_file else ""
                listeners.append(metrics.listen(config.file, *config.metrics))
                ends.append(End(listeners[-1],
                                {**gets, "/metrics": metrics.handler(program, engine)},
                                posts if secret else {}, token=secret))
        except BaseException:
            for listener in listeners:
                listener.close()
            if self._path and listeners:
                self._path.unlink(missing_ok=True)
            raise
        self._server = Server(ends, views.background) if ends else None

    def close(self) -> None:
        """Answer no more."""
        if self._path:
            self._path.unlink(missing_ok=True)
        if self._server:
            self._server.close()


def forget(program: str, config: Config) -> None:
    """Remove the control socket that a killed daemon has left. Raises: OSError."""
    if config.control:
        place.clear(path_of(program, config))


def path_of(program: str, config: Any) -> Path:
    """Where the control socket of a configuration is."""
    if isinstance(config.control, str):
        return Path(config.control)
    return place.socket_path(place.instance_of(program, config))
