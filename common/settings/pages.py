"""Man page and shell completion of a command line, made when the package is built (setup.py).

What makes them (argparse-manpage, shtab) is not needed at run time.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from common import __version__
from common.settings.cli import Parser

MAN, BASH, ZSH = "share/man/man1", "share/bash-completion/completions", "share/zsh/site-functions"
_FILES = ("FILE", "IN.pcap", "OUT.pcap")


def write(make_parser: Callable[[], Parser], directory: Path) -> list[Path]:
    """Write all of a program's, where they are to be below sys.prefix.

    Returns: their paths, relative to `directory`. Raises: ImportError where a library is missing.
    """
    program = make_parser().prog
    made = {
        f"{MAN}/{program}.1": _man_page(make_parser()),
        f"{BASH}/{program}": _completion(make_parser(), "bash"),
        f"{ZSH}/_{program}": _completion(make_parser(), "zsh"),
    }
    for name, text in made.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [Path(name) for name in made]


def _man_page(parser: Parser) -> str:
    from argparse_manpage.manpage import Manpage

    assert parser.description
    parser.usage = f"{parser.prog} [COMMAND] [FLAG ...]"
    sentence = " ".join(parser.description.split()).partition(". ")[0]
    made = str(Manpage(parser, {
        "project_name": "l3dsr", "version": __version__, "manual_title": "l3dsr",
        "description": sentence[0].lower() + sentence[1:],
    }))
    return made.replace(".SH COMMENTS\nexamples:\n", ".SH EXAMPLES\n.nf\n")  # lines as they are


def _completion(parser: Parser, shell: str) -> str:
    import shtab

    for each in (parser, *_commands(parser)):
        for action in each._actions:
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif isinstance(action.metavar, str) and "|" in action.metavar:
                action.choices = action.metavar.split("|")
    return shtab.complete(parser, shell)


def _commands(parser: Parser) -> list[argparse.ArgumentParser]:
    return [command for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
            for command in action.choices.values()]
