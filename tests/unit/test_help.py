"""`--help` of every command works before anything is installed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer import cli as balancer_cli
from lab import __main__ as lab
from packetbridge import cli as bridge_cli

REPOSITORY = Path(__file__).parents[2]
# A Python that has no site-packages, becoming `python3 -m NAME`.
_BECOME = ("import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
           "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)")


def commands() -> Iterator[list[str]]:
    """Every program, alone and with each of its commands."""
    for name, make_parser in (("lab", lab.make_parser), ("balancer", balancer_cli.make_parser),
                              ("packetbridge", bridge_cli.make_parser)):
        yield [name]
        for action in make_parser()._actions:
            if isinstance(action.choices, dict):
                yield from ([name, command] for command in action.choices)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_needs_nothing_that_is_not_pythons_own(words: list[str]) -> None:
    name, *command = words

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _BECOME, str(REPOSITORY), name, *command, "--help"],
        capture_output=True, text=True, check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {'lab/run' if name == 'lab' else name} "
                                  + "".join(command))
