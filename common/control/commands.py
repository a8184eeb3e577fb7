"""What the commands of both programs that ask a daemon have in common."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.control import place
from common.control.client import Client, answered
from common.settings import ConfigError, cli
from common.settings.flags import top_table
from common.settings.readers import unix_socket
from common.settings.schema import settings_of

Act = Callable[[Client, argparse.Namespace], int]


class Commands:
    """Adds commands that ask the daemon of a program.

    shape: its configuration's dataclass. file: where that is by default.
    """

    def __init__(self, commands: Any, program: str, shape: type, file: Path) -> None:
        self._commands = commands
        self._program = program
        self._shape = shape
        self._file = file

    def add(self, name: str, words: str, help_text: str, description: str, act: Act
            ) -> cli.Parser:
        """A command. words: what its usage shows besides flags."""
        parser: cli.Parser = self._commands.add_parser(
            name, usage=f"{self._program} {name} [FLAG ...] {words}".rstrip(), help=help_text,
            description=description)
        parser.add_argument("--socket", metavar="PATH", default=None,
                            help="the daemon's control socket (default: by its configuration)")
        parser.add_argument("--config", metavar="FILE", default=None,
                            help=f"the daemon's configuration (default {self._file})")
        cli.add_json(parser)
        parser.set_defaults(act=lambda namespace: answered(
            self._program, lambda: act(Client(self._program, self._path(namespace)), namespace)))
        return parser

    def add_status(self) -> None:
        """`status`, which both have."""
        self.add("status", "", "does it run, and how is it?",
                 "Ask the daemon on this host how it is. Exit code 3 where none runs.", _status)

    def add_flows(self, description: str, act: Act) -> cli.Parser:
        """`flows`."""
        parser = self.add("flows", "", "the flows in its table", description, act)
        parser.add_argument("--service", metavar="NAME", default=None,
                            help="of this service alone")
        parser.add_argument("--client", metavar="NET", default=None,
                            help="of a client, or of a network such as 198.51.100.0/24")
        parser.add_argument("--limit", metavar="N", type=int, default=None,
                            help="how many, at most 1000 (default 100)")
        return parser

    def _path(self, namespace: argparse.Namespace) -> Path:
        """Where the daemon's socket is. A file that is broken now was not when it started."""
        if namespace.socket:
            return Path(namespace.socket)
        usual = {each.key: each.default for each in settings_of(self._shape)}
        queue, control = usual["queue"], usual["control"]
        try:
            table = top_table(namespace.config, self._file)
            queue = table.take("queue", _whole) or queue
            control = table.take("control", unix_socket) or control
        except ConfigError:
            if namespace.config:
                raise
        if isinstance(control, str):
            return Path(control)
        return place.socket_path(place.instance(self._program, queue, usual["queue"]))


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def show(namespace: argparse.Namespace, found: Any, head: Sequence[str],
         rows: Sequence[Sequence[object]]) -> int:
    """Print JSON where that is wanted, else a table. Returns: the exit code."""
    if namespace.json:
        cli.print_json(found)
    else:
        cli.print_table(head, rows)
    return 0


def _status(client: Client, namespace: argparse.Namespace) -> int:
    found = client.get("status")
    if namespace.json:
        cli.print_json(found)
        return 0
    flows = f"{found['flows']:,}"
    if "max_flows" in found:
        flows += f" of {found['max_flows']:,} at most"
    fields = [
        ("state", f"{found['state']}, for {lasting(found['uptime_seconds'])}, "
                  f"pid {found['pid']}, version {found['version']}"),
        ("said", found["ready"]), ("flows", flows), ("services", str(found["services"])),
    ]
    if "backends" in found:
        fields.append(("backends", counted(found["backends"])))
    cli.print_fields(fields)
    return 0


def counted(states: dict[str, int]) -> str:
    """Such as `2 up, 1 draining`."""
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "none"


def lasting(seconds: float) -> str:
    """A time, roughly."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
