"""Commands about a daemon that runs: reload it, and see what a file would change."""

import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common.settings import COMMAND_LINE, ConfigError, cli
from common.settings.plan import Plan
from common.settings.table import Table

if TYPE_CHECKING:
    from common.engine.instances import Instance

_PATIENCE_S = 60.0


def add_reload(commands: Any, program: str) -> None:
    """`reload`."""
    parser = commands.add_parser(
        "reload", usage=f"{program} reload [--queue N] [--json]",
        help="have it read its configuration again, and say what comes of it",
        description=f"Have the {program} that runs read its configuration and its secrets again, "
                    "and take what has changed while packets flow. Exit code 1, and the reason, "
                    "where nothing has been changed.",
    )
    parser.add_argument("--queue", metavar="N", type=int,
                        help="NFQUEUE number of the one that is meant, where several run")
    cli.add_json(parser)
    parser.set_defaults(act=lambda namespace: _reload(program, namespace))


def add_diff(parser: cli.Parser, program: str) -> None:
    """`check --diff`."""
    parser.add_argument("--diff", action="store_true", default=False,
                        help=f"print what would change at the {program} that runs")


def print_diff(
    program: str, loaded: Any, read: Callable[[Table], Any], plan_of: Callable[[Any, Any], Plan],
    as_json: bool,
) -> int:
    """Print what would change. read: the configuration of a table. Returns: the exit code."""
    running = _one(program, None)
    table = Table(str(running.config), tomllib.loads(running.config.read_text()))
    plan = plan_of(read(table), loaded)
    if as_json:
        cli.print_json({"file": loaded.file, "changes": plan.as_json()})
        return 0
    for line in plan.lines or ("nothing would change",):
        print(line)
    return 0


def _reload(program: str, namespace: Namespace) -> int:
    outcome = _one(program, getattr(namespace, "queue", None)).reload(_PATIENCE_S)
    if namespace.json:
        cli.print_json(outcome._asdict())
        return 0 if outcome.ok else 1
    for line in outcome.lines or ("nothing has changed",):
        print(line if outcome.ok else f"{program}: {line}",
              file=sys.stdout if outcome.ok else sys.stderr)
    return 0 if outcome.ok else 1


def _one(program: str, queue: int | None) -> "Instance":
    """The daemon that is meant. Raises: ConfigError."""
    from common.engine import instances  # `--help` needs nothing that has to be installed

    try:
        found = instances.running(program, queue)
    except PermissionError as error:
        raise ConfigError(COMMAND_LINE, "user", "", f"root: {error}") from None
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.owner for each in found)
    raise ConfigError(
        COMMAND_LINE, "--queue", queue,
        f"that of one of these: {names}" if found else f"a {program} that runs here: none does")
