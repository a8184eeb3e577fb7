"""The other side of a control socket: what a command asks a daemon on this host.

Nothing but Python's own is needed here.
"""

import http.client
import json
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from common.control import PREFIX

FAILED, NO_DAEMON = 1, 3  # exit codes, besides 2 for what cannot be understood
_WAIT_S = 40.0
_MOST_OCTETS = 64 << 20


class NoAnswer(Exception):
    """Nothing was answered, or not what was asked for. code: to exit with."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Client:
    """Asks a daemon. program: its name, for messages."""

    def __init__(self, program: str, path: Path) -> None:
        self._program = program
        self._path = path

    def get(self, name: str, **query: object) -> Any:
        """What it answers to a question. Raises: NoAnswer."""
        asked = {key: value for key, value in query.items() if value is not None}
        return self._ask("GET", PREFIX + quote(name) + (f"?{urlencode(asked)}" if asked else ""))

    def post(self, name: str, body: Mapping[str, object]) -> Any:
        """What it answers to an order. Raises: NoAnswer."""
        return self._ask("POST", PREFIX + quote(name), json.dumps(body))

    def _ask(self, method: str, target: str, body: str | None = None) -> Any:
        connection = _Connection(str(self._path))
        try:
            connection.request(method, target, body)
            answer = connection.getresponse()
            content = answer.read(_MOST_OCTETS)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoAnswer(NO_DAEMON, (
                f"nothing answers at {self._path}: no {self._program} runs here, or with another "
                f"configuration (--config FILE or --socket PATH), or with `control = false`. "
                f"`systemctl start l3dsr-{self._program}` or `sudo {self._program}` starts it"
            )) from None
        except PermissionError:
            raise NoAnswer(FAILED, f"{self._path} is root's and its group's: sudo "
                           f"{self._program} …") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(FAILED, f"{self._path}: the {self._program} there does not answer "
                           f"({error or type(error).__name__})") from None
        finally:
            connection.close()
        return self._read(answer.status, content)

    def _read(self, status: int, content: bytes) -> Any:
        try:
            found = json.loads(content)
        except ValueError:
            found = {"error": content.decode(errors="replace").strip()[:200]}
        if status == 200:
            return found
        raise NoAnswer(FAILED, str(found.get("error", status)))


class _Connection(http.client.HTTPConnection):
    """To a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_WAIT_S)
        self._path = path

    def connect(self) -> None:
        """As HTTPConnection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_WAIT_S)
        self.sock.connect(self._path)


def answered(program: str, act: Callable[[], int]) -> int:
    """Carry a command out that asks a daemon. Returns: the exit code."""
    try:
        return act()
    except NoAnswer as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.code
